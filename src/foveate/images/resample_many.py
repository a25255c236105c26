"""Resample many boxes of one level and one spacing, each as if it were alone.

Boxes on whole pixels that keep their spacing are what is stored. 8-bit boxes that begin at whole
pixels are resampled by PyTorch, five times as fast as by Pillow: its kernel begins at the first
pixel that it is given, so the outputs that need pixels before it are computed anew. All other
boxes are resampled one by one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from numpy.typing import NDArray

from foveate.images.resample import (
    Pixels,
    Source,
    max_block_px,
    resample,
    resample_from,
    round_to_dtype,
    support,
)

_REGION_BYTES = 4 << 20
"""Bytes of source pixels that are held at once."""
_TOGETHER = 4
"""Pictures that PyTorch resamples in one call: more would leave the processor's cache."""


def resample_boxes(
    source: Source,
    origin_px: Float64[np.ndarray, "n d"],
    step_px: Sequence[float],
    out: Pixels,
) -> None:
    """Resample boxes of one level and one spacing.

    Args:
        source: the level.
        origin_px: where the first output pixel of each box begins, in pixels of the level.
        step_px: source pixels per output pixel, per axis.
        out: ``(n, *shape, c)`` in the dtype of the level; filled.
    """
    shape = out.shape[1:-1]
    first = np.floor(origin_px).astype(np.int64)
    whole = (first == origin_px).all(1)
    stored = whole if all(s == 1.0 for s in step_px) else np.zeros_like(whole)
    margin = [math.ceil(support(s)) + 1 for s in step_px]
    wide = tuple(
        math.ceil(s * n) + 1 + 2 * m for s, n, m in zip(step_px, shape, margin, strict=True)
    )
    read_alone = np.zeros_like(whole)
    for kind, low, size in (
        (stored, first, shape),
        (whole & ~stored, first - margin, wide),
        (~whole, first - margin, wide),
    ):
        if math.prod(size) > max_block_px(resampled=kind is not stored):
            read_alone |= kind
            continue
        together = len(out) if kind is stored else _count_regions(size, out)
        for rows, part in _cut_rows(kind, together, out):
            if kind is stored:
                _read_regions(source, low[rows], part)
                continue
            regions = np.empty((len(rows), *size, source.channels), source.dtype)
            _read_regions(source, low[rows], regions)
            _resample_stack(regions, origin_px[rows] - low[rows], step_px, part)
    for i in np.flatnonzero(read_alone).tolist():
        out[i] = resample_from(source, origin_px[i].tolist(), step_px, shape)


