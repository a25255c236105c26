"""Base of the readers of levels that are stored in blocks: tiles, strips or frames.

The blocks that a region touches are read in file order with few system calls, and each is decoded
once with imagecodecs. Tiles that a region touches only in part, and strips, go into a cache that
all open files share.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveate.cache import ByteCache
from foveate.errors import (
    AGAIN,
    FoveateError,
    ImageTooLarge,
    UnreadableImage,
    converting,
    explain_os_error,
)
from foveate.formats.markers import DamagedBlock
from foveate.formats.orientation import Orientation
from foveate.formats.stored_bytes import StoredBytes
from foveate.formats.tiff_blocks import (
    BlockUse,
    StoredBlock,
    find_whole_use,
    group_neighbours,
    paste_block,
    plan_blocks,
    shares_bytes,
    stored_shape,
    used_px,
    visible_shape,
)
from foveate.formats.tiff_codec import WHITE_IS_ZERO, decode_block
from foveate.formats.tiff_grid import BlockGrid
from foveate.formats.tiff_levels import cut_region, stored_share
from foveate.geometry import fine_px_from_coarse_px
from foveate.images.alpha import flatten_alpha
from foveate.images.level import Level
from foveate.images.resample import Corners, Pixels, resample, white_value
from foveate.images.stated import level_downsample
from foveate.readers.base import AbstractReader

log = logging.getLogger("foveate")

CACHE_BYTES = 256 << 20
"""The largest size of the cache of decoded blocks that all open files of a process share."""

_FINER_PX = 1 << 22
"""The largest piece of a finer level that is read at once where a level lacks a block."""

_cache: ByteCache[Pixels] = ByteCache(CACHE_BYTES)
_keys = itertools.count()


class AbstractBlockReader(AbstractReader):
    """A reader of levels that are grids of stored blocks, in one file or in several.

    Blocks that a level lacks are computed from the next finer one. Those that no level has show the
    background. The constructor of a reader sets `channels`, `dtype` and `_paper`, the colour behind
    transparent pixels, and calls `_open_blocks`; and `_set_levels` where it settles them later.
    """

    _paper: Pixels

    def _open_blocks(self, paths: Sequence[Path], grids: tuple[BlockGrid, ...]) -> None:
        """Open the files that hold the blocks.

        Args:
            paths: the files, as `StoredBytes` lays them.
            grids: the blocks of all pictures that may be levels.
        """
        self._bytes = StoredBytes(paths)
        self._key = next(_keys)
        self._oversized: tuple[StoredBlock, Pixels] | None = None
        self._orientation = Orientation.from_tag(1)
        self._set_levels(grids)

    def _set_levels(self, grids: tuple[BlockGrid, ...]) -> None:
        """Set the levels, finest first, as they lie when turned upright."""
        _cache.drop_where(self._key)  # its keys hold the index of a level, which changes here
        self._grids, orientation = grids, self._orientation
        self._has_shared_bytes = tuple(shares_bytes(grid) for grid in grids)
        full = grids[0].shape
        self.levels = tuple(
            Level(
                orientation.swap_axes(g.shape),
                orientation.swap_axes(level_downsample(full, g.shape)),
                orientation.swap_axes(g.block) if g.tiled else None,
            )
            for g in grids
        )

    def close(self) -> None:
        """Release the file and its cached blocks. Closing twice is harmless."""
        if not self._bytes.closed:
            self._bytes.close()
            _cache.drop_where(self._key)
            self._oversized = None

    def _read_level(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> Pixels:
        place = self._stored_place(level, origin_px, size_px)
        return self._orientation.turn_upright(self._read_stored(level, *place))

    def _read_regions(self, level: int, origin_px: Corners, regions: Pixels) -> None:
        if self._orientation.is_upright:
            self._compose_regions(level, origin_px, regions)
        else:
            super()._read_regions(level, origin_px, regions)

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
        """Read a region in stored rows and columns ``(*size_px, c)``."""
        explain = functools.partial(self._explain, level, origin_px, size_px)
        with converting(self.path, explain):
            regions = np.empty((1, *size_px, self.channels), self.dtype)
        self._compose_regions(level, np.array([origin_px]), regions)
        return np.asarray(regions[0])

    def _explain(
        self,
        level: int,
        origin_px: Sequence[int],
        size_px: Sequence[int],
        error: Exception,
        path: object,
    ) -> FoveateError:
        """Convert an error about a region to one of this program."""
        if isinstance(error, MemoryError):
            return ImageTooLarge(
                f"{path}: a region of {size_px} does not fit memory; read it at a coarser spacing"
            )
        log.debug("%s: level %d", path, level, exc_info=error)
        codec = self._grids[level].coding.codec
        damage = str(error) if isinstance(error, DamagedBlock) else f"{codec} cannot decode it"
        reason = f"{damage}{AGAIN}"
        if isinstance(error, OSError) and error.errno:
            reason = explain_os_error(error)
        return UnreadableImage(
            f"{path}: level {level}, region {size_px} at {tuple(origin_px)}: {reason}"
        )

    def _compose_regions(self, level: int, origin_px: Corners, regions: Pixels) -> None:
        """Compose regions in stored rows and columns, ``(n, *size, c)``, from their blocks.

        Every block is decoded once, in the order of the file. Errors name the file, and the first
        region that the block touches.
        """
        if self._bytes.closed:
            raise UnreadableImage(f"{self.path}: the image is closed; open it again")
        height, width = regions.shape[1:3]
        waiting: dict[StoredBlock, list[BlockUse]] = {}
        touched = 0  # the first region that the current block touches

        def explain(error: Exception, path: object) -> FoveateError:
            place = origin_px[touched].tolist()
            return self._explain(level, place, (height, width), error, path)

        with converting(self.path, explain):
            for block, uses in plan_blocks(self._grids[level], origin_px, (height, width)):
                if block.is_absent:
                    for use in uses:
                        self._fill_absent(level, block, use, regions[use.region])
                elif (cached := self._cached(level, block)) is not None:
                    paste_block(cached, uses, regions)
                else:
                    waiting[block] = uses
            for block, stored in self._read_bytes(list(waiting)):
                uses = waiting[block]
                touched = uses[0].region
                self._decode_into(level, block, stored, uses, regions)

    def _fill_absent(self, level: int, block: StoredBlock, use: BlockUse, region: Pixels) -> None:
        """Fill the part of an absent block from the next finer level, else with the background."""
        grid = self._grids[level]
        place = (
            block.row * grid.block[0] + use.within[0].start,
            block.column * grid.block[1] + use.within[1].start,
        )
        part = region[use.inside]
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
            fine = self._read_stored(level - 1, low, (high[0] - low[0], high[1] - low[1]))
            at = (top - place[0], left - place[1])
            part[at[0] : at[0] + size[0], at[1] : at[1] + size[1]] = resample(
                fine, (top_px - low[0], left_px - low[1]), (y, x), size
            )

    def _decode_into(
        self,
        level: int,
        block: StoredBlock,
        stored: list[bytes],
        uses: list[BlockUse],
        regions: Pixels,
    ) -> None:
        """Decode one block into regions, and cache it if it is likely to be needed again."""
        grid = self._grids[level]
        shape, shown = stored_shape(grid, block), visible_shape(grid, block)
        repeats = self._has_shared_bytes[level]
        pixels = self._cached(level, block) if repeats else None
        if pixels is None:
            self.count.add(decoded_px=shape[0] * shape[1])
            whole = find_whole_use(uses, shape, regions.shape[1:3])
            if whole is not None and self._is_plain(grid) and not repeats:
                pixels = regions[whole.region]
                decode_block(stored[0], grid.coding, pixels, shown)
                uses = [use for use in uses if use.region != whole.region]
            else:
                pixels = self._decode(grid, stored, shape, shown)
                # A large region is read in pieces: the next one begins with the last strips of
                # this one.
                if repeats or not grid.tiled or used_px(uses) != shown[0] * shown[1]:
                    self._cache_block(level, block, pixels)
        paste_block(pixels, uses, regions)

    def _is_plain(self, grid: BlockGrid) -> bool:
        """Return whether decoded samples are the image's pixels without further conversion."""
        coding = grid.coding
        changed = coding.alpha or coding.palette is not None or coding.photometric == WHITE_IS_ZERO
        changed = changed or coding.is_measured
        return not changed and not coding.planar and coding.samples == self.channels

    def _decode(
        self, grid: BlockGrid, stored: list[bytes], shape: tuple[int, int], shown: tuple[int, int]
    ) -> Pixels:
        """Decode one block to pixels ``(*shape, c)``, from the stored bytes of each plane."""
        coding = grid.coding
        pixels: Any = self._decode_samples(grid, stored, shape, shown)
        if coding.is_measured:
            pixels = self._convert_measured(pixels)
        if coding.palette is not None:
            return np.asarray(coding.palette[pixels[:, :, 0]])
        if coding.photometric == WHITE_IS_ZERO:
            top = white_value(pixels.dtype)
            pixels[..., :1] = top - pixels[..., :1]
        if coding.alpha:
            return flatten_alpha(pixels, self._paper, premultiplied=coding.premultiplied)
        return np.asarray(pixels[..., : self.channels])

    def _convert_measured(self, samples: Pixels) -> Pixels:
        """Convert measured values to greys of 16 bits; only a reader of such values needs it."""
        raise NotImplementedError

    def _decode_samples(
        self, grid: BlockGrid, stored: list[bytes], shape: tuple[int, int], shown: tuple[int, int]
    ) -> Pixels:
        """Decode one block to the samples that are stored, ``(*shape, samples)``."""
        coding = grid.coding
        dtype = coding.dtype.newbyteorder("=")
        planes = [np.empty((*shape, coding.stored_samples), dtype) for _ in stored]
        for data, out in zip(stored, planes, strict=True):
            decode_block(data, coding, out, shown)
        return planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)

    # -- bytes and cache ----------------------------------------------------------------------

    def _read_bytes(self, blocks: list[StoredBlock]) -> Iterator[tuple[StoredBlock, list[bytes]]]:
        """Read the stored bytes of blocks in file order, neighbours with one system call."""
        for block in blocks:
            for offset, count in zip(block.offsets, block.counts, strict=True):
                self._bytes.check(offset, count, f"block ({block.row}, {block.column})")
        if len(blocks) > 0 and len(blocks[0].offsets) > 1:
            for block in blocks:
                pairs = zip(block.offsets, block.counts, strict=True)
                yield block, [self._bytes.read(o, n) for o, n in pairs]
            return
        for group in group_neighbours(sorted(blocks, key=lambda c: c.offsets[0])):
            start = group[0].offsets[0]
            end = max(c.offsets[0] + c.counts[0] for c in group)
            data = self._bytes.read(start, end - start)
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
