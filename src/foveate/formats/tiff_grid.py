"""The blocks of one level of a TIFF: arrays of offsets and byte counts.

Part of the reader `tiff`. All numbers that a file claims are checked here before anything of that
size is allocated.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import AGAIN, ImageTooLarge, UnreadableImage
from foveate.formats import tiff_codec as codec

MAX_BLOCK_BYTES = 1 << 29
"""The largest stored block (tile or strip) that is decoded, in bytes of its pixels."""

_FREE_BYTES = 1 << 30
_MAX_PACKING = 2000
"""The largest ratio of pixels to file size that is accepted beyond `_FREE_BYTES` of pixels.

Otherwise a file of a few kilobytes could ask for hours of work. Deflate reaches 1032 on an empty
picture."""

_MAX_BLOCKS = 1 << 26
_RAW_STRIP_BYTES = 1 << 20


@dataclass(frozen=True)
class BlockGrid:
    """One pyramid level as a grid of stored blocks, row by row, plane after plane.

    Attributes:
        shape: pixels of the level, ``(y, x)``.
        block: pixels of one stored block, ``(y, x)``; a strip is a block as wide as the level.
        grid: number of blocks, ``(y, x)``.
        offsets: first bytes of the blocks in the file, ``(planes * grid_y * grid_x,)``; 0 where a
            block is absent.
        counts: bytes of the blocks, in the same shape; 0 where a block is absent.
        tiled: whether the level is stored as tiles, not as strips.
        coding: how the samples of a block are stored.
        marked: whether the file marks the page as a smaller version of another.
    """

    shape: tuple[int, int]
    block: tuple[int, int]
    grid: tuple[int, int]
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    tiled: bool
    coding: codec.Coding
    marked: bool = False

    @functools.cached_property
    def stored(self) -> NDArray[np.bool_]:
        """Whether each block is stored, ``(grid_y, grid_x)``."""
        present: NDArray[np.bool_] = (self.offsets != 0) & (self.counts != 0)
        return np.asarray(present.reshape(-1, *self.grid).all(0))

    @functools.cached_property
    def has_absent(self) -> bool:
        """Whether at least one block is not stored."""
        return not bool(self.stored.all())

    @property
    def block_bytes(self) -> int:
        """Bytes of the pixels of one block of one plane."""
        item = self.coding.stored_samples * self.coding.dtype.itemsize
        return self.block[0] * self.block[1] * item


def read_grid(path: Path, page: Any) -> BlockGrid:
    """Read the grid of blocks of a directory and check all numbers that it claims.

    Args:
        path: the file, for messages.
        page: the directory, as tifffile reads it.

    Raises:
        UnsupportedFormat: the coding of the samples is not supported.
        UnreadableImage: the directory is damaged, or lists too few blocks.
        ImageTooLarge: a block or the number of blocks is beyond the limits.
    """
    shape = (int(page.imagelength), int(page.imagewidth))
    tiled = bool(page.is_tiled)
    if tiled:
        block = (int(page.tilelength), int(page.tilewidth))
    else:
        block = (min(int(page.rowsperstrip) or shape[0], shape[0]), shape[1])
    if min(shape + block) < 1:
        raise UnreadableImage(f"{path}: claims a size of {shape} in blocks of {block}{AGAIN}")
    coding = codec.read_coding(path, page)
    planes = coding.samples if coding.planar else 1
    grid = count_blocks(path, shape, block, planes)
    n_blocks = grid[0] * grid[1] * planes
    counted = (325 if tiled else 279) in page.tags
    listed = len(page.databytecounts) if counted else n_blocks
    if min(len(page.dataoffsets), listed) < n_blocks:
        raise UnreadableImage(
            f"{path}: {shape[1]} x {shape[0]} pixels need {n_blocks:,} blocks, the file lists "
            f"{min(len(page.dataoffsets), listed):,}{AGAIN}"
        )
    offsets = np.asarray(page.dataoffsets[:n_blocks], np.int64)
    if counted:
        counts = np.asarray(page.databytecounts[:n_blocks], np.int64)
    else:
        counts = np.zeros(n_blocks, np.int64)
    marked = bool(page.is_reduced)
    level = BlockGrid(shape, block, grid, offsets, counts, tiled, coding, marked)
    if not (counted and tiled):  # a tile with a count of 0 is absent, a strip is not
        level = _fill_counts(level, page.parent.filehandle.size)
    return bound_blocks(path, level, page.parent.filehandle.size)


def count_blocks(
    path: Path, shape: tuple[int, int], block: tuple[int, int], planes: int = 1
) -> tuple[int, int]:
    """Count the blocks of a level, ``(y, x)``.

    Args:
        path: the file, for messages.
        shape: pixels of the level.
        block: pixels of a block.
        planes: number of planes with blocks of their own.

    Raises:
        ImageTooLarge: there are too many.
    """
    grid = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    if (n_blocks := grid[0] * grid[1] * planes) > _MAX_BLOCKS:
        raise ImageTooLarge(
            f"{path}: claims {n_blocks:,} blocks, more than {_MAX_BLOCKS:,}; use larger tiles"
        )
    return grid


def _fill_counts(grid: BlockGrid, file_bytes: int) -> BlockGrid:
    """Fill in byte counts that the writer left out, or wrote as 0.

    A raw block is as long as its pixels; a packed one ends where the next block of the file begins,
    at the latest.
    """
    unknown = (grid.counts == 0) & (grid.offsets != 0)
    if not unknown.any():
        return grid
    if grid.coding.codec == "none":
        counts = _raw_counts(grid)
    else:
        ends = np.append(np.unique(grid.offsets), max(file_bytes, int(grid.offsets.max()) + 1))
        counts = ends[np.searchsorted(ends, grid.offsets, side="right")] - grid.offsets
    return dataclasses.replace(grid, counts=np.where(unknown, counts, grid.counts))


def _raw_counts(grid: BlockGrid) -> NDArray[np.int64]:
    """Compute the bytes of each unpacked block; the last strip ends where the picture ends."""
    row_bytes = grid.coding.row_bytes(grid.block[1])
    counts = np.full(len(grid.offsets), row_bytes * grid.block[0], np.int64)
    if not grid.tiled:
        rest = grid.shape[0] - (grid.grid[0] - 1) * grid.block[0]
        counts[grid.grid[0] - 1 :: grid.grid[0]] = row_bytes * rest
    return counts


def bound_blocks(path: Path, grid: BlockGrid, file_bytes: int) -> BlockGrid:
    """Cut large raw strips that follow each other into small ones; refuse other large blocks.

    Args:
        path: the file, for messages.
        grid: blocks of a level.
        file_bytes: bytes of the file, or of the files, that hold the level.

    Raises:
        ImageTooLarge: a block is too large, or the blocks have far more pixels than the file.
    """
    coding = grid.coding
    claimed = int(grid.stored.sum()) * grid.block_bytes * (coding.samples if coding.planar else 1)
    if claimed > _FREE_BYTES + _MAX_PACKING * file_bytes:
        raise ImageTooLarge(
            f"{path}: claims {claimed / 1e9:.1f} GB of pixels in {file_bytes:,} bytes{AGAIN}"
        )
    if coding.codec == "none" and not grid.tiled and not coding.planar:
        row_bytes, needed = coding.row_bytes(grid.block[1]), _raw_counts(grid)
        follows = bool((grid.offsets[1:] == grid.offsets[:-1] + needed[:-1]).all())
        if follows and not grid.has_absent and bool((grid.counts >= needed).all()):
            rows = min(max(1, _RAW_STRIP_BYTES // row_bytes), grid.shape[0])
            n = -(-grid.shape[0] // rows)
            offsets = grid.offsets[0] + np.arange(n, dtype=np.int64) * rows * row_bytes
            counts = np.full(n, rows * row_bytes, np.int64)
            counts[-1] = (grid.shape[0] - (n - 1) * rows) * row_bytes
            return dataclasses.replace(
                grid, block=(rows, grid.shape[1]), grid=(n, 1), offsets=offsets, counts=counts
            )
    if grid.block_bytes > MAX_BLOCK_BYTES:
        raise ImageTooLarge(
            f"{path}: one stored block holds {grid.block[1]} x {grid.block[0]} pixels, more than "
            f"{MAX_BLOCK_BYTES >> 20} MiB; convert it to a tiled TIFF"
        )
    return grid
