"""Decoding one stored block of a TIFF into pixels.

Part of the reader `tiff`. All codecs come from imagecodecs and release the interpreter lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import UnsupportedFormat
from foveate.resample import Pixels

_CODECS = {
    1: "none",
    5: "lzw",
    7: "jpeg",
    8: "deflate",
    32946: "deflate",
    32773: "packbits",
    33005: "jpeg2000",
    34712: "jpeg2000",
    50000: "zstd",
    34926: "zstd",
    50001: "webp",
}
WHITE_IS_ZERO, BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_PICTURE_CODECS = ("jpeg", "jpeg2000", "webp")


@dataclass(frozen=True)
class Coding:
    """How the samples of one directory are stored.

    Attributes:
        codec: the name of the compression.
        samples: samples per pixel as stored, alpha included.
        planar: each sample in blocks of its own.
        dtype: of a stored sample, in the byte order of the file.
        photometric: TIFF's number for the meaning of the samples.
        differenced: horizontal predictor.
        extra: samples after the colours that are stored; the first may be opacity.
        alpha: the sample after the colours is opacity.
        premultiplied: the colours are multiplied by it already.
        tables: JPEG tables shared by all blocks.
        palette: ``(entries, 3)`` uint8, or None.
    """

    codec: str
    samples: int
    planar: bool
    dtype: np.dtype[np.generic]
    photometric: int
    differenced: bool
    extra: int
    alpha: bool
    premultiplied: bool
    tables: bytes | None
    palette: NDArray[np.uint8] | None

    @property
    def stored_samples(self) -> int:
        """Samples of one pixel inside one block."""
        return 1 if self.planar else self.samples

    @property
    def channels(self) -> int:
        """Channels of the pixels that come out: 3 for RGB, 1 for grey."""
        return 3 if self.palette is not None else self.samples - self.extra


def coding_of(path: Path, page: Any) -> Coding:
    """The coding of a directory.

    Raises:
        UnsupportedFormat: names what about the coding is not read.
    """
    name = _CODECS.get(int(page.compression))
    photometric, samples = int(page.photometric), int(page.samplesperpixel)
    bits, kind = page.bitspersample, int(page.sampleformat or 1)
    palette = _palette(page) if photometric == _PALETTE else None
    extra = tuple(int(v) for v in page.extrasamples)
    colours = samples - len(extra)
    wrong = None
    if name is None:
        wrong = f"compression {int(page.compression)}"
    elif kind != 1 or bits not in (8, 16):
        wrong = f"samples of {bits} bits in format {kind} (1 is unsigned)"
    elif photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR):
        wrong = f"colour space {photometric} (CMYK, CIELab or the like)"
    elif colours != (3 if photometric in (_RGB, _YCBCR) else 1):
        wrong = f"{samples} samples a pixel in colour space {photometric}"
    elif len(extra) > 1 or (extra and (palette is not None or name == "jpeg")):
        wrong = f"{len(extra)} extra samples with compression {name}"
    elif photometric == _YCBCR and name != "jpeg":
        wrong = f"YCbCr with compression {name}"
    elif photometric == _PALETTE and palette is None:
        wrong = "a palette that is damaged or not for 8 bits"
    elif int(page.predictor) not in (1, 2):
        wrong = f"predictor {int(page.predictor)}"
    elif int(page.fillorder) != 1:
        wrong = "reversed bit order"
    elif int(page.planarconfig) == 2 and samples > 1 and name in ("webp", "jpeg2000"):
        wrong = f"separate planes with compression {name}"
    if wrong is not None or name is None:
        raise UnsupportedFormat(f"{path}: this TIFF stores {wrong}, which is not read")
    return Coding(
        codec=name,
        samples=samples,
        planar=int(page.planarconfig) == 2 and samples > 1,
        dtype=np.dtype(f"{page.parent.byteorder}u{bits // 8}"),
        photometric=photometric,
        differenced=int(page.predictor) == 2,
        extra=len(extra),
        alpha=extra in ((1,), (2,)),
        premultiplied=extra == (1,),
        tables=page.jpegtables,
        palette=palette,
    )


def _palette(page: Any) -> NDArray[np.uint8] | None:
    table = page.colormap
    if table is None or page.bitspersample != 8 or np.shape(table) != (3, 256):
        return None
    values = np.asarray(table, np.uint16).T
    return (values >> 8 if int(values.max()) > 255 else values).astype(np.uint8)


def decode_block(data: bytes, coding: Coding, out: Pixels) -> None:
    """Decode one stored block into `out`.

    Args:
        data: the stored bytes.
        coding: how they are stored.
        out: ``(rows, columns, stored_samples)``, contiguous, in native byte order; filled.

    Raises:
        Exception: whatever the codec raises, and `ValueError` for a block of another size.
    """
    if coding.codec == "jpeg":
        _decode_jpeg(data, coding, out)
    elif coding.codec in _PICTURE_CODECS:
        _decode_picture(data, coding, out)
    else:
        _decode_bytes(data, coding, out)


def _decode_jpeg(data: bytes, coding: Coding, out: Pixels) -> None:
    import imagecodecs

    stored, shown = _jpeg_colours(data, coding)
    target = out[:, :, 0] if out.shape[2] == 1 else out
    if jpeg_size(data) == target.shape[:2]:
        imagecodecs.jpeg8_decode(
            data, tables=coding.tables, colorspace=stored, outcolorspace=shown, out=target
        )
        return
    height, width = jpeg_size(data)
    if height > 2 * out.shape[0] or width > 2 * out.shape[1]:
        raise ValueError(
            f"a JPEG of {width} x {height} in a block of {out.shape[1]} x {out.shape[0]}"
        )
    decoded = imagecodecs.jpeg8_decode(
        data, tables=coding.tables, colorspace=stored, outcolorspace=shown
    )
    _place(decoded, out)


def _jpeg_colours(data: bytes, coding: Coding) -> tuple[str | None, str | None]:
    """The colour space inside the JPEG, and the one wanted.

    A block that says RGB and carries no marker of its own is RGB (Aperio); with a JFIF or Adobe
    marker the JPEG knows better than the tag.
    """
    if coding.stored_samples == 1:
        return None, "GRAYSCALE"
    if coding.photometric == _RGB:
        start = data[:32]
        marked = b"JFIF" in start or b"Adobe" in start or b"Adobe" in (coding.tables or b"")[:32]
        return (None if marked else "RGB"), "RGB"
    return None, "RGB"


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width that a JPEG states.

    Raises:
        ValueError: it states none.
    """
    at, end = 2, len(data)
    while at + 9 <= end and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return (data[at + 5] << 8) | data[at + 6], (data[at + 7] << 8) | data[at + 8]
        at += 2 + ((data[at + 2] << 8) | data[at + 3])
    raise ValueError("a JPEG without a frame header")


