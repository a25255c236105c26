"""All errors that foveate raises on purpose, as one tree; each is also a kind of built-in error.

A message states the value that was got, what is allowed, what to do, and the file or key.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

log = logging.getLogger("foveate")

AGAIN = "; the file is damaged or cut off: copy, download or export it again"
"""Advice for a file whose content does not agree with its header."""
_MAX_LETTERS = 1600


class FoveateError(Exception):
    """Root of the tree: the command line prints it as one line and exits with 1.

    Errors of every class travel from one process to another with their message; one whose
    constructor takes something else arrives as the root. A message that quotes something very long
    is shown by its beginning and its end, where the remedy stands.

    Attributes:
        stops_command: whether the next images would fare alike, so that a command that goes
            through many images must stop.
    """

    stops_command: ClassVar[bool] = False

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) <= _MAX_LETTERS:
            return text
        return f"{text[: _MAX_LETTERS // 2]} … {text[-_MAX_LETTERS // 4 :]}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild the error from its message, with its notes."""
        notes = getattr(self, "__notes__", None)
        return _rebuild_error, (type(self), self.args), notes and {"__notes__": notes}


def _rebuild_error(kind: type[FoveateError], args: tuple[Any, ...]) -> FoveateError:
    try:
        return kind(*args)
    except TypeError:
        return FoveateError(*args)


class ImageNotFound(FoveateError, FileNotFoundError):
    """There is no file at the path of an image."""


class UnreadableImage(FoveateError, OSError):
    """A file is damaged, truncated or hostile: opening it or reading some pixels failed."""


