"""Find a second picture that stands behind the end of a PNG, a JPEG or a TIFF.

Decoders stop at the end mark of the first. Files become one so by ``cat``, by a transfer that was
continued in the wrong place, or by a program that appends.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_MAX_GAP_BYTES = 4096
"""The second picture begins so soon behind the end of the first."""
_MAX_TIFF_GAP_BYTES = 64
_ENTRY_BYTES = 12
"""The smallest size of an entry of a directory; the byte of the next directory may follow it."""
_BLOCK_BYTES = 1 << 20
_JPEG_CODE = re.compile(rb"\xff[^\x00\xff\x01\xd0-\xd7]")
"""A marker of a JPEG: no stuffed byte, fill byte, or marker without a segment within a scan."""
_EOI, _SOI = 0xD9, 0xD8


def find_appended(path: Path) -> bytes | None:
    """Return the bytes of a picture behind the first one of a PNG or JPEG; None without any.

    Args:
        path: the file.
    """
    with path.open("rb") as file:
        head = file.read(len(_PNG))
        if head != _PNG and not head.startswith(_JPEG):
            return None
        if head == _PNG:
            end = _find_png_end(path)
            file.seek(end)
            rest = file.read()
        else:
            file.seek(0)
            content = file.read()
            rest = content[_find_jpeg_end(content) :]
    starts = [at for mark in (_PNG, _JPEG) if (at := rest.find(mark, 0, _MAX_GAP_BYTES)) >= 0]
    return rest[min(starts) :] if starts else None


def find_appended_tiff(path: Path, pages: list[Any]) -> int | None:
    """Return the byte at which another TIFF begins behind a TIFF and is no copy of it, or None.

    Args:
        path: the file.
        pages: the directories of the first, as tifffile parses them.
    """
    ends = [page.offset for page in pages]
    for page in pages:
        ends += map(sum, zip(page.dataoffsets, page.databytecounts, strict=False))
        ends += [tag.valueoffset + tag.valuebytecount for tag in page.tags]
        ends += [tag.offset + _ENTRY_BYTES for tag in page.tags]
    size = path.stat().st_size
    end = max((end for end in ends if end <= size), default=size)  # a damaged page may lie beyond
    with path.open("rb") as file:
        file.seek(end)
        gap = file.read(_MAX_TIFF_GAP_BYTES)
    starts = [end + at for mark in TIFF_MARKS if (at := gap.find(mark)) >= 0]
    return min(starts) if starts and not _repeats(path, min(starts)) else None


def _repeats(path: Path, start: int) -> bool:
    """Return whether the bytes of a file from `start` on are those that it begins with."""
    with path.open("rb") as first, path.open("rb") as second:
        second.seek(start)
        while block := second.read(_BLOCK_BYTES):
            if first.read(len(block)) != block:
                return False
    return True


def _find_png_end(path: Path) -> int:
    """Return the byte behind the last chunk of a PNG; the size of the file where it has no end."""
    size = path.stat().st_size
    at = len(_PNG)
    with path.open("rb") as file:
        while at + 12 <= size:
            file.seek(at)
            head = file.read(8)
            at += 12 + int.from_bytes(head[:4], "big")
            if head[4:] == b"IEND":
                return at
    return size


def _find_jpeg_end(content: bytes) -> int:
    """Return the byte behind the end marker of a JPEG; the number of its bytes where it has none.

    Segments are skipped, since previews in them have end markers of their own.
    """
    at = 2
    while match := _JPEG_CODE.search(content, at):
        code, at = content[match.start() + 1], match.end()
        if code == _EOI:
            return at
        if code != _SOI:
            at += int.from_bytes(content[at : at + 2], "big")
    return len(content)
