"""All errors that foveate raises on purpose, as one tree; each is also a kind of built-in error.

A message states the value that was got, what is allowed, what to do, and the file or key.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

log = logging.getLogger("foveate")

AGAIN = "; the file is damaged or cut off: copy, download or export it again"
"""Advice for a file whose content does not agree with its header."""
_MAX_LETTERS = 1600


class FoveateError(Exception):
    """Root of the tree: the command line prints it as one line and exits with 1.

    Errors of every class travel from one process to another with their message; one whose
    constructor takes something else arrives as the root. A message that quotes something very long
    is shown by its beginning and its end, where the remedy stands.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) <= _MAX_LETTERS:
            return text
        return f"{text[: _MAX_LETTERS // 2]} … {text[-_MAX_LETTERS // 4 :]}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild the error from its message."""
        return _rebuild_error, (type(self), self.args)


def _rebuild_error(kind: type[FoveateError], args: tuple[Any, ...]) -> FoveateError:
    try:
        return kind(*args)
    except TypeError:
        return FoveateError(*args)


class ImageNotFound(FoveateError, FileNotFoundError):
    """There is no file at the path of an image."""


class UnreadableImage(FoveateError, OSError):
    """A file is damaged, truncated or hostile: opening it or reading some pixels failed."""


class UnsupportedFormat(FoveateError, ValueError):
    """No reader supports the format of a file."""


class ImageTooLarge(UnreadableImage):
    """Decoding would need more memory than the stated limit (a decompression bomb, say)."""


class MissingSpacing(FoveateError, ValueError):
    """A slide states no physical pixel size, and none was given."""


class BoxError(FoveateError, ValueError):
    """A box is in the wrong frame, has the wrong number of axes, or a size that is not positive."""


class TableError(FoveateError, ValueError):
    """The table of labels cannot be used as it is."""


class SplitError(FoveateError, ValueError):
    """A split leaks patients, is damaged, or does not belong to this table."""


class OptionError(FoveateError, ValueError):
    """An option's name or value is not allowed."""


class UnknownName(FoveateError, LookupError):
    """No method, reader, task, encoder or export of this name."""


class CheckpointError(FoveateError, ValueError):
    """A model or run folder is incomplete, damaged, or made with other options."""


class NotFinite(FoveateError, ValueError):
    """A network's output is no finite number."""


class TrainingError(FoveateError, RuntimeError):
    """Training cannot go on: no usable image is left, or the loss is no longer finite."""


class DiskFull(FoveateError, OSError):
    """A file could not be written because the disk, or the user's quota, is full."""


class NotWritable(FoveateError, OSError):
    """A file or folder cannot be written where it was asked for."""


class FolderInUse(FoveateError, RuntimeError):
    """Another process writes into the folder."""


class WorkerLost(FoveateError, RuntimeError):
    """Other processes that predict cannot be started, or end one after the other."""


class OutOfMemory(FoveateError, MemoryError):
    """Memory did not suffice for one image or one step."""


