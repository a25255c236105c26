"""One door to every file family: `open_image` looks at the first bytes and asks the readers.

Importing this package is light: each reader imports its library when it opens its first file.
"""

from __future__ import annotations

import functools
import logging
import stat
from pathlib import Path

from foveate import plugins
from foveate.errors import (
    FoveateError,
    ImageNotFound,
    ImageTooLarge,
    UnreadableImage,
    UnsupportedFormat,
)
from foveate.image import AbstractImage
from foveate.readers.base import AGAIN, HEAD_BYTES, AbstractReader, why

log = logging.getLogger("foveate")

READABLE = (
    "TIFF and OME-TIFF, whole slides (SVS, NDPI, SCN, MIRAX, Philips, Trestle, Ventana), "
    "PNG, JPEG, BMP, GIF, WebP, volumes in NIfTI (.nii, .nii.gz)"
)

# Where the mark lies, the mark, and what to tell the owner of such a file.
_NOT_YET = (
    (
        128,
        b"DICM",
        "DICOM is not readable yet; convert CT and MR series to NIfTI (dcm2niix, say), slides to "
        "TIFF, single X-rays to 16-bit PNG",
    ),
    (0, b"ZISRAWFILE", "CZI is not readable; export it from ZEN as OME-TIFF"),
    (0, b"\x93NUMPY", "NumPy arrays are not readable as images; save them as TIFF or PNG"),
    (344, b"ni1\0", "NIfTI in two files (.hdr, .img) is not readable; save it as one .nii.gz"),
    (0, b"\x1f\x8b", "gzip files that are no NIfTI are not readable; unpack it first"),
    (0, b"\0\0\0\x0cjP  ", "bare JPEG 2000 is not readable; convert it to tiled TIFF"),
    (0, b"\xff\x4f\xff\x51", "bare JPEG 2000 is not readable; convert it to tiled TIFF"),
    (0, b"\x89HDF", "HDF5 is not readable as an image; export the image from it as TIFF"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file itself: run git lfs pull"),
    (0, b"{", "holds text (JSON), not an image: an answer of the server? Download it again"),
    (0, b"%PDF", "a PDF is not readable as an image; export the image as TIFF or PNG"),
    (0, b"PK\x03\x04", "a ZIP archive is not readable as an image; unpack it first"),
)


def open_image(path: Path | str) -> AbstractImage:
    """Open an image of any known family, judged by its content and not by its suffix.

    Args:
        path: a file. What one reader finds damaged is refused, and no other reader is asked.

    Returns:
        The open image; close it, or use it in a ``with`` block.

    Raises:
        ImageNotFound: nothing is there.
        UnsupportedFormat: a folder, an empty file, or content that no reader takes.
        UnreadableImage: a reader takes the file, but it is damaged.
        ImageTooLarge: opening it would need more memory than there is or than is allowed.
    """
    path = Path(path)
    head = _first_bytes(path)
    readers = _readers(plugins.plugin_folders())
    asked = [reader for reader in readers if _recognises(reader, path, head)]
    if not asked:
        raise UnsupportedFormat(f"{path}: {_why_not(head)}")
    reasons: list[FoveateError] = []
    for reader in asked:
        try:
            return _opened(reader, path)
        except UnsupportedFormat as error:
            reasons.append(error)
    raise reasons[0]


def _recognises(reader: type[AbstractReader], path: Path, head: bytes) -> bool:
    try:
        return reader.recognises(path, head)
    except FoveateError:
        raise
    except Exception:  # it cannot be its file
        log.debug("%s: %s", reader.__name__, path, exc_info=True)
        return False


def _opened(reader: type[AbstractReader], path: Path) -> AbstractImage:
    try:
        return reader(path)
    except FoveateError:
        raise
    except MemoryError as error:
        raise ImageTooLarge(
            f"{path}: opening it needs more memory than there is; give the computer more"
        ) from error
    except Exception as error:
        log.debug("%s", path, exc_info=True)
        if isinstance(error, OSError) and error.errno:
            raise UnreadableImage(f"{path}: cannot be opened ({why(error)})") from error
        raise UnreadableImage(f"{path}: its header makes no sense{AGAIN}") from error


def _first_bytes(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise UnsupportedFormat(f"{path}: is a folder, not an image file. Readable: {READABLE}")
        if not stat.S_ISREG(mode):
            raise UnsupportedFormat(f"{path}: is a pipe or a device, not a file; save it as a file")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FoveateError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise ImageNotFound(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise UnreadableImage(f"{path}: cannot be opened ({why(error)})") from error
    if not head:
        raise UnsupportedFormat(f"{path}: the file is empty; copy or download it again")
    return head


def _why_not(head: bytes) -> str:
    for at, mark, reason in _NOT_YET:
        if head[at : at + len(mark)] == mark:
            return reason
    text = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "holds a web page, not an image: was a login asked for? Download it again"
    return f"no reader knows this content. Readable: {READABLE}"


@functools.lru_cache(maxsize=8)
def _readers(folders: tuple[Path, ...]) -> tuple[type[AbstractReader], ...]:
    """Every reader, by falling priority; looked up once for each set of plug-in folders."""
    del folders
    found: list[type[AbstractReader]] = [
        plugins.find("readers", name) for name in plugins.names("readers")
    ]
    return tuple(sorted(found, key=lambda reader: -reader.priority))
