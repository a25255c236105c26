"""Find damage in the pixels of a JPEG that libjpeg passes over in silence.

libjpeg fills what it cannot decode with grey and reports it only by warnings, which no decoder used
here hands on. Three checks find such damage without decoding twice:

- Markers: between the bytes of a scan only stuffed and restart markers are allowed (ITU T.81,
  B.1.1.5). Of a thousand random bytes about four would be another marker.
- Zeros: with most Huffman tables, a long run of zeros is no picture. In a progressive JPEG it may
  be one; there the encoder of JPEG XL decides, which reads every code and takes no damaged JPEG.
- Length: overwritten bytes hold more or fewer blocks than those that were there, so that the scan
  ends too early or bytes are left over. Pillow decodes a stream in pieces, which shows both.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from typing import NoReturn, final

import numpy as np
from numpy.typing import NDArray

from foveate.formats.markers import DamagedBlock, segments
from foveate.images.resample import Pixels

_EOI, _SOS, _DHT, _DRI, _DNL = 0xD9, 0xDA, 0xC4, 0xDD, 0xDC
_BETWEEN_SCANS = frozenset({_DHT, _SOS, 0xDB, _DNL, _DRI, _EOI, 0xFE, *range(0xE0, 0xF0)})
"""Markers that may stand between two scans."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {_DHT, 0xC8, 0xCC}
_SEQUENTIAL = (0xC0, 0xC1)
"""The frames of Huffman-coded JPEGs that are decoded from top to bottom in one pass."""
_PROGRESSIVE = 0xC2
_ANY_MARKER = re.compile(rb"\xff[^\x00]")
_ZEROS = bytes(16)
"""The shortest run of zeros that counts as damage: 42 or more equal coefficients one by one."""
_AHEAD = bytes(12)
"""Bytes for libjpeg to read ahead: up to eight behind the last bit that it needs."""
_MAX_SURPLUS_BYTES = 16
"""Some writers leave a few bytes between the last block and the end marker."""
_MAX_PADDING_BYTES = 1 << 16
_GREY, _GREY_PX = 128, 4
"""The grey that libjpeg fills missing blocks with, and the side of the corner that is compared."""


@dataclass
class _Tables:
    """The facts of a JPEG's header that decide how its scans are checked.

    Attributes:
        frame: marker of the frame header, or 0.
        bits: bits of a sample.
        components: number of colour components.
        first_symbols: symbol of the shortest Huffman code, by class and number of the table.
        interval: blocks between restart markers; 0 where there are none.
        in_scan: for each component of the last scan header, the number of its AC table.
        has_zeros: whether a scan has a long run of zeros that may be a picture.
    """

    frame: int = 0
    bits: int = 0
    components: int = 0
    first_symbols: dict[int, int] = field(default_factory=dict)
    interval: int = 0
    in_scan: tuple[int, ...] = ()
    has_zeros: bool = False

    def note(self, marker: int, segment: bytes) -> None:
        """Note the facts of one segment, from its length on.

        Raises:
            DamagedBlock: a segment of tables or a scan header contradicts itself.
        """
        if marker in _FRAMES and len(segment) > 7:
            self.frame, self.bits, self.components = marker, segment[2], segment[7]
        elif marker == _DRI and len(segment) >= 4:
            self.interval = segment[2] << 8 | segment[3]
        elif marker == _DHT:
            self._note_codes(segment)
        elif marker == _SOS:
            n = segment[2] if len(segment) > 2 else 0
            if not 1 <= n <= 4 or len(segment) != 6 + 2 * n:
                raise DamagedBlock("its JPEG data are damaged: a scan has no valid header")
            self.in_scan = tuple(v & 15 for v in segment[4 : 3 + 2 * n : 2])

    def _note_codes(self, segment: bytes) -> None:
        """Note the symbol of the shortest code of each table in a segment."""
        at = 2
        while at + 17 <= len(segment):
            n = sum(segment[at + 1 : at + 17])
            if not n or at + 17 + n > len(segment):
                raise DamagedBlock("its JPEG data are damaged: a table of codes has a wrong length")
            self.first_symbols[segment[at]] = segment[at + 17]
            at += 17 + n

    @property
    def is_one_scan(self) -> bool:
        """Whether the scan is the only one, Huffman-coded and decoded from top to bottom."""
        return self.frame in _SEQUENTIAL and len(self.in_scan) == self.components

    @property
    def is_read_strictly(self) -> bool:
        """Whether the encoder of JPEG XL takes such a JPEG: progressive, grey or in colour."""
        return self.frame == _PROGRESSIVE and self.bits == 8 and self.components in (1, 3)

    @property
    def forbids_zeros(self) -> bool:
        """Whether long runs of zeros are no picture.

        The code of zeros is that of the first symbol. Where this ends a block, zeros are blocks of
        one colour; otherwise, blocks in which all coefficients are equal.
        """
        symbols = [self.first_symbols.get(0x10 | number) for number in self.in_scan]
        return self.is_one_scan and None not in symbols and any(symbols)


