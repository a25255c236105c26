"""Find where the frames of a DICOM file lie, without reading their pixels.

Part of the reader `dicom_slide`. Compressed frames are stored as items, one or several for each
frame (PS3.5, A.4); a table of their offsets may stand before them.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from foveate.errors import AGAIN, UnreadableImage
from foveate.formats.markers import DamagedBlock

_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_UNDEFINED = 0xFFFFFFFF
_PIXELS, _OFFSETS, _LENGTHS = 0x7FE00010, 0x7FE00001, 0x7FE00002
_GROUP = re.compile(rb"\xe0\x7f(?:\x10\x00(?:O[BW]\0\0|.{4})|\x01\x00OV\0\0)", re.DOTALL)
"""The header of the first element of the group of pixels: a table of offsets, or the pixels."""
_BEGINS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
"""How a JPEG and a JPEG 2000 begin."""
_MAX_ITEMS_PER_FRAME = 64
_MAX_LIST_BYTES = 1 << 30
"""The longest list of frames that is searched; a million frames have less."""

Places = tuple[NDArray[np.int64], NDArray[np.int64]]
"""First byte and number of bytes of each frame, ``(n,)``; of compressed ones with their items."""


@dataclass(frozen=True)
class PixelElement:
    """The element of a DICOM file that holds its pixels.

    Attributes:
        begin: its first byte behind its header.
        n_bytes: its length; None where it consists of items, as compressed pixels do.
        table: offsets and lengths of the frames by the Extended Offset Table, or None.
    """

    begin: int
    n_bytes: int | None
    table: Places | None


def find_group(content: bytes, begin: int) -> int:
    """Return the byte at which the elements of the pixels begin.

    Args:
        content: the file, mapped into memory.
        begin: the byte to search from, behind the icon that a header may hold.

    Returns:
        -1 where the file has no pixels, or they do not begin within a gigabyte.
    """
    match = _GROUP.search(content, begin, begin + _MAX_LIST_BYTES)
    return -1 if match is None else match.start()


def read_pixel_element(path: Path, file: IO[bytes], begin: int, *, explicit: bool) -> PixelElement:
    """Read the elements of the group of pixels up to the pixels themselves.

    Args:
        path: the file, for messages.
        file: the file, opened.
        begin: where the group begins, by `find_group`.
        explicit: whether elements state their type (VR).

    Raises:
        UnreadableImage: the group is damaged or cut off.
    """
    table: dict[int, NDArray[np.int64]] = {}
    file.seek(begin)
    while True:
        head = file.read(12 if explicit else 8)
        if len(head) < 8:
            raise UnreadableImage(f"{path}: holds no pixels{AGAIN}")
        group, element = struct.unpack("<HH", head[:4])
        (n_bytes,) = struct.unpack("<L", head[-4:])
        tag = group << 16 | element
        if tag == _PIXELS:
            offsets, lengths = table.get(_OFFSETS), table.get(_LENGTHS)
            both = offsets is not None and lengths is not None and len(offsets) == len(lengths)
            return PixelElement(
                begin=file.tell(),
                n_bytes=None if n_bytes == _UNDEFINED else n_bytes,
                table=(offsets, lengths) if both else None,  # type: ignore[arg-type]
            )
        if tag not in (_OFFSETS, _LENGTHS) or n_bytes == _UNDEFINED or n_bytes % 8:
            raise UnreadableImage(f"{path}: the elements of its pixels are damaged{AGAIN}")
        table[tag] = np.frombuffer(file.read(n_bytes), "<i8").astype(np.int64)


def locate_raw_frames(element: PixelElement, n: int, frame_bytes: int) -> Places:
    """Compute the places of `n` uncompressed frames, which follow each other.

    Args:
        element: the element of the pixels.
        n: number of frames.
        frame_bytes: bytes of one frame.
    """
    offsets = element.begin + np.arange(n, dtype=np.int64) * frame_bytes
    return offsets, np.full(n, frame_bytes, np.int64)


def locate_packed_frames(path: Path, file: IO[bytes], element: PixelElement, n: int) -> Places:
    """Find the places of `n` compressed frames, by a table of offsets or by their items.

    Args:
        path: the file, for messages.
        file: the file, opened.
        element: the element of the pixels.
        n: number of frames that the header states.

    Raises:
        UnreadableImage: there are fewer or more frames, or the items are damaged.
    """
    file.seek(element.begin)
    head = file.read(8)
    n_bytes = int.from_bytes(head[4:], "little")
    if head[:4] != _ITEM or len(head) < 8:
        raise UnreadableImage(f"{path}: its compressed pixels do not begin with an item{AGAIN}")
    first = element.begin + 8 + n_bytes
    if element.table is not None and len(element.table[0]) == n:
        return element.table[0] + first, element.table[1] + 8
    if n_bytes == 4 * n:
        offsets = np.frombuffer(file.read(n_bytes), "<u4").astype(np.int64)
        if len(offsets) == n and offsets[0] == 0 and bool((np.diff(offsets) > 0).all()):
            last = _walk(path, file, first + int(offsets[-1]))
            ends = np.append(offsets[1:] + first, last[-1][0] + last[-1][1] if last else 0)
            return offsets + first, ends - offsets - first
    return _join_items(path, file, _walk(path, file, first, _MAX_ITEMS_PER_FRAME * n), n)


def _walk(path: Path, file: IO[bytes], at: int, most: int = 1 << 20) -> list[tuple[int, int]]:
    """Return first byte and number of bytes of the items from a byte on, with their headers.

    Args:
        path: the file, for messages.
        file: the file, opened.
        at: first byte of an item.
        most: the largest number of items.
    """
    items: list[tuple[int, int]] = []
    while len(items) <= most:
        file.seek(at)
        head = file.read(8)
        if head[:4] == _END:
            return items
        n_bytes = 8 + int.from_bytes(head[4:], "little")
        if head[:4] != _ITEM or len(head) < 8:
            raise UnreadableImage(
                f"{path}: truncated or damaged: no compressed frame begins at byte {at:,}{AGAIN}"
            )
        items.append((at, n_bytes))
        at += n_bytes
    raise UnreadableImage(f"{path}: claims too many pieces of frames{AGAIN}")


def _join_items(path: Path, file: IO[bytes], items: list[tuple[int, int]], n: int) -> Places:
    """Join the items of each frame: one for each, or from one begin of a JPEG to the next."""
    if len(items) == n:
        places = np.asarray(items, np.int64).reshape(n, 2)
        return places[:, 0], places[:, 1]
    if n == 1:  # all pieces are of the same frame, whatever they begin with
        begins = [at for at, _ in items[:1]]
    else:
        begins = [at for at, _ in items if _begins_picture(file, at)]
    if len(begins) != n:
        raise UnreadableImage(
            f"{path}: its header states {n:,} frames, {len(begins):,} are stored{AGAIN}"
        )
    offsets = np.asarray(begins, np.int64)
    ends = np.append(offsets[1:], items[-1][0] + items[-1][1])
    return offsets, ends - offsets


def _begins_picture(file: IO[bytes], at: int) -> bool:
    """Return whether an item at a byte holds the beginning of a JPEG or JPEG 2000."""
    file.seek(at + 8)
    return file.read(8).startswith(_BEGINS)


def join_items(data: bytes) -> bytes:
    """Join the content of the items that a compressed frame consists of.

    Args:
        data: the items with their headers.

    Raises:
        DamagedBlock: the bytes are no items.
    """
    pieces, at = [], 0
    while data[at : at + 4] == _ITEM:
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        pieces.append(data[at + 8 : end])
        at = end
    if at != len(data) or not pieces:
        raise DamagedBlock("a frame whose items are damaged")
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
