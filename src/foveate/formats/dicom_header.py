"""Recognise DICOM files, with preamble or without, and read their headers with pydicom.

Part of the readers of DICOM. Files may be damaged or hostile: values are bounded, pixels not read.
"""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from foveate.errors import (
    AGAIN,
    FoveateError,
    ImageTooLarge,
    UnreadableImage,
    converting,
    explain_shortage,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

log = logging.getLogger("foveate")

SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""The SOP class of slides: VL Whole Slide Microscopy Image Storage."""

HEAD_BYTES = 4096
"""How many bytes of a file are read to find out what it is."""
_PREAMBLE_BYTES = 128
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MAX_INFLATED_BYTES, _MAX_FILE_BYTES = 1 << 28, 1 << 31
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
        UnreadableImage: the file is damaged.
        ImageTooLarge: its elements are packed, and more than 256 MiB when unpacked.
    """
    from pydicom.filereader import read_partial
    from pydicom.tag import Tag

    with reading_dicom(path), path.open("rb") as file:
        _refuse_bomb(path, file)
        return read_partial(
            file,
            stop_when=lambda tag, vr, length: tag > last_tag,
            defer_size=_DEFERRED_BYTES,
            force=True,
            specific_tags=None if tags is None else [Tag(tag) for tag in tags],
        )


def read_file(path: Path) -> Dataset:
    """Read all elements of a DICOM file, with its pixels as they are stored.

    Raises:
        UnreadableImage: the file is damaged.
        ImageTooLarge: it is larger than two gigabytes, or unpacks to more than 256 MiB.
    """
    from pydicom import dcmread

    n_bytes = path.stat().st_size
    if n_bytes > _MAX_FILE_BYTES:
        raise ImageTooLarge(
            f"{path}: a DICOM file of {n_bytes / 1e9:.1f} GB, more than the "
            f"{_MAX_FILE_BYTES >> 30} GiB that are read at once; export a part of it"
        )
    with reading_dicom(path), path.open("rb") as file:
        _refuse_bomb(path, file)
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

    # Warnings about values that break a rule of DICOM would reach the terminal; the values that
    # count are checked where they are used.
    warnings.filterwarnings("ignore", module=r"pydicom(\.|$)")
    with converting(path, explain):
        yield


def _refuse_bomb(path: Path, file: BinaryIO) -> None:
    """Refuse a file whose elements are packed (deflate) if they unpack to more than 256 MiB.

    Args:
        path: path of the file, for messages.
        file: the file, at its beginning, where it is left.

    Raises:
        ImageTooLarge: they do.
    """
    packed = _DEFLATED in file.read(HEAD_BYTES)
    file.seek(0)
    if not packed:
        return
    from pydicom.filereader import read_dataset, read_preamble

    read_preamble(file, force=True)
    read_dataset(
        file,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, vr, length: tag.group != 2,
    )
    stream, n_bytes = zlib.decompressobj(-zlib.MAX_WBITS), 0
    while chunk := stream.unconsumed_tail or file.read(HEAD_BYTES):
        n_bytes += len(stream.decompress(chunk, 1 << 20))
        if n_bytes > _MAX_INFLATED_BYTES:
            raise ImageTooLarge(
                f"{path}: unpacks to more than {_MAX_INFLATED_BYTES >> 20} MiB; save it without "
                "deflate"
            )
    file.seek(0)