class _Codes:
    """The bytes FF in a JPEG, each with the byte that follows it, found in one pass.

    Args:
        data: the JPEG.
    """

    def __init__(self, data: bytes) -> None:
        stored = np.frombuffer(data, np.uint8)
        self._n_bytes = len(stored)
        self._at = np.flatnonzero(stored[:-1] == 0xFF)
        self._next = stored[self._at + 1]

    def follow(self, begin: int, *, has_restarts: bool) -> tuple[NDArray[np.uint8], int]:
        """Return the restart markers of a scan from a byte on, and where the next marker stands.

        Args:
            begin: first byte of the scan.
            has_restarts: whether restart markers are part of the scan.
        """
        first = int(np.searchsorted(self._at, begin))
        codes = self._next[first:]
        is_marker = codes != 0
        is_restart = (codes >= 0xD0) & (codes <= 0xD7) & has_restarts
        ends = np.flatnonzero(is_marker & ~is_restart)
        n = int(ends[0]) if len(ends) else len(codes)
        end = int(self._at[first + n]) if len(ends) else self._n_bytes
        return codes[:n][is_restart[:n]], end


@dataclass(frozen=True)
class Scan:
    """Where the pixels of a JPEG lie that is decoded from top to bottom in one pass.

    Attributes:
        begin: first byte after the header of the scan.
        end: the byte at which the end marker stands.
    """

    begin: int
    end: int


def check_block(data: bytes, tables: bytes | None) -> None:
    """Check the markers and zeros of a stored JPEG, at a few per cent of the time of decoding.

    Args:
        data: the JPEG.
        tables: Huffman tables that are stored elsewhere; None if it has its own.

    Raises:
        DamagedBlock: bytes between header and end cannot be those of a picture.
    """
    begin = data.find(b"\xff\xda") + 2
    stop = _ANY_MARKER.search(data, begin)
    at_end = stop is not None and data[stop.start() + 1] == _EOI
    if begin < 2 or not at_end or data.find(_ZEROS, begin, stop.start() if stop else None) >= 0:
        find_scan(data, tables)


def find_scan(data: bytes, tables: bytes | None = None) -> Scan | None:
    """Check the markers and zeros of a JPEG, and return where its scan lies.

    Args:
        data: the JPEG; bytes after its end marker are ignored.
        tables: Huffman tables that are stored elsewhere; None if it has its own.

    Returns:
        None where there are several scans, or no end marker, or no header that can be read.

    Raises:
        DamagedBlock: bytes between header and end cannot be those of a picture.
    """
    state, codes, at, begin = _Tables(), _Codes(data), 2, 0
    for marker, place in segments(tables or b""):
        state.note(marker, _segment(tables or b"", place))
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        marker = data[at + 1]
        if marker == _EOI:
            if begin and state.is_one_scan:
                return Scan(begin, at)
            if state.has_zeros and tables is None and state.is_read_strictly:
                _decode_strictly(data[: at + 2])
            return None
        if marker == 0xFF:
            at += 1
            continue
        segment = _segment(data, at + 2)
        state.note(marker, segment)
        at += 2 + max(len(segment), 2)
        if marker == _SOS:
            begin, at = at, _check_pixels(data, at, state, codes)
    return None