class UnreadableMember(UnreadableImage):
    """Some of a patient's images cannot be read; `reasons` say why, by image id."""

    def __init__(self, message: str, reasons: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reasons = dict(reasons or {})


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


class TooManyFailed(FoveateError, RuntimeError):
    """More images could not be used than the user allows; the results of the others are there."""


class DiskFull(FoveateError, OSError):
    """A file could not be written because the disk, or the user's quota, is full."""

    stops_command = True


class NotWritable(FoveateError, OSError):
    """A file or folder cannot be written where it was asked for."""


class FolderInUse(FoveateError, RuntimeError):
    """Another process writes into the folder."""


class WorkerLost(FoveateError, RuntimeError):
    """Other processes that predict cannot be started, or end one after the other."""


class ArrayError(FoveateError, ValueError):
    """Numbers or arrays given to a function do not fit each other, or are not allowed."""


class PartFault(FoveateError, RuntimeError):
    """The code of a method, task, export or other part failed; no file or option is to blame."""

    stops_command = True


class OutOfMemory(FoveateError, MemoryError):
    """Memory did not suffice for one image or one step."""


class TooManyOpen(FoveateError, RuntimeError):
    """The system allows no more open files."""

    stops_command = True

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
    if (shortage := explain_shortage(error, about)) is not None:
        return shortage
    if isinstance(error, OSError) and error.strerror:
        return UnreadableImage(f"{about}: cannot be read ({explain_os_error(error)})")
    return UnreadableImage(
        f"{about}: its content is not what its reader expects; the file is damaged or of a rare "
        "kind. Fetch it again, or convert it to a tiled TIFF"
    )


def explain_shortage(error: BaseException, image: object = None) -> FoveateError | None:
    """Build the error for a lack of memory or a full disk; None for other errors.

    Args:
        error: any error.
        image: file of the image that was read or predicted, for the message; None in training.
    """
    gpu = _lacks_gpu_memory(error)
    if out_of_memory(error) and image is None:
        return OutOfMemory(f"{'the memory of the GPU' if gpu else 'memory'} {_TRAIN_SMALLER}")
    if out_of_memory(error):
        return OutOfMemory(f"{image}: {_PREDICT_ON_CPU if gpu else _CLOSE_PROGRAMS}")
    if disk_full(error):
        about = image or getattr(error, "filename", None) or "training"
        return DiskFull(f"{about}: the disk is full; make room, then give the same command again")
    return None


_TRAIN_SMALLER = (
    "does not suffice: use a smaller --train.batch-size or --method.chunk, fewer patches (such as "
    "--method.patches 8) or smaller ones (--view.patch-px), close other programs, or use a machine "
    "with more memory. The same command continues where this one stopped"
)
_PREDICT_ON_CPU = (
    "the memory of the GPU does not suffice for this image; use fewer --workers, --device cpu, or "
    "a model that was trained with a smaller --method.chunk"
)
_CLOSE_PROGRAMS = (
    "memory does not suffice for this image; close other programs, or use a machine with more "
    "memory"
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


@contextlib.contextmanager
def running_part(kind: str, part: object, image: object = None) -> Iterator[None]:
    """Convert a fault of a part's code inside to an error that names the part.

    Args:
        kind: the kind of part: ``method``, ``task``, ``export``.
        part: the part that computes, or its class.
        image: file of the image that it computes about; None in training.

    Raises:
        PartFault: the code failed. The message names the part and the line; where plug-ins take
            part, the innermost one.
        OutOfMemory: memory did not suffice, for the image or the step.
        FoveateError: other errors of this tree, unchanged, such as for pixels that cannot be read.
    """

    def explain(error: Exception, image: object) -> FoveateError:
        return explain_shortage(error, image) or PartFault(_describe_fault(error, kind, part))

    try:
        with converting(image, explain):
            yield
    except ArrayError as error:
        raise PartFault(_describe_fault(error, kind, part)) from error


def _describe_fault(error: BaseException, kind: str, part: object) -> str:
    """Describe which part failed, by which kind of error, and in which line of its file."""
    cls = part if isinstance(part, type) else type(part)
    module, name = cls.__module__, f"{kind} {cls.__qualname__}"
    walk = traceback.walk_tb(error.__traceback__)
    frames = [(str(frame.f_globals.get("__name__")), line) for frame, line in walk]
    plugged = [place for place in frames if place[0].startswith("foveate_plugins.")]
    module, line = (plugged or [p for p in frames if p[0] == module] or [(module, 0)])[-1]
    package, *rest = module.split(".")
    if package in ("foveate", "foveate_plugins") and len(rest) == 2:
        name = f"{rest[0].removesuffix('s')} '{rest[1].rstrip('_')}'"
    file = getattr(sys.modules.get(module), "__file__", module)
    where = f"line {line} of {file}" if line else str(file)
    reason = str(error) if isinstance(error, FoveateError) else type(error).__name__
    remedy = "this is a fault of foveate: please report it"
    if isinstance(error, OSError) and error.strerror:
        reason = f"{error.filename}: {error.strerror}"
        remedy = "check that you may read and write there, and that the disk or network works"
    elif package != "foveate":
        remedy = "correct it there"
    return f"{name} failed in {where} ({reason}), no image is to blame: {remedy}"


def explain_os_error(error: OSError | ValueError) -> str:
    """Explain why the system does not open or read a file, and what to do."""
    if isinstance(error, PermissionError):
        return "you may not read it: change its permissions"
    number = error.errno if isinstance(error, OSError) else None
    if number == errno.ELOOP:
        return "its link leads back to itself: remove the link"
    if isinstance(error, OSError) and error.strerror:
        return f"the system says: {error.strerror}; check the disk or network"
    return "its name is none that the system takes: rename it"


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


def _lacks_gpu_memory(error: BaseException) -> bool:
    """Return whether a lack of memory is one of a GPU's memory."""
    return any(
        type(cause).__name__ == "OutOfMemoryError" or "CUDA" in str(cause) or "CUBLAS" in str(cause)
        for cause in _chain(error)
    )


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


def concerns_all_images(error: FoveateError) -> bool:
    """Return whether an error would meet the next images as well, so that a command must stop."""
    return error.stops_command or disk_full(error)


def find_unreadable(error: BaseException) -> dict[str, str]:
    """Return which of several images of a patient caused an error, and why; empty for others."""
    causes = (cause for cause in _chain(error) if isinstance(cause, UnreadableMember))
    return next((cause.reasons for cause in causes), {})


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that, and so on."""
    visited: set[int] = set()
    while error is not None and id(error) not in visited:
        visited.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
