"""DICOM slides that tests write: levels in files of their own, in many layouts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    generate_uid,
)

SLIDE: Final = UID("1.2.840.10008.5.1.4.1.1.77.1.6")
Frames = list[NDArray[Any]]


def smooth(
    height: int = 200,
    width: int = 328,
    samples: int = 3,
    dtype: type[np.unsignedinteger[Any]] = np.uint8,
) -> NDArray[Any]:
    """Return a smooth picture ``(y, x, c)`` without symmetry.

    Args:
        height: rows.
        width: columns.
        samples: channels.
        dtype: an unsigned type, of which all values are used.
    """
    y, x = np.mgrid[:height, :width]
    top = np.iinfo(dtype).max
    waves = [np.sin(y / (17 + 3 * s)) * np.cos(x / (23 + 5 * s)) for s in range(samples)]
    return np.asarray(((np.stack(waves, -1) * 0.4 + 0.5) * top).astype(dtype))


def encode_jpeg(frame: NDArray[Any], **options: Any) -> bytes:
    """Encode a frame ``(y, x, c)`` as JPEG with YCbCr inside, unless options say otherwise."""
    return bytes(imagecodecs.jpeg8_encode(frame, level=95, **options))


def encode_jpeg2000(frame: NDArray[Any]) -> bytes:
    """Encode a frame ``(y, x, c)`` as JPEG 2000 without loss."""
    return bytes(imagecodecs.jpeg2k_encode(frame, level=0, codecformat="j2k"))


SYNTAXES = {
    "jpeg": JPEGBaseline8Bit,
    "jpeg2000": JPEG2000Lossless,
    "jpegls": JPEGLSLossless,
    "none": ExplicitVRLittleEndian,
}
ENCODERS: dict[str, Callable[[NDArray[Any]], bytes]] = {
    "jpeg": encode_jpeg,
    "jpeg2000": encode_jpeg2000,
    "jpegls": lambda frame: bytes(imagecodecs.jpegls_encode(frame)),
    "none": lambda frame: frame.tobytes(),
}


def cut_frames(pixels: NDArray[Any], side: int) -> Frames:
    """Cut pixels ``(y, x, c)`` into square frames row by row; the last ones are padded."""
    rows, columns = (-(-n // side) for n in pixels.shape[:2])
    pad = [(0, rows * side - pixels.shape[0]), (0, columns * side - pixels.shape[1]), (0, 0)]
    full = np.pad(pixels, pad, mode="edge")
    return [
        np.ascontiguousarray(full[y : y + side, x : x + side])
        for y in range(0, rows * side, side)
        for x in range(0, columns * side, side)
    ]


def write_level(
    path: Path,
    pixels: NDArray[Any],
    *,
    series: str,
    side: int = 64,
    codec: str = "none",
    encode: Callable[[NDArray[Any]], bytes] | None = None,
    photometric: str | None = None,
    spacing_um: float | None = 0.5,
    resampled: bool = False,
    absent: Collection[int] | None = None,
    frames: slice = slice(None),
    table: str = "basic",
    pieces: int = 1,
    **elements: Any,
) -> Path:
    """Write a level, or a part of one, as one file of a DICOM slide.

    Args:
        path: the file.
        pixels: the level, ``(y, x, c)``, uint8 or uint16.
        series: identifier of the slide's series.
        side: rows and columns of a frame.
        codec: one of `SYNTAXES`.
        encode: encodes a frame; by default as `codec` says.
        photometric: the photometric interpretation that the header states.
        spacing_um: the spacing that the header states; None for none.
        resampled: whether the file is stated to be a smaller version of another.
        absent: frames that are left out, by index; the others then state their places.
        frames: the frames that this file holds.
        table: ``basic``, ``extended`` or ``none``: the table of offsets of compressed frames.
        pieces: number of items of each compressed frame.
        elements: further elements of the header, by keyword; None leaves one out.
    """
    stored = list(enumerate(cut_frames(pixels, side)))[frames]
    stored = [(i, frame) for i, frame in stored if i not in (absent or ())]
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = SYNTAXES[codec]
    header.SOPClassUID, header.SOPInstanceUID = SLIDE, generate_uid()
    header.file_meta.MediaStorageSOPClassUID = SLIDE
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.ImageType = [
        *("DERIVED" if resampled else "ORIGINAL", "PRIMARY", "VOLUME"),
        "RESAMPLED" if resampled else "NONE",
    ]
    header.SeriesInstanceUID, header.Modality = series, "SM"
    header.TotalPixelMatrixRows, header.TotalPixelMatrixColumns = pixels.shape[:2]
    header.Rows = header.Columns = side
    header.NumberOfFrames, header.SamplesPerPixel = len(stored), pixels.shape[2]
    header.PhotometricInterpretation = photometric or _usual_colours(codec, pixels.shape[2])
    bits = 8 * pixels.dtype.itemsize
    header.BitsAllocated, header.BitsStored, header.HighBit = bits, bits, bits - 1
    header.PixelRepresentation = 0
    if pixels.shape[2] > 1:
        header.PlanarConfiguration = 0
    header.DimensionOrganizationType = "TILED_FULL" if absent is None else "TILED_SPARSE"
    if spacing_um is not None:
        measures, shared = Dataset(), Dataset()
        measures.PixelSpacing = [spacing_um / 1000, spacing_um / 1000]
        shared.PixelMeasuresSequence = [measures]
        header.SharedFunctionalGroupsSequence = [shared]
    if absent is not None:
        columns = -(-pixels.shape[1] // side)
        header.PerFrameFunctionalGroupsSequence = [
            _place(i // columns * side, i % columns * side) for i, _ in stored
        ]
    content = [(encode or ENCODERS[codec])(frame) for _, frame in stored]
    _add_pixels(header, content, codec, table, pieces)
    for name, value in elements.items():
        if value is None:
            del header[name]
        else:
            setattr(header, name, value)
    header.save_as(path, enforce_file_format=True)
    return path


def write_slide(
    folder: Path, levels: Sequence[NDArray[Any]], spacing_um: float = 0.5, **options: Any
) -> Path:
    """Write the levels of a slide into a folder, each as a file of its own, and return the folder.

    Args:
        folder: the folder, which is made.
        levels: pixels of each level, the finest first.
        spacing_um: the spacing of the finest level.
        options: options of `write_level`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series = options.pop("series", None) or generate_uid()
    for i, pixels in enumerate(levels):
        step = levels[0].shape[0] / pixels.shape[0]
        write_level(
            folder / f"{i}.dcm",
            pixels,
            series=series,
            spacing_um=spacing_um * step,
            resampled=i > 0,
            **options,
        )
    return folder


