"""Read vendors' slides with OpenSlide: NDPI, SCN, MIRAX, Philips, Trestle, Ventana and more.

One handle serves all threads; OpenSlide releases the interpreter lock while it decodes.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np

from foveate.errors import AGAIN, ImageTooLarge, UnreadableImage
from foveate.formats.appended import TIFF_MARKS
from foveate.formats.tiff_grid import MAX_BLOCK_BYTES
from foveate.formats.tiff_index import is_coding_read, refuse_unlisted
from foveate.formats.tile_damage import TileCheck
from foveate.geometry import Box, Frame, fine_px_from_coarse_px
from foveate.images.alpha import flatten_alpha
from foveate.images.level import Level
from foveate.images.resample import Pixels
from foveate.images.stated import check_spacing, level_downsample, parse_number
from foveate.readers.base import AbstractReader

log = logging.getLogger("foveate")

CACHE_BYTES = 256 << 20
"""The largest size of OpenSlide's cache of decoded tiles, over all open slides."""

_WHITE = (255.0, 255.0, 255.0)
_NOT_HERE = ("dicom", "generic-tiff", "zeiss")
_OTHER_MARKS = (b"\x89PNG", b"GIF8", b"\x93NUMPY", b"PK\x03\x04", b"\x1f\x8b")

_cache_lock = threading.Lock()
_cache: list[Any] = []


