"""Progress for callers: one function that is called with where the work is."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import NamedTuple, cast

from foveate.messages.display import Display

log = logging.getLogger("foveate")
_WARNING = "warning: "


class Progress(NamedTuple):
    """Where the work is.

    Attributes:
        title: of this part of the work.
        done: of `total`; a fraction within one image or step.
        total: when this part is done.
        note: what else is known, such as the loss.
    """

    title: str
    done: float
    total: int
    note: str = ""


OnProgress = Callable[[Progress], object]


class CallingDisplay:
    """Calls a function with the progress; lines go to the log, warnings to Python's own.

    Args:
        on_progress: is called, often; None for nobody.
    """

    def __init__(self, on_progress: OnProgress | None) -> None:
        self._on_progress = on_progress

    def say(self, text: str) -> None:
        """Log a line; one that begins with ``warning:`` is a warning of Python."""
        if text.startswith(_WARNING):
            warnings.warn(text.removeprefix(_WARNING), stacklevel=2)
        else:
            log.info("%s", text)

    def bar(self, title: str, done: float, total: int, note: str = "") -> None:
        """Tell where the work is."""
        if self._on_progress is not None:
            self._on_progress(Progress(title, done, total, note))


def as_display(on_progress: OnProgress | Display | None) -> Display:
    """Return where progress goes: to a function, to nobody, or to a terminal as it is."""
    if on_progress is None or not hasattr(on_progress, "bar"):
        return CallingDisplay(on_progress)
    return cast("Display", on_progress)
