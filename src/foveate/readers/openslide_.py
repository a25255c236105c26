"""Vendors' whole slides through OpenSlide: NDPI, SCN, MIRAX, Philips, Trestle, Ventana and more.

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
from foveate.formats.tiff_index import (
    MAX_BLOCK_BYTES,
    TIFF_MARKS,
    is_coding_read,
    refuse_unlisted,
)
from foveate.geometry import Box, Frame
from foveate.images.alpha import flattened
from foveate.images.image import Level
from foveate.images.resample import Pixels
from foveate.images.stated import believed_spacing, level_downsample
from foveate.readers.base import AbstractReader

log = logging.getLogger("foveate")

CACHE_BYTES = 256 << 20
"""Decoded tiles kept by OpenSlide, over all open slides."""

_WHITE = (255.0, 255.0, 255.0)
_NOT_HERE = ("dicom", "generic-tiff", "zeiss")
_OTHER_MARKS = (b"\x89PNG", b"GIF8", b"\x93NUMPY", b"PK\x03\x04", b"\x1f\x8b")

_cache_lock = threading.Lock()
_cache: list[Any] = []


@final
class OpenSlideReader(AbstractReader):
    """A vendor's slide: RGB, ``uint8``, transparent and absent parts in the background colour.

    OpenSlide takes origins in whole level-0 pixels, so where its downsample is no whole number a
    region lies up to half a level-0 pixel off its place, interpolated. Scans that it lays on a
    larger canvas (Leica) it puts on whole pixels, rounding down; there the origin is rounded up and
    every region is cut from one grid. With whole downsamples, as most vendors have, both are exact.
    `count` holds the stored tiles that a region touches, cached or not: OpenSlide does not say
    which it decoded.
    """

    priority: ClassVar[int] = 10

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import openslide

        with path.open("rb") as file:
            if file.read(4) in TIFF_MARKS:
                refuse_unlisted(path)
        self._reopening = threading.Lock()
        try:
            self._slide = self._handle()
            facts = self._slide.properties
            shapes = [(height, width) for width, height in self._slide.level_dimensions]
            self._steps = tuple(float(d) for d in self._slide.level_downsamples)
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
        mpp = (_number(facts.get("openslide.mpp-y")), _number(facts.get("openslide.mpp-x")))
        self.spacing_um = believed_spacing(mpp)
        self.bounds_px0 = _bounds(facts, shapes[0])
        self._stated = _colour(facts.get("openslide.background-color"))
        self._paper = np.asarray(self._stated or _WHITE, np.uint8)
        self.reader = f"OpenSlide {openslide.__library_version__} ({facts.get('openslide.vendor')})"
        self._whole = _up if "openslide.region[0].x" in facts else round
        self._closed = False

    @classmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """What OpenSlide detects, except DICOM (wrong colours unnoticed), CZI and plain TIFF.

        Of Aperio only those whose coding the reader of TIFF lacks: what that one refuses for
        another reason is not to be believed here.
        """
        if head.startswith(_OTHER_MARKS) or head[128:132] == b"DICM":
            return False
        import openslide

        vendor = openslide.OpenSlide.detect_format(path)
        if vendor == "aperio" and is_coding_read(path):
            return False
        return vendor is not None and vendor not in _NOT_HERE

    def _read_level(self, level: int, origin: tuple[int, ...], size: tuple[int, ...]) -> Pixels:
        if self._closed:
            raise UnreadableImage(f"{self.path}: the image is closed")
        step = self._steps[level]
        place = (self._whole(origin[1] * step), self._whole(origin[0] * step))
        try:
            region = self._region(place, level, (size[1], size[0]))
        except MemoryError as error:
            raise ImageTooLarge(
                f"{self.path}: a region of {size} does not fit memory; read it at a coarser spacing"
            ) from error
        self.count.add(decoded_px=_touched_px(self.levels[level], origin, size))
        return flattened(np.asarray(region), self._paper)

    def _region(self, place: tuple[int, int], level: int, size: tuple[int, int]) -> Any:
        """A region by OpenSlide.

        After one failure a handle of OpenSlide fails for ever, in all threads. It is replaced, and
        the region tried once more: the failure may have been that of another thread.
        """
        import openslide

        for attempt in (1, 2):
            handle = self._slide
            try:
                return handle.read_region(place, level, size)
            except openslide.OpenSlideError as error:
                log.debug("%s: level %d at %s", self.path, level, place, exc_info=True)
                self._reopen(handle)
                if attempt == 2:
                    raise UnreadableImage(
                        f"{self.path}: level {level}, region {size[::-1]} at {place[::-1]} cannot "
                        f"be decoded{AGAIN}"
                    ) from error
        raise AssertionError

    def _reopen(self, broken: Any) -> None:
        """Take a new handle, unless another thread has; the old one goes with its last user."""
        import openslide

        with self._reopening:
            if self._slide is broken and not self._closed:
                try:
                    self._slide = self._handle()
                except openslide.OpenSlideError as error:
                    raise UnreadableImage(f"{self.path}: is no longer readable{AGAIN}") from error

    def _handle(self) -> Any:
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
    import openslide

    with _cache_lock:
        if not _cache:
            _cache.append(openslide.OpenSlideCache(CACHE_BYTES))
        return _cache[0]


def _up(place: float) -> int:
    return math.ceil(place - 1e-6)


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _tile(facts: Mapping[str, str], level: int) -> tuple[int, int] | None:
    sides = [_number(facts.get(f"openslide.level[{level}].tile-{s}")) for s in ("height", "width")]
    height, width = sides
    return None if not height or not width else (int(height), int(width))


def _bounds(facts: Mapping[str, str], shape: tuple[int, int]) -> Box | None:
    y, x, height, width = (
        _number(facts.get(f"openslide.bounds-{side}")) for side in ("y", "x", "height", "width")
    )
    if y is None or x is None or not height or not width:
        return None
    if (y, x) == (0, 0) and (height, width) == shape:
        return None
    return Box((y, x), (height, width), Frame.PX0)


def _colour(text: str | None) -> Sequence[float] | None:
    """``(r, g, b)`` of ``E6E6E6``, or None."""
    try:
        values = bytes.fromhex(text or "")
    except ValueError:
        return None
    return tuple(float(v) for v in values) if len(values) == 3 else None


def _touched_px(level: Level, origin: Sequence[int], size: Sequence[int]) -> int:
    pixels = 1
    for axis, (o, n) in enumerate(zip(origin, size, strict=True)):
        if level.tile is not None:
            side = level.tile[axis]
            low, high = o // side * side, -(-(o + n) // side) * side
            n = min(high, level.shape[axis]) - low
        pixels *= n
    return pixels
