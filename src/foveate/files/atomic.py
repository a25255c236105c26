"""Writing files so that a kill at any moment leaves either the old file or the new one."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foveate.errors import DiskFull, disk_full


def write_aside(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, flush it to the disk, then rename it.

    Raises:
        DiskFull: there is no room; the file that was there before still is.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except Exception as error:
        if disk_full(error):
            raise no_room(path) from error
        raise
    finally:
        aside.unlink(missing_ok=True)


def no_room(path: Path) -> DiskFull:
    """What is to be raised when there was no room for a file."""
    return DiskFull(
        f"{path}: the disk is full, this file could not be written. What was written before is "
        "whole: make room, and the same command continues"
    )


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all."""

    def write(aside: Path) -> None:
        aside.write_bytes(content)

    write_aside(path, write)


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all; bytes of file names that are no UTF-8 are written out."""

    def write(aside: Path) -> None:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")

    write_aside(path, write)


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all. NaN is refused."""
    write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """Return the content of a JSON file, indented by one. NaN is refused."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
