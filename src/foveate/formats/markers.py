"""Read the sizes and colour spaces that the markers of JPEG and JPEG 2000 state.

Part of the readers `tiff` and `dicom`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_JPEG_LS = 0xF7
"""The frame header of JPEG-LS (ITU T.87)."""


class DamagedBlock(ValueError):
    """A stored block does not hold the pixels it should; the text says why in plain words."""


@dataclass(frozen=True)
class JpegHead:
    """The facts that the markers before the pixels of a JPEG state.

    Attributes:
        shape: height and width in pixels.
        marked: whether a JFIF or Adobe marker states the stored colour space.
        subsampled: whether components differ in resolution, as only those of YCbCr do.
    """

    shape: tuple[int, int]
    marked: bool
    subsampled: bool


def jpeg_head(data: bytes) -> JpegHead:
    """Read the markers of a JPEG up to its frame header.

    Raises:
        DamagedBlock: there is no frame header.
    """
    marked = False
    for marker, at in segments(data):
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == _JPEG_LS:
            shape = (data[at + 3] << 8) | data[at + 4], (data[at + 5] << 8) | data[at + 6]
            sampling = data[at + 9 : at + 8 + 3 * data[at + 7] : 3]
            return JpegHead(shape, marked, subsampled=len(set(sampling)) > 1)
        marked |= _is_colour_marker(marker, data[at + 2 : at + 7])
    raise DamagedBlock("a JPEG without a frame header")


def states_colours(tables: bytes) -> bool:
    """Return whether a JFIF or Adobe marker states the colour space in the tables of a JPEG."""
    return any(_is_colour_marker(m, tables[at + 2 : at + 7]) for m, at in segments(tables))


def segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield the markers before the pixels of a JPEG, each with the byte of its segment's length.

    Any number of bytes FF may stand before a marker (ITU T.81, B.1.1.2).
    """
    at, end = 2, len(data)
    while at + 9 <= end and data[at] == 0xFF:
        if data[at + 1] != 0xFF:
            yield data[at + 1], at + 2
            at += 1 + ((data[at + 2] << 8) | data[at + 3])
        at += 1


def _is_colour_marker(marker: int, words: bytes) -> bool:
    """Return whether a segment is a JFIF or Adobe marker, which states the colour space."""
    return (marker == 0xE0 and words == b"JFIF\0") or (marker == 0xEE and words == b"Adobe")


def jpeg2000_size(head: bytes) -> tuple[int, int]:
    """Read height and width from the first bytes of a JPEG 2000."""
    at = head.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(head) < at + 24:
        raise DamagedBlock("a JPEG 2000 without a size")
    right, bottom, left, top = (
        int.from_bytes(head[at + i : at + i + 4], "big") for i in (8, 12, 16, 20)
    )
    return bottom - top, right - left


def jpeg2000_mixes_colours(head: bytes) -> bool:
    """Return whether a JPEG 2000 stores its colours mixed, which its decoder turns into RGB.

    Args:
        head: the first bytes, some hundred.

    Raises:
        DamagedBlock: they do not say it.
    """
    at = head.find(b"\xff\x4f\xff\x51") + 2
    while at >= 2 and at + 9 <= len(head) and head[at] == 0xFF:
        if head[at + 1] == 0x52:  # COD, of which the seventh byte says it (ITU T.800, A.6.1)
            return head[at + 8] != 0
        at += 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    raise DamagedBlock("a JPEG 2000 that does not state how it is coded")
