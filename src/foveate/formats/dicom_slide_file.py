"""Read what the header of one DICOM file of a slide states: its place in the slide, its coding.

Part of the reader `dicom_slide`. pydicom parses the header up to the list of frames, which
`dicom_slide_frames` searches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from foveate.errors import AGAIN, UnreadableImage, UnsupportedFormat
from foveate.formats.dicom_header import (
    read_header,
    read_header_and_end,
    reading_dicom,
    transfer_syntax,
)
from foveate.formats.tiff_codec import BLACK_IS_ZERO, RGB, WHITE_IS_ZERO, YCBCR, Coding
from foveate.geometry import Vector
from foveate.images.stated import check_spacing
from foveate.wording import one_line

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_CODECS = {
    "1.2.840.10008.1.2": "none",
    "1.2.840.10008.1.2.1": "none",
    "1.2.840.10008.1.2.4.50": "jpeg",
    "1.2.840.10008.1.2.4.51": "jpeg",
    "1.2.840.10008.1.2.4.90": "jpeg2000",
    "1.2.840.10008.1.2.4.91": "jpeg2000",
}
"""Name of the compression, by transfer syntax."""
_COLOURS = {
    "MONOCHROME1": WHITE_IS_ZERO,
    "MONOCHROME2": BLACK_IS_ZERO,
    "RGB": RGB,
    "YBR_ICT": YCBCR,
    "YBR_RCT": YCBCR,
    "YBR_FULL": YCBCR,
    "YBR_FULL_422": YCBCR,
}
"""TIFF's number for the meaning of the samples, by photometric interpretation."""
_MEMBER_TAGS = (
    *("SOPInstanceUID", "ImageType", "SeriesInstanceUID", "FrameOfReferenceUID"),
    *("ContainerIdentifier", "TotalPixelMatrixRows", "TotalPixelMatrixColumns"),
)
_LAST_OF_MEMBER = 0x00480007
"""The last of these elements in a file."""
_TAGS = (
    *("ImageType", "Rows", "Columns", "TotalPixelMatrixRows", "NumberOfFrames"),
    *("TotalPixelMatrixColumns", "TotalPixelMatrixFocalPlanes", "NumberOfOpticalPaths"),
    *("DimensionOrganizationType", "SamplesPerPixel", "PhotometricInterpretation"),
    *("PlanarConfiguration", "BitsAllocated", "PixelRepresentation", "ImagedVolumeWidth"),
    *("ImagedVolumeHeight", "ConcatenationUID", "InConcatenationNumber"),
    *("InConcatenationTotalNumber", "ConcatenationFrameOffsetNumber"),
    "SharedFunctionalGroupsSequence",
)
_BEFORE_FRAMES = 0x5200922F
"""The last tag before the list of frames (Per-Frame Functional Groups Sequence)."""
_UM_PER_MM = 1e3
_MAX_LETTERS = 200
"""More than any of the texts may have by the rules of DICOM."""
_IMPLICIT = "1.2.840.10008.1.2"
_STACKS = ("TotalPixelMatrixFocalPlanes", "NumberOfOpticalPaths")
_OTHER_KINDS = ("LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER")
"""Words of the element Image Type for pictures that are no level of the slide."""


@dataclass(frozen=True)
class Member:
    """A file of a slide: what it shows and which other files belong to it.

    Attributes:
        path: the file.
        instance: unique identifier of the file's content.
        series: unique identifier of its series.
        place: frame of reference and name of the glass slide; None where one is not stated.
        kind: what it shows: ``VOLUME`` for the slide itself, else one of `_OTHER_KINDS`.
        stated_px: number of pixels of the level that the header states; 0 where it states none.
    """

    path: Path
    instance: str
    series: str
    place: tuple[str, str] | None
    kind: str
    stated_px: int

    def belongs_to(self, other: Member) -> bool:
        """Return whether two files are of one slide, by their series or by place on the glass."""
        same_series = self.series != "" and self.series == other.series
        return same_series or (self.place is not None and self.place == other.place)


@dataclass(frozen=True)
class SlideFile:
    """The facts of one file that holds a level of a slide, or a part of one.

    Attributes:
        path: the file.
        resampled: whether it is stated to be a smaller version of another file.
        shape: rows and columns of the level, of which a part may lie in further files.
        block: rows and columns of a frame.
        n_frames: number of frames in this file.
        planes: focal planes times optical paths; more than one is a stack.
        concatenation: identifier that all parts of a level share; else that of the file alone.
        part: number of this part of the level, from 1 on.
        n_parts: number of parts; 0 where not stated.
        first_frame: number of frames of the level before those in this file.
        is_full: whether the frames are all tiles of the level, row by row; else each states its
            place.
        spacing_um: micrometres per pixel ``(y, x)``, or None where none is stated or plausible.
        coding: how the samples are stored.
        explicit: whether elements state their type (VR).
        end: first byte behind the parsed header.
    """

    path: Path
    resampled: bool
    shape: tuple[int, int]
    block: tuple[int, int]
    n_frames: int
    planes: int
    concatenation: str
    part: int
    n_parts: int
    first_frame: int
    is_full: bool
    spacing_um: Vector | None
    coding: Coding
    explicit: bool
    end: int


