"""Find the stored blocks of a TIFF level that a region touches, and how they lie in it.

Part of the reader `tiff`. Regions are in stored rows and columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from foveate.formats.tiff_grid import BlockGrid

_GAP_BYTES = 64 << 10
_READ_BYTES = 8 << 20


class StoredBlock(NamedTuple):
    """One stored block: its row and column in the grid, and the place of its bytes in the file.

    Attributes:
        row: row of the grid of blocks.
        column: column of the grid of blocks.
        offsets: the first byte of each plane.
        counts: number of bytes of each plane.
    """

    row: int
    column: int
    offsets: tuple[int, ...]
    counts: tuple[int, ...]


def shares_bytes(grid: BlockGrid) -> bool:
    """Return whether some blocks of a level share their stored bytes."""
    stored = grid.offsets[grid.offsets != 0]
    return len(np.unique(stored)) < len(stored)


def touched_range(
    grid: BlockGrid, origin_px: tuple[int, int], size_px: tuple[int, int]
) -> tuple[slice, slice]:
    """Return the rows and columns of the blocks that a region touches.

    Args:
        grid: blocks of the level.
        origin_px: first row and column of the region, in pixels of the level.
        size_px: rows and columns of the region.
    """
    rows, columns = (
        slice(o // b, -(-(o + n) // b))
        for o, n, b in zip(origin_px, size_px, grid.block, strict=True)
    )
    return rows, columns


def touched_blocks(
    grid: BlockGrid, origin_px: tuple[int, int], size_px: tuple[int, int]
) -> Iterator[StoredBlock]:
    """Yield the blocks that a region touches, row by row.

    Args:
        grid: blocks of the level.
        origin_px: first row and column of the region, in pixels of the level.
        size_px: rows and columns of the region.
    """
    rows, columns = (range(s.start, s.stop) for s in touched_range(grid, origin_px, size_px))
    per_plane = grid.grid[0] * grid.grid[1]
    planes = len(grid.offsets) // per_plane
    for row, column in itertools.product(rows, columns):
        first = row * grid.grid[1] + column
        places = slice(first, first + (planes - 1) * per_plane + 1, per_plane)
        yield StoredBlock(
            row, column, tuple(grid.offsets[places].tolist()), tuple(grid.counts[places].tolist())
        )


def stored_shape(grid: BlockGrid, block: StoredBlock) -> tuple[int, int]:
    """Return the stored rows and columns of a block; the last strip ends with the picture.

    Args:
        grid: blocks of the level.
        block: a block of this grid.
    """
    if grid.tiled:
        return grid.block
    return min(grid.block[0], grid.shape[0] - block.row * grid.block[0]), grid.block[1]


def visible_shape(grid: BlockGrid, block: StoredBlock) -> tuple[int, int]:
    """Return how many rows and columns of a block lie inside the level.

    Args:
        grid: blocks of the level.
        block: a block of this grid.
    """
    return (
        min(grid.block[0], grid.shape[0] - block.row * grid.block[0]),
        min(grid.block[1], grid.shape[1] - block.column * grid.block[1]),
    )


def overlap(
    grid: BlockGrid, block: StoredBlock, origin_px: tuple[int, int], size_px: Sequence[int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the part of a region that a block covers, and that part of the block, as slices.

    Args:
        grid: blocks of the level.
        block: a block of this grid.
        origin_px: first row and column of the region, in pixels of the level.
        size_px: rows and columns of the region.
    """
    inside, within = [], []
    for index, side, start, n in zip(
        (block.row, block.column), grid.block, origin_px, size_px, strict=True
    ):
        low, high = max(index * side, start), min((index + 1) * side, start + n)
        inside.append(slice(low - start, high - start))
        within.append(slice(low - index * side, high - index * side))
    return (inside[0], inside[1]), (within[0], within[1])


def group_neighbours(blocks: list[StoredBlock]) -> Iterator[list[StoredBlock]]:
    """Group blocks in file order into runs that lie close together in the file."""
    group: list[StoredBlock] = []
    end = 0
    for block in blocks:
        offset, count = block.offsets[0], block.counts[0]
        near = group and offset - end <= _GAP_BYTES
        if group and (not near or offset + count - group[0].offsets[0] > _READ_BYTES):
            yield group
            group, end = [], 0
        group.append(block)
        end = max(end, offset + count)
    if group:
        yield group