def _decode_picture(data: bytes, coding: Coding, out: Pixels) -> None:
    import imagecodecs

    if coding.codec == "webp":
        decoded = imagecodecs.webp_decode(data, hasalpha=coding.extra > 0)
    else:
        height, width = _jpeg2000_size(data[:256])
        if height > 2 * out.shape[0] or width > 2 * out.shape[1]:
            raise ValueError(f"a JPEG 2000 of {width} x {height} in a block of {out.shape[:2]}")
        decoded = imagecodecs.jpeg2k_decode(data)
    _place(decoded, out)


def _jpeg2000_size(head: bytes) -> tuple[int, int]:
    at = head.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(head) < at + 24:
        raise ValueError("a JPEG 2000 without a size")
    right, bottom, left, top = (
        int.from_bytes(head[at + i : at + i + 4], "big") for i in (8, 12, 16, 20)
    )
    return bottom - top, right - left


def _place(decoded: Pixels, out: Pixels) -> None:
    """Copy a decoded block that is as large as `out`, or larger, or lacks padding it may lack."""
    if decoded.ndim == 2:
        decoded = decoded[:, :, None]
    if decoded.ndim != 3 or decoded.shape[2] != out.shape[2] or decoded.dtype != out.dtype:
        raise ValueError(f"a block decoded to {decoded.shape} {decoded.dtype}")
    if decoded.shape[0] < out.shape[0] or decoded.shape[1] < out.shape[1]:
        raise ValueError(f"a block decoded to {decoded.shape[:2]}, expected {out.shape[:2]}")
    out[:] = decoded[: out.shape[0], : out.shape[1]]


def _decode_bytes(data: bytes, coding: Coding, out: Pixels) -> None:
    import imagecodecs

    if coding.codec == "none":
        raw: bytes | bytearray = data
    elif coding.codec == "lzw":
        raw = imagecodecs.lzw_decode(data, out=out.nbytes)
    elif coding.codec == "packbits":
        raw = imagecodecs.packbits_decode(data, out=out.nbytes)
    elif coding.codec == "zstd":
        raw = imagecodecs.zstd_decode(data, out=out.nbytes)
    else:
        raw = imagecodecs.zlib_decode(data, out=out.nbytes)
    if len(raw) < out.nbytes:
        raise ValueError(f"a block decoded to {len(raw)} bytes, expected {out.nbytes}")
    stored = np.frombuffer(raw, coding.dtype, out.size).reshape(out.shape)
    out[:] = stored
    if coding.differenced:
        imagecodecs.delta_decode(out, axis=-2, out=out)