def read_member(path: Path) -> Member:
    """Read the header of one file of a slide.

    Raises:
        UnreadableImage: the header is damaged.
    """
    with reading_dicom(path):
        header = read_header(path, _MEMBER_TAGS, _LAST_OF_MEMBER)
        image_type = _image_type(header)
        sides = [header.get(f"TotalPixelMatrix{side}") for side in ("Rows", "Columns")]
        place = _text(header, "FrameOfReferenceUID"), _text(header, "ContainerIdentifier")
        return Member(
            path=path,
            instance=_text(header, "SOPInstanceUID"),
            series=_text(header, "SeriesInstanceUID"),
            place=place if all(place) else None,
            kind=next((word for word in image_type if word in _OTHER_KINDS), "VOLUME"),
            stated_px=math.prod(side if isinstance(side, int) else 0 for side in sides),
        )


def read_facts(path: Path) -> SlideFile:
    """Read the facts of a file that shows the slide itself.

    Raises:
        UnreadableImage: the header is damaged.
        UnsupportedFormat: the samples are coded in a way that is not read.
    """
    with reading_dicom(path):
        header, end = read_header_and_end(path, _TAGS, _BEFORE_FRAMES)
        shape = _whole(header, "TotalPixelMatrixRows"), _whole(header, "TotalPixelMatrixColumns")
        block = _whole(header, "Rows"), _whole(header, "Columns")
        n_frames, n_bytes = _whole(header, "NumberOfFrames", 1), path.stat().st_size
        if min(*shape, *block, n_frames) < 1 or n_frames > n_bytes // 8:
            raise UnreadableImage(
                f"{path}: claims {n_frames:,} frames of {block} for {shape} pixels, in "
                f"{n_bytes:,} bytes{AGAIN}"
            )
        return SlideFile(
            path=path,
            resampled="RESAMPLED" in _image_type(header),
            shape=shape,
            block=block,
            n_frames=n_frames,
            planes=math.prod(max(1, _whole(header, name, 1)) for name in _STACKS),
            concatenation=_text(header, "ConcatenationUID") or str(path),
            part=_whole(header, "InConcatenationNumber", 1),
            n_parts=_whole(header, "InConcatenationTotalNumber", 0),
            first_frame=_whole(header, "ConcatenationFrameOffsetNumber", 0),
            is_full=_text(header, "DimensionOrganizationType") == "TILED_FULL",
            spacing_um=_read_spacing(header, shape),
            coding=_read_coding(path, header),
            explicit=transfer_syntax(header) != _IMPLICIT,
            end=end,
        )


def _image_type(header: Dataset) -> list[str]:
    """Return the words of the element Image Type, in capitals."""
    value = header.get("ImageType") or ()
    return [str(word).upper() for word in ([value] if isinstance(value, str) else value)]


def _text(header: Dataset, name: str) -> str:
    """Return an element as a text; empty where it is missing."""
    return str(header.get(name) or "").strip()[:_MAX_LETTERS]


def _whole(header: Dataset, name: str, default: int | None = None) -> int:
    """Return an element as a whole number, or `default` where it is missing or empty."""
    value = header.get(name)
    if value is None or value == "":
        value = default
    return int(cast("Any", value))  # where there is none, the header is damaged


def _read_spacing(header: Dataset, shape: tuple[int, int]) -> Vector | None:
    """Return micrometres per pixel ``(y, x)`` by the pixel measures, else by the volume's size."""
    groups = header.get("SharedFunctionalGroupsSequence") or [{}]
    measures = groups[0].get("PixelMeasuresSequence") or [{}]
    stated = measures[0].get("PixelSpacing") or ()
    spacing = check_spacing([_UM_PER_MM * float(v) for v in stated]) if len(stated) == 2 else None
    if spacing is not None:
        return spacing
    sides = header.get("ImagedVolumeHeight"), header.get("ImagedVolumeWidth")
    return check_spacing(
        [
            _UM_PER_MM * float(side) / n if side else None
            for side, n in zip(sides, shape, strict=True)
        ]
    )


def _read_coding(path: Path, header: Dataset) -> Coding:
    """Return how the samples are stored.

    Raises:
        UnsupportedFormat: in a way that is not read.
    """
    syntax = transfer_syntax(header)
    codec = _CODECS.get(syntax)
    if codec is None:
        from pydicom.uid import UID

        raise make_coding_error(
            path, f"pixels as {UID(syntax).name or 'an unknown transfer syntax'}"
        )
    samples, bits = _whole(header, "SamplesPerPixel"), _whole(header, "BitsAllocated")
    words = _text(header, "PhotometricInterpretation")
    colours = _COLOURS.get(words)
    if bits not in (8, 16) or _whole(header, "PixelRepresentation", 0) != 0:
        raise make_coding_error(path, f"samples of {bits} bits, or with a sign")
    if colours is None or samples != (3 if colours in (RGB, YCBCR) else 1):
        raise make_coding_error(path, f"{samples} samples a pixel as {words or 'no colours'}")
    if colours == YCBCR and codec == "none":
        raise make_coding_error(path, f"{words} without compression")
    planar = codec == "none" and samples > 1 and _whole(header, "PlanarConfiguration", 0) == 1
    return Coding(
        codec=codec,
        samples=samples,
        planar=planar,
        dtype=np.dtype(f"<u{bits // 8}"),
        photometric=colours,
        differenced=False,
        extra=0,
        alpha=False,
        premultiplied=False,
        tables=None,
        palette=None,
        in_items=codec != "none",
    )


def make_coding_error(path: Path, part: str) -> UnsupportedFormat:
    """Return the error for a coding that is not read.

    Args:
        path: the file.
        part: what of its coding is not read.
    """
    return UnsupportedFormat(
        f"{path}: this DICOM slide stores {one_line(part)}, which is not read; export it with "
        "JPEG or JPEG 2000, in RGB or grey"
    )
