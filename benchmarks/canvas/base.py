"""The sparse canvas, and its pixels at full resolution."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveate.errors import OptionError

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Blend = Literal["overwrite", "add"]
Pair = tuple[int, int]

MAX_SIDE_PX = 1 << 22
"""Longest side of a canvas."""

MAX_STAMP_PX = 1 << 12
"""Longest side of a stamp, and the largest scale."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """A ground of one grey value with ordered pastes of stamps; arrays are never changed.

    Attributes:
        shape: pixels ``(y, x)``.
        origins: ``(n, 2)`` top left corners of the pastes, which lie wholly on the canvas.
        stamp_ids: ``(n,)`` which stamp is pasted.
        scales: ``(n,)`` whole factors by which it is enlarged, pixels repeated.
        stamp_sizes: ``(m, 2)`` height and width.
        stamp_pixels: ``(p,)`` all stamps one after the other, by rows.
        background: grey value of the ground.
        blend: a later paste hides a whole block (``overwrite``), or adds up to 255 (``add``).

    Raises:
        OptionError: the arrays contradict each other, or a paste reaches beyond the canvas.
    """

    shape: Pair
    origins: Ints
    stamp_ids: Ints
    scales: Ints
    stamp_sizes: Ints
    stamp_pixels: Bytes
    background: int = 0
    blend: Blend = "overwrite"

    def __post_init__(self) -> None:
        n, m = len(self.origins), len(self.stamp_sizes)
        check(all(0 < s <= MAX_SIDE_PX for s in self.shape), f"a shape of {self.shape}")
        check(0 <= self.background <= 255, f"a background of {self.background}")
        check(self.blend in get_args(Blend), f"a blend '{self.blend}'")
        check(self.origins.shape == (n, 2) and self.stamp_sizes.shape == (m, 2), "odd tables")
        check(self.stamp_ids.shape == (n,) == self.scales.shape, "columns of different length")
        check(self.stamp_pixels.dtype == np.uint8, f"stamps of {self.stamp_pixels.dtype}")
        check(_within(self.stamp_sizes, 1, MAX_STAMP_PX), "a stamp of impossible size")
        check(self.stamp_pixels.shape == (int(self.offsets[-1]),), "stamps of other pixel counts")
        check(_within(self.stamp_ids, 0, m - 1), "a paste of a stamp that is not there")
        check(_within(self.scales, 1, MAX_STAMP_PX), "an impossible scale")
        outside = (self.origins < 0) | (self.ends > np.asarray(self.shape))
        check(not outside.any(), "a paste that reaches beyond it")

    @classmethod
    def from_stamps(
        cls,
        shape: Pair,
        stamps: Sequence[Bytes],
        origins: ArrayLike,
        *,
        stamp_ids: ArrayLike | None = None,
        scales: ArrayLike | None = None,
        background: int = 0,
        blend: Blend = "overwrite",
    ) -> Self:
        """Build a canvas from stamps ``(h, w)``, one per paste unless `stamp_ids` is given."""
        flat = [stamp.reshape(-1) for stamp in stamps]
        corners = np.asarray(origins, np.int64).reshape(-1, 2)
        n = len(corners)
        return cls(
            shape,
            corners,
            np.arange(n) if stamp_ids is None else np.asarray(stamp_ids, np.int64),
            np.ones(n, np.int64) if scales is None else np.asarray(scales, np.int64),
            np.asarray([stamp.shape for stamp in stamps], np.int64).reshape(-1, 2),
            np.concatenate(flat) if flat else np.empty(0, np.uint8),
            background,
            blend,
        )

    @functools.cached_property
    def offsets(self) -> Ints:
        """Return the limits ``(m + 1,)`` of the stamps in `stamp_pixels`."""
        return np.concatenate([[0], np.cumsum(self.stamp_sizes[:, 0] * self.stamp_sizes[:, 1])])

    @functools.cached_property
    def ends(self) -> Ints:
        """Return the bottom right corners of the pastes, ``(n, 2)``."""
        return self.origins + self.stamp_sizes[self.stamp_ids] * self.scales[:, None]

    @functools.cached_property
    def _by_row(self) -> tuple[Ints, Ints, int]:
        """Return the pastes sorted by top row, their top rows, and the greatest height."""
        order = np.argsort(self.origins[:, 0], kind="stable")
        heights = self.ends[:, 0] - self.origins[:, 0]
        return order, self.origins[order, 0], int(heights.max(initial=0))

    def touched(self, origin: Pair, size: Pair) -> Ints:
        """Return the pastes that overlap a region, in paste order."""
        order, tops, tallest = self._by_row
        (y, x), (height, width) = origin, size
        first, last = np.searchsorted(tops, (y - tallest + 1, y + height))
        slab = order[first:last]
        starts, ends = self.origins[slab], self.ends[slab]
        across = (starts[:, 1] < x + width) & (ends[:, 1] > x) & (ends[:, 0] > y)
        indices: Ints = np.sort(slab[across])
        return indices


def check(holds: bool, message: str) -> None:
    """Raise `OptionError` with this message unless a condition on a canvas holds."""
    if not holds:
        raise OptionError(f"not a sparse canvas: {message}")


def _within(values: Ints, low: int, high: int) -> bool:
    """Tell whether all values lie within bounds."""
    return not values.size or (int(values.min()) >= low and int(values.max()) <= high)


def render(canvas: Canvas, origin: Pair, size: Pair) -> Bytes:
    """Return the pixels ``(*size, 1)`` of a region; outside the canvas lies the ground."""
    out = np.full(size, canvas.background, np.uint8)
    hit = canvas.touched(origin, size)
    ids = canvas.stamp_ids[hit]
    rows = zip(
        (canvas.origins[hit] - origin).tolist(),
        canvas.stamp_sizes[ids].tolist(),
        canvas.offsets[ids].tolist(),
        canvas.scales[hit].tolist(),
        strict=True,
    )
    add = canvas.blend == "add"
    for (y, x), (height, width), offset, scale in rows:
        stamp = canvas.stamp_pixels[offset : offset + height * width].reshape(height, width)
        _paste(out, y, x, stamp, scale, add)
    return out[:, :, None]


def _paste(out: Bytes, y: int, x: int, stamp: Bytes, scale: int, add: bool) -> None:
    """Draw an enlarged stamp into a region, clipped on all sides."""
    height, width = stamp.shape
    top, left = max(-y, 0), max(-x, 0)
    bottom, right = min(height * scale, out.shape[0] - y), min(width * scale, out.shape[1] - x)
    if scale == 1:
        block = stamp[top:bottom, left:right]
    else:
        low, first = top // scale, left // scale
        block = stamp[low : -(-bottom // scale), first : -(-right // scale)]
        block = block.repeat(scale, 1)[:, left - first * scale : right - first * scale]
        block = block.repeat(scale, 0)[top - low * scale : bottom - low * scale]
    part = out[y + top : y + bottom, x + left : x + right]
    if add:
        part += np.minimum(block, 255 - part)
    else:
        part[:] = block
