"""Decode the pixels of a DICOM file.

Part of the reader `dicom`. pydicom finds the frame and interprets its numbers. imagecodecs decodes
JPEG (also of 12 bits, and lossless), JPEG-LS and JPEG 2000, as a plug-in of pydicom (its guide
"Decoder plugins"), which is what the names without an underscore are for.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import AGAIN, FoveateError, ImageTooLarge, UnreadableImage, UnsupportedFormat
from foveate.formats.dicom_header import read_file, reading_dicom, transfer_syntax
from foveate.formats.jpeg_damage import check_block
from foveate.formats.markers import DamagedBlock, jpeg2000_size, jpeg_head

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.pixels.decoders.base import DecodeRunner

MAX_FRAME_PIXELS = 1 << 27
"""The largest number of pixels of a frame."""

_SYNTAX = "1.2.840.10008.1.2"
_UNPACKED = (_SYNTAX, f"{_SYNTAX}.1", f"{_SYNTAX}.1.98", f"{_SYNTAX}.1.99", f"{_SYNTAX}.2")
_RUN_LENGTH = f"{_SYNTAX}.5"
_CODECS = {
    **dict.fromkeys((f"{_SYNTAX}.4.{n}" for n in (50, 51, 57, 70)), "jpeg"),
    **dict.fromkeys((f"{_SYNTAX}.4.{n}" for n in (80, 81)), "jpegls"),
    **dict.fromkeys((f"{_SYNTAX}.4.{n}" for n in (90, 91, 201, 202, 203)), "jpeg2000"),
}
"""The codecs of imagecodecs, by transfer syntax."""
_PLUGIN = "foveate"
_END, _END_WITHIN_BYTES = b"\xff\xd9", 64
"""The last marker of JPEG, JPEG-LS and JPEG 2000, behind which a few bytes of padding may stand."""

DECODER_DEPENDENCIES = dict.fromkeys(_CODECS, ("imagecodecs",))
"""What the plug-in needs, by transfer syntax."""

_adding = threading.Lock()


def is_available(uid: str) -> bool:
    """Return whether the plug-in decodes a transfer syntax."""
    return uid in _CODECS


def read_pixels(path: Path) -> tuple[NDArray[Any], Dataset]:
    """Read the pixels of a DICOM file that has one frame, and its elements.

    Args:
        path: the file.

    Returns:
        stored numbers ``(y, x)``, signed where the file says so, or RGB ``(y, x, 3)``; and all
        elements.

    Raises:
        UnsupportedFormat: its pixels are encrypted, or stored in a way that is not read.
        UnreadableImage: it is damaged or truncated, or holds no pixels.
        ImageTooLarge: a frame has more than `MAX_FRAME_PIXELS` pixels.
    """
    dataset = read_file(path)
    with reading_dicom(path):
        shape = int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)
        if not dataset.get("PixelData"):
            raise _explain_absence(path, dataset)
        if shape[0] * shape[1] > MAX_FRAME_PIXELS:
            raise ImageTooLarge(
                f"{path}: claims {shape[1]} x {shape[0]} pixels, more than the limit of "
                f"{MAX_FRAME_PIXELS:,}{AGAIN}"
            )
        _refuse_surplus(path, dataset)
        pixels = _decode(path, dataset)
    if pixels.shape not in (shape, (*shape, 3)) or not pixels.size:
        raise UnreadableImage(
            f"{path}: decoded to {pixels.shape}, its header promised {shape}{AGAIN}"
        )
    return pixels, dataset


def _refuse_surplus(path: Path, dataset: Dataset) -> None:
    """Refuse uncompressed pixels of which there is a row or more than the header promises.

    Raises:
        UnreadableImage: there are so many.
    """
    from pydicom.pixels.utils import get_expected_length

    if (transfer_syntax(dataset) or _guess_syntax(dataset)) not in _UNPACKED:
        return
    n_bytes, promised = len(dataset.PixelData), get_expected_length(dataset)
    if n_bytes - promised >= max(2, promised // int(dataset.Rows)):
        raise UnreadableImage(
            f"{path}: holds {n_bytes:,} bytes of pixels, its header promised {promised:,}{AGAIN}"
        )


def _explain_absence(path: Path, dataset: Dataset) -> FoveateError:
    """Return the error for an image without pixels."""
    if "EncryptedAttributesSequence" in dataset:
        reason = "its pixels are missing or encrypted; export it without encryption"
        return UnsupportedFormat(f"{path}: {reason}")
    return UnreadableImage(f"{path}: holds no complete pixels{AGAIN}")


def _decode(path: Path, dataset: Dataset) -> NDArray[Any]:
    """Decode the first frame, in the type and colours that `read_pixels` returns."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import UID

    syntax = transfer_syntax(dataset) or _guess_syntax(dataset)
    if syntax not in (*_UNPACKED, _RUN_LENGTH, *_CODECS):
        raise UnsupportedFormat(
            f"{path}: its pixels are stored as {UID(syntax).name} (transfer syntax), which is not "
            "read; store them uncompressed (gdcmconv does it)"
        )
    decoder = get_decoder(syntax)
    if syntax in _CODECS:
        with _adding:
            if _PLUGIN not in decoder.available_plugins:
                decoder.add_plugin(_PLUGIN, (__name__, "decode_frame"))
    pixels, _ = decoder.as_array(
        dataset, index=0, decoding_plugin=_PLUGIN if syntax in _CODECS else ""
    )
    return pixels


