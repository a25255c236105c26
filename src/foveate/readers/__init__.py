"""One door to every file family: `open_image` looks at the first bytes and asks the readers.

Importing this package is light: each reader imports its library when it opens its first file.
"""

from __future__ import annotations

import functools
import logging
import stat
from pathlib import Path

from foveate import parts
from foveate.errors import (
    FoveateError,
    ImageNotFound,
    UnsupportedFormat,
    as_ours,
)
from foveate.images.image import AbstractImage
from foveate.readers.base import HEAD_BYTES, AbstractReader

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
        "DICOM is not readable yet; convert CT and MR series to NIfTI (dcm2niix does it), "
        "slides to pyramidal TIFF, X-ray pictures to PNG",
    ),
    (0, b"ZISRAWFILE", "CZI is not readable; export it from ZEN as OME-TIFF"),
    (0, b"\x93NUMPY", "NumPy arrays are not readable as images; save them as TIFF or PNG"),
    (344, b"ni1\0", "NIfTI in two files (.hdr, .img) is not readable; save it as one .nii.gz"),
    (0, b"\x1f\x8b", "gzip files that are no NIfTI are not readable; unpack it first"),
    (0, b"\0\0\0\x0cjP  ", "bare JPEG 2000 is not readable; convert it to tiled TIFF"),
    (0, b"\xff\x4f\xff\x51", "bare JPEG 2000 is not readable; convert it to tiled TIFF"),
    (0, b"\x89HDF", "HDF5 is not readable as an image; export the image from it as TIFF"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file; run `git lfs pull`"),
    (0, b"%PDF", "a PDF is not readable as an image; export the image as TIFF or PNG"),
    *(
        (0, mark, "JSON text, such as a server's refusal, not an image; download it again")
        for mark in (b'{"', b"{\n", b"{\r", b"{ ")
    ),
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

    Example:
        >>> with foveate.open_image("S1.svs") as image:
        ...     image.shape, image.spacing_um, image.glimpse(32.0).shape
        ((98304, 81920), (0.25, 0.25), (768, 640, 3))
    """
    path = Path(path)
    head = _first_bytes(path)
    readers = _readers(parts.plugin_folders())
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
    except Exception as error:
        raise as_ours(error, path) from error


def _first_bytes(path: Path) -> bytes:
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise UnsupportedFormat(f"{path}: is a folder, not an image file. Readable: {READABLE}")
        if not stat.S_ISREG(kind):  # opening a pipe would wait for ever
            raise UnsupportedFormat(f"{path}: is a pipe or a device, not a file; save it as a file")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        dangling = "a link to a file that is not there" if path.is_symlink() else "no such file"
        raise ImageNotFound(f"{path}: {dangling}") from None
    except FoveateError:
        raise
    except OSError as error:
        raise as_ours(error, path) from error
    except ValueError as error:
        raise ImageNotFound(f"{path}: no file can have this name; rename it") from error
    if not head:
        raise UnsupportedFormat(f"{path}: the file is empty; copy or download it again")
    return head


def _why_not(head: bytes) -> str:
    for at, mark, reason in _NOT_YET:
        if head[at : at + len(mark)] == mark:
            return reason
    text = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, such as a login page, saved as the image; download it again"
    return f"no reader knows this content. Readable: {READABLE}"


@functools.lru_cache(maxsize=8)
def _readers(folders: tuple[Path, ...]) -> tuple[type[AbstractReader], ...]:
    """Every reader, by falling priority; looked up once for each set of plug-in folders."""
    del folders
    found: list[type[AbstractReader]] = [
        parts.find("readers", name) for name in parts.names("readers")
    ]
    return tuple(sorted(found, key=lambda reader: -reader.priority))
