"""Read the bytes of one or several files as if they stood behind each other.

Part of the readers of stored blocks. A file is opened when it is first read.
"""

from __future__ import annotations

import bisect
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from foveate.errors import AGAIN, UnreadableImage

_ALIGNED = 1 << 24
"""Files begin at multiples of this, and at least as far behind the end of the one before."""


def first_bytes(n_bytes: Sequence[int]) -> tuple[int, ...]:
    """Compute at which byte of `StoredBytes` each file begins; there are gaps between files.

    Args:
        n_bytes: bytes of each file.
    """
    begins = [0]
    for n in n_bytes[:-1]:
        begins.append((begins[-1] + n) // _ALIGNED * _ALIGNED + 2 * _ALIGNED)
    return tuple(begins)


class StoredBytes:
    """The bytes of files. Safe to use from several threads.

    Args:
        paths: the files, at least one.

    Raises:
        OSError: a file cannot be opened.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self._n_bytes = tuple(path.stat().st_size for path in paths)
        self._begins = first_bytes(self._n_bytes)
        self._lock = threading.Lock()
        self._fds: dict[int, int] = {}
        self.closed = False
        self._fd(0)

    def read(self, offset: int, count: int) -> bytes:
        """Read bytes that lie in one file, as `check` has found.

        Args:
            offset: the first byte.
            count: number of bytes.
        """
        i = self._file_at(offset)
        return os.pread(self._fd(i), count, offset - self._begins[i])

    def check(self, offset: int, count: int, what: str) -> None:
        """Check that bytes lie inside a file.

        Args:
            offset: the first byte.
            count: number of bytes.
            what: what they hold, for the message.

        Raises:
            UnreadableImage: they do not.
        """
        i = self._file_at(max(offset, 0))
        at = offset - self._begins[i]
        if offset < 0 or count < 0 or at + count > self._n_bytes[i]:
            raise UnreadableImage(
                f"{self._paths[i]}: truncated: {what} lies at byte {at} with {count} bytes, the "
                f"file ends at {self._n_bytes[i]}{AGAIN}"
            )

    def _file_at(self, offset: int) -> int:
        """Return the index of the file that holds a byte."""
        return bisect.bisect_right(self._begins, offset) - 1

    def _fd(self, i: int) -> int:
        """Return the descriptor of a file, which is opened on first use."""
        with self._lock:
            if self.closed:
                raise UnreadableImage(f"{self._paths[i]}: the image is closed; open it again")
            if i not in self._fds:
                self._fds[i] = os.open(self._paths[i], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            return self._fds[i]

    def close(self) -> None:
        """Close the files. Closing twice is harmless."""
        with self._lock:
            self.closed = True
            while self._fds:
                os.close(self._fds.popitem()[1])
