"""Every error that foveate raises on purpose: one tree, each leaf also the built-in it resembles.

A message says what was got, what is allowed, what to do, and which file or key it is about.
"""

from __future__ import annotations

import difflib
import errno
import logging
from collections.abc import Iterable, Iterator
from typing import Any

log = logging.getLogger("foveate")

AGAIN = "; the file is damaged or cut off: copy, download or export it again"
"""What to do about a file that does not hold what its header says."""


class FoveateError(Exception):
    """Root of the tree: the command line prints it as one line and exits with 1.

    Errors of every class travel from one process to another with their message; one whose
    constructor takes something else arrives as the root.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild the error from its message."""
        return _rebuild_error, (type(self), self.args)


def _rebuild_error(kind: type[FoveateError], args: tuple[Any, ...]) -> FoveateError:
    try:
        return kind(*args)
    except TypeError:
        return FoveateError(*args)


class ImageNotFound(FoveateError, FileNotFoundError):
    """A path that should hold an image holds nothing."""


class UnreadableImage(FoveateError, OSError):
    """A file is damaged, truncated or hostile: opening it or reading some pixels failed."""


class UnsupportedFormat(FoveateError, ValueError):
    """No reader takes this file."""


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
    """No method, reader, task or encoder of this name."""


class CheckpointError(FoveateError, ValueError):
    """A model or run folder is incomplete, damaged, or made with other options."""


class NotFinite(FoveateError, ValueError):
    """A network's answer is no finite number."""


class TrainingError(FoveateError, RuntimeError):
    """Training cannot go on: no usable image is left, or the loss is no longer finite."""


class DiskFull(FoveateError, OSError):
    """A file could not be written, for the disk is full or the user's share of it used up."""


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


def as_ours(error: BaseException, about: object) -> FoveateError:
    """An error in this tree that says in plain words what went wrong with `about`, a file.

    What a library says is kept in the log only: its words help nobody who did not write it.

    Args:
        error: any; those of this tree are returned as they are, but for one that the limit of open
            files has caused: the file is not to blame.
        about: the file, for the message.
    """
    if out_of_files(error):
        return TooManyOpen()
    if isinstance(error, FoveateError):
        return error
    log.info("%s", about, exc_info=error)
    if out_of_memory(error):
        return OutOfMemory(
            f"{about}: memory does not suffice for this image; close other programs, or use a "
            "machine with more memory"
        )
    if isinstance(error, OSError) and error.strerror:
        return UnreadableImage(f"{about}: cannot be read ({why(error)})")
    return UnreadableImage(
        f"{about}: its content is not what its reader expects; the file is damaged or of a rare "
        "kind. Fetch it again, or convert it to a tiled TIFF"
    )


def why(error: OSError | ValueError) -> str:
    """Why the system does not hand over a file, and what to do."""
    if isinstance(error, PermissionError):
        return "you may not read it: change its permissions"
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ELOOP:
        return "its link leads back to itself: remove the link"
    if isinstance(error, OSError) and error.strerror:
        return f"the system says: {error.strerror}; is the disk or network well?"
    return "its name is none that the system takes: rename it"


def legible(name: str) -> str:
    """A file's name as text: bytes that are no UTF-8 are written as a backslash, x and digits."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def one_line(text: str) -> str:
    """A text without line breaks, tabs, and what a terminal would act on; at most 500 letters."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(plain.split())[:500]


def out_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, on the CPU or a GPU."""
    for each in _chain(error):
        if isinstance(each, MemoryError) or type(each).__name__ == "OutOfMemoryError":
            return True
        if isinstance(each, RuntimeError) and any(word in str(each) for word in _NO_MEMORY):
            return True
    return False


def out_of_files(error: BaseException) -> bool:
    """Whether the system's limit of open files was met."""
    return any(
        isinstance(each, TooManyOpen)
        or (isinstance(each, OSError) and each.errno in (errno.EMFILE, errno.ENFILE))
        for each in _chain(error)
    )


def disk_full(error: BaseException) -> bool:
    """Whether a file could not be written for want of room."""
    for each in _chain(error):
        if isinstance(each, DiskFull) or (isinstance(each, OSError) and each.errno in _FULL):
            return True
        # The writer of safetensors gives the number of the error in its text only.
        if any(f"os error {number})" in str(each) for number in _FULL):
            return True
    return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    been: set[int] = set()
    while error is not None and id(error) not in been:
        been.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest allowed name, or the list of what is allowed."""
    choices = sorted(set(allowed))
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Allowed: {', '.join(choices)}." if choices else ""


def several(words: list[str], limit: int = 3) -> str:
    """Return ``a, b, c and 4 more``."""
    more = len(words) - limit
    return ", ".join(words[:limit]) + (f" and {more} more" if more > 0 else "")