@final
class OpenSlideReader(AbstractReader):
    """A vendor's slide: RGB, ``uint8``, transparent and absent parts in the background colour.

    OpenSlide takes origins in whole level-0 pixels. Where its downsample is no whole number, a
    region is thus displaced by up to half a level-0 pixel and interpolated. Scans that OpenSlide
    lays on a larger canvas (Leica) start at whole pixels, rounded down; there the origin is rounded
    up, so that all regions are cut from one grid. With whole downsamples, as most vendors have,
    both are exact. `count` holds the stored tiles that a region touches, cached or not, since
    OpenSlide does not report which of them it decoded. It decodes damaged tiles of Philips slides
    to wrong pixels without an error; their stored bytes are checked before.

    Raises:
        UnreadableImage: OpenSlide cannot open the file.
        ImageTooLarge: a tile is too large to be decoded.
    """

    families: ClassVar[str] = "whole slides (SVS, NDPI, SCN, MIRAX, Philips, Trestle, Ventana)"
    priority: ClassVar[int] = 10

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import openslide

        with path.open("rb") as file:
            if file.read(4) in TIFF_MARKS:
                refuse_unlisted(path)
        self._reopening = threading.Lock()
        try:
            self._slide = self._open_slide()
            facts = self._slide.properties
            shapes = [(height, width) for width, height in self._slide.level_dimensions]
            self._downsamples = tuple(float(d) for d in self._slide.level_downsamples)
        except openslide.OpenSlideError as error:
            raise UnreadableImage(
                f"{path}: OpenSlide takes it for a slide and cannot open it{AGAIN}"
            ) from error
        self.kind = "slide"
        self.channels, self.dtype = 3, np.dtype(np.uint8)
        self.levels = tuple(
            Level(shape, level_downsample(shapes[0], shape), _tile(facts, i))
            for i, shape in enumerate(shapes)
        )
        largest = max((math.prod(level.tile) for level in self.levels if level.tile), default=0)
        if 4 * largest > MAX_BLOCK_BYTES:  # OpenSlide would end the process
            self._slide.close()
            raise ImageTooLarge(
                f"{path}: claims tiles of {largest:,} pixels, more than "
                f"{MAX_BLOCK_BYTES >> 20} MiB{AGAIN}"
            )
        is_philips = facts.get("openslide.vendor") == "philips"
        self._tiles = TileCheck(path, self.levels) if is_philips else None
        mpp = (
            parse_number(facts.get("openslide.mpp-y")),
            parse_number(facts.get("openslide.mpp-x")),
        )
        self.spacing_um = check_spacing(mpp)
        self.bounds_px0 = _bounds(facts, shapes[0])
        self._stated = _colour(facts.get("openslide.background-color"))
        self._paper = np.asarray(self._stated or _WHITE, np.uint8)
        self.reader = f"OpenSlide {openslide.__library_version__} ({facts.get('openslide.vendor')})"
        self._round = _round_up if "openslide.region[0].x" in facts else round
        self._closed = False

    @classmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """Return whether OpenSlide detects a slide, unless it is DICOM, CZI or plain TIFF.

        OpenSlide reads some DICOM slides in wrong colours without an error. Aperio slides are taken
        only if the reader `tiff` lacks their coding: what it refuses for another reason is damaged.

        Args:
            path: the file.
            head: its first `HEAD_BYTES` bytes.
        """
        if head.startswith(_OTHER_MARKS) or head[128:132] == b"DICM":
            return False
        import openslide

        vendor = openslide.OpenSlide.detect_format(path)
        if vendor == "aperio" and is_coding_read(path):
            return False
        return vendor is not None and vendor not in _NOT_HERE

    def _read_level(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> Pixels:
        if self._closed:
            raise UnreadableImage(f"{self.path}: the image is closed; open it again")
        if self._tiles is not None:
            self._tiles.check(level, (origin_px[0], origin_px[1]), (size_px[0], size_px[1]))
        y_px0, x_px0 = (
            self._round(fine_px_from_coarse_px(o, self._downsamples[level])) for o in origin_px
        )
        try:
            region = self._read_region((x_px0, y_px0), level, (size_px[1], size_px[0]))
        except MemoryError as error:
            raise ImageTooLarge(
                f"{self.path}: a region of {size_px} does not fit memory; read it at a coarser "
                "spacing"
            ) from error
        self.count.add(decoded_px=_touched_px(self.levels[level], origin_px, size_px))
        return flatten_alpha(np.asarray(region), self._paper)

    def _read_region(self, place: tuple[int, int], level: int, size_px: tuple[int, int]) -> Any:
        """Read a region with OpenSlide as a picture of Pillow, RGBA; retry once after a failure.

        After one failure a handle of OpenSlide fails for ever, in all threads. It is replaced, and
        the region tried once more, since the failure may have been that of another thread.

        Args:
            place: the first pixel ``(x, y)`` in level 0.
            level: index of the level.
            size_px: pixels ``(x, y)`` of the level.
        """
        import openslide

        for attempt in (1, 2):
            handle = self._slide
            try:
                return handle.read_region(place, level, size_px)
            except openslide.OpenSlideError as error:
                log.debug("%s: level %d at %s", self.path, level, place, exc_info=True)
                self._reopen(handle)
                if attempt == 2:
                    raise UnreadableImage(
                        f"{self.path}: level {level}, region {size_px[::-1]} at {place[::-1]} "
                        f"cannot be decoded{AGAIN}"
                    ) from error
        raise AssertionError

    def _reopen(self, broken: Any) -> None:
        """Replace a broken handle, unless another thread has.

        The old handle is freed when the last thread that uses it lets go of it.
        """
        import openslide

        with self._reopening:
            if self._slide is broken and not self._closed:
                try:
                    self._slide = self._open_slide()
                except openslide.OpenSlideError as error:
                    raise UnreadableImage(f"{self.path}: is no longer readable{AGAIN}") from error

    def _open_slide(self) -> Any:
        """Open the file with OpenSlide and let it use the shared cache."""
        import openslide

        slide = openslide.OpenSlide(self.path)
        slide.set_cache(_shared_cache())
        return slide

    def _stated_background(self) -> Sequence[float] | None:
        return self._stated

    def close(self) -> None:
        """Release the slide. Closing twice is harmless."""
        if not self._closed:
            self._closed = True
            self._slide.close()


def _shared_cache() -> Any:
    """Return the cache of decoded tiles that all slides share, made on first use."""
    import openslide

    with _cache_lock:
        if not _cache:
            _cache.append(openslide.OpenSlideCache(CACHE_BYTES))
        return _cache[0]


def _round_up(place: float) -> int:
    """Round a coordinate up, except where it exceeds a whole number by rounding errors alone."""
    return math.ceil(place - 1e-6)


def _tile(facts: Mapping[str, str], level: int) -> tuple[int, int] | None:
    """Return the pixels ``(y, x)`` of a level's tiles, by OpenSlide's properties, or None."""
    sides = [
        parse_number(facts.get(f"openslide.level[{level}].tile-{s}")) for s in ("height", "width")
    ]
    height, width = sides
    return None if not height or not width else (int(height), int(width))


def _bounds(facts: Mapping[str, str], shape: tuple[int, int]) -> Box | None:
    """Return the scanned part of a larger canvas, by OpenSlide's properties, or None."""
    y, x, height, width = (
        parse_number(facts.get(f"openslide.bounds-{side}"))
        for side in ("y", "x", "height", "width")
    )
    if y is None or x is None or not height or not width:
        return None
    if (y, x) == (0, 0) and (height, width) == shape:
        return None
    return Box((y, x), (height, width), Frame.PX0)


def _colour(text: str | None) -> Sequence[float] | None:
    """Convert a colour such as ``E6E6E6`` to ``(r, g, b)``; None where it is none."""
    try:
        values = bytes.fromhex(text or "")
    except ValueError:
        return None
    return tuple(float(v) for v in values) if len(values) == 3 else None


def _touched_px(level: Level, origin_px: Sequence[int], size_px: Sequence[int]) -> int:
    """Count the pixels of the tiles of a level that a region touches."""
    pixels = 1
    for axis, (o, n) in enumerate(zip(origin_px, size_px, strict=True)):
        if level.tile is not None:
            side = level.tile[axis]
            low, high = o // side * side, -(-(o + n) // side) * side
            n = min(high, level.shape[axis]) - low
        pixels *= n
    return pixels
