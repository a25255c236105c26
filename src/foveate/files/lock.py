"""One process at a time in a folder that results are written to."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from foveate.errors import FolderInUse

NAME = ".foveate.lock"
_BUSY = (BlockingIOError, PermissionError)


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Hold a folder, made if need be, for this process; a killed process holds nothing.

    Where the file system knows no locks, nothing is held.

    Raises:
        FolderInUse: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    file = _locked(path)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without its note
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def is_held(folder: Path) -> bool:
    """Whether another process, or another place in this one, holds the folder."""
    try:
        file = os.open(folder / NAME, os.O_RDWR)
    except OSError:
        return False
    try:
        # Shared, so that many who ask at the same moment do not take each other for the holder.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except _BUSY:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False


def _locked(path: Path) -> int:
    """The open lock file. One that its holder has just removed is no lock, so it is made again."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except _BUSY:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip()
            os.close(file)
            raise FolderInUse(
                f"{path.parent} is in use by another foveate"
                f"{f', process {holder}' if holder else ''}: wait until it has ended, or give "
                "another --out"
            ) from None
        except OSError:
            return file
        if _same_file(file, path):
            return file
        os.close(file)


def _same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
