"""Lock a folder, so that only one process at a time writes results to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from foveate.errors import FolderInUse, not_writable_error

NAME = ".foveate.lock"
_BUSY = (BlockingIOError, PermissionError)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for this process while the context lasts; a kill releases the lock.

    Where the file system has no locks, nothing is locked.

    Args:
        folder: the folder; made if it does not exist.

    Raises:
        FolderInUse: another process holds it.
        NotWritable: the folder cannot be made, or nothing can be written there.
    """
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _open_locked(path)
    except OSError as error:
        raise not_writable_error(folder, error) from error
    try:
        _name_holder(file)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _name_holder(file: int) -> None:
    """Write process and machine into an open lock file, for the message of another process."""
    with contextlib.suppress(OSError):  # a full disk: the lock holds without its note
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)


def is_locked(folder: Path) -> bool:
    """Return whether another process, or another context in this one, has locked a folder."""
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


def _open_locked(path: Path) -> int:
    """Open and lock the lock file; return its descriptor.

    The process that held the lock removes the file at its end, so a file that was removed meanwhile
    is opened again.
    """
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
    """Return whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