class TooManyOpen(FoveateError, RuntimeError):
    """The system allows no more open files."""

    def __init__(self) -> None:
        super().__init__(
            "too many files are open for this system's limit: raise it (ulimit -n 1024), or take a "
            "smaller --train.batch-size"
        )


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_MEMORY = (
    *("can't allocate memory", "not enough memory", "out of memory"),
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def as_foveate_error(error: BaseException, about: object) -> FoveateError:
    """Convert any error about a file to one of this tree, with a message in plain words.

    A library's own message goes to the log only, since it does not help users.

    Args:
        error: any error. Errors of this tree are returned unchanged, except those that the limit of
            open files has caused, for which the file is not to blame.
        about: the file, for the message.
    """
    if out_of_files(error):
        return TooManyOpen()
    if isinstance(error, FoveateError):
        return error
    log.info("%s", about, exc_info=error)
    return _translate(error, about)


def _translate(error: BaseException, about: object) -> FoveateError:
    """Return an error of this tree for an error of a library or of the system."""
    if out_of_memory(error):
        return OutOfMemory(
            f"{about}: memory does not suffice for this image; close other programs, or use a "
            "machine with more memory"
        )
    if disk_full(error):
        return DiskFull(f"{about}: the disk is full; make room, then give the same command again")
    if isinstance(error, OSError) and error.strerror:
        return UnreadableImage(f"{about}: cannot be read ({explain_os_error(error)})")
    return UnreadableImage(
        f"{about}: its content is not what its reader expects; the file is damaged or of a rare "
        "kind. Fetch it again, or convert it to a tiled TIFF"
    )


@contextlib.contextmanager
def converting(
    about: object,
    convert: Callable[[Exception, object], FoveateError | None] = as_foveate_error,
) -> Iterator[None]:
    """Convert any error of the code inside to one of this tree.

    Decoders, pickles, tracers and users' plug-ins may raise any class, and no list of classes would
    be complete. Here is the only handler of all errors; everywhere else, `except` names classes.

    Args:
        about: the file, or the subject of the code inside.
        convert: takes the error and `about`, returns the error to raise instead, or None to raise
            the error itself. By default `as_foveate_error`.

    Raises:
        TooManyOpen: the limit of open files caused the error, so the file is not to blame.
        FoveateError: errors of this tree, unchanged, and the results of `convert`.
    """
    try:
        yield
    except Exception as error:
        if out_of_files(error) and not isinstance(error, TooManyOpen):
            raise TooManyOpen() from error
        if isinstance(error, FoveateError):
            raise
        converted = convert(error, about)
        if converted is None:
            raise
        raise converted from error


def explain_os_error(error: OSError | ValueError) -> str:
    """Explain why the system does not open or read a file, and what to do."""
    if isinstance(error, PermissionError):
        return "you may not read it: change its permissions"
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ELOOP:
        return "its link leads back to itself: remove the link"
    if isinstance(error, OSError) and error.strerror:
        return f"the system says: {error.strerror}; is the disk or network well?"
    return "its name is none that the system takes: rename it"


def printable_name(name: str) -> str:
    """Convert a file's name to valid text: bytes that are no UTF-8 become hexadecimal escapes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def one_line(text: str, *, max_letters: int = 500) -> str:
    """Remove line breaks, tabs and control characters from a text, and shorten it.

    Args:
        text: any text, such as the message of another library's error.
        max_letters: the number of letters after which it is cut.
    """
    plain = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(plain.split())[:max_letters]


def not_writable_error(path: object, error: OSError) -> NotWritable:
    """Return the error for a file or folder that cannot be written, with the reason and a remedy.

    Args:
        path: path of the file or folder.
        error: the system's refusal.
    """
    reason = error.strerror or "the system refuses it"
    if isinstance(error, PermissionError):
        reason = "you may not write there"
    elif error.errno == errno.EROFS:
        reason = "the disk may only be read"
    elif isinstance(error, NotADirectoryError):
        reason = "a file lies where a folder would have to be"
    return NotWritable(
        f"{path} cannot be written ({reason}): give an --out where you may write, or change the "
        "permissions of this one"
    )


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error was caused by a lack of memory, on the CPU or a GPU."""
    for cause in _chain(error):
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError":
            return True
        if isinstance(cause, RuntimeError) and any(word in str(cause) for word in _NO_MEMORY):
            return True
    return False


def out_of_files(error: BaseException) -> bool:
    """Return whether an error was caused by the system's limit of open files."""
    return any(
        isinstance(cause, TooManyOpen)
        or (isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE))
        for cause in _chain(error)
    )


def disk_full(error: BaseException) -> bool:
    """Return whether an error was caused by a full disk."""
    for cause in _chain(error):
        if isinstance(cause, DiskFull) or (isinstance(cause, OSError) and cause.errno in _FULL):
            return True
        # The writer of safetensors states the number of the error only in its text.
        if any(f"os error {number})" in str(cause) for number in _FULL):
            return True
    return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that, and so on."""
    visited: set[int] = set()
    while error is not None and id(error) not in visited:
        visited.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest allowed name, or the list of what is allowed.

    Capitals do not count, and a name that begins like one allowed name alone means it.

    Args:
        name: name that is not allowed.
        allowed: names that are.
    """
    choices = sorted(set(allowed))
    by_small = {choice.casefold(): choice for choice in choices}
    begun = [small for small in by_small if name and small.startswith(name.casefold())]
    near = difflib.get_close_matches(name.casefold(), by_small, n=1, cutoff=0.5)
    if len(begun) == 1 or near:
        return f" Did you mean '{by_small[(begun if len(begun) == 1 else near)[0]]}'?"
    return f" Allowed: {', '.join(choices)}." if choices else ""


def several(words: list[str], limit: int = 3) -> str:
    """Return ``a, b, c and 4 more``.

    Args:
        words: words to list.
        limit: number of words that are written out.
    """
    more = len(words) - limit
    return ", ".join(words[:limit]) + (f" and {more} more" if more > 0 else "")
