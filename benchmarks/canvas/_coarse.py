"""Coarse views of a sparse canvas, equal to the averages of the full rendering."""

from __future__ import annotations

import numpy as np

from benchmarks.canvas.base import Bytes, Canvas, Ints, Pair, render

_DENSE_PX = 1 << 22
_CELL_PX = 20_000
_TABLE_PX = 1 << 22


def render_coarse(canvas: Canvas, factor: int, origin: Pair, size: Pair) -> Bytes:
    """Return the block means of what `render` would give, exactly.

    Costs as much as there are pastes, not as there are pixels: a block that one paste reaches into
    is summed from running totals of the stamp, one that several reach into is rendered, and what
    is crowded is halved until rendering it whole is cheaper.

    Args:
        canvas: what to look at.
        factor: pixels per side of a block.
        origin: of the region, in blocks.
        size: of the region, in blocks.

    Returns:
        ``(*size, 1)``, rounded half up; the ground goes on beyond the canvas.
    """
    if factor == 1:
        return render(canvas, origin, size)
    return _means(canvas, factor, origin, size)[:, :, None]


def _means(canvas: Canvas, factor: int, origin: Pair, size: Pair) -> Bytes:
    """Compute the block means of a region inside the canvas."""
    area = size[0] * size[1] * factor**2
    if area <= _DENSE_PX or max(size) == 1:
        return _dense_means(canvas, factor, origin, size)
    means = _sparse_means(canvas, factor, origin, size)
    if means is not None:
        return means
    axis = int(size[1] > size[0])
    half = size[axis] // 2
    sizes = [half, size[axis] - half]
    starts = [origin[axis], origin[axis] + half]
    parts = [
        _means(canvas, factor, (origin[0], o), (size[0], s))
        if axis
        else _means(canvas, factor, (o, origin[1]), (s, size[1]))
        for o, s in zip(starts, sizes, strict=True)
    ]
    return np.concatenate(parts, axis)


def _dense_means(canvas: Canvas, factor: int, origin: Pair, size: Pair) -> Bytes:
    """Compute the block means by rendering the region."""
    (y, x), (height, width) = origin, size
    pixels = render(canvas, (y * factor, x * factor), (height * factor, width * factor))
    sums = pixels.reshape(height, factor, -1).sum(1, dtype=np.uint32)
    return _rounded(sums.reshape(height, width, factor).sum(2, dtype=np.int64), factor)


