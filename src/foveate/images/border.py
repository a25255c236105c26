"""Read what lies at the border of an image and beyond it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foveate.images.resample import Pixels

_BORDER_PX = 32

ReadInside = Callable[[tuple[int, ...], tuple[int, ...]], Pixels]
"""Reads the pixels ``(*size, c)`` of a region inside a level, given its origin and size."""


def read_padded(
    read: ReadInside,
    shape: tuple[int, ...],
    region_px: tuple[tuple[int, ...], tuple[int, ...]],
    background: Callable[[], Pixels],
) -> Pixels:
    """Read a region of a level, filled with the background where it lies outside.

    Args:
        read: reads a region inside the level.
        shape: pixels of the level per axis.
        region_px: origin and size of the region; it may lie outside the level.
        background: returns the colour ``(c,)`` outside; called only if needed.

    Returns:
        ``(*size, c)``.
    """
    origin, size = region_px
    low = tuple(min(max(o, 0), n) for o, n in zip(origin, shape, strict=True))
    high = tuple(min(max(o + s, 0), n) for o, s, n in zip(origin, size, shape, strict=True))
    inside = tuple(h - a for a, h in zip(low, high, strict=True))
    if inside == size:
        return read(low, size)
    colour = background()
    out = np.empty((*size, len(colour)), colour.dtype)
    out.reshape(-1, size[-1] * len(colour))[:] = np.tile(colour, size[-1])
    if all(n > 0 for n in inside):
        cut = tuple(slice(a - o, a - o + n) for a, o, n in zip(low, origin, inside, strict=True))
        out[cut] = read(low, inside)
    return out


def border_median(read: ReadInside, shape: tuple[int, ...]) -> Pixels:
    """Compute the median colour ``(c,)`` of small blocks at the corners and edges of a level.

    Args:
        read: reads a region inside the level.
        shape: pixels of the level per axis.
    """
    blocks = []
    for place in np.ndindex(*(3,) * len(shape)):
        if all(p == 1 for p in place):
            continue
        size = tuple(min(_BORDER_PX, n) for n in shape)
        origin = tuple((n - s) * p // 2 for n, s, p in zip(shape, size, place, strict=True))
        block = read(origin, size)
        blocks.append(block.reshape(-1, block.shape[-1]).astype(np.float64))
    return np.asarray(np.median(np.concatenate(blocks), axis=0))
