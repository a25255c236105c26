"""Find the stored blocks of a TIFF level that a region touches, and how they lie in it.

Part of the reader `tiff`. Regions are in stored rows and columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from foveate.formats.tiff_grid import BlockGrid
from foveate.images.resample import Pixels

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

    @property
    def is_absent(self) -> bool:
        """Whether the file does not hold the bytes of every plane."""
        return 0 in self.offsets or 0 in self.counts


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


class BlockUse(NamedTuple):
    """The part of one block that lies in one of many regions.

    Attributes:
        region: index of the region.
        inside: rows and columns of the region that the block covers.
        within: the same pixels as rows and columns of the block.
    """

    region: int
    inside: tuple[slice, slice]
    within: tuple[slice, slice]


def plan_blocks(
    grid: BlockGrid, origin_px: Int64[np.ndarray, "n 2"], size_px: tuple[int, int]
) -> Iterator[tuple[StoredBlock, list[BlockUse]]]:
    """Yield each block that some of many regions of one size touch, with its uses, row by row.

    Args:
        grid: blocks of the level.
        origin_px: first row and column of each region, in pixels of the level.
        size_px: rows and columns of a region.
    """
    rows, columns = (
        _cut_axis(origin_px[:, axis], size_px[axis], grid.block[axis]) for axis in (0, 1)
    )
    touched = rows.touched[:, :, None] & columns.touched[:, None, :]
    region, i, j = touched.nonzero()
    index = rows.block[region, i] * grid.grid[1] + columns.block[region, j]
    order = np.argsort(index, kind="stable")
    region, i, j = region[order], i[order], j[order]
    blocks, n_uses = np.unique(index, return_counts=True)
    uses = zip(
        region.tolist(),
        *(part[region, i].tolist() for part in rows[2:]),
        *(part[region, j].tolist() for part in columns[2:]),
        strict=True,
    )
    for block, n in zip(_stored_blocks(grid, blocks), n_uses.tolist(), strict=True):
        yield block, [_block_use(*use) for use in itertools.islice(uses, n)]


def _block_use(
    region: int, top: int, bottom: int, y: int, left: int, right: int, x: int
) -> BlockUse:
    """Return the use of a block, from its pixel ``(y, x)`` on, by a region between edges."""
    return BlockUse(
        region,
        (slice(top, bottom), slice(left, right)),
        (slice(y, y + bottom - top), slice(x, x + right - left)),
    )


def paste_block(pixels: Pixels, uses: list[BlockUse], regions: Pixels) -> None:
    """Copy a block's pixels ``(y, x, c)`` to all places of regions ``(n, y, x, c)`` that show it.

    Args:
        pixels: the decoded block.
        uses: the parts that lie in regions.
        regions: all regions of the plan.
    """
    for use in uses:
        regions[use.region][use.inside] = pixels[use.within]


def find_whole_use(
    uses: list[BlockUse], shape: tuple[int, int], size_px: tuple[int, ...]
) -> BlockUse | None:
    """Return a use in which a region is the block, so that the block can be decoded in place.

    Args:
        uses: the parts of the block that lie in regions.
        shape: stored rows and columns of the block.
        size_px: rows and columns of a region.
    """
    if shape != size_px:
        return None
    whole = (slice(0, shape[0]), slice(0, shape[1]))
    return next((use for use in uses if use.inside == whole), None)


def used_px(uses: list[BlockUse]) -> int:
    """Count the pixels of a block that regions show; those of overlapping regions count again."""
    return sum((y.stop - y.start) * (x.stop - x.start) for _, (y, x), _ in uses)


class _Cuts(NamedTuple):
    """How regions are cut by the borders of blocks along one axis; all fields are ``(n, k)``.

    Attributes:
        block: row or column of the block.
        touched: whether the region reaches into this block; the other fields count only there.
        low: first pixel of the region that lies in the block.
        high: end of these pixels in the region.
        within: the first of these pixels, in pixels of the block.
    """

    block: NDArray[np.int64]
    touched: NDArray[np.bool_]
    low: NDArray[np.int64]
    high: NDArray[np.int64]
    within: NDArray[np.int64]


def _cut_axis(origin_px: Int64[np.ndarray, " n"], size_px: int, side: int) -> _Cuts:
    """Cut regions of one size at the borders of blocks with a side, along one axis."""
    first, last = origin_px // side, (origin_px + size_px - 1) // side
    index = first[:, None] + np.arange(int((last - first).max(initial=0)) + 1)
    start = index * side - origin_px[:, None]
    low, high = np.maximum(start, 0), np.minimum(start + side, size_px)
    return _Cuts(index, index <= last[:, None], low, high, low - start)


def _stored_blocks(grid: BlockGrid, index: Int64[np.ndarray, " m"]) -> Iterator[StoredBlock]:
    """Yield the blocks of some indices, which count row by row."""
    per_plane = grid.grid[0] * grid.grid[1]
    places = index[:, None] + np.arange(0, len(grid.offsets), per_plane)
    rows, columns = np.divmod(index, grid.grid[1])
    facts = (rows, columns, grid.offsets[places], grid.counts[places])
    for row, column, offsets, counts in zip(*(fact.tolist() for fact in facts), strict=True):
        yield StoredBlock(row, column, tuple(offsets), tuple(counts))


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