@final
class StagedFile(io.BytesIO):
    """A JPEG without its end marker, whose last bytes are read separately.

    Args:
        data: the JPEG.
        scan: where its pixels lie.

    Pillow fails where the scan ends too early. Call `check_end` after it has decoded the pixels.
    """

    def __init__(self, data: bytes, scan: Scan) -> None:
        super().__init__(data)
        tail = data[max(scan.begin, scan.end - _MAX_PADDING_BYTES) : scan.end]
        surplus = len(tail) - len(tail.rstrip(b"\0\xff")) + _MAX_SURPLUS_BYTES
        self._split, self._end = max(scan.begin, scan.end - surplus), scan.end
        self._end_is_read, self._ahead = False, _AHEAD

    def read(self, n_bytes: int | None = -1, /) -> bytes:
        """Read at most to the last bytes; then these; then bytes to read ahead."""
        at = self.tell()
        self._end_is_read |= at >= self._split
        if at >= self._end:
            ahead, self._ahead = self._ahead, b""
            return ahead
        left = (self._end if self._end_is_read else self._split) - at
        return super().read(left if n_bytes is None or n_bytes < 0 else min(n_bytes, left))

    def check_end(self) -> None:
        """Check that the last bytes were needed.

        Raises:
            DamagedBlock: all pixels were decoded without them.
        """
        if not self._end_is_read:
            raise DamagedBlock("its JPEG data are damaged: more bytes than its pixels need")


def check_grey_end(pixels: Pixels, data: bytes, tables: bytes | None) -> None:
    """Check a decoded JPEG ``(y, x, c)`` or ``(y, x)`` that ends with the grey of missing blocks.

    Only such a JPEG is decoded again.

    Args:
        pixels: the decoded pixels.
        data: the JPEG.
        tables: Huffman tables that are stored elsewhere; None if it has its own.

    Raises:
        DamagedBlock: the scan ends before its last pixel.
    """
    if not _ends_grey(pixels):
        return
    whole = data if tables is None else tables[:-2] + data[2:]
    scan = find_scan(whole)
    if scan is None:
        return
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(StagedFile(whole, scan), formats=("JPEG",)) as image:
            image.load()
    except UnidentifiedImageError:  # a coding that imagecodecs reads and Pillow does not
        return
    except OSError as error:
        raise DamagedBlock("its JPEG data are damaged: they end before the last pixel") from error


def _ends_grey(pixels: Pixels) -> bool:
    """Return whether ``(y, x, c)`` or ``(y, x)`` ends with the grey of missing blocks."""
    if set(pixels[-1, -1].reshape(-1).tolist()) != {_GREY}:
        return False
    return bool((pixels[-_GREY_PX:, -_GREY_PX:] == _GREY).all())


def _segment(data: bytes, at: int) -> bytes:
    """Return a segment of a JPEG from its length on; it may be cut off."""
    return data[at : at + int.from_bytes(data[at : at + 2], "big")]


def _check_pixels(data: bytes, begin: int, state: _Tables, codes: _Codes) -> int:
    """Check the bytes of a scan, and return the byte at which the marker after it stands."""
    restarts, end = codes.follow(begin, has_restarts=state.interval > 0)
    if end < len(data):
        _check_marker(data, end, state)
    if not np.array_equal(restarts, 0xD0 + np.arange(len(restarts)) % 8):
        raise DamagedBlock("its JPEG data are damaged: restart markers are out of order")
    # A run of 16 zeros holds an aligned word of zeros, which is sooner found.
    words = np.frombuffer(data, np.uint64, (end - begin) // 8, begin)
    zeros = -1 if words.all() else data.find(_ZEROS, begin, end)
    if zeros >= 0:
        n = end - zeros - len(data[zeros:end].lstrip(b"\0"))
        is_padding = zeros + n == end  # before the end marker
        state.has_zeros |= not is_padding
        if state.forbids_zeros and not is_padding:
            raise DamagedBlock(
                f"its JPEG data are damaged: {n:,} zero bytes at byte {zeros:,} are no picture"
            )
    return end


def _decode_strictly(data: bytes) -> None:
    """Let JPEG XL's encoder, which takes no damaged JPEG, read one that libjpeg would not refuse.

    It takes ten times as long as decoding.
    """
    import imagecodecs

    if not imagecodecs.JPEGXL.available:
        return
    try:
        imagecodecs.jpegxl_encode_jpeg(data)
    except imagecodecs.JpegxlError as error:
        text = "its JPEG data are damaged: zero bytes in a scan, and what follows does not fit"
        raise DamagedBlock(text) from error


def _check_marker(data: bytes, at: int, state: _Tables) -> None:
    """Check the marker after a scan; bytes FF may stand before it."""
    rest = data[at : at + 4096].lstrip(b"\xff")
    marker = rest[0] if rest else _EOI
    allowed = (_EOI, _DNL) if state.is_one_scan else _BETWEEN_SCANS
    if marker not in allowed:
        _refuse_marker(marker, at)


def _refuse_marker(marker: int, at: int) -> NoReturn:
    raise DamagedBlock(
        f"its JPEG data are damaged: marker FF{marker:02X} among the pixels at byte {at:,}"
    )
