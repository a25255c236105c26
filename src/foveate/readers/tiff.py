"""TIFF pyramids, tiled or in strips, OME-TIFF and Aperio slides, straight from their stored blocks.

tifffile says where the blocks lie; a region is turned into the set of blocks it touches, these are
read in file order with few system calls, and each is decoded once with imagecodecs. Tiles that a
region touches only in part, and strips, go into a cache that all open files share.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, final

import numpy as np

from foveate.cache import ByteCache
from foveate.errors import (
    AGAIN,
    FoveateError,
    ImageTooLarge,
    UnreadableImage,
    UnsupportedFormat,
    why,
)
from foveate.formats.tiff_codec import BLACK_IS_ZERO, WHITE_IS_ZERO, DamagedBlock, decode_block
from foveate.formats.tiff_index import TIFF_MARKS, BlockGrid, TiffIndex, read_index
from foveate.formats.tiff_levels import Turn, levels_of, pieces, stored_share
from foveate.formats.tiff_spacing import ome_pixels, spacing_of, stated_planes
from foveate.images.alpha import flattened
from foveate.images.image import Level
from foveate.images.resample import Pixels, brightest, resample
from foveate.images.stated import level_downsample
from foveate.readers.base import AbstractReader

log = logging.getLogger("foveate")

CACHE_BYTES = 256 << 20
"""Decoded blocks kept in memory, over all open files of a process."""

_LARGE_PX = 50_000_000
_GAP_BYTES = 64 << 10
_READ_BYTES = 8 << 20
_FINER_PX = 1 << 22
"""Pixels of a finer level held at once where a level lacks a block."""

_OURS = (None, "aperio", "generic-tiff")

_cache: ByteCache[Pixels] = ByteCache(CACHE_BYTES)
_keys = itertools.count()


class _Cell(NamedTuple):
    """One stored block: its place in the grid, and its bytes in the file, one entry per plane."""

    row: int
    column: int
    offsets: tuple[int, ...]
    counts: tuple[int, ...]


@final
class TiffReader(AbstractReader):
    """A TIFF with 8 or 16 unsigned bits a sample: grey, RGB, palette, with or without alpha.

    A file is a slide if it is a pyramid, is tiled, states a believable pixel size, or has more than
    50 million pixels; else it is a picture. It stands upright, as its tag Orientation says.

    Blocks that a level lacks are made from the next finer one. Those that no level has show the
    background: the border of the coarsest level or, where that is not stored either, paper, which
    is white, or black where grey pixels count up from black. Transparent pixels show paper.
    """

    priority: ClassVar[int] = 20

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import tifffile

        index = read_index(path)
        full, coding = index.levels[0].shape, index.levels[0].coding
        ome = ome_pixels(index.ome_xml, full)
        planes = stated_planes(index.description, ome, coding.samples)
        if planes > 1:
            raise UnsupportedFormat(f"{path}: a stack of {planes} planes; save one flat picture")
        self.channels, self.dtype = coding.channels, coding.dtype.newbyteorder("=")
        self._coding = coding
        dark = coding.photometric == BLACK_IS_ZERO and not coding.alpha
        self._paper = np.full(self.channels, 0 if dark else brightest(self.dtype), self.dtype)
        self._states_paper = True  # until the levels are known
        self.reader = f"tifffile {tifffile.__version__}"
        self._oversized: tuple[_Cell, Pixels] | None = None
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._file_bytes = os.fstat(self._fd).st_size
        self._grids, self._key = index.levels, next(_keys)
        self._repeats = tuple(_repeats(grid) for grid in self._grids)
        try:
            self._settle_levels(index)
        except BaseException:
            self.close()
            raise
        spacing = spacing_of(index.description, ome, index.resolution, index.unit)
        self.spacing_um = None if spacing is None else self._turn.pair(spacing)
        large = len(self._grids) > 1 or self._grids[0].tiled or self.size_px > _LARGE_PX
        self.kind = "slide" if large or self.spacing_um is not None else "picture"

    def _settle_levels(self, index: TiffIndex) -> None:
        """Which pages are levels, and how they lie in the upright picture."""
        kept = levels_of(index, self._stored_region)
        _cache.drop_where(self._key)  # blocks are known by the place of their level
        self._grids = kept
        self._repeats = tuple(_repeats(grid) for grid in kept)
        self._turn = turn = Turn.of(index.orientation)
        full = kept[0].shape
        self.levels = tuple(
            Level(
                turn.pair(g.shape),
                turn.pair(level_downsample(full, g.shape)),
                turn.pair(g.block) if g.tiled else None,
            )
            for g in kept
        )
        self._states_paper = self._coding.alpha or kept[-1].has_absent

    @classmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """The TIFF mark, unless it is DICOM, or OpenSlide sees a vendor other than Aperio."""
        if head[:4] not in TIFF_MARKS or head[128:132] == b"DICM":
            return False
        import openslide

        return openslide.OpenSlide.detect_format(path) in _OURS

    def _stated_background(self) -> Sequence[float] | None:
        return [float(v) for v in self._paper.tolist()] if self._states_paper else None

    def close(self) -> None:
        """Release the file and its cached blocks. Closing twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            _cache.drop_where(self._key)
            self._oversized = None

    def _read_level(self, level: int, origin: tuple[int, ...], size: tuple[int, ...]) -> Pixels:
        if self._fd < 0:
            raise UnreadableImage(f"{self.path}: the image is closed")
        place = self._turn.stored(
            self._turn.pair(self._grids[level].shape), (origin[0], origin[1]), (size[0], size[1])
        )
        return self._turn.upright(self._stored_region(level, *place))

    def _stored_share(self, level: int, origin: tuple[int, ...], size: tuple[int, ...]) -> float:
        place = self._turn.stored(
            self._turn.pair(self._grids[level].shape), (origin[0], origin[1]), (size[0], size[1])
        )
        return stored_share(self._grids, level, *place)

    def _stored_region(self, level: int, origin: tuple[int, int], size: tuple[int, int]) -> Pixels:
        """A region in stored rows and columns; whatever goes wrong is said in our own words."""
        try:
            return self._region(level, origin, size)
        except FoveateError:
            raise
        except MemoryError as error:
            raise ImageTooLarge(
                f"{self.path}: a region of {size} does not fit memory; read it at a coarser spacing"
            ) from error
        except Exception as error:
            log.debug("%s: level %d", self.path, level, exc_info=True)
            codec = self._grids[level].coding.codec
            what = str(error) if isinstance(error, DamagedBlock) else f"{codec} cannot decode it"
            what += AGAIN
            if isinstance(error, OSError) and error.errno:
                what = why(error)
            raise UnreadableImage(
                f"{self.path}: level {level}, region {size} at {origin}: {what}"
            ) from error

    def _region(self, level: int, origin: tuple[int, int], size: tuple[int, int]) -> Pixels:
        grid = self._grids[level]
        region = np.empty((*size, self.channels), self.dtype)
        missing: list[_Cell] = []
        for cell in _touched(grid, origin, size):
            if 0 in cell.offsets or 0 in cell.counts:
                self._fill(level, cell, region, origin)
                continue
            kept = self._kept(level, cell)
            if kept is None:
                missing.append(cell)
            else:
                inside, within = _overlap(grid, cell, origin, size)
                region[inside] = kept[within]
        for cell, stored in self._stored(missing):
            self._place(level, cell, stored, region, origin)
        return region

    def _fill(self, level: int, cell: _Cell, region: Pixels, origin: tuple[int, int]) -> None:
        """What a level lacks: the next finer level made smaller, else the background."""
        grid = self._grids[level]
        inside, within = _overlap(grid, cell, origin, region.shape[:2])
        place = (
            cell.row * grid.block[0] + within[0].start,
            cell.column * grid.block[1] + within[1].start,
        )
        part = region[inside]
        if level == 0 or not stored_share(self._grids, level, place, part.shape[:2]):
            part[:] = self.background
            return
        finer = self._grids[level - 1].shape
        y, x = level_downsample(finer, grid.shape)
        for (top, left), size in pieces(place, part.shape[:2], (y, x), _FINER_PX):
            low = (max(int(top * y - y) - 1, 0), max(int(left * x - x) - 1, 0))
            high = (
                min(int((top + size[0] + 1) * y) + 2, finer[0]),
                min(int((left + size[1] + 1) * x) + 2, finer[1]),
            )
            fine = self._region(level - 1, low, (high[0] - low[0], high[1] - low[1]))
            at = (top - place[0], left - place[1])
            part[at[0] : at[0] + size[0], at[1] : at[1] + size[1]] = resample(
                fine, (top * y - low[0], left * x - low[1]), (y, x), size
            )

    def _place(
        self,
        level: int,
        cell: _Cell,
        stored: list[bytes],
        region: Pixels,
        origin: tuple[int, int],
    ) -> None:
        """Decode one block and lay it into the region; keep what is likely to be wanted again."""
        grid = self._grids[level]
        shape = _block_shape(grid, cell)
        inside, within = _overlap(grid, cell, origin, region.shape[:2])
        repeats = self._repeats[level]
        kept = self._kept(level, cell) if repeats else None
        if kept is not None:
            region[inside] = kept[within]
            return
        whole = region.shape[:2] == shape == region[inside].shape[:2]
        if whole and self._is_plain(grid) and not repeats:
            decode_block(stored[0], grid.coding, region, _visible(grid, cell))
            self.count.add(decoded_px=shape[0] * shape[1])
            return
        pixels = self._decoded(grid, stored, shape, _visible(grid, cell))
        self.count.add(decoded_px=shape[0] * shape[1])
        region[inside] = pixels[within]
        # The next piece of a large reading begins with the last strips of this one.
        if repeats or not grid.tiled or pixels[within].shape[:2] != _visible(grid, cell):
            self._keep(level, cell, pixels)

    def _is_plain(self, grid: BlockGrid) -> bool:
        coding = grid.coding
        changed = coding.alpha or coding.palette is not None or coding.photometric == WHITE_IS_ZERO
        return not changed and not coding.planar and coding.samples == self.channels

    def _decoded(
        self, grid: BlockGrid, stored: list[bytes], shape: tuple[int, int], shown: tuple[int, int]
    ) -> Pixels:
        coding = grid.coding
        planes = [np.empty((*shape, coding.stored_samples), self.dtype) for _ in stored]
        for data, out in zip(stored, planes, strict=True):
            decode_block(data, coding, out, shown)
        pixels = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        if coding.palette is not None:
            return np.asarray(coding.palette[pixels[:, :, 0]])
        if coding.photometric == WHITE_IS_ZERO:
            top = brightest(pixels.dtype)
            pixels[..., :1] = top - pixels[..., :1]
        if coding.alpha:
            return flattened(pixels, self._paper, premultiplied=coding.premultiplied)
        return pixels[..., : self.channels]

    # -- bytes and cache ----------------------------------------------------------------------

    def _stored(self, cells: list[_Cell]) -> Iterator[tuple[_Cell, list[bytes]]]:
        """The stored bytes of blocks, in file order, neighbours read together."""
        for cell in cells:
            for offset, count in zip(cell.offsets, cell.counts, strict=True):
                if offset < 0 or count < 0 or offset + count > self._file_bytes:
                    raise UnreadableImage(
                        f"{self.path}: truncated: block ({cell.row}, {cell.column}) lies at byte "
                        f"{offset} with {count} bytes, the file ends at {self._file_bytes}{AGAIN}"
                    )
        if len(cells) > 0 and len(cells[0].offsets) > 1:
            for cell in cells:
                pairs = zip(cell.offsets, cell.counts, strict=True)
                yield cell, [os.pread(self._fd, n, o) for o, n in pairs]
            return
        for group in _coalesced(sorted(cells, key=lambda c: c.offsets[0])):
            start = group[0].offsets[0]
            end = max(c.offsets[0] + c.counts[0] for c in group)
            data = os.pread(self._fd, end - start, start)
            for cell in group:
                at = cell.offsets[0] - start
                yield cell, [data[at : at + cell.counts[0]]]

    def _kept(self, level: int, cell: _Cell) -> Pixels | None:
        oversized = self._oversized
        if oversized is not None and oversized[0] == cell:
            return oversized[1]
        return _cache.get(self._cache_key(level, cell))

    def _keep(self, level: int, cell: _Cell, pixels: Pixels) -> None:
        if pixels.nbytes > CACHE_BYTES:
            self._oversized = (cell, pixels)
        else:
            _cache.put(self._cache_key(level, cell), pixels, pixels.nbytes)

    def _cache_key(self, level: int, cell: _Cell) -> tuple[int, ...]:
        """By the bytes and not by the place: a block that stands in many places is decoded once."""
        return (self._key, level, cell.offsets[0], *_visible(self._grids[level], cell))


