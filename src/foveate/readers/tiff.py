"""Read TIFF pyramids, tiled or in strips, OME-TIFF and Aperio slides from their stored blocks.

tifffile parses where the blocks lie. The blocks that a region touches are read in file order with
few system calls, and each is decoded once with imagecodecs. Tiles that a region touches only in
part, and strips, go into a cache that all open files share.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar, final

import numpy as np

from foveate.cache import ByteCache
from foveate.errors import (
    AGAIN,
    FoveateError,
    ImageTooLarge,
    UnreadableImage,
    UnsupportedFormat,
    converting,
    explain_os_error,
)
from foveate.formats.appended import TIFF_MARKS
from foveate.formats.markers import DamagedBlock
from foveate.formats.orientation import Orientation
from foveate.formats.tiff_blocks import (
    StoredBlock,
    group_neighbours,
    overlap,
    shares_bytes,
    stored_shape,
    touched_blocks,
    visible_shape,
)
from foveate.formats.tiff_codec import BLACK_IS_ZERO, WHITE_IS_ZERO, decode_block
from foveate.formats.tiff_grid import BlockGrid
from foveate.formats.tiff_index import TiffIndex, read_index
from foveate.formats.tiff_levels import choose_levels, cut_region, stored_share
from foveate.formats.tiff_spacing import ome_pixels, stated_planes, stated_spacing
from foveate.geometry import fine_px_from_coarse_px
from foveate.images.alpha import flatten_alpha
from foveate.images.image import Level
from foveate.images.resample import Pixels, resample, white_value
from foveate.images.stated import level_downsample
from foveate.readers.base import AbstractReader

log = logging.getLogger("foveate")

CACHE_BYTES = 256 << 20
"""The largest size of the cache of decoded blocks that all open files of a process share."""

_LARGE_PX = 50_000_000
_FINER_PX = 1 << 22
"""The largest piece of a finer level that is read at once where a level lacks a block."""

_VENDORS = (None, "aperio", "generic-tiff")

_cache: ByteCache[Pixels] = ByteCache(CACHE_BYTES)
_keys = itertools.count()


@final
class TiffReader(AbstractReader):
    """A TIFF with 8 or 16 unsigned bits a sample: grey, RGB, palette, with or without alpha.

    A file is a slide if it is a pyramid, is tiled, states a plausible pixel size, or has more than
    50 million pixels; else it is a picture. It is turned upright by its tag Orientation.

    Blocks that a level lacks are computed from the next finer one. Those that no level has show the
    background: the border of the coarsest level or, where that is not stored either, paper. Paper
    is black in grey files without alpha whose 0 is black, else white. Transparent pixels show
    paper.

    Raises:
        UnsupportedFormat: the file is a stack of planes, or is coded in a way that is not read.
        UnreadableImage: the file is damaged.
    """

    families: ClassVar[str] = "TIFF and OME-TIFF"
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
        self._paper = np.full(self.channels, 0 if dark else white_value(self.dtype), self.dtype)
        self._states_paper = True  # until the levels are known
        self.reader = f"tifffile {tifffile.__version__}"
        self._oversized: tuple[StoredBlock, Pixels] | None = None
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._file_bytes = os.fstat(self._fd).st_size
        self._grids, self._key = index.levels, next(_keys)
        self._has_shared_bytes = tuple(shares_bytes(grid) for grid in self._grids)
        with contextlib.ExitStack() as opened:
            opened.callback(self.close)
            self._choose_levels(index)
            spacing = stated_spacing(index.description, ome, index.resolution, index.unit)
            opened.pop_all()
        self.spacing_um = None if spacing is None else self._orientation.swap_axes(spacing)
        large = len(self._grids) > 1 or self._grids[0].tiled or self.n_pixels > _LARGE_PX
        self.kind = "slide" if large or self.spacing_um is not None else "picture"

    def _choose_levels(self, index: TiffIndex) -> None:
        """Set the levels and the orientation, from all pages that may be levels."""
        grids = choose_levels(index, self._read_stored)
        _cache.drop_where(self._key)  # its keys hold the index of a level, which changes here
        self._grids = grids
        self._has_shared_bytes = tuple(shares_bytes(grid) for grid in grids)
        self._orientation = orientation = Orientation.from_tag(index.orientation)
        full = grids[0].shape
        self.levels = tuple(
            Level(
                orientation.swap_axes(g.shape),
                orientation.swap_axes(level_downsample(full, g.shape)),
                orientation.swap_axes(g.block) if g.tiled else None,
            )
            for g in grids
        )
        self._states_paper = self._coding.alpha or grids[-1].has_absent

    @classmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """Return whether a file has TIFF's mark and is neither DICOM nor another vendor's slide.

        Args:
            path: the file.
            head: its first `HEAD_BYTES` bytes.
        """
        if head[:4] not in TIFF_MARKS or head[128:132] == b"DICM":
            return False
        import openslide

        return openslide.OpenSlide.detect_format(path) in _VENDORS

    def _stated_background(self) -> Sequence[float] | None:
        return [float(v) for v in self._paper.tolist()] if self._states_paper else None

    def close(self) -> None:
        """Release the file and its cached blocks. Closing twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
            _cache.drop_where(self._key)
            self._oversized = None

    def _read_level(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> Pixels:
        if self._fd < 0:
            raise UnreadableImage(f"{self.path}: the image is closed; open it again")
        place = self._stored_place(level, origin_px, size_px)
        return self._orientation.turn_upright(self._read_stored(level, *place))

    def _stored_share(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> float:
        return stored_share(self._grids, level, *self._stored_place(level, origin_px, size_px))

    def _stored_place(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Convert a region of the upright level to origin and size in stored rows and columns."""
        shape = self._orientation.swap_axes(self._grids[level].shape)
        return self._orientation.stored_region(
            shape, (origin_px[0], origin_px[1]), (size_px[0], size_px[1])
        )

    def _read_stored(
        self, level: int, origin_px: tuple[int, int], size_px: tuple[int, int]
    ) -> Pixels:
        """Read a region in stored rows and columns ``(*size_px, c)``; name the file in errors."""

        def explain(error: Exception, path: object) -> FoveateError:
            if isinstance(error, MemoryError):
                return ImageTooLarge(
                    f"{path}: a region of {size_px} does not fit memory; read it at a coarser "
                    "spacing"
                )
            log.debug("%s: level %d", path, level, exc_info=error)
            codec = self._grids[level].coding.codec
            damage = str(error) if isinstance(error, DamagedBlock) else f"{codec} cannot decode it"
            reason = f"{damage}{AGAIN}"
            if isinstance(error, OSError) and error.errno:
                reason = explain_os_error(error)
            return UnreadableImage(
                f"{path}: level {level}, region {size_px} at {origin_px}: {reason}"
            )

        with converting(self.path, explain):
            return self._read_blocks(level, origin_px, size_px)

    def _read_blocks(
        self, level: int, origin_px: tuple[int, int], size_px: tuple[int, int]
    ) -> Pixels:
        """Compose a region from the blocks that it touches, ``(*size_px, c)``."""
        grid = self._grids[level]
        region = np.empty((*size_px, self.channels), self.dtype)
        missing: list[StoredBlock] = []
        for block in touched_blocks(grid, origin_px, size_px):
            if 0 in block.offsets or 0 in block.counts:
                self._fill_absent(level, block, region, origin_px)
                continue
            cached = self._cached(level, block)
            if cached is None:
                missing.append(block)
            else:
                inside, within = overlap(grid, block, origin_px, size_px)
                region[inside] = cached[within]
        for block, stored in self._read_bytes(missing):
            self._decode_into(level, block, stored, region, origin_px)
        return region

    def _fill_absent(
        self, level: int, block: StoredBlock, region: Pixels, origin_px: tuple[int, int]
    ) -> None:
        """Fill the part of an absent block from the next finer level, else with the background."""
        grid = self._grids[level]
        inside, within = overlap(grid, block, origin_px, region.shape[:2])
        place = (
            block.row * grid.block[0] + within[0].start,
            block.column * grid.block[1] + within[1].start,
        )
        part = region[inside]
        if level == 0 or not stored_share(self._grids, level, place, part.shape[:2]):
            part[:] = self.background
            return
        finer = self._grids[level - 1].shape
        y, x = level_downsample(finer, grid.shape)
        for (top, left), size in cut_region(place, part.shape[:2], (y, x), _FINER_PX):
            top_px, left_px = fine_px_from_coarse_px(top, y), fine_px_from_coarse_px(left, x)
            low = (max(int(top_px - y) - 1, 0), max(int(left_px - x) - 1, 0))
            high = (
                min(int(fine_px_from_coarse_px(top + size[0] + 1, y)) + 2, finer[0]),
                min(int(fine_px_from_coarse_px(left + size[1] + 1, x)) + 2, finer[1]),
            )
            fine = self._read_blocks(level - 1, low, (high[0] - low[0], high[1] - low[1]))
            at = (top - place[0], left - place[1])
            part[at[0] : at[0] + size[0], at[1] : at[1] + size[1]] = resample(
                fine, (top_px - low[0], left_px - low[1]), (y, x), size
            )

    def _decode_into(
        self,
        level: int,
        block: StoredBlock,
        stored: list[bytes],
        region: Pixels,
        origin_px: tuple[int, int],
    ) -> None:
        """Decode one block into the region, and cache it if it is likely to be needed again."""
        grid = self._grids[level]
        shape = stored_shape(grid, block)
        inside, within = overlap(grid, block, origin_px, region.shape[:2])
        repeats = self._has_shared_bytes[level]
        cached = self._cached(level, block) if repeats else None
        if cached is not None:
            region[inside] = cached[within]
            return
        is_region = region.shape[:2] == shape == region[inside].shape[:2]
        if is_region and self._is_plain(grid) and not repeats:
            decode_block(stored[0], grid.coding, region, visible_shape(grid, block))
            self.count.add(decoded_px=shape[0] * shape[1])
            return
        pixels = self._decode(grid, stored, shape, visible_shape(grid, block))
        self.count.add(decoded_px=shape[0] * shape[1])
        region[inside] = pixels[within]
        # A large region is read in pieces: the next one begins with the last strips of this one.
        if repeats or not grid.tiled or pixels[within].shape[:2] != visible_shape(grid, block):
            self._cache_block(level, block, pixels)

    def _is_plain(self, grid: BlockGrid) -> bool:
        """Return whether decoded samples are the image's pixels without further conversion."""
        coding = grid.coding
        changed = coding.alpha or coding.palette is not None or coding.photometric == WHITE_IS_ZERO
        return not changed and not coding.planar and coding.samples == self.channels

    def _decode(
        self, grid: BlockGrid, stored: list[bytes], shape: tuple[int, int], shown: tuple[int, int]
    ) -> Pixels:
        """Decode one block to pixels ``(*shape, c)``, from the stored bytes of each plane."""
        coding = grid.coding
        planes = [np.empty((*shape, coding.stored_samples), self.dtype) for _ in stored]
        for data, out in zip(stored, planes, strict=True):
            decode_block(data, coding, out, shown)
        pixels = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        if coding.palette is not None:
            return np.asarray(coding.palette[pixels[:, :, 0]])
        if coding.photometric == WHITE_IS_ZERO:
            top = white_value(pixels.dtype)
            pixels[..., :1] = top - pixels[..., :1]
        if coding.alpha:
            return flatten_alpha(pixels, self._paper, premultiplied=coding.premultiplied)
        return pixels[..., : self.channels]

    # -- bytes and cache ----------------------------------------------------------------------

    def _read_bytes(self, blocks: list[StoredBlock]) -> Iterator[tuple[StoredBlock, list[bytes]]]:
        """Read the stored bytes of blocks in file order, neighbours with one system call."""
        for block in blocks:
            for offset, count in zip(block.offsets, block.counts, strict=True):
                if offset < 0 or count < 0 or offset + count > self._file_bytes:
                    raise UnreadableImage(
                        f"{self.path}: truncated: block ({block.row}, {block.column}) lies at byte "
                        f"{offset} with {count} bytes, the file ends at {self._file_bytes}{AGAIN}"
                    )
        if len(blocks) > 0 and len(blocks[0].offsets) > 1:
            for block in blocks:
                pairs = zip(block.offsets, block.counts, strict=True)
                yield block, [os.pread(self._fd, n, o) for o, n in pairs]
            return
        for group in group_neighbours(sorted(blocks, key=lambda c: c.offsets[0])):
            start = group[0].offsets[0]
            end = max(c.offsets[0] + c.counts[0] for c in group)
            data = os.pread(self._fd, end - start, start)
            for block in group:
                at = block.offsets[0] - start
                yield block, [data[at : at + block.counts[0]]]

    def _cached(self, level: int, block: StoredBlock) -> Pixels | None:
        """Return the cached pixels of a block, or None."""
        oversized = self._oversized
        if oversized is not None and oversized[0] == block:
            return oversized[1]
        return _cache.get(self._cache_key(level, block))

    def _cache_block(self, level: int, block: StoredBlock, pixels: Pixels) -> None:
        """Cache the pixels of a block; of blocks larger than the cache, keep only the last."""
        if pixels.nbytes > CACHE_BYTES:
            self._oversized = (block, pixels)
        else:
            _cache.put(self._cache_key(level, block), pixels, pixels.nbytes)

    def _cache_key(self, level: int, block: StoredBlock) -> tuple[int, ...]:
        """Build the cache's key from a block's bytes and not its place.

        So stored bytes that several blocks share are decoded once.
        """
        return (self._key, level, block.offsets[0], *visible_shape(self._grids[level], block))
