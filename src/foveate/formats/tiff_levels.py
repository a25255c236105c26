"""How the stored levels of a TIFF become the levels of an image.

Part of the reader `tiff`: which pages show the same picture, and how stored rows and columns lie in
the upright one.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from foveate.errors import FoveateError
from foveate.formats.tiff_index import BlockGrid, TiffIndex
from foveate.images.resample import Pixels
from foveate.images.stated import level_downsample

log = logging.getLogger("foveate")

Number = TypeVar("Number", int, float)
Pair = tuple[int, int]
Reading = Callable[[int, Pair, Pair], Pixels]
"""Pixels of a region: level, origin, size, as stored."""

_WINDOW_PX = 64
_WINDOWS = 3
_CELLS = 8
_LARGEST_PX = 1 << 21
_ALIKE = 0.025
"""Of the brightest value in sight: how far levels of one even picture may lie apart (JPEG)."""


def levels_of(index: TiffIndex, read: Reading) -> tuple[BlockGrid, ...]:
    """The pages that are levels of the first one, finest first.

    Sub-directories belong to their page. Other pages are often not marked as reduced, and one of
    the same proportions may be any other picture: they are compared with the level before.
    """
    grids = index.levels
    kept = [0]
    for level in range(1, len(grids)):
        if index.nested or same_picture(read, grids, kept[-1], level):
            kept.append(level)
        else:
            log.info(
                "a page of %s pixels shows another picture, and is left out", grids[level].shape
            )
    return tuple(grids[i] for i in kept)


def same_picture(read: Reading, grids: tuple[BlockGrid, ...], finer: int, level: int) -> bool:
    """Whether a page is the finer level made smaller, judged by a few windows of both.

    Windows lie in the blocks with the most stored bytes and are compared as means over 8 x 8 cells:
    levels of one picture differ by less than half of what the picture itself varies. Where no
    window can be compared, what the page says of itself counts.
    """
    far, varied = [], []
    fine, coarse = grids[finer], grids[level]
    step = level_downsample(fine.shape, coarse.shape)
    for origin, size in _windows(fine, coarse):
        place, shape = _onto(coarse.shape, origin, size, step)
        low, extent = _back(fine.shape, place, shape, step)
        if not (_all_stored(fine, low, extent) and _all_stored(coarse, place, shape)):
            continue
        try:
            one, other = _means(read(finer, low, extent)), _means(read(level, place, shape))
        except FoveateError:
            continue
        if one.shape != other.shape:
            continue
        top = max(float(one.max()), float(other.max()), 1.0)
        far.append(float(np.abs(one - other).mean()) / top)
        varied.append(max(float(one.std((0, 1)).mean()), float(other.std((0, 1)).mean())) / top)
    if not far:
        return coarse.marked
    return float(np.mean(far)) <= max(_ALIKE, 0.5 * float(np.mean(varied)))


def _windows(fine: BlockGrid, coarse: BlockGrid) -> list[tuple[Pair, Pair]]:
    """Origin and size of windows of the finer level, about its blocks with the most bytes.

    A window covers 64 pixels of the coarser level where the finer stores all of that, else a block.
    """
    step = max(f / c for f, c in zip(fine.shape, coarse.shape, strict=True))
    side = int(min(_WINDOW_PX * step, _LARGEST_PX**0.5))
    found: list[tuple[Pair, Pair]] = []
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
                found.append(((y, x), (height, width)))
                break
    return found


def _onto(whole: Pair, origin: Pair, size: Pair, step: Sequence[float]) -> tuple[Pair, Pair]:
    """Origin and size on the coarser level, in whole pixels."""
    at = [min(round(o / s), n - 1) for o, s, n in zip(origin, step, whole, strict=True)]
    to = [
        max(1, min(round(e / s), n - o)) for e, s, n, o in zip(size, step, whole, at, strict=True)
    ]
    return (at[0], at[1]), (to[0], to[1])


def _back(whole: Pair, origin: Pair, size: Pair, step: Sequence[float]) -> tuple[Pair, Pair]:
    """Origin and size on the finer level of whole pixels of the coarser one."""
    low = [min(int(o * s), n - 1) for o, s, n in zip(origin, step, whole, strict=True)]
    high = [
        max(a + 1, min(math.ceil((o + e) * s), n))
        for a, o, e, s, n in zip(low, origin, size, step, whole, strict=True)
    ]
    return (low[0], low[1]), (high[0] - low[0], high[1] - low[1])


def _all_stored(grid: BlockGrid, origin: Pair, size: Pair) -> bool:
    return bool(grid.stored[_cells(grid, origin, size)].all())


def _means(pixels: Pixels) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Means over 8 x 8 cells, or fewer where there are fewer pixels."""
    found = pixels.astype(np.float64)
    for axis in (0, 1):
        n = found.shape[axis]
        starts = np.unique(np.linspace(0, n, min(_CELLS, n), endpoint=False).astype(int))
        width = np.diff(np.append(starts, n)).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        found = np.add.reduceat(found, starts, axis) / width
    return found


