"""Read ordinary pictures with Pillow: PNG, JPEG, BMP, GIF, WebP.

The pixels are decoded once, on first use, and stay in memory; Pillow's limit against decompression
bombs stays on. Colour profiles are ignored: pixels are read as they are stored.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, ClassVar, final

import numpy as np

from foveate.errors import (
    AGAIN,
    FoveateError,
    ImageTooLarge,
    UnreadableImage,
    UnsupportedFormat,
    converting,
)
from foveate.formats.appended import find_appended
from foveate.formats.jpeg_damage import StagedFile, find_scan
from foveate.formats.markers import DamagedBlock
from foveate.formats.orientation import Orientation
from foveate.images.alpha import flatten_alpha
from foveate.images.level import Level
from foveate.images.resample import Pixels
from foveate.messages.warn import ignore_warnings_of
from foveate.readers.base import AbstractReader

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger("foveate")

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
_JPEG = b"\xff\xd8\xff"
_BITMAP_HEADERS = tuple(n.to_bytes(4, "little") for n in (12, 40, 52, 56, 64, 108, 124))
"""The lengths of a header by which a BMP is told from other files that begin with "BM"."""
_MAX_JPEG_BYTES = 1 << 30
"""Larger JPEGs are not checked: they have more pixels than are decoded, or hold other data."""
_EXIF_ORIENTATION = 0x0112
_GREY16 = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


@final
class PictureReader(AbstractReader):
    """A picture that fits into memory, turned upright by its EXIF orientation.

    Grey pictures have one channel, all others three (RGB). 16-bit grey stays ``uint16``; Pillow
    reduces 16-bit colour to 8 bits. Transparent pixels show white. Pictures have no spacing, since
    their dots per inch describe printing and not the object. The smaller pictures that cameras
    add to a JPEG (previews, gain maps) are ignored.

    Raises:
        UnsupportedFormat: the file holds several pictures.
        UnreadableImage: the file is damaged.
    """

    families: ClassVar[str] = "PNG, JPEG, BMP, GIF, WebP"
    priority: ClassVar[int] = 0

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        import PIL

        with self._open(path) as image:
            self._orientation = _read_orientation(image)
            shape = self._orientation.swap_axes(image.size[::-1])
            grey = image.mode in ("1", "L", "LA", "La", *_GREY16)
            self.dtype = np.dtype(np.uint16 if image.mode in _GREY16 else np.uint8)
            _refuse_several(path, image)
            self._lists_pictures = image.format == "MPO"
        self.kind = "picture"
        self.levels = (Level(shape, (1.0, 1.0)),)
        self.spacing_um = None
        self.channels = 1 if grey else 3
        self.reader = f"Pillow {PIL.__version__}"
        self._lock = threading.Lock()
        self._stored_pixels: Pixels | None = None
        self._closed = False

    @classmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """Return whether a file has the mark of one of the five formats and is no MIRAX slide.

        The main file of a MIRAX slide begins like a JPEG, but that is only a picture of its label.

        Args:
            path: the file.
            head: its first `HEAD_BYTES` bytes.
        """
        if path.suffix.lower() == ".mrxs":
            return False
        webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
        bitmap = head[:2] == b"BM" and head[14:18] in _BITMAP_HEADERS
        return webp or bitmap or head.startswith((b"\x89PNG\r\n\x1a\n", _JPEG, b"GIF8"))

    def _open(self, file: Path | IO[bytes]) -> Image.Image:
        """Open the picture in a file with Pillow, without decoding it."""
        from PIL import Image

        ignore_warnings_of("PIL")  # their causes are refused here or harmless
        try:
            image = Image.open(file, formats=FORMATS)
        except Image.DecompressionBombError as error:
            limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
            raise ImageTooLarge(
                f"{self.path}: the picture claims more pixels than the limit of {limit:,} for "
                "pictures that are decoded whole; store it as a tiled TIFF (vips tiffsave IN "
                "OUT.tif --tile --pyramid, say)"
            ) from error
        return image

    def _read_level(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> Pixels:
        pixels = self._pixels()
        (y, x), (height, width) = origin_px, size_px
        return pixels[y : y + height, x : x + width].copy()

    def _pixels(self) -> Pixels:
        """Return all pixels, ``(y, x, c)``, decoded on first use."""
        with self._lock:
            if self._closed:
                raise UnreadableImage(f"{self.path}: the image is closed; open it again")
            if self._stored_pixels is None:
                self._stored_pixels = self._decode()
                self.count.add(decoded_px=self.n_pixels)
            return self._stored_pixels

    def _decode(self) -> Pixels:
        """Decode all pixels, ``(y, x, c)``, and check that they are what the header states."""
        with converting(self.path, _explain_decoding):
            pixels = self._orientation.turn_upright(self._load())
        if pixels.shape != (*self.shape, self.channels) or pixels.dtype != self.dtype:
            raise UnreadableImage(
                f"{self.path}: decoded to {pixels.shape} {pixels.dtype}, "
                f"its header promised {(*self.shape, self.channels)} {self.dtype}{AGAIN}"
            )
        return pixels

    def _load(self) -> Pixels:
        """Load the pixels ``(y, x, c)`` as they are stored, and check that a JPEG is undamaged."""
        file: Path | StagedFile = self.path
        with self.path.open("rb") as stored:
            is_jpeg = stored.read(len(_JPEG)) == _JPEG
        if is_jpeg and self.path.stat().st_size <= _MAX_JPEG_BYTES:
            content = self.path.read_bytes()
            scan = find_scan(content)
            file = self.path if scan is None else StagedFile(content, scan)
        with self._open(file) as image:
            image.load()
            if isinstance(file, StagedFile):
                file.check_end()
            pixels = _array(image)
        if not self._lists_pictures and (rest := find_appended(self.path)) is not None:
            self._refuse_another(rest, pixels)
        return pixels

    def _refuse_another(self, rest: bytes, pixels: Pixels) -> None:
        """Refuse a file if the picture behind the first one is another one of about its size.

        Args:
            rest: the bytes of the file from the second picture on.
            pixels: the pixels of the first one, ``(y, x, c)``.

        Raises:
            UnsupportedFormat: the second picture is another one.
        """
        try:
            with converting(self.path, _explain_decoding), self._open(io.BytesIO(rest)) as image:
                if not _is_similar(image.size[::-1], pixels.shape):
                    return
                image.load()
                second = _array(image)
        except FoveateError:  # no picture
            return
        if not np.array_equal(second, pixels):
            raise UnsupportedFormat(
                f"{self.path}: another picture of {image.size[1]} x {image.size[0]} pixels stands "
                "behind the end of the first, which would be read alone; save each as a file of "
                "its own"
            )

    def close(self) -> None:
        """Release the pixels. Closing twice is harmless."""
        with self._lock:
            self._stored_pixels, self._closed = None, True


def _refuse_several(path: Path, image: Image.Image) -> None:
    """Refuse a file with several pictures of about the same size, such as an animation.

    Raises:
        UnsupportedFormat: there are several.
        UnreadableImage: they cannot be counted.
    """
    same, size = 1, "the same"
    with converting(path, _explain_decoding):
        n = int(getattr(image, "n_frames", 1))
        if n > 1 and image.format == "MPO":  # a JPEG, whose pictures may differ in size
            same, size = _count_similar(image, n)
        elif n > 1:
            same = n
    if same > 1:
        raise UnsupportedFormat(
            f"{path}: holds {same} pages of {size} size (an animation or a stack); save one flat "
            "picture"
        )


def _count_similar(image: Image.Image, n: int) -> tuple[int, str]:
    """Count the pictures in a JPEG of about the size of the first; it is the current one then.

    Returns:
        their number, and whether they have ``the same`` or a ``similar`` size.
    """
    sizes = []
    for i in range(n):
        image.seek(i)
        sizes.append(image.size)
    image.seek(0)
    similar = [size for size in sizes if _is_similar(size, sizes[0])]
    return len(similar), "the same" if len(set(similar)) == 1 else "similar"


def _is_similar(shape: Sequence[int], first: Sequence[int]) -> bool:
    """Return whether a picture has more than half of the pixels of another; previews have less."""
    return 2 * math.prod(shape[:2]) > math.prod(first[:2])


def _explain_decoding(error: Exception, path: object) -> FoveateError:
    log.debug("%s", path, exc_info=error)
    if isinstance(error, MemoryError):
        return ImageTooLarge(
            f"{path}: decoding needs more memory than there is; store it as a tiled TIFF"
        )
    reason = str(error) if isinstance(error, DamagedBlock) else "its pixels cannot be decoded"
    return UnreadableImage(f"{path}: {reason}{AGAIN}")


def _read_orientation(image: Image.Image) -> Orientation:
    """Return a picture's orientation by its EXIF block; upright where that states none."""
    tag = 1
    # A damaged block says nothing about the pixels.
    with (
        contextlib.suppress(UnreadableImage),
        converting("its EXIF block", _explain_decoding),
    ):
        tag = int(image.getexif().get(_EXIF_ORIENTATION, 1))
    return Orientation.from_tag(tag if 1 <= tag <= 8 else 1)


def _array(image: Image.Image) -> Pixels:
    """Convert a picture to pixels ``(y, x, c)``: grey uint8 or uint16, or RGB uint8, over white."""
    if image.mode in _GREY16:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            return values[:, :, None]  # the caller refuses a type that the header did not state
        return values.astype(np.uint16)[:, :, None]
    white = np.full(1, 255, np.uint8)
    if image.mode in ("LA", "La"):
        return flatten_alpha(np.asarray(image.convert("LA")), white)
    if image.mode in _ALPHA or (image.mode == "P" and "transparency" in image.info):
        return flatten_alpha(np.asarray(image.convert("RGBA")), white)
    if image.mode in ("1", "L"):
        return np.array(image.convert("L"))[:, :, None]
    return np.array(image.convert("RGB"))
