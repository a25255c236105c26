"""Exact antialiased resampling of a region by any step, in 2D and 3D.

The filter is the triangle of width ``2 * max(step, 1)`` source pixels (antialiased linear), the one
that ``torch.nn.functional.interpolate(antialias=True)`` and Pillow's ``BILINEAR`` use: at a step of
1 and a whole offset it returns the source unchanged. `resample` takes Pillow for 8-bit pictures and
`resample_slow` for all else; a test holds the two together within one grey level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.generic]


def support(step: float) -> float:
    """How far, in source pixels, an output pixel looks to either side of its centre."""
    return max(float(step), 1.0)


def weights(start: float, step: float, n: int) -> NDArray[np.float64]:
    """Weights ``(n,)`` of n source pixels in one output pixel that begins at `start`; sum 1."""
    radius = support(step)
    distance = np.abs(np.arange(n) + 0.5 - (start + step / 2))
    weight = np.asarray(np.maximum(0.0, 1.0 - distance / radius), np.float64)
    return np.asarray(weight / weight.sum())


def rounded(values: Pixels, dtype: np.dtype[np.generic]) -> Pixels:
    """Values brought to a dtype; whole-number ones are rounded and clipped, not wrapped."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype.name)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)


def resample(
    region: Pixels, start: Sequence[float], step: Sequence[float], shape: Sequence[int]
) -> Pixels:
    """Resample a region onto a regular grid.

    Args:
        region: ``((z,) y, x, c)``; must reach `support` beyond the outermost output centres,
            otherwise the filter is renormalised over the pixels that are there.
        start: where the first output pixel begins, in source pixels of `region`, per axis.
        step: source pixels per output pixel, per axis.
        shape: number of output pixels, per axis.

    Returns:
        ``(*shape, c)`` in the dtype of `region`.

    Raises:
        ValueError: an output pixel sees no pixel of the region.
    """
    inside = all(
        o >= 0 and o + s * n <= m + 1e-6
        for o, s, n, m in zip(start, step, shape, region.shape[:-1], strict=True)
    )
    if inside and all(s == 1.0 and o == int(o) for s, o in zip(step, start, strict=True)):
        cut = tuple(slice(int(o), int(o) + n) for o, n in zip(start, shape, strict=True))
        return np.ascontiguousarray(region[cut])
    if inside and region.dtype == np.uint8 and region.ndim == 3 and region.shape[2] in (1, 3):
        return _resample_pillow(region, start, step, shape)
    return resample_slow(region, start, step, shape)


def _resample_pillow(
    region: Pixels, start: Sequence[float], step: Sequence[float], shape: Sequence[int]
) -> Pixels:
    """Pillow's box must lie inside the picture, and four channels would be taken for alpha."""
    from PIL import Image

    height, width, channels = region.shape
    y0, x0 = start
    y1, x1 = y0 + step[0] * shape[0], x0 + step[1] * shape[1]
    picture = Image.fromarray(region[:, :, 0] if channels == 1 else region)
    box = (x0, y0, min(x1, float(width)), min(y1, float(height)))
    out = np.asarray(
        picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR, box=box, reducing_gap=None)
    )
    return out[:, :, None] if channels == 1 else out


def resample_slow(
    region: Pixels, start: Sequence[float], step: Sequence[float], shape: Sequence[int]
) -> Pixels:
    """The same for any number of axes and any dtype, one axis after the other."""
    out = region.astype(np.float64 if region.dtype == np.float64 else np.float32)
    for axis, (o, s, n) in enumerate(zip(start, step, shape, strict=True)):
        out = _resample_axis(out, axis, o, s, n)
    return rounded(out, region.dtype)


def _resample_axis(values: Pixels, axis: int, start: float, step: float, n: int) -> Pixels:
    radius = support(step)
    centre = start + (np.arange(n) + 0.5) * step
    first = np.floor(centre - radius).astype(np.int64)
    taps = int(np.ceil(2 * radius)) + 2
    out = np.zeros((*values.shape[:axis], n, *values.shape[axis + 1 :]), values.dtype)
    total = np.zeros(n)
    spread = (-1,) + (1,) * (values.ndim - axis - 1)
    for tap in range(taps):
        index = first + tap
        weight = np.maximum(0.0, 1.0 - np.abs(index + 0.5 - centre) / radius)
        weight[(index < 0) | (index >= values.shape[axis])] = 0.0
        total += weight
        picked = np.take(values, np.clip(index, 0, values.shape[axis] - 1), axis=axis)
        out += picked * weight.reshape(spread).astype(values.dtype)
    if not total.all():
        raise ValueError("the grid reaches beyond the region by more than the filter's support")
    return out / total.reshape(spread).astype(values.dtype)


def brightest(dtype: np.dtype[np.generic]) -> float:
    """The value of white: the largest of an integer type, 1 for floats."""
    kind: np.dtype[Any] = dtype
    return float(np.iinfo(kind).max) if kind.kind in "ui" else 1.0
