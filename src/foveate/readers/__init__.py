"""Open image files of all families: `open_image` finds the reader by a file's first bytes.

Importing this package is light: each reader imports its library when it opens its first file.
"""

from __future__ import annotations

import functools
import logging
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate import parts
from foveate.errors import (
    FoveateError,
    ImageNotFound,
    UnsupportedFormat,
    as_foveate_error,
    converting,
)
from foveate.formats.zarr_store import is_zarr
from foveate.images.image import AbstractImage
from foveate.parts.options import parse_options
from foveate.readers.base import HEAD_BYTES, AbstractReader

log = logging.getLogger("foveate")

# The first byte of the mark, the mark, and what the user is told about such a file.
_NOT_YET = (
    (128, b"DICM", "DICOM slides are not readable yet; convert them to pyramidal TIFF"),
    (0, b"ZISRAWFILE", "CZI is not readable; export it from ZEN as OME-TIFF"),
    (344, b"ni1\0", "NIfTI in two files (.hdr, .img) is not readable; save it as one .nii.gz"),
    (0, b"\x1f\x8b", "gzip files that are no NIfTI are not readable; unpack it first"),
    (0, b"\0\0\0\x0cjP  ", "bare JPEG 2000 is not readable; convert it to tiled TIFF"),
    (0, b"\xff\x4f\xff\x51", "bare JPEG 2000 is not readable; convert it to tiled TIFF"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file; run `git lfs pull`"),
    (0, b"%PDF", "a PDF is not readable as an image; export the image as TIFF or PNG"),
    *(
        (0, mark, "JSON text, such as a server's refusal, not an image; download it again")
        for mark in (b'{"', b"{\n", b"{\r", b"{ ")
    ),
    (0, b"PK\x03\x04", "a ZIP archive is not readable as an image; unpack it first"),
)


ReaderOptions = Mapping[str, Mapping[str, Any]]
"""Options of readers: by name of the reader, by name of the option."""


def open_image(path: Path | str, options: ReaderOptions | None = None) -> AbstractImage:
    """Open an image of any known family, recognised by its content and not by its suffix.

    Args:
        path: the file, or a folder that a reader reads as one image. A file that one reader finds
            damaged is refused; no other reader is asked.
        options: options of readers, as `check_options` returns them.

    Returns:
        the open image; close it, or use it in a ``with`` block.

    Raises:
        ImageNotFound: nothing exists at the path.
        UnsupportedFormat: a folder or content that no reader reads, or an empty file.
        UnreadableImage: a reader recognises the file, but it is damaged.
        ImageTooLarge: opening it would need more memory than there is or than is allowed.

    Example:
        >>> with foveate.open_image("new/S1.svs") as image:
        ...     print(image.shape, image.spacing_um)
        (96, 96) None
    """
    path = Path(path)
    folder = _is_folder(path)
    head = b"" if folder else _first_bytes(path)
    readers = _readers(parts.plugin_folders())
    candidates = [
        (name, reader)
        for name, reader in readers
        if (reader.takes_folders or not folder) and _recognises(reader, path, head)
    ]
    if not candidates and folder and is_zarr(path):
        raise UnsupportedFormat(
            f"{path}: OME-Zarr is not readable; export the image as OME-TIFF (bfconvert of "
            "Bio-Formats does it)"
        )
    if not candidates and folder:
        raise UnsupportedFormat(
            f"{path}: is a folder, not an image file; give its files. {_list_families()}"
        )
    if not candidates:
        raise UnsupportedFormat(f"{path}: {_why_not(head)}")
    reasons: list[FoveateError] = []
    for name, reader in candidates:
        try:
            return _open(reader, path, (options or {}).get(name, {}))
        except UnsupportedFormat as error:
            reasons.append(error)
    raise reasons[0]


def _is_folder(path: Path) -> bool:
    """Return whether a path is a folder; False for names that no file can have."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_image_folder(path: Path, options: ReaderOptions | None = None) -> bool:
    """Return whether a folder is one image in lists of images, and not its files.

    Args:
        path: the folder.
        options: options of readers, as `check_options` returns them.
    """
    return any(
        reader.joins_folders((options or {}).get(name, {})) and _recognises(reader, path, b"")
        for name, reader in _readers(parts.plugin_folders())
    )


def check_options(options: ReaderOptions) -> dict[str, dict[str, Any]]:
    """Parse options of readers by the signatures of the readers.

    Raises:
        UnknownName: there is no reader of a name.
        OptionError: a reader does not have an option, or a value does not fit.
    """
    return {
        name: parse_options(parts.find("readers", name), values, f"reader.{name}")
        for name, values in options.items()
    }


class _ReaderFailed(FoveateError):
    """A reader failed when it was asked whether it recognises a file."""


def _recognises(reader: type[AbstractReader], path: Path, head: bytes) -> bool:
    """Return whether a reader recognises a file; one that fails on it does not."""

    def explain(error: Exception, about: object) -> _ReaderFailed:
        log.debug("%s: %s", reader.__name__, about, exc_info=error)
        return _ReaderFailed(f"{about}: reader {reader.__name__} does not know what to make of it")

    try:
        with converting(path, explain):
            return reader.recognises(path, head)
    except _ReaderFailed:
        return False


def _open(reader: type[AbstractReader], path: Path, options: Mapping[str, Any]) -> AbstractImage:
    """Open a file with a reader; any other library's error becomes one of `foveate.errors`."""
    with converting(path):
        return parts.check_built("readers", reader(path, **options))


def _first_bytes(path: Path) -> bytes:
    """Read the first bytes of a file, or refuse it as `open_image` describes."""
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind):  # opening a pipe would wait for ever
            raise UnsupportedFormat(f"{path}: is a pipe or a device, not a file; save it as a file")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        dangling = "a link to a file that is not there" if path.is_symlink() else "no such file"
        raise ImageNotFound(f"{path}: {dangling}; check the path") from None
    except FoveateError:
        raise
    except OSError as error:
        raise as_foveate_error(error, path) from error
    except ValueError as error:
        raise ImageNotFound(f"{path}: no file can have this name; rename it") from error
    if not head:
        raise UnsupportedFormat(f"{path}: the file is empty; copy or download it again")
    return head


def _why_not(head: bytes) -> str:
    """Explain by the first bytes of a file why no reader takes it."""
    for at, mark, reason in _NOT_YET:
        if head[at : at + len(mark)] == mark:
            return reason
    text = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, such as a login page, saved as the image; download it again"
    return f"no reader knows this content; convert it. {_list_families()}"


def _list_families() -> str:
    """Return the sentence that lists the file families of all readers."""
    readers = _readers(parts.plugin_folders())
    return f"Readable: {', '.join(reader.families or name for name, reader in readers)}"


@functools.lru_cache(maxsize=8)
def _readers(folders: tuple[Path, ...]) -> tuple[tuple[str, type[AbstractReader]], ...]:
    """Return all readers by falling priority, looked up once for each set of plug-in folders."""
    del folders
    readers: list[tuple[str, type[AbstractReader]]] = [
        (name, parts.find("readers", name)) for name in parts.names("readers")
    ]
    return tuple(sorted(readers, key=lambda pair: -pair[1].priority))
