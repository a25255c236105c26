"""Resample a region exactly, with antialiasing, by any step, in 2D and 3D.

The filter is the triangle of width ``2 * max(step, 1)`` source pixels (antialiased linear), the one
that ``torch.nn.functional.interpolate(antialias=True)`` and Pillow's ``BILINEAR`` use: at a step of
1 and a whole offset it returns the source unchanged. `resample` takes Pillow for 8-bit pictures and
`resample_slow` for all else; a test holds the two together within one grey level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from foveate.errors import ArrayError

Pixels = NDArray[np.generic]
Corners = Int64[np.ndarray, "n d"]
"""First pixels of regions on a level, ``(n, d)``."""

MAX_REGION_PIXELS = 1 << 24
"""Source pixels held at once by `resample_from`; larger requests are cut and stitched."""

_SUM_PIXELS = 1 << 20
_SPARSE = 0.25
_BEYOND = "the grid reaches beyond the region by more than the filter's support: read a larger one"


def support(step_px: float) -> float:
    """Compute the filter's radius in source pixels for a step in source pixels per output pixel."""
    return max(float(step_px), 1.0)


def weights(origin_px: float, step_px: float, n: int, first: int, m: int) -> NDArray[np.float64]:
    """Compute the weights of source pixels in output pixels along one axis.

    Args:
        origin_px: where the first output pixel begins, in source pixels.
        step_px: source pixels per output pixel.
        n: number of output pixels.
        first: index of the first available source pixel.
        m: number of available source pixels.

    Returns:
        ``(n, m)``; rows sum to 1 where all pixels under the filter are available.
    """
    result = np.zeros((n, m))
    radius = support(step_px)
    for i in range(n):
        centre = origin_px + (i + 0.5) * step_px
        low = math.floor(centre - radius)
        index = np.arange(low, math.ceil(centre + radius) + 1)
        weight = np.maximum(0.0, 1.0 - np.abs(index + 0.5 - centre) / radius)
        available = (index >= first) & (index < first + m)
        result[i, index[available] - first] = weight[available] / weight.sum()
    return result


def round_to_dtype(values: Pixels, dtype: np.dtype[np.generic]) -> Pixels:
    """Convert values of any shape to a dtype; integers are rounded and clipped, not wrapped.

    Args:
        values: values of any shape.
        dtype: dtype of the result.
    """
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype.name)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)


def resample(
    region: Pixels, start_px: Sequence[float], step_px: Sequence[float], shape: Sequence[int]
) -> Pixels:
    """Resample a region onto a regular grid.

    Args:
        region: ``((z,) y, x, c)``; should reach `support` beyond the outermost output centres,
            otherwise the filter is renormalised over the pixels that are there.
        start_px: where the first output pixel begins, in pixels of `region`, per axis.
        step_px: source pixels per output pixel, per axis.
        shape: number of output pixels, per axis.

    Returns:
        ``(*shape, c)`` in the dtype of `region`.

    Raises:
        ArrayError: an output pixel sees no pixel of the region.
    """
    inside = all(
        o >= 0 and o + s * n <= m + 1e-6
        for o, s, n, m in zip(start_px, step_px, shape, region.shape[:-1], strict=True)
    )
    if inside and all(s == 1.0 and o == int(o) for s, o in zip(step_px, start_px, strict=True)):
        cut = tuple(slice(int(o), int(o) + n) for o, n in zip(start_px, shape, strict=True))
        return np.ascontiguousarray(region[cut])
    if inside and region.dtype == np.uint8 and region.ndim == 3 and region.shape[2] in (1, 3):
        return _resample_pillow(region, start_px, step_px, shape)
    return resample_slow(region, start_px, step_px, shape)


def _resample_pillow(
    region: Pixels, start_px: Sequence[float], step_px: Sequence[float], shape: Sequence[int]
) -> Pixels:
    """Resample an 8-bit region ``(y, x, 1 or 3)`` with Pillow.

    The output must lie inside the region, as Pillow's box must. Pillow would take a fourth channel
    for alpha.
    """
    from PIL import Image

    height, width, channels = region.shape
    y0, x0 = start_px
    y1, x1 = y0 + step_px[0] * shape[0], x0 + step_px[1] * shape[1]
    picture = Image.fromarray(region[:, :, 0] if channels == 1 else region)
    box = (x0, y0, min(x1, float(width)), min(y1, float(height)))
    out = np.asarray(
        picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR, box=box, reducing_gap=None)
    )
    return out[:, :, None] if channels == 1 else out


def resample_slow(
    region: Pixels, start_px: Sequence[float], step_px: Sequence[float], shape: Sequence[int]
) -> Pixels:
    """Resample a region of any number of axes and any dtype, one axis after the other.

    The result ``(*shape, c)`` and the errors are those of `resample`.

    Args:
        region: stored values ``(*space, c)``.
        start_px: first edge of the result on each axis, in pixels of the region.
        step_px: side of a pixel of the result on each axis, in pixels of the region.
        shape: pixels of the result per axis.
    """
    out = region.astype(np.float64 if region.dtype == np.float64 else np.float32)
    for axis, (o, s, n) in enumerate(zip(start_px, step_px, shape, strict=True)):
        out = _resample_axis(out, axis, o, s, n)
    return round_to_dtype(out, region.dtype)


