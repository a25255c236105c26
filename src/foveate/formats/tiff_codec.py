"""Decode one stored block of a TIFF into pixels.

Part of the reader `tiff`. All codecs come from imagecodecs and release the interpreter lock.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from foveate.errors import UnsupportedFormat
from foveate.formats.dicom_frames import join_items
from foveate.formats.jpeg_damage import check_block, check_grey_end
from foveate.formats.markers import (
    DamagedBlock,
    JpegHead,
    jpeg2000_size,
    jpeg_head,
    states_colours,
)
from foveate.images.resample import Pixels

CODECS = {
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
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, _PALETTE, YCBCR = 0, 1, 2, 3, 6
_PICTURE_CODECS = ("jpeg", "jpeg2000", "webp")
_KINDS = {
    **{(1, 1): "u1", (1, 8): "u1", (1, 16): "u2", (1, 32): "u4"},
    **{(2, 8): "i1", (2, 16): "i2", (2, 32): "i4"},
    **{(3, 16): "f2", (3, 32): "f4", (3, 64): "f8"},
}
"""Kinds of samples of numpy, by TIFF's number of the kind and by bits."""


@dataclass(frozen=True)
class Coding:
    """How the samples of one directory are stored.

    Attributes:
        codec: name of the compression.
        samples: stored samples per pixel, alpha included.
        planar: whether every sample has blocks of its own.
        dtype: dtype of a stored sample, in the byte order of the file.
        photometric: TIFF's number for the meaning of the samples.
        differenced: whether samples are stored as differences along rows (horizontal predictor).
        extra: number of stored samples after the colours; the first may be alpha.
        alpha: whether the sample after the colours is alpha.
        premultiplied: whether the colours are already multiplied by alpha.
        tables: JPEG tables shared by all blocks, or None.
        palette: colours of the palette, ``(entries, 3)`` uint8, or None.
        in_items: whether a block is wrapped in items of DICOM.
        is_bilevel: whether eight samples share a byte, from the highest bit on.
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
    in_items: bool = False
    is_bilevel: bool = False

    @property
    def stored_samples(self) -> int:
        """Number of samples of a pixel inside one block."""
        return 1 if self.planar else self.samples

    @property
    def channels(self) -> int:
        """Number of channels of decoded pixels: 3 for RGB, 1 for grey."""
        return 3 if self.palette is not None else self.samples - self.extra

    @property
    def is_measured(self) -> bool:
        """Whether samples are measured values, whose black and white are to be chosen."""
        return self.dtype.kind != "u" or self.dtype.itemsize > 2

    def row_bytes(self, width_px: int) -> int:
        """Return the bytes of an unpacked row.

        Args:
            width_px: its pixels.
        """
        n = width_px * self.stored_samples
        return -(-n // 8) if self.is_bilevel else n * self.dtype.itemsize


def read_coding(path: Path, page: Any) -> Coding:
    """Read how the samples of a directory are stored.

    Args:
        path: the file, for messages.
        page: the directory as tifffile parsed it.

    Raises:
        UnsupportedFormat: the coding is not supported; the message says which part of it.
    """
    name = CODECS.get(int(page.compression))
    if name is None:
        raise _make_refusal(path, f"compression {int(page.compression)}")
    samples, planar = int(page.samplesperpixel), int(page.planarconfig) == 2
    photometric, extra = int(page.photometric), tuple(int(v) for v in page.extrasamples)
    sample_format = int(page.sampleformat or 1)
    kind = _KINDS.get((sample_format, page.bitspersample))
    if kind is None:
        raise _make_refusal(
            path,
            f"samples of {page.bitspersample} bits in format {sample_format} (1 is unsigned)",
        )
    coding = Coding(
        codec=name,
        samples=samples,
        planar=planar and samples > 1,
        dtype=np.dtype(f"{page.parent.byteorder}{kind}"),
        photometric=photometric,
        differenced=int(page.predictor) in (2, 3),
        extra=len(extra),
        alpha=extra in ((1,), (2,)),
        premultiplied=extra == (1,),
        tables=page.jpegtables,
        palette=_palette(page) if photometric == _PALETTE else None,
        is_bilevel=page.bitspersample == 1,
    )
    for unsupported, part in _list_limits(coding, page):
        if unsupported:
            raise _make_refusal(path, part)
    return coding


def _list_limits(coding: Coding, page: Any) -> tuple[tuple[bool, str], ...]:
    """List what this module cannot decode: whether it is so here, and its description.

    Args:
        coding: the coding that a directory states.
        page: the directory.
    """
    name, photometric = coding.codec, coding.photometric
    colours = 3 if photometric in (RGB, YCBCR) else 1
    known = (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, _PALETTE, YCBCR)
    plain = coding.palette is None and name != "jpeg"
    predictors = (1,) if coding.is_bilevel else (1, 3) if coding.dtype.kind == "f" else (1, 2)
    return (
        (photometric not in known, f"colour space {photometric} (CMYK, CIELab or the like)"),
        (
            coding.samples - coding.extra != colours,
            f"{coding.samples} samples a pixel in colour space {photometric}",
        ),
        (
            coding.extra > (1 if plain else 0),
            f"{coding.extra} extra samples with compression {name}",
        ),
        (photometric == YCBCR and name != "jpeg", f"YCbCr with compression {name}"),
        (
            photometric == _PALETTE and coding.palette is None,
            "a palette that is damaged or not for 8 bits",
        ),
        (int(page.predictor) not in predictors, f"predictor {int(page.predictor)}"),
        (
            (coding.is_measured or coding.is_bilevel)
            and (name in _PICTURE_CODECS or coding.extra > 0),
            f"samples of {page.bitspersample} bits with compression {name} or transparency",
        ),
        (int(page.fillorder) != 1, "reversed bit order"),
        (
            coding.planar and name in ("webp", "jpeg2000"),
            f"separate planes with compression {name}",
        ),
    )


def _make_refusal(path: Path, part: str) -> UnsupportedFormat:
    """Return the error for a coding that is not supported; `part` says what of it."""
    return UnsupportedFormat(
        f"{path}: this TIFF stores {part}, which is not read; export it as RGB or grey, of 8 or "
        "16 bits"
    )


def _palette(page: Any) -> NDArray[np.uint8] | None:
    """Return the palette of a directory, ``(256, 3)``; None if it is damaged or not of 8 bits."""
    table = page.colormap
    if table is None or page.bitspersample != 8 or np.shape(table) != (3, 256):
        return None
    values = np.asarray(table, np.uint16).T
    return (values >> 8 if int(values.max()) > 255 else values).astype(np.uint8)


def decode_block(data: bytes, coding: Coding, out: Pixels, shown: tuple[int, int]) -> None:
    """Decode one stored block into `out`.

    Writers may crop the blocks at the edge of a picture to the part inside it, or store more rows
    than there are; both are read.

    Args:
        data: the stored bytes.
        coding: how the samples are stored.
        out: ``(rows, columns, stored_samples)``, contiguous, in native byte order; filled as far
            as `shown`.
        shown: rows and columns of the block that lie inside the picture.

    Raises:
        DamagedBlock: the block holds too few pixels, or pixels of another shape or type.
        Exception: any error of the codec.
    """
    if coding.in_items:
        data = join_items(data)
    if coding.codec == "jpeg":
        _decode_jpeg(data, coding, out, shown)
    elif coding.codec in _PICTURE_CODECS:
        _decode_picture(data, coding, out, shown)
    else:
        _decode_bytes(data, coding, out, shown)


def _decode_jpeg(data: bytes, coding: Coding, out: Pixels, shown: tuple[int, int]) -> None:
    """Decode a JPEG block as `decode_block` does; refuse one that is damaged or much too large."""
    import imagecodecs

    head = jpeg_head(data)
    check_block(data, coding.tables)
    stored, wanted = _jpeg_colours(head, coding)
    target = out[:, :, 0] if out.shape[2] == 1 else out
    if head.shape == target.shape[:2]:
        imagecodecs.jpeg8_decode(
            data, tables=coding.tables, colorspace=stored, outcolorspace=wanted, out=target
        )
        check_grey_end(target, data, coding.tables)
        return
    height, width = head.shape
    if height > 2 * out.shape[0] or width > 2 * out.shape[1]:
        raise DamagedBlock(
            f"a JPEG of {width} x {height} in a block of {out.shape[1]} x {out.shape[0]}"
        )
    decoded = imagecodecs.jpeg8_decode(
        data, tables=coding.tables, colorspace=stored, outcolorspace=wanted
    )
    check_grey_end(decoded, data, coding.tables)
    _place(decoded, out, shown)


def _jpeg_colours(head: JpegHead, coding: Coding) -> tuple[str | None, str | None]:
    """Return the colour space inside a JPEG (None: as the JPEG states) and that of its output.

    A block that the tag calls RGB and that has no JFIF or Adobe marker is RGB (Aperio), unless its
    components differ in resolution; with such a marker, in the block or in the tables, the JPEG's
    own statement has precedence over the tag.
    """
    if coding.stored_samples == 1:
        return None, "GRAYSCALE"
    if coding.photometric == RGB:
        marked = head.marked or head.subsampled or states_colours(coding.tables or b"")
        return (None if marked else "RGB"), "RGB"
    return None, "RGB"


def _decode_picture(data: bytes, coding: Coding, out: Pixels, shown: tuple[int, int]) -> None:
    """Decode a WebP or JPEG 2000 block as `decode_block` does."""
    import imagecodecs

    if coding.codec == "webp":
        decoded = imagecodecs.webp_decode(data, hasalpha=coding.extra > 0)
    else:
        height, width = jpeg2000_size(data[:256])
        if height > 2 * out.shape[0] or width > 2 * out.shape[1]:
            raise DamagedBlock(f"a JPEG 2000 of {width} x {height} in a block of {out.shape[:2]}")
        decoded = imagecodecs.jpeg2k_decode(data)
    _place(decoded, out, shown)


def _place(decoded: Pixels, out: Pixels, shown: tuple[int, int]) -> None:
    """Copy decoded pixels ``(y, x, c)`` into `out` ``(rows, columns, c)``.

    They may be more than `out` holds, or end where the picture ends.
    """
    if decoded.ndim == 2:
        decoded = decoded[:, :, None]
    if decoded.ndim != 3 or decoded.shape[2] != out.shape[2] or decoded.dtype != out.dtype:
        raise DamagedBlock(f"a block of {decoded.shape} {decoded.dtype}, expected {out.shape}")
    if decoded.shape[0] < shown[0] or decoded.shape[1] < shown[1]:
        raise DamagedBlock(f"a block of {decoded.shape[:2]} pixels, expected {out.shape[:2]}")
    rows, columns = min(decoded.shape[0], out.shape[0]), min(decoded.shape[1], out.shape[1])
    if (rows, columns) != out.shape[:2]:
        out[:] = 0
    out[:rows, :columns] = decoded[:rows, :columns]


def _decode_bytes(data: bytes, coding: Coding, out: Pixels, shown: tuple[int, int]) -> None:
    """Decode a block of raw or losslessly packed samples as `decode_block` does."""
    import imagecodecs

    raw = data if coding.codec == "none" else _unpack(data, coding.codec, out.nbytes)
    rows, columns, samples = out.shape
    for height, width in ((rows, columns), (shown[0], columns), shown):
        n_bytes = height * coding.row_bytes(width)
        if len(raw) >= n_bytes:
            break
    else:
        raise DamagedBlock(f"a block of {len(raw)} bytes, expected {out.nbytes}")
    part = out[:height, :width]
    if part.shape != out.shape:
        out[:] = 0
    if coding.is_bilevel:
        bits = np.frombuffer(raw, np.uint8, n_bytes).reshape(height, -1)
        part[:] = 255 * np.unpackbits(bits, axis=1, count=width * samples).reshape(part.shape)
        return
    n = n_bytes // coding.dtype.itemsize
    stored = np.frombuffer(raw, coding.dtype, n).reshape(part.shape)
    if not coding.differenced:
        part[:] = stored
    elif coding.dtype.kind == "f":
        part[:] = imagecodecs.floatpred_decode(stored, axis=-2)
    else:
        native = np.ascontiguousarray(stored, out.dtype)
        part[:] = imagecodecs.delta_decode(native, axis=-2)


def _unpack(data: bytes, codec: str, n_bytes: int) -> bytes | bytearray:
    """Decompress a block to at most `n_bytes`, or somewhat more where its last rows are padded."""
    import imagecodecs

    if codec == "lzw":
        return cast("bytes", imagecodecs.lzw_decode(data, out=n_bytes))
    if codec == "packbits":
        return cast("bytes", imagecodecs.packbits_decode(data))
    if codec == "zstd":
        return cast("bytes", imagecodecs.zstd_decode(data, out=n_bytes))
    try:
        return cast("bytes", imagecodecs.deflate_decode(data, out=n_bytes))
    except imagecodecs.DeflateError:
        # A last strip that is padded to its full number of rows holds more than fits. A stream
        # that ends within the limit must be complete, including its checksum.
        stream = zlib.decompressobj()
        raw = stream.decompress(data, n_bytes + 1)
        if len(raw) <= n_bytes and not stream.eof:
            raise
        return raw
