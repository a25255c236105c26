"""Recognise DICOM files, with preamble or without, and read their headers with pydicom.

Part of the readers of DICOM. Files may be damaged or hostile: values are bounded, pixels not read.
"""

from __future__ import annotations

import io
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast, final

from foveate.errors import (
    AGAIN,
    FoveateError,
    ImageTooLarge,
    UnreadableImage,
    converting,
    explain_shortage,
)
from foveate.messages.warn import ignore_warnings_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

log = logging.getLogger("foveate")

SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""The SOP class of slides: VL Whole Slide Microscopy Image Storage."""

HEAD_BYTES = 4096
"""How many bytes of a file are read to find out what it is."""
_PREAMBLE_BYTES = 128
_DEFLATED, _UNPACKED = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"
"""The transfer syntax of a file whose elements are packed, and that of the same unpacked."""
_MAX_READS = 1 << 17
"""About three times the elements of a file, those in sequences counted; files have hundreds."""
_MAX_INFLATED_BYTES, _MAX_FILE_BYTES = 1 << 27, 1 << 31
_DEFERRED_BYTES = 1 << 20
"""Values longer than this are read only when they are asked for."""
_SOP_INSTANCE = 0x00080018
"""The element behind which a file no longer states its SOP class."""
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT")
"""Types of elements (VR) whose length takes four bytes, after two that are empty."""


def is_dicom(head: bytes) -> bool:
    """Return whether a file begins like DICOM, with its preamble of 128 bytes or without.

    Without a preamble a file begins with an element of group 2 or 8, after which another one
    follows, in any of the three encodings of DICOM (PS3.5, 7.1).

    Args:
        head: the first bytes of the file, some hundred or more.
    """
    if head[_PREAMBLE_BYTES : _PREAMBLE_BYTES + 4] == b"DICM":
        return True
    return any(_begins_with_elements(head, order) for order in "<>")


def _begins_with_elements(head: bytes, order: str) -> bool:
    """Return whether bytes begin with two elements whose tags rise, the first in group 2 or 8."""
    if len(head) < 16 or struct.unpack(f"{order}H", head[:2])[0] not in (2, 8):
        return False
    first = struct.unpack(f"{order}HH", head[:4])
    if head[4:6] in _LONG:
        after = 12 + struct.unpack(f"{order}L", head[8:12])[0]
    elif head[4:6].isalpha() and head[4:6].isupper():
        after = 8 + struct.unpack(f"{order}H", head[6:8])[0]
    else:
        after = 8 + struct.unpack(f"{order}L", head[4:8])[0]
    if after % 2 or after + 4 > len(head):
        return False
    second = struct.unpack(f"{order}HH", head[after : after + 4])
    return first < second and second[0] <= 0x0020


def read_header(
    path: Path, tags: Sequence[int | str] | None = None, last_tag: int = 0x7FE00000
) -> Dataset:
    """Read the elements of a DICOM file that stand before its pixels.

    Args:
        path: the file; whether it is DICOM at all, `is_dicom` tells.
        tags: tags or keywords of the elements to read; None for all.
        last_tag: no element behind this tag is read.

    Returns:
        the elements; ``file_meta`` are those of group 2, which may lack all of them.

    Raises:
        UnreadableImage: the file is damaged, or has too many elements.
        ImageTooLarge: its elements are packed, and more than 128 MiB when unpacked.
    """
    return read_header_and_end(path, tags, last_tag)[0]


def read_header_and_end(
    path: Path, tags: Sequence[int | str] | None, last_tag: int
) -> tuple[Dataset, int]:
    """Read elements as `read_header` does, and return the first byte behind the last one too.

    Args:
        path: the file.
        tags: tags or keywords of the elements to read; None for all.
        last_tag: no element behind this tag is read.

    Raises:
        UnreadableImage: the file is damaged, or has too many elements.
        ImageTooLarge: its elements are packed, and more than 128 MiB when unpacked.
    """
    from pydicom.filereader import read_partial
    from pydicom.tag import Tag

    with reading_dicom(path), _open(path) as file:
        header = read_partial(
            file,
            stop_when=lambda tag, vr, length: tag > last_tag,
            defer_size=_DEFERRED_BYTES,
            force=True,
            specific_tags=None if tags is None else [Tag(tag) for tag in tags],
        )
        return header, file.tell()


def read_file(path: Path) -> Dataset:
    """Read all elements of a DICOM file, with its pixels as they are stored.

    Raises:
        UnreadableImage: the file is damaged.
        ImageTooLarge: it is larger than two gigabytes, or unpacks to more than 128 MiB.
    """
    from pydicom import dcmread

    n_bytes = path.stat().st_size
    if n_bytes > _MAX_FILE_BYTES:
        raise ImageTooLarge(
            f"{path}: a DICOM file of {n_bytes / 1e9:.1f} GB, more than the "
            f"{_MAX_FILE_BYTES >> 30} GiB that are read at once; export a part of it"
        )
    with reading_dicom(path), _open(path) as file:
        return dcmread(file, force=True)


def read_sop_class(path: Path) -> str:
    """Read the SOP class of a DICOM file, its kind of content; empty where it states none.

    Raises:
        UnreadableImage: the file is damaged.
    """
    header = read_header(path, ["SOPClassUID"], _SOP_INSTANCE)
    return str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")


def transfer_syntax(header: Dataset) -> str:
    """Return the transfer syntax of a header, how its pixels are stored; empty where not stated."""
    return str(header.file_meta.get("TransferSyntaxUID") or "")


@contextmanager
def reading_dicom(path: Path) -> Iterator[None]:
    """Convert errors of pydicom and its decoders inside to one line about the file.

    Raises:
        UnreadableImage: the file is damaged.
        ImageTooLarge: memory does not suffice.
    """

    def explain(error: Exception, about: object) -> FoveateError:
        log.info("%s", about, exc_info=error)
        return explain_shortage(error, about) or UnreadableImage(
            f"{about}: its DICOM elements cannot be read{AGAIN}"
        )

    # Its warnings are about values that break a rule of DICOM; those that count are checked where
    # they are used.
    ignore_warnings_of("pydicom")
    with converting(path, explain):
        yield


@final
class _CountedFile(io.BufferedReader):
    """A file that can be read only so many times, since nested elements cost far more than bytes.

    Args:
        raw: the file, at its beginning.
        path: its path, for the message.
    """

    def __init__(self, raw: io.RawIOBase, path: Path) -> None:
        super().__init__(raw)
        self._path, self._left = path, _MAX_READS

    @property
    def name(self) -> str:
        """Path of the file."""
        return os.fspath(self._path)

    def read(self, n_bytes: int | None = -1, /) -> bytes:
        """Read bytes.

        Args:
            n_bytes: how many; negative or None for all.

        Raises:
            UnreadableImage: the file was read too many times.
        """
        self._left -= 1
        if self._left < 0:
            raise UnreadableImage(
                f"{self._path}: has more than {_MAX_READS // 3:,} DICOM elements{AGAIN}"
            )
        return super().read(n_bytes)


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    """Open a DICOM file for pydicom; unpack elements that are packed (deflate).

    Raises:
        ImageTooLarge: they unpack to more than 128 MiB.
    """
    with path.open("rb", buffering=0) as file:
        is_packed = _DEFLATED in file.read(HEAD_BYTES)
        file.seek(0)
        raw = cast("io.RawIOBase", io.BytesIO(_unpack(path, file)) if is_packed else file)
        with _CountedFile(raw, path) as counted:
            yield counted


def _unpack(path: Path, file: BinaryIO) -> bytes:
    """Return the content of a file with its elements unpacked, and its coding set to match."""
    from pydicom.filereader import read_dataset, read_preamble

    read_preamble(file, force=True)
    read_dataset(
        file,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, vr, length: tag.group != 2,
    )
    begin = file.tell()
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    elements = stream.decompress(file.read(), _MAX_INFLATED_BYTES + 1)
    if len(elements) > _MAX_INFLATED_BYTES:
        raise ImageTooLarge(
            f"{path}: unpacks to more than {_MAX_INFLATED_BYTES >> 20} MiB; save it without deflate"
        )
    file.seek(0)
    return file.read(begin).replace(_DEFLATED, _UNPACKED, 1) + elements
