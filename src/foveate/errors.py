"""Every error that foveate raises on purpose: one tree, each leaf also the built-in it resembles.

A message says what was got, what is allowed, what to do, and which file or key it is about.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FoveateError(Exception):
    """Root of the tree: the command line prints it as one line and exits with 1."""


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


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest allowed name, or the list of what is allowed."""
    choices = sorted(set(allowed))
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if near:
        return f" Did you mean '{near[0]}'?"
    return f" Allowed: {', '.join(choices)}." if choices else ""