def _cells(grid: BlockGrid, origin: Pair, size: Pair) -> tuple[slice, slice]:
    """The blocks that a region touches."""
    rows, columns = (
        slice(o // b, -(-(o + n) // b)) for o, n, b in zip(origin, size, grid.block, strict=True)
    )
    return rows, columns


def stored_share(grids: tuple[BlockGrid, ...], level: int, origin: Pair, size: Pair) -> float:
    """Share of the blocks of a region that are stored on a level, or else on a finer one."""
    most = 0.0
    for i in range(level, -1, -1):
        grid = grids[i]
        if not grid.has_absent:
            return 1.0
        step = [n / m for n, m in zip(grid.shape, grids[level].shape, strict=True)]
        stored = grid.stored[_cells(grid, *_back(grid.shape, origin, size, step))]
        most = max(most, float(stored.mean()) if stored.size else 0.0)
    return most


@dataclass(frozen=True)
class Turn:
    """How stored pixels lie in the upright picture: TIFF's tag Orientation, 1 to 8.

    Attributes:
        across: rows and columns change places.
        flips: whether rows, columns then run the other way.
    """

    across: bool
    flips: tuple[bool, bool]

    @staticmethod
    def of(orientation: int) -> Turn:
        """The turn of a tag; the first row and column lie at the top left for 1 and 5."""
        down, right = ((False, False), (False, True), (True, True), (True, False))[
            (orientation - 1) % 4
        ]
        return Turn(orientation > 4, (down, right))

    def pair(self, values: Sequence[Number]) -> tuple[Number, Number]:
        """Sizes of the upright picture from stored ones, and the other way round."""
        return (values[1], values[0]) if self.across else (values[0], values[1])

    def stored(self, shape: Pair, origin: Pair, size: Pair) -> tuple[Pair, Pair]:
        """Origin and size as stored of a region of the upright picture of this shape."""
        at = [
            n - o - s if flip else o
            for n, o, s, flip in zip(shape, origin, size, self.flips, strict=True)
        ]
        return self.pair((at[0], at[1])), self.pair(size)

    def upright(self, region: Pixels) -> Pixels:
        """A stored region as it lies in the picture."""
        if self.across:
            region = region.transpose(1, 0, 2)
        way = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return np.ascontiguousarray(region[way])


def pieces(
    origin: Pair, size: Pair, step: tuple[float, float], most_px: int
) -> list[tuple[Pair, Pair]]:
    """A region cut so that each piece stands for at most so many pixels of a finer level."""
    side = max(1, int((most_px / (step[0] * step[1])) ** 0.5))
    return [
        (
            (origin[0] + y, origin[1] + x),
            (min(side, size[0] - y), min(side, size[1] - x)),
        )
        for y, x in itertools.product(range(0, size[0], side), range(0, size[1], side))
    ]
