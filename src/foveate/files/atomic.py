"""Write files so that a kill at any moment leaves either the old file or the new one."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from foveate.errors import (
    DiskFull,
    FoveateError,
    converting,
    disk_full,
    not_writable_error,
)


def write_aside(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside `path`, flush it to the disk, then rename it to `path`.

    Args:
        path: the file to write; its folder is made if need be.
        write: writes the content to the path that it is called with.

    Raises:
        DiskFull: there is no room; the file that was there before still is.
        NotWritable: the file may not be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with converting(path, _explain_writing):
            path.parent.mkdir(parents=True, exist_ok=True)
            write(aside)
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            aside.replace(path)
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)


def remove_partial_files(folder: Path) -> None:
    """Remove half-written files in a folder, and below it, whose process has ended."""
    import psutil

    for path in folder.rglob(".*.part"):
        pid = path.name.split(".")[-2]
        if not (pid.isdecimal() and psutil.pid_exists(int(pid))):
            path.unlink(missing_ok=True)


def _explain_writing(error: Exception, path: object) -> FoveateError | None:
    """Build the error for a file that the system does not write; None for other errors."""
    if disk_full(error):
        return disk_full_error(path)
    return not_writable_error(path, error) if isinstance(error, OSError) else None


def disk_full_error(path: object) -> DiskFull:
    """Build the error to raise when there is no room for a file."""
    return DiskFull(
        f"{path}: the disk is full, this file could not be written. What was written before is "
        "whole: make room, and the same command continues"
    )


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, completely or not at all.

    Args:
        path: the file.
        content: its bytes.

    Raises:
        DiskFull: there is no room.
        NotWritable: the system does not let the file be written.
    """
    write_aside(path, lambda aside: aside.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """Write a text file, completely or not at all.

    Bytes of file names that are no UTF-8 are written as backslash escapes.

    Args:
        path: the file, in UTF-8.
        text: its text.

    Raises:
        DiskFull: there is no room.
        NotWritable: the system does not let the file be written.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, completely or not at all.

    Args:
        path: the file.
        value: plain values: dictionaries, lists, texts, numbers.

    Raises:
        DiskFull: there is no room.
        NotWritable: the system does not let the file be written.
        ValueError: the value holds NaN or infinity.
    """
    write_text(path, json_text(value))


def json_text(value: object) -> str:
    """Return a value as the text of a JSON file, indented by one.

    Raises:
        ValueError: the value holds NaN or infinity.
    """
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