def _rounded(sums: Ints, factor: int) -> Bytes:
    """Divide sums by the block area, rounding halves up."""
    return ((sums + factor**2 // 2) // factor**2).astype(np.uint8)


def _sparse_means(canvas: Canvas, factor: int, origin: Pair, size: Pair) -> Bytes | None:
    """Compute the block means from sparse pastes; None if there are too many pastes."""
    corner = np.asarray(origin) * factor
    size_px0 = (size[0] * factor, size[1] * factor)
    hit = canvas.touched((int(corner[0]), int(corner[1])), size_px0)
    low, high = canvas.origins[hit] - corner, canvas.ends[hit] - corner
    first = np.maximum(low // factor, 0)
    spans = np.minimum((high - 1) // factor + 1, size) - first
    n_blocks = spans[:, 0] * spans[:, 1]
    if 4 * int(n_blocks.sum()) > size[0] * size[1]:
        return None
    which = np.repeat(np.arange(len(hit)), n_blocks)
    step = np.arange(len(which)) - np.repeat(np.cumsum(n_blocks) - n_blocks, n_blocks)
    block = first[which] + np.stack([step // spans[which, 1], step % spans[which, 1]], 1)
    at = block[:, 0] * size[1] + block[:, 1]
    n_pastes = np.bincount(at, minlength=size[0] * size[1])
    crowded = np.flatnonzero(n_pastes > 1)
    if len(crowded) * (factor**2 + _CELL_PX) > size_px0[0] * size_px0[1]:
        return None
    alone = n_pastes[at] == 1
    which, block, at = which[alone], block[alone], at[alone]
    start = np.maximum(block * factor - low[which], 0)
    stop = np.minimum((block + 1) * factor, high[which]) - low[which]
    out = np.full(size[0] * size[1], canvas.background, np.uint8)
    gains = _gains(canvas, canvas.stamp_ids[hit[which]], canvas.scales[hit[which]], start, stop)
    out[at] = _rounded(canvas.background * factor**2 + gains, factor)
    for cell in crowded.tolist():
        place = (origin[0] + cell // size[1], origin[1] + cell % size[1])
        out[cell] = _dense_means(canvas, factor, place, (1, 1))[0, 0]
    return out.reshape(size)


def _gains(canvas: Canvas, ids: Ints, scales: Ints, start: Ints, stop: Ints) -> Ints:
    """Return by how much parts of enlarged stamps raise the sum of the ground, ``(n,)``.

    Args:
        canvas: whose stamps they are.
        ids: stamps, ``(n,)``.
        scales: factors, ``(n,)``.
        start: first row and column of the part, in enlarged pixels, ``(n, 2)``.
        stop: last row and column and one, ``(n, 2)``.
    """
    gains = np.zeros(len(ids), np.int64)
    used = np.unique(ids)
    widths = canvas.stamp_sizes[used, 1]
    for width in np.unique(widths).tolist():
        same = used[widths == width]
        areas = np.cumsum(canvas.stamp_sizes[same, 0] * width)
        for chunk in np.split(same, np.flatnonzero(np.diff(areas // _TABLE_PX)) + 1):
            at = np.flatnonzero(np.isin(ids, chunk))
            heights = canvas.stamp_sizes[chunk, 0]
            rows = (np.cumsum(heights) - heights)[np.searchsorted(chunk, ids[at])]
            table = _running_totals(canvas, chunk, width)
            for edge, sign in ((stop, 1), (start, -1)):
                for row, factor in ((stop, sign), (start, -sign)):
                    corner = np.stack([row[at, 0], edge[at, 1]], 1)
                    gains[at] += factor * _total(table, rows, corner, scales[at])
    return gains


def _running_totals(canvas: Canvas, chunk: Ints, width: int) -> Ints:
    """Return the cumulative sums of stamps, ``(rows + 1, width + 1)``.

    Stamps of one width are stacked; what lies above a stamp cancels in differences.
    """
    begins, ends = canvas.offsets[chunk], canvas.offsets[chunk + 1]
    if int(chunk[-1]) - int(chunk[0]) + 1 == len(chunk):
        pixels = canvas.stamp_pixels[begins[0] : ends[-1]]
    else:
        pixels = np.concatenate(
            [canvas.stamp_pixels[a:b] for a, b in zip(begins, ends, strict=True)]
        )
    ground = canvas.background
    if canvas.blend == "add":
        gain = np.minimum(pixels, 255 - ground).astype(np.int64)
    else:
        gain = pixels.astype(np.int64) - ground
    stacked = gain.reshape(-1, width)
    table = np.zeros((len(stacked) + 1, width + 1), np.int64)
    table[1:, 1:] = stacked.cumsum(0).cumsum(1)
    return table


def _total(table: Ints, rows: Ints, corner: Ints, scales: Ints) -> Ints:
    """Return the cumulative sum at corners given in enlarged pixels, exactly."""
    y, x = (corner // scales[:, None]).T
    y = y + rows
    if int(scales.max(initial=1)) == 1:
        return np.asarray(table[y, x])
    dy, dx = (corner % scales[:, None]).T
    below, right = np.minimum(y + 1, len(table) - 1), np.minimum(x + 1, table.shape[1] - 1)
    upper = (scales - dx) * table[y, x] + dx * table[y, right]
    lower = (scales - dx) * table[below, x] + dx * table[below, right]
    return np.asarray((scales - dy) * upper + dy * lower)
