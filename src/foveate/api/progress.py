"""Progress for Python callers: a function that is called with the progress of the work."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import NamedTuple, cast

from foveate.messages.display import Display

log = logging.getLogger("foveate")
_WARNING = "warning: "


class ProgressUpdate(NamedTuple):
    """The progress of one part of the work.

    Attributes:
        title: title of this part of the work.
        done: number of steps done; a fraction within one image or step.
        total: number of steps of this part.
        note: further text, such as the loss.
    """

    title: str
    done: float
    total: int
    note: str = ""


OnProgress = Callable[[ProgressUpdate], object]


class CallingDisplay:
    """A display that calls a function; lines go to the log, warnings to Python's `warnings`.

    Args:
        on_progress: function that is called often; None for none.
    """

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress

    def say(self, text: str) -> None:
        """Log a line, or issue it as a Python warning if it begins with ``warning:``."""
        if text.startswith(_WARNING):
            warnings.warn(text.removeprefix(_WARNING), stacklevel=2)
        else:
            log.info("%s", text)

    def bar(self, title: str, done: float, total: int, note: str = "") -> None:
        """Call the function with the progress of the work.

        Args:
            title: name of this part of the work.
            done: steps that are done; may be a fraction.
            total: number of steps.
            note: text beside the progress.
        """
        if self._on_progress is not None:
            self._on_progress(ProgressUpdate(title, done, total, note))


def as_display(on_progress: OnProgress | Display | None) -> Display:
    """Wrap a function, or None, in a display; return a display unchanged."""
    if on_progress is None or not hasattr(on_progress, "bar"):
        return CallingDisplay(on_progress)
    return cast("Display", on_progress)