def _repeats(grid: BlockGrid) -> bool:
    """Whether some stored bytes stand in more than one place."""
    stored = grid.offsets[grid.offsets != 0]
    return len(np.unique(stored)) < len(stored)


def _touched(grid: BlockGrid, origin: tuple[int, int], size: tuple[int, int]) -> Iterator[_Cell]:
    rows, columns = (
        range(o // b, -(-(o + s) // b)) for o, s, b in zip(origin, size, grid.block, strict=True)
    )
    per_plane = grid.grid[0] * grid.grid[1]
    planes = len(grid.offsets) // per_plane
    for row, column in itertools.product(rows, columns):
        first = row * grid.grid[1] + column
        places = slice(first, first + (planes - 1) * per_plane + 1, per_plane)
        yield _Cell(
            row, column, tuple(grid.offsets[places].tolist()), tuple(grid.counts[places].tolist())
        )


def _block_shape(grid: BlockGrid, cell: _Cell) -> tuple[int, int]:
    """Stored rows and columns: tiles are whole, the last strip is as short as the picture."""
    if grid.tiled:
        return grid.block
    return min(grid.block[0], grid.shape[0] - cell.row * grid.block[0]), grid.block[1]


def _visible(grid: BlockGrid, cell: _Cell) -> tuple[int, int]:
    """Rows and columns of a block that lie inside the level."""
    return (
        min(grid.block[0], grid.shape[0] - cell.row * grid.block[0]),
        min(grid.block[1], grid.shape[1] - cell.column * grid.block[1]),
    )


def _overlap(
    grid: BlockGrid, cell: _Cell, origin: tuple[int, int], size: Sequence[int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a block lies inside a region, and which part of the block that is."""
    inside, within = [], []
    for place, block, start, n in zip(
        (cell.row, cell.column), grid.block, origin, size, strict=True
    ):
        low, high = max(place * block, start), min((place + 1) * block, start + n)
        inside.append(slice(low - start, high - start))
        within.append(slice(low - place * block, high - place * block))
    return (inside[0], inside[1]), (within[0], within[1])


def _coalesced(cells: list[_Cell]) -> Iterator[list[_Cell]]:
    """Runs of blocks that lie close together in the file, in file order."""
    group: list[_Cell] = []
    end = 0
    for cell in cells:
        offset, count = cell.offsets[0], cell.counts[0]
        near = group and offset - end <= _GAP_BYTES
        if group and (not near or offset + count - group[0].offsets[0] > _READ_BYTES):
            yield group
            group, end = [], 0
        group.append(cell)
        end = max(end, offset + count)
    if group:
        yield group
