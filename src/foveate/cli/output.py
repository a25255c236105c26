"""Standard output and error whose readers may end first, as in ``foveate methods | head -1``."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _LastingFile(io.FileIO):
    """An output whose text is dropped once nobody reads it, or once its disk is full.

    Args:
        number: descriptor of the file.
        name: name of the file in messages; empty where its loss is no error.
    """

    def __init__(self, number: int, name: str) -> None:
        super().__init__(number, "w", closefd=False)
        self._name = name

    def write(self, data: ReadableBuffer) -> int:
        """Write bytes; return their number, also where they are dropped.

        Raises:
            OSError: the disk is full; only the first time, and only where the loss is an error.
        """
        try:
            return super().write(data)
        except OSError as error:
            name, self._name = self._name, ""
            if name and not isinstance(error, BrokenPipeError):
                raise OSError(error.errno, error.strerror, name) from error
            return memoryview(data).nbytes


@contextlib.contextmanager
def outlasting_readers() -> Iterator[None]:
    """Drop what is printed within the context once its reader has ended.

    A command whose output nobody reads any more still completes its work, and has the exit code of
    that work. So has one whose messages cannot be written.
    """
    before = sys.stdout, sys.stderr
    sys.stdout = _make_lasting(sys.stdout, "standard output")
    sys.stderr = _make_lasting(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def _make_lasting(stream: TextIO, name: str = "") -> TextIO:
    """Return an output to the same file; the stream itself if it is a terminal or no file."""
    if not isinstance(stream, io.TextIOWrapper) or stream.isatty():
        return stream
    try:
        number = stream.fileno()
    except OSError:
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_LastingFile(number, name)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
