"""Find a second picture that stands behind the end of the first one in a file.

Decoders stop at the end mark of the first. Files become one so by ``cat``, by a transfer that was
continued in the wrong place, or by a program that appends.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG, _JPEG, _GIF, _RIFF, _BITMAP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM"
_BEGIN = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|BM....\0\0\0\0....[\x0c(l|]\0\0\0",
    re.DOTALL,
)
"""The first bytes of each kind of picture."""
_MAX_GAP_BYTES = 4096
"""The second picture begins so soon behind the end of the first."""
_MAX_TIFF_GAP_BYTES = 64
_ENTRY_BYTES = 12
"""The smallest size of an entry of a directory; the byte of the next directory may follow it."""
_BLOCK_BYTES = 1 << 20
_HEAD_BYTES, _GIF_HEAD_BYTES, _OLD_BITMAP_BYTES = 64, 13, 12
_RUN_LENGTHS = (1, 2)
"""The codings of a BMP whose header states the bytes of the pixels."""
_JPEG_CODE = re.compile(rb"\xff[^\x00\xff\x01\xd0-\xd7]")
"""A marker of a JPEG: no stuffed byte, fill byte, or marker without a segment within a scan."""
_EOI, _SOI = 0xD9, 0xD8


def find_appended(path: Path) -> bytes | None:
    """Return the bytes of a picture behind the first one of a file; None without any.

    Args:
        path: the file, a PNG, JPEG, BMP, GIF or WebP.
    """
    find_end = next(find for mark, find in _ENDS.items() if _head(path).startswith(mark))
    with path.open("rb") as file:
        file.seek(find_end(path))
        rest = file.read()
    begin = _BEGIN.search(rest[:_MAX_GAP_BYTES])
    return rest[begin.start() :] if begin else None


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


def _find_jpeg_end(path: Path) -> int:
    """Return the byte behind the end marker of a JPEG; the size of the file where it has none.

    Segments are skipped, since previews in them have end markers of their own.
    """
    content = path.read_bytes()
    at = 2
    while match := _JPEG_CODE.search(content, at):
        code, at = content[match.start() + 1], match.end()
        if code == _EOI:
            return at
        if code != _SOI:
            at += int.from_bytes(content[at : at + 2], "big")
    return len(content)


def _find_gif_end(path: Path) -> int:
    """Return the byte behind the trailer of a GIF; the size of the file where it has none."""
    content = path.read_bytes()
    at = _GIF_HEAD_BYTES + _palette_bytes(content[10:11])
    while content[at : at + 1] in (b"!", b","):  # an extension, a picture
        if content[at : at + 1] == b"!":
            at += 2
        else:
            at += 11 + _palette_bytes(content[at + 9 : at + 10])
        while size := int.from_bytes(content[at : at + 1]):
            at += 1 + size
        at += 1
    return at + 1 if content[at : at + 1] == b";" else len(content)


def _palette_bytes(flags: bytes) -> int:
    """Return the bytes of a palette of a GIF by the byte of flags before it; 0 without one."""
    flag = int.from_bytes(flags)
    return 3 << (flag & 7) + 1 if flag & 0x80 else 0


def _find_webp_end(path: Path) -> int:
    """Return the byte behind the container of a WebP."""
    return 8 + int.from_bytes(_head(path)[4:8], "little")


def _find_bitmap_end(path: Path) -> int:
    """Return the byte behind the pixels of a BMP.

    Its header states the size of the file too, which some writers leave out.
    """
    head = _head(path)
    begin, n_head = int.from_bytes(head[10:14], "little"), int.from_bytes(head[14:18], "little")
    if n_head == _OLD_BITMAP_BYTES:
        width, height, _, bits = struct.unpack("<HHHH", head[18:26])
        return begin + _row_bytes(width, bits) * int(height)
    width, height, _, bits, coding, n_coded = struct.unpack("<iiHHII", head[18:38])
    n_bytes = int(n_coded) if coding in _RUN_LENGTHS else _row_bytes(width, bits) * abs(height)
    return begin + n_bytes


def _row_bytes(width: int, bits: int) -> int:
    """Return the stored bytes of a row of a BMP, a multiple of four."""
    return (width * bits + 31) // 32 * 4


def _head(path: Path) -> bytes:
    """Return the first bytes of a file."""
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)


_ENDS: dict[bytes, Callable[[Path], int]] = {
    _PNG: _find_png_end,
    _JPEG: _find_jpeg_end,
    _GIF: _find_gif_end,
    _RIFF: _find_webp_end,
    _BITMAP: _find_bitmap_end,
}
"""By the first bytes of a file, the function that finds the end of its first picture."""