def _guess_syntax(dataset: Dataset) -> str:
    """Return the transfer syntax by which pydicom read a file that states none."""
    is_implicit, is_little = dataset.original_encoding
    if not is_little:
        return f"{_SYNTAX}.2"
    return _SYNTAX if is_implicit else f"{_SYNTAX}.1"


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """Decode one frame; the plug-in of pydicom.

    Args:
        src: the frame as it is stored.
        runner: pydicom's facts of the image, which are corrected to those of the decoded frame.

    Returns:
        the pixels, row by row, all samples of a pixel together.

    Raises:
        DamagedBlock: the frame has another size than the image, or is cut off.
        Exception: any error of the codec.
    """
    import imagecodecs

    codec = _CODECS[runner.transfer_syntax]
    size = jpeg2000_size(src) if codec == "jpeg2000" else jpeg_head(src).shape
    if size != (runner.rows, runner.columns):
        raise DamagedBlock(f"a frame of {size}, expected {(runner.rows, runner.columns)}")
    if _END not in src[-_END_WITHIN_BYTES:]:
        raise DamagedBlock("a frame without an end")
    if codec == "jpeg":
        pixels = _decode_jpeg(src, runner)
    else:
        decode = {"jpegls": imagecodecs.jpegls_decode, "jpeg2000": imagecodecs.jpeg2k_decode}
        pixels = decode[codec](src)
        if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
            runner.set_option("photometric_interpretation", "RGB")
    runner.set_option("bits_allocated", 8 * pixels.dtype.itemsize)
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 0)
    return np.ascontiguousarray(pixels).tobytes()


def _decode_jpeg(src: bytes, runner: DecodeRunner) -> NDArray[Any]:
    """Decode a JPEG, in colour to RGB.

    A marker in it (JFIF, Adobe) has precedence over the colour space that DICOM states.
    """
    import imagecodecs

    check_block(src, None)
    if runner.samples_per_pixel == 1:
        return np.asarray(imagecodecs.jpeg8_decode(src))
    is_rgb = runner.photometric_interpretation == "RGB" and not jpeg_head(src).marked
    runner.set_option("photometric_interpretation", "RGB")
    stored = "RGB" if is_rgb else None
    return np.asarray(imagecodecs.jpeg8_decode(src, colorspace=stored, outcolorspace="RGB"))
