"""Find the frames of one file of a DICOM slide: their bytes, and their places in the level.

Part of the reader `dicom_slide`. The list of frames may be hundreds of megabytes long: places are
searched in it, not parsed.
"""

from __future__ import annotations

import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from foveate.errors import AGAIN, UnreadableImage, UnsupportedFormat
from foveate.formats.dicom_frames import (
    Places,
    find_group,
    locate_packed_frames,
    locate_raw_frames,
    read_pixel_element,
)
from foveate.formats.dicom_header import reading_dicom
from foveate.formats.dicom_slide_file import SlideFile, make_coding_error
from foveate.formats.markers import DamagedBlock, jpeg2000_mixes_colours
from foveate.formats.tiff_codec import YCBCR

_ITEM_HEADER_BYTES = 8
_SEARCHED_BYTES = 1 << 12
"""The first bytes of a frame, in which its coding is stated."""
_ROW, _COLUMN, _DEPTH, _OPTICAL_PATH = (
    (b"\x48\x00\x1f\x02", b"SL"),
    (b"\x48\x00\x1e\x02", b"SL"),
    (b"\x40\x00\x4a\x07", b"DS"),
    (b"\x48\x00\x06\x01", b"SH"),
)
"""Tag and type (VR) of the elements of the list of frames that count."""


@dataclass(frozen=True)
class Frames:
    """Where the frames of one file lie, in the file and in the level.

    Attributes:
        offsets: first byte of each frame, ``(n,)``.
        counts: bytes of each frame, ``(n,)``.
        corner_px: first row and column of each frame, ``(n, 2)``; None where the file does not
            state them.
    """

    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    corner_px: NDArray[np.int64] | None


def locate_frames(facts: SlideFile) -> Frames:
    """Find the frames of a file.

    Raises:
        UnreadableImage: the file holds fewer frames than it states, or is damaged.
        UnsupportedFormat: its frames are a stack of focal planes or of channels.
    """
    path = facts.path
    with reading_dicom(path), path.open("rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            begin = find_group(cast("bytes", content), facts.end)
            if begin < 0:
                raise UnreadableImage(f"{path}: holds no pixels{AGAIN}")
            stated = content[facts.end : begin] if not facts.is_full else b""
        offsets, counts = _locate(facts, file, begin)
        if (facts.coding.codec, facts.coding.photometric) == ("jpeg2000", YCBCR):
            file.seek(int(offsets[0]) + _ITEM_HEADER_BYTES)
            _refuse_unmixed(path, file.read(_SEARCHED_BYTES))
    corner_px = None if facts.is_full else _read_corners(facts, stated)
    return Frames(offsets, counts, corner_px)


def _refuse_unmixed(path: Path, head: bytes) -> None:
    """Refuse a JPEG 2000 of YCbCr that its decoder would hand over as if it were RGB.

    Args:
        path: the file.
        head: the first bytes of a frame.
    """
    try:
        mixed = jpeg2000_mixes_colours(head)
    except DamagedBlock as error:
        raise UnreadableImage(f"{path}: holds {error}{AGAIN}") from error
    if not mixed:
        raise make_coding_error(path, "JPEG 2000 whose colours are YCbCr")


def _locate(facts: SlideFile, file: IO[bytes], begin: int) -> Places:
    """Find the places of the frames in the file, by the elements of the pixels at `begin`."""
    element = read_pixel_element(facts.path, file, begin, explicit=facts.explicit)
    if element.n_bytes is None:
        return locate_packed_frames(facts.path, file, element, facts.n_frames)
    coding = facts.coding
    frame_bytes = facts.block[0] * facts.block[1] * coding.samples * coding.dtype.itemsize
    if coding.in_items or element.n_bytes < facts.n_frames * frame_bytes:
        raise UnreadableImage(
            f"{facts.path}: states {facts.n_frames:,} frames of {frame_bytes:,} bytes, its pixels "
            f"have {element.n_bytes:,}{AGAIN}"
        )
    return locate_raw_frames(element, facts.n_frames, frame_bytes)


def _read_corners(facts: SlideFile, stated: bytes) -> NDArray[np.int64] | None:
    """Return first row and column of each frame, ``(n, 2)``, by the list of frames; None if none.

    Args:
        facts: the facts of the file.
        stated: bytes of the list of frames.

    Raises:
        UnsupportedFormat: the frames are of several depths or optical paths.
        UnreadableImage: not every frame states its place.
    """
    for mark, part in ((_DEPTH, "focal planes"), (_OPTICAL_PATH, "optical paths")):
        if (n := len({value.strip(b" \0") for value in _values(facts, stated, mark)})) > 1:
            raise make_stack_error(facts.path, n, part)
    sides = [
        np.frombuffer(b"".join(_values(facts, stated, mark)), "<i4").astype(np.int64) - 1
        for mark in (_ROW, _COLUMN)
    ]
    if not len(sides[0]) and not len(sides[1]):
        return None
    if any(len(side) != facts.n_frames for side in sides):
        raise UnreadableImage(f"{facts.path}: not every frame states its place{AGAIN}")
    return np.stack(sides, axis=1)


def _values(facts: SlideFile, stated: bytes, mark: tuple[bytes, bytes]) -> list[bytes]:
    """Return the values of all elements of a tag in the list of frames, in order."""
    tag, vr = mark
    size = b"\x04" if vr == b"SL" else b"[\x00-\x10]"
    head = re.escape(tag) + (
        (vr + b"(" + size + b")\0") if facts.explicit else b"(" + size + b")\0{3}"
    )
    found = re.finditer(head, stated, re.DOTALL)
    return [stated[m.end() : m.end() + m[1][0]] for m in found]


def make_stack_error(path: Path, n: int, part: str) -> UnsupportedFormat:
    """Return the error for a slide of several pictures in one place.

    Args:
        path: the file or folder.
        n: number of pictures.
        part: what differs between them.
    """
    return UnsupportedFormat(
        f"{path}: a stack of {n} {part}; export one of them, as a flat picture"
    )
