"""Choose the pages of a TIFF that are levels of one picture.

Part of the reader `tiff`.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable

import numpy as np

from foveate.errors import FoveateError
from foveate.formats.tiff_blocks import touched_range
from foveate.formats.tiff_grid import BlockGrid
from foveate.formats.tiff_index import TiffIndex
from foveate.geometry import region_coarse_from_fine, region_fine_from_coarse
from foveate.images.resample import Pixels
from foveate.images.stated import level_downsample

log = logging.getLogger("foveate")

Pair = tuple[int, int]
ReadRegion = Callable[[int, Pair, Pair], Pixels]
"""Reads the pixels ``(y, x, c)`` of a region as stored, by level, origin and size in pixels."""

_WINDOW_PX = 64
_WINDOWS = 3
_CELLS = 8
_MAX_PX = 1 << 21
_MAX_DIFFERENCE = 0.025
"""How much levels of an even picture may differ, as a share of its largest value (by JPEG)."""


def choose_levels(index: TiffIndex, read: ReadRegion) -> tuple[BlockGrid, ...]:
    """Choose the pages that are levels of the first one, finest first.

    Sub-directories belong to their page. Other pages are often not marked as reduced, and one of
    the same proportions may be any other picture: they are compared with the level before.

    Args:
        index: all pages that may be levels.
        read: reads a region of a page.
    """
    grids = index.levels
    chosen = [0]
    for level in range(1, len(grids)):
        if index.nested or same_picture(read, grids, chosen[-1], level):
            chosen.append(level)
        else:
            log.info(
                "a page of %s pixels shows another picture, and is left out", grids[level].shape
            )
    return tuple(grids[i] for i in chosen)


def same_picture(read: ReadRegion, grids: tuple[BlockGrid, ...], finer: int, level: int) -> bool:
    """Return whether a page shows the finer level made smaller, judged by a few windows of both.

    Windows lie in the blocks with the most stored bytes and are compared as means over 8 x 8 cells:
    levels of one picture differ by less than half of the variation within the picture. Where no
    window can be compared, the page's own mark decides.

    Args:
        read: reads a region of a page.
        grids: the pages.
        finer: index of the finer level.
        level: index of the page in question.
    """
    differences, variations = [], []
    fine, coarse = grids[finer], grids[level]
    downsample = level_downsample(fine.shape, coarse.shape)
    for origin, size in _windows(fine, coarse):
        place, shape = region_coarse_from_fine(coarse.shape, origin, size, downsample)
        low, extent = region_fine_from_coarse(fine.shape, place, shape, downsample)
        if not (_all_stored(fine, low, extent) and _all_stored(coarse, place, shape)):
            continue
        try:
            one, other = (
                _cell_means(read(finer, low, extent)),
                _cell_means(read(level, place, shape)),
            )
        except FoveateError:
            continue
        if one.shape != other.shape:
            continue
        top = max(float(one.max()), float(other.max()), 1.0)
        differences.append(float(np.abs(one - other).mean()) / top)
        variation = max(float(one.std((0, 1)).mean()), float(other.std((0, 1)).mean()))
        variations.append(variation / top)
    if not differences:
        return coarse.marked
    limit = max(_MAX_DIFFERENCE, 0.5 * float(np.mean(variations)))
    return float(np.mean(differences)) <= limit


def _windows(fine: BlockGrid, coarse: BlockGrid) -> list[tuple[Pair, Pair]]:
    """Choose windows of the finer level at its blocks with the most bytes, as origin and size.

    A window covers 64 pixels of the coarser level where the finer stores all of that, else a block.
    """
    step = max(f / c for f, c in zip(fine.shape, coarse.shape, strict=True))
    side = int(min(_WINDOW_PX * step, _MAX_PX**0.5))
    windows: list[tuple[Pair, Pair]] = []
    most = np.argsort(-fine.counts[: fine.grid[0] * fine.grid[1]], kind="stable")
    for place in most[:: max(1, len(most) // (4 * _WINDOWS))][:_WINDOWS]:
        cell = divmod(int(place), fine.grid[1])
        block = [
            (c * b, min(b, n - c * b)) for c, b, n in zip(cell, fine.block, fine.shape, strict=True)
        ]
        wide = [
            (max(0, min(o + (b - side) // 2, n - side)), min(side, n))
            for (o, b), n in zip(block, fine.shape, strict=True)
        ]
        for (y, height), (x, width) in (wide, block):
            if _all_stored(fine, (y, x), (height, width)):
                windows.append(((y, x), (height, width)))
                break
    return windows


def _all_stored(grid: BlockGrid, origin_px: Pair, size_px: Pair) -> bool:
    """Return whether all blocks that a region touches are stored."""
    return bool(grid.stored[touched_range(grid, origin_px, size_px)].all())


def _cell_means(pixels: Pixels) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Average pixels ``(y, x, c)`` over 8 x 8 cells, or fewer where there are fewer pixels."""
    means = pixels.astype(np.float64)
    for axis in (0, 1):
        n = means.shape[axis]
        starts = np.unique(np.linspace(0, n, min(_CELLS, n), endpoint=False).astype(int))
        width = np.diff(np.append(starts, n)).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        means = np.add.reduceat(means, starts, axis) / width
    return means


def stored_share(grids: tuple[BlockGrid, ...], level: int, origin_px: Pair, size_px: Pair) -> float:
    """Compute the share of a region's blocks that are stored on a level, or on a finer one.

    Args:
        grids: the levels, finest first.
        level: index of the level.
        origin_px: first pixel of the region on that level, as stored.
        size_px: pixels of the region.
    """
    most = 0.0
    for i in range(level, -1, -1):
        grid = grids[i]
        if not grid.has_absent:
            return 1.0
        ratio = [n / m for n, m in zip(grid.shape, grids[level].shape, strict=True)]
        stored = grid.stored[
            touched_range(grid, *region_fine_from_coarse(grid.shape, origin_px, size_px, ratio))
        ]
        most = max(most, float(stored.mean()) if stored.size else 0.0)
    return most


def cut_region(
    origin_px: Pair, size_px: Pair, downsample: tuple[float, float], most_px: int
) -> list[tuple[Pair, Pair]]:
    """Cut a region into pieces that each cover at most `most_px` pixels of a finer level.

    Args:
        origin_px: first pixel of the region.
        size_px: pixels of the region.
        downsample: pixels of the finer level per pixel of the region, per axis.
        most_px: the largest number of pixels of the finer level.

    Returns:
        origin and size of each piece.
    """
    fine_per_px = math.prod(downsample)
    side = max(1, int((most_px / fine_per_px) ** 0.5))
    return [
        (
            (origin_px[0] + y, origin_px[1] + x),
            (min(side, size_px[0] - y), min(side, size_px[1] - x)),
        )
        for y, x in itertools.product(range(0, size_px[0], side), range(0, size_px[1], side))
    ]