def _usual_colours(codec: str, samples: int) -> str:
    if samples == 1:
        return "MONOCHROME2"
    return {"jpeg": "YBR_FULL_422", "jpeg2000": "YBR_RCT"}.get(codec, "RGB")


def _place(row: int, column: int) -> Dataset:
    """Return the item of a frame in the list of frames."""
    place, item = Dataset(), Dataset()
    place.ColumnPositionInTotalImagePixelMatrix = column + 1
    place.RowPositionInTotalImagePixelMatrix = row + 1
    place.ZOffsetInSlideCoordinateSystem = "0.0"
    item.PlanePositionSlideSequence = [place]
    return item


def _add_pixels(header: Dataset, content: list[bytes], codec: str, table: str, pieces: int) -> None:
    """Add the pixels of the frames, which are encoded, to a header."""
    if codec == "none":
        data = b"".join(content)
        header.PixelData = data + b"\0" * (len(data) % 2)
    elif table == "extended":
        header.PixelData, header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths = (
            encapsulate_extended(content)
        )
    else:
        header.PixelData = encapsulate(content, pieces, has_bot=table == "basic")
    header["PixelData"].VR = "OW" if header.BitsAllocated > 8 and codec == "none" else "OB"


def as_implicit(path: Path) -> None:
    """Write a file again with implicit types of elements."""
    from pydicom import dcmread

    header = dcmread(path)
    header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    header["PixelData"].VR = "OW"
    header.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=True)