def _resample_axis(values: Pixels, axis: int, start_px: float, step_px: float, n: int) -> Pixels:
    """Resample an array along one axis to `n` output pixels, one tap of the filter at a time."""
    radius = support(step_px)
    centre = start_px + (np.arange(n) + 0.5) * step_px
    first = np.floor(centre - radius).astype(np.int64)
    taps = int(np.ceil(2 * radius)) + 2
    if n < taps:
        return _resample_few(values, axis, centre, radius, first, taps)
    out = np.zeros((*values.shape[:axis], n, *values.shape[axis + 1 :]), values.dtype)
    total = np.zeros(n)
    along_axis = (-1,) + (1,) * (values.ndim - axis - 1)
    for tap in range(taps):
        index = first + tap
        weight = np.maximum(0.0, 1.0 - np.abs(index + 0.5 - centre) / radius)
        weight[(index < 0) | (index >= values.shape[axis])] = 0.0
        total += weight
        tapped = np.take(values, np.clip(index, 0, values.shape[axis] - 1), axis=axis)
        out += tapped * weight.reshape(along_axis).astype(values.dtype)
    if not total.all():
        raise ArrayError(_BEYOND)
    return out / total.reshape(along_axis).astype(values.dtype)


def _resample_few(
    values: Pixels,
    axis: int,
    centre: Pixels,
    radius: float,
    first: NDArray[np.int64],
    taps: int,
) -> Pixels:
    """Resample along one axis output by output, for a filter longer than the output.

    Args:
        values: the array.
        axis: the axis to resample.
        centre: centres of the output pixels in source pixels, ``(n,)``.
        radius: radius of the filter in source pixels.
        first: first source pixel under the filter of each output pixel, ``(n,)``.
        taps: number of source pixels under the filter.
    """
    rows = []
    for c, low in zip(centre.tolist(), first.tolist(), strict=True):
        index = np.arange(max(low, 0), min(low + taps, values.shape[axis]))
        weight = np.maximum(0.0, 1.0 - np.abs(index + 0.5 - c) / radius)
        if not weight.any():
            raise ArrayError(_BEYOND)
        covered = values[(slice(None),) * axis + (slice(index[0], index[-1] + 1),)]
        share = (weight / weight.sum()).astype(values.dtype)
        rows.append(np.tensordot(share, covered, (0, axis)))
    return np.stack(rows, axis)


@dataclass(frozen=True)
class Source:
    """One level of an image, read by regions.

    Attributes:
        shape: pixels of the level per axis.
        tiled: whether the level is stored in tiles, not in whole rows.
        channels: number of channels that `read` returns.
        dtype: dtype of the pixels that `read` returns.
        background: returns the colour ``(c,)`` outside the level, and inside where nothing is
            stored; called only if needed.
        read: returns the pixels ``(*size, c)`` of the region of an origin and a size, which may
            reach beyond the level.
        read_many: fills regions ``(n, *size, c)``, given the first pixels of each; all lie inside
            the level.
        stored_share: returns roughly which share of the region of an origin and a size inside the
            level is stored; exactly 0 where all of it is background.
    """

    shape: tuple[int, ...]
    tiled: bool
    channels: int
    dtype: np.dtype[np.generic]
    background: Callable[[], Pixels]
    read: Callable[[tuple[int, ...], tuple[int, ...]], Pixels]
    read_many: Callable[[Corners, Pixels], None]
    stored_share: Callable[[tuple[int, ...], tuple[int, ...]], float]


def resample_from(
    source: Source, origin_px: Sequence[float], step_px: Sequence[float], shape: tuple[int, ...]
) -> Pixels:
    """Resample a region of any size of a level, in memory that does not grow with its size.

    The work grows with the stored pixels inside the region: what lies outside the level, or is not
    stored, becomes background without being read.

    Args:
        source: the level.
        origin_px: where the first output pixel begins, in pixels of the level, per axis.
        step_px: source pixels per output pixel, per axis.
        shape: number of output pixels, per axis.

    Returns:
        ``(*shape, c)`` in the dtype of the level.
    """
    low = [
        math.floor(o) - math.ceil(support(s)) - 1 for o, s in zip(origin_px, step_px, strict=True)
    ]
    high = [
        math.ceil(o + s * n) + math.ceil(support(s)) + 1
        for o, s, n in zip(origin_px, step_px, shape, strict=True)
    ]
    extent = tuple(h - a for a, h in zip(low, high, strict=True))
    first = tuple(min(max(a, 0), n) for a, n in zip(low, source.shape, strict=True))
    last = (min(max(h, 0), n) for h, n in zip(high, source.shape, strict=True))
    inside = tuple(b - a for a, b in zip(first, last, strict=True))
    share = source.stored_share(first, inside) if math.prod(inside) else 0.0
    if not share:
        return np.broadcast_to(source.background(), (*shape, source.channels)).copy()
    large = _is_large(inside, share)
    if large and max(shape) > 1:
        return _resample_halves(source, origin_px, step_px, shape, inside)
    if all(s == 1.0 for s in step_px) and all(o == int(o) for o in origin_px):
        return source.read(tuple(map(int, origin_px)), shape)
    if large or math.prod(extent) > _SUM_PIXELS + 4 * math.prod(inside):
        axes = zip(origin_px, step_px, shape, first, inside, strict=True)
        return _sum_blocks(source, first, [weights(o, s, n, a, m) for o, s, n, a, m in axes])
    start = [o - a for o, a in zip(origin_px, low, strict=True)]
    return resample(source.read(tuple(low), extent), start, step_px, shape)