def _count_regions(size: tuple[int, ...], out: Pixels) -> int:
    """Count the regions of `size` pixels like those of `out` that fit `_REGION_BYTES`."""
    n_bytes: int = math.prod(size) * out.shape[-1] * out.itemsize
    return max(1, _REGION_BYTES // n_bytes)


def _cut_rows(
    chosen: Bool[np.ndarray, " n"], together: int, out: Pixels
) -> Iterator[tuple[Int64[np.ndarray, " m"], Pixels]]:
    """Yield the indices of chosen boxes in groups, and the part of `out` to be filled for each."""
    rows = np.flatnonzero(chosen)
    for group in (rows[at : at + together] for at in range(0, len(rows), together)):
        if group[-1] - group[0] == len(group) - 1:
            yield group, out[group[0] : group[-1] + 1]
            continue
        part = np.empty((len(group), *out.shape[1:]), out.dtype)
        yield group, part
        out[group] = part


def _read_regions(source: Source, first: Int64[np.ndarray, "m d"], regions: Pixels) -> None:
    """Read regions ``(m, *size, c)`` that begin at the given pixels, and may leave the level."""
    size = regions.shape[1:-1]
    inside = ((first >= 0) & (first + size <= source.shape)).all(1)
    if inside.all():
        source.read_many(first, regions)
        return
    for i in np.flatnonzero(~inside).tolist():
        regions[i] = source.read(tuple(first[i].tolist()), size)
    if inside.any():
        part = np.empty((int(inside.sum()), *regions.shape[1:]), regions.dtype)
        source.read_many(first[inside], part)
        regions[inside] = part


def _resample_stack(
    regions: Pixels,
    start_px: Float64[np.ndarray, "m d"],
    step_px: Sequence[float],
    out: Pixels,
) -> None:
    """Resample regions ``(m, *space, c)`` into ``(m, *shape, c)``, each as `resample` does.

    Args:
        regions: the regions, which reach beyond the boxes by the filter's support.
        start_px: where each box begins in its region; whole pixels for all or for none.
        step_px: source pixels per output pixel, per axis.
        out: filled.
    """
    first = tuple(int(v) for v in start_px[0])
    if (start_px != first).any() or not _suits_torch(regions, first, step_px):
        for region, start, box in zip(regions, start_px.tolist(), out, strict=True):
            box[...] = resample(region, start, step_px, box.shape[:-1])
        return
    for at in range(0, len(regions), _TOGETHER):
        few = slice(at, at + _TOGETHER)
        _resample_pictures(regions[few, first[0] :, first[1] :], step_px, out[few])
    rows, columns = (
        _taps(*axis) for axis in zip(map(float, first), step_px, out.shape[1:3], strict=True)
    )
    top, left = rows.cut(_count_edge(step_px[0])), columns.cut(_count_edge(step_px[1]))
    upper = _weigh(_weigh(regions, top, 1), columns, 2)
    out[:, : len(top.source)] = round_to_dtype(upper, out.dtype)
    lower = _weigh(_weigh(regions, left, 2), rows, 1)
    out[:, :, : len(left.source)] = round_to_dtype(lower, out.dtype)


def _suits_torch(regions: Pixels, first: tuple[int, ...], step_px: Sequence[float]) -> bool:
    """Return whether PyTorch resamples such regions rightly from their pixel `first` on.

    They must be 8-bit pictures. PyTorch only copies where it is to return as many pixels as it is
    given, although the step is not 1.
    """
    if regions.dtype != np.uint8 or regions.ndim != 4 or regions.shape[-1] not in (1, 3):
        return False
    given = (n - at for n, at in zip(regions.shape[1:3], first, strict=True))
    return all(s == 1.0 or int(n * (1 / s)) != n for n, s in zip(given, step_px, strict=True))


def _resample_pictures(pictures: Pixels, step_px: Sequence[float], out: Pixels) -> None:
    """Resample 8-bit pictures ``(m, y, x, c)`` from their first pixel on into `out`."""
    import torch
    from torch.nn import functional

    planes = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)
    resized = functional.interpolate(
        planes,
        scale_factor=[1 / s for s in step_px],
        mode="bilinear",
        antialias=True,
        recompute_scale_factor=False,
    )
    out[:] = resized[:, :, : out.shape[1], : out.shape[2]].permute(0, 2, 3, 1).numpy()


class _Taps(NamedTuple):
    """The source pixels under the filter of each of n output pixels along an axis, ``(n, taps)``.

    Attributes:
        source: indices of the pixels.
        weight: their weights, which sum to 1.
    """

    source: Int64[np.ndarray, "n taps"]
    weight: Float32[np.ndarray, "n taps"]

    def cut(self, n: int) -> _Taps:
        """Return the taps of the first `n` output pixels."""
        return _Taps(self.source[:n], self.weight[:n])


@functools.lru_cache(maxsize=64)
def _taps(start_px: float, step_px: float, n: int) -> _Taps:
    """Compute the taps of `n` output pixels, the first of which begins at `start_px`."""
    radius, centre = support(step_px), start_px + (np.arange(n) + 0.5) * step_px
    first = np.floor(centre - radius).astype(np.int64)
    index = first[:, None] + np.arange(math.ceil(2 * radius) + 2)
    weight = np.maximum(0.0, 1.0 - np.abs(index + 0.5 - centre[:, None]) / radius)
    return _Taps(index, (weight / weight.sum(1, keepdims=True)).astype(np.float32))


def _count_edge(step_px: float) -> int:
    """Count the outputs at the beginning of an axis whose filter begins before their box."""
    return math.ceil(support(step_px) / step_px - 0.5)


def _weigh(values: Pixels, taps: _Taps, axis: int) -> NDArray[np.float32]:
    """Resample rows (`axis` 1) or columns (2) of pictures ``(m, y, x, c)``."""
    shape = (-1, 1, 1) if axis == 1 else (-1, 1)
    parts = (
        values.take(index, axis, mode="clip") * weight.reshape(shape)
        for index, weight in zip(taps.source.T, taps.weight.T, strict=True)
    )
    return functools.reduce(np.add, parts)
