"""Find damage in the JPEG tiles of a vendor's TIFF, which OpenSlide passes over in silence."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np

from foveate.errors import AGAIN, FoveateError, UnreadableImage, converting
from foveate.formats.jpeg_damage import check_block
from foveate.formats.markers import DamagedBlock
from foveate.formats.tiff_blocks import plan_blocks
from foveate.formats.tiff_grid import BlockGrid
from foveate.formats.tiff_index import read_jpeg_tiles
from foveate.images.level import Level

log = logging.getLogger("foveate")


@final
class TileCheck:
    """Checks the stored bytes of the tiles that a region touches, each tile once.

    Args:
        path: the file.
        levels: its levels, each the picture of one directory without a shift. Levels whose tiles
            are not stored so are not checked.

    Raises:
        UnreadableImage: directories are damaged.
        UnsupportedFormat: the coding of the samples is not supported.
        ImageTooLarge: a tile or the number of tiles is beyond the limits.
    """

    def __init__(self, path: Path, levels: Sequence[Level]) -> None:
        self._path, self._sound = path, set[int]()
        grids = read_jpeg_tiles(path)
        self._grids = [
            next((grid for grid in grids if _stores(grid, level)), None) for level in levels
        ]

    def check(self, level: int, origin_px: tuple[int, int], size_px: tuple[int, int]) -> None:
        """Check the tiles that a region touches.

        Args:
            level: index of the level.
            origin_px: first row and column of the region, in pixels of the level.
            size_px: rows and columns of the region.

        Raises:
            UnreadableImage: bytes of a tile cannot be those of a picture.
        """
        grid = self._grids[level]
        if grid is None:
            return

        def explain(error: Exception, path: object) -> FoveateError:
            log.debug("%s: level %d", path, level, exc_info=error)
            damage = str(error) if isinstance(error, DamagedBlock) else "a tile cannot be read"
            place = f"level {level}, region {size_px} at {origin_px}"
            return UnreadableImage(f"{path}: {place}: {damage}{AGAIN}")

        with converting(self._path, explain), self._path.open("rb") as file:
            for block, _ in plan_blocks(grid, np.array([origin_px]), size_px):
                (offset,), (n_bytes,) = block.offsets, block.counts
                if n_bytes and offset and offset not in self._sound:
                    file.seek(offset)
                    check_block(file.read(n_bytes), grid.coding.tables)
                    self._sound.add(offset)


def _stores(grid: BlockGrid, level: Level) -> bool:
    """Return whether tiles are those of a level, which may end within the last ones."""
    surplus = [stored - n for stored, n in zip(grid.shape, level.shape, strict=True)]
    ends_within = all(0 <= n < side for n, side in zip(surplus, grid.block, strict=True))
    return grid.block == level.tile and ends_within and not grid.coding.planar
