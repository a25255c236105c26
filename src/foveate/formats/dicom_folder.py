"""List the files of a folder with their states, by which facts of their headers are remembered.

Part of the readers `dicom` and `dicom_slide`.
"""

from __future__ import annotations

import os
from pathlib import Path

from foveate.formats.dicom_header import HEAD_BYTES, reading_dicom

FileState = tuple[int, int, int]
"""Size in bytes, and times of the last change of content and of rights, in nanoseconds."""


def list_files(folder: Path, n_max: int | None = None) -> list[tuple[Path, FileState]]:
    """List the files that lie directly in a folder and are not hidden, by name.

    Pipes and devices are no files. A broken link is one that cannot be read: the file may be
    elsewhere, as that of git-annex, and must not be left out in silence.

    Args:
        folder: the folder.
        n_max: the listing ends after so many files; None for no limit.

    Raises:
        OSError: the folder cannot be listed.
    """
    found: list[tuple[Path, FileState]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if n_max is not None and len(found) >= n_max:
                break
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_file():
                    found.append((folder / entry.name, read_state(entry)))
                elif entry.is_symlink() and not Path(entry.path).exists():
                    found.append((folder / entry.name, (0, 0, 0)))
            except OSError:  # a link in a circle, or a file that was just removed
                continue
    return sorted(found)


def read_state(file: Path | os.DirEntry[str]) -> FileState:
    """Return the state of a file, which differs after each change.

    Raises:
        OSError: there is no such file, or it may not be seen.
    """
    state = file.stat()
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns


def read_head(path: Path) -> bytes:
    """Read the first bytes of a file, as many as `is_dicom` needs.

    Raises:
        UnreadableImage: it cannot be read.
    """
    with reading_dicom(path), path.open("rb") as file:
        return file.read(HEAD_BYTES)


def dicom_suffix(path: Path) -> str:
    """Return the suffix of a file in small letters; empty for names that are identifiers.

    Such names, as in ``1.2.840.17``, end in a number.
    """
    return "" if path.suffix[1:].isdigit() else path.suffix.lower()
