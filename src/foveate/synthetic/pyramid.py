"""Write a pyramidal TIFF of JPEG tiles row by row; tiles that are not drawn are glass."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

import imagecodecs
import numpy as np
import tifffile

from foveate.synthetic.spec import LEVEL_FACTOR, Bytes, Floats, SlideSpec, SlideTile

_SPOOL_BYTES = 1 << 24

DrawRow = Callable[[int], dict[int, SlideTile]]
Encode = Callable[[Bytes], bytes]


def write_pyramid(path: Path, spec: SlideSpec, glass: Bytes, draw_row: DrawRow) -> None:
    """Write all levels into one BigTIFF, the coarser ones as reduced images, in bounded memory.

    Args:
        path: the new file.
        spec: shapes, spacing, tile and quality of the slide.
        glass: colour of the tiles that `draw_row` leaves out, ``(3,)``.
        draw_row: draws the tiles of a row of level 0, by column.
    """
    encode = partial(_encode, quality=spec.quality)
    # Coarse levels have full colour resolution, which costs little and shows nodules of few pixels.
    encode_coarse = partial(encode, subsampling="444")
    shapes = spec.level_shapes
    blank = np.empty((spec.tile_px, spec.tile_px, 3), np.float32)
    blank[:] = glass
    empty = encode(blank.astype(np.uint8), optimize=True)
    coarse_empty = encode_coarse(blank.astype(np.uint8), optimize=True)
    with tempfile.TemporaryFile(buffering=_SPOOL_BYTES) as spool:
        levels: list[_LevelWriter] = []
        for _ in shapes[1:]:
            levels.insert(
                0, _LevelWriter(blank, encode_coarse, spool, levels[0] if levels else None)
            )
        with tifffile.TiffWriter(path, bigtiff=True) as file:
            for k, shape in enumerate(shapes):
                rows, columns = (-(-n // spec.tile_px) for n in shape)
                if k == 0:
                    first = levels[0] if levels else None
                    tiles = _finest_tiles(rows, columns, draw_row, encode, empty, first)
                else:
                    tiles = levels[k - 1].tiles(rows, columns, coarse_empty)
                _write_level(file, spec, k, tiles)
                if k == 0 and levels:
                    levels[0].finish()


def _encode(
    tile: Bytes, *, quality: int, subsampling: str = "420", optimize: bool = False
) -> bytes:
    """Encode a tile ``(side, side, 3)`` as JPEG."""
    encoded = imagecodecs.jpeg8_encode(
        tile,
        level=quality,
        colorspace="rgb",
        outcolorspace="ycbcr",
        subsampling=subsampling,
        optimize=optimize,
    )
    return bytes(encoded)


def _write_level(
    file: tifffile.TiffWriter, spec: SlideSpec, k: int, tiles: Iterator[bytes]
) -> None:
    """Write level `k` from its encoded tiles in file order."""
    y_um, x_um = (s * LEVEL_FACTOR**k for s in spec.spacing_um)
    file.write(
        tiles,
        shape=(*spec.level_shapes[k], 3),
        dtype="uint8",
        tile=(spec.tile_px, spec.tile_px),
        compression="jpeg",
        photometric="ycbcr",
        subsampling=(1, 1) if k else (2, 2),
        subfiletype=int(k > 0),
        resolution=(1e4 / x_um, 1e4 / y_um),
        resolutionunit="CENTIMETER",
        metadata=None,
        software="foveate",
    )


def _finest_tiles(
    rows: int,
    columns: int,
    draw_row: DrawRow,
    encode: Encode,
    empty: bytes,
    coarser: _LevelWriter | None,
) -> Iterator[bytes]:
    """Yield the encoded tiles of level 0 in file order, and add their means to the next level.

    Args:
        rows: number of rows of tiles.
        columns: number of columns of tiles.
        draw_row: draws the tiles of a row, by column.
        encode: encodes a tile.
        empty: the encoded tile of glass.
        coarser: the next level, or None.
    """
    repeated: dict[tuple[int, int], tuple[bytes, Floats]] = {}
    for row in range(rows):
        drawn = draw_row(row)
        for column in range(columns):
            tile = drawn.get(column)
            if tile is None:
                yield empty
                continue
            known = repeated.get(tile.key) if tile.key else None
            if known is None:
                known = encode(tile.pixels), _shrink(tile.pixels)
                if tile.key:
                    repeated[tile.key] = known
            if coarser:
                coarser.add(row, column, known[1])
            yield known[0]


class _LevelWriter:
    """Collects a coarser level: one row of tiles in memory, the finished ones encoded on disk.

    Args:
        blank: a tile of glass, ``(side, side, 3)``.
        encode: encodes a tile.
        spool: the file that encoded tiles are appended to; levels share it.
        coarser: the next coarser level, or None.
    """

    def __init__(
        self, blank: Floats, encode: Encode, spool: IO[bytes], coarser: _LevelWriter | None
    ) -> None:
        self._blank, self._encode, self._spool, self._coarser = blank, encode, spool, coarser
        self._row = 0
        self._open: dict[int, Floats] = {}
        self._places: dict[tuple[int, int], tuple[int, int]] = {}

    def add(self, row: int, column: int, part: Floats) -> None:
        """Add the means ``(n, n, 3)`` of a tile of the next finer level; rows must not decrease."""
        if row // LEVEL_FACTOR != self._row:
            self._close_row()
            self._row = row // LEVEL_FACTOR
        tile = self._open.get(column // LEVEL_FACTOR)
        if tile is None:
            tile = self._open[column // LEVEL_FACTOR] = self._blank.copy()
        n = len(part)
        y, x = n * (row % LEVEL_FACTOR), n * (column % LEVEL_FACTOR)
        tile[y : y + n, x : x + n] = part

    def finish(self) -> None:
        """Encode the last row, of this and of all coarser levels."""
        self._close_row()
        if self._coarser:
            self._coarser.finish()

    def tiles(self, rows: int, columns: int, empty: bytes) -> Iterator[bytes]:
        """Yield the encoded tiles in file order; `empty` for tiles that were not drawn."""
        for row, column in np.ndindex(rows, columns):
            place = self._places.get((row, column))
            if place is None:
                yield empty
            else:
                self._spool.seek(place[0])
                yield self._spool.read(place[1])

    def _close_row(self) -> None:
        """Encode the tiles of the row in memory, and add their means to the next level."""
        for column in sorted(self._open):
            tile = self._open[column]
            encoded = self._encode(np.rint(tile).astype(np.uint8))
            self._places[self._row, column] = self._spool.seek(0, 2), len(encoded)
            self._spool.write(encoded)
            if self._coarser:
                self._coarser.add(self._row, column, _shrink(tile))
        self._open.clear()


def _shrink(tile: Bytes | Floats) -> Floats:
    """Average a tile ``(n, n, 3)`` over squares of `LEVEL_FACTOR` pixels: ``(n / 4, n / 4, 3)``."""
    n = len(tile) // LEVEL_FACTOR
    wide = np.uint16 if tile.dtype == np.uint8 else np.float32
    rows = tile.reshape(n, LEVEL_FACTOR, -1).sum(1, dtype=wide)
    sums = rows.reshape(n, n, LEVEL_FACTOR, 3).sum(2, dtype=wide)
    return np.asarray(sums, np.float32) / np.float32(LEVEL_FACTOR**2)