def max_block_px(*, resampled: bool = True) -> int:
    """Return the largest number of pixels of a block that is read at once, or beside others.

    Args:
        resampled: whether the block is resampled, or the result itself.
    """
    return min(_SUM_PIXELS, MAX_REGION_PIXELS) if resampled else MAX_REGION_PIXELS


def _is_large(inside: Sequence[int], share: float) -> bool:
    """Return whether a region is to be read in parts: it is large, or little of it is stored.

    Args:
        inside: pixels of the region inside the level, per axis.
        share: share of them that is stored.
    """
    n_px = math.prod(inside)
    return n_px > MAX_REGION_PIXELS or (share < _SPARSE and n_px > _SUM_PIXELS)


def _resample_halves(
    source: Source,
    origin_px: Sequence[float],
    step_px: Sequence[float],
    shape: tuple[int, ...],
    inside: tuple[int, ...],
) -> Pixels:
    """Resample a region that is too large to be read at once as two halves side by side.

    Arguments and result are those of `resample_from`; `inside` is the region's size inside the
    level in pixels, per axis.
    """
    axes = [a for a in range(len(shape)) if shape[a] > 1]
    # Files without tiles store whole rows: cut across rows, or every row is read twice.
    axis = max(axes, key=lambda a: inside[a]) if source.tiled else axes[0]
    first, second, moved = list(shape), list(shape), list(origin_px)
    first[axis] //= 2
    second[axis] -= first[axis]
    moved[axis] += first[axis] * step_px[axis]
    halves = [
        resample_from(source, origin_px, step_px, tuple(first)),
        resample_from(source, moved, step_px, tuple(second)),
    ]
    return np.concatenate(halves, axis)


def _sum_blocks(
    source: Source, first: tuple[int, ...], weight: Sequence[NDArray[np.float64]]
) -> Pixels:
    """Resample as a weighted sum over the stored blocks of a region.

    For output pixels that cover many source pixels, or many pixels beside the level.

    Args:
        source: the level.
        first: first source pixel of the region, per axis.
        weight: per axis ``(outputs, source pixels)``; where a row sums to less than 1, the rest is
            the weight of the background.
    """
    ground = source.background().astype(np.float64)
    total = np.zeros((*(len(w) for w in weight), source.channels))
    most = max_block_px()
    waiting = [((0,) * len(weight), tuple(w.shape[1] for w in weight))]
    while waiting:
        corner, size = waiting.pop()
        origin = tuple(a + c for a, c in zip(first, corner, strict=True))
        if not source.stored_share(origin, size):
            continue
        if math.prod(size) > most:
            waiting += _halve(corner, size, source.tiled)
            continue
        # Differences from the background are summed, so that pixels not read count as background.
        values = source.read(origin, size).astype(np.float64) - ground
        for axis, (w, c, n) in enumerate(zip(weight, corner, size, strict=True)):
            values = np.moveaxis(np.tensordot(w[:, c : c + n], values, (1, axis)), 0, axis)
        total += values
    return round_to_dtype(total + ground, source.dtype)


def _halve(
    corner: tuple[int, ...], size: tuple[int, ...], tiled: bool
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Cut a block in two across its longest axis, or across rows where these are stored whole.

    Returns the second half before the first: each as corner and size in pixels. The first is thus
    the one that a stack returns next.
    """
    rows_first = not tiled and size[0] > 1
    axis = 0 if rows_first else max(range(len(size)), key=lambda a: size[a])
    half = size[axis] // 2
    moved = tuple(c + half if a == axis else c for a, c in enumerate(corner))
    rest = tuple(n - half if a == axis else n for a, n in enumerate(size))
    return [(moved, rest), (corner, tuple(half if a == axis else n for a, n in enumerate(size)))]


def white_value(dtype: np.dtype[np.generic]) -> float:
    """Return the value of white in a dtype: the largest of an integer type, 1 for floats."""
    kind: np.dtype[Any] = dtype
    return float(np.iinfo(kind).max) if kind.kind in "ui" else 1.0
