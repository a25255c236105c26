"""Progress and messages: one protocol, `Display`, for all work; and why images are set aside.

Long work takes a `Display`, or the `OnProgress` of one bar of it, which is `Display.bar` under one
title. A function of a Python caller becomes a display by `as_display`.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, cast

from foveate.wording import one_line

log = logging.getLogger("foveate")

_MAX_NAMED_PER_REASON = 3
"""Number of images that are named for one reason."""
_MAX_NAMED = 12
"""Number of images that are named for all reasons together."""
_MAX_COUNTED = 5
"""Number of reasons that are counted at the end."""
_WARNING = "warning: "
_NUMBER = re.compile(r"\d[\d.,]*")


class Display(Protocol):
    """A place that shows progress: a terminal, a log, or none."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def bar(self, title: str, done: float, total: int, note: str = "") -> None:
        """Show a progress bar; `done` of `total` steps may be a fraction within a step.

        Args:
            title: name of this part of the work; a new title begins a new bar.
            done: steps that are done; may be a fraction.
            total: number of steps.
            note: text beside the bar.
        """


class Silent:
    """A display that shows nothing."""

    def say(self, text: str) -> None:
        """Drop the line."""

    def bar(self, title: str, done: float, total: int, note: str = "") -> None:
        """Draw nothing.

        Args:
            title: name of this part of the work.
            done: steps that are done.
            total: number of steps.
            note: text beside the bar.
        """


class OnProgress(Protocol):
    """A function that is called with the progress of one piece of work."""

    def __call__(self, done: float, total: int = 1, /) -> object:
        """Report progress.

        Args:
            done: steps that are done; may be a fraction.
            total: number of steps; 1 where `done` is a share.
        """


def within(on_progress: OnProgress | None, step: int, steps: int) -> OnProgress | None:
    """Return the function for the progress of one step, which is added to the steps before it.

    Args:
        on_progress: called with the progress of all steps; None gives None.
        step: number of steps that are done.
        steps: number of all steps.
    """
    if on_progress is None:
        return None
    return lambda done, total=1: on_progress(step + done / total, steps)


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


OnUpdate = Callable[[ProgressUpdate], object]
"""A function of a Python caller that is called with the progress of the work."""


class CallingDisplay:
    """A display that calls a function; lines go to the log, warnings to Python's `warnings`.

    Args:
        on_update: function that is called often; None for none.
    """

    def __init__(self, on_update: OnUpdate | None = None) -> None:
        self._on_update = on_update

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
        if self._on_update is not None:
            self._on_update(ProgressUpdate(title, done, total, note))


def as_display(on_progress: OnUpdate | Display | None) -> Display:
    """Wrap a function, or None, in a display; return a display unchanged."""
    if on_progress is None or not hasattr(on_progress, "bar"):
        return CallingDisplay(on_progress)
    return cast("Display", on_progress)


class DisplayHandler(logging.Handler):
    """Shows warnings of the log on a display too.

    Args:
        display: the display.
    """

    def __init__(self, display: Display) -> None:
        super().__init__(logging.WARNING)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        """Show the message of a record."""
        self._display.say(f"{_WARNING}{record.getMessage()}")


class LoggedDisplay:
    """A display whose lines go to the log as well, with the begin and the end of each bar.

    Args:
        display: display that shows the lines and bars.
    """

    def __init__(self, display: Display) -> None:
        self._display, self._title = display, ""

    def say(self, text: str) -> None:
        """Show a line, and log it."""
        if text.startswith(_WARNING) or not isinstance(self._display, CallingDisplay):
            log.info("%s", text)  # the other lines of such a display are logged by it
        self._display.say(text)

    def bar(self, title: str, done: float, total: int, note: str = "") -> None:
        """Show a progress bar; log its first and its last state.

        Args:
            title: name of this part of the work.
            done: steps that are done; may be a fraction.
            total: number of steps.
            note: text beside the bar.
        """
        if title != self._title or done >= total:
            log.info("%s: %g of %d %s", title, done, total, note)
            self._title = title
        self._display.bar(title, done, total, note)


class SetAsideMessages:
    """Shows why images are set aside: a few images of each reason by name, and counts at the end.

    Reasons that differ in numbers only are one.

    Args:
        on_message: called with each line.
    """

    def __init__(self, on_message: Callable[[str], None]) -> None:
        self._on_message = on_message
        self._counts: Counter[str] = Counter()
        self._named: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._shown: set[str] = set()

    def once(self, text: str) -> None:
        """Show a line the first time only."""
        if text not in self._shown:
            self._shown.add(text)
            self._on_message(text)

    def set_aside(self, image_id: str, path: str, reason: str) -> None:
        """Log that an image is set aside, and why; show it while few were.

        Args:
            image_id: id of the image.
            path: its file; left out of the kind of reason, so that equal reasons are counted
                together.
            reason: why it is set aside.
        """
        log.info("set aside %s: %s", image_id, reason)
        plain = reason.replace(path, "").replace(Path(path).name, "").strip(": ")
        kind = _NUMBER.sub("0", plain)
        self._counts[kind] += 1
        self._examples.setdefault(kind, plain)
        if self._named[kind] < _MAX_NAMED_PER_REASON and self._named.total() < _MAX_NAMED:
            self._named[kind] += 1
            self._on_message(f"set aside {image_id}: {one_line(reason)}")

    def set_all_aside(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Show all rows of ``quarantine.csv``, and the counts."""
        for row in rows:
            self.set_aside(row["image_id"], row["path"], row["reason"])
        self.end()

    def end(self) -> None:
        """Show how many images were set aside without a line of their own; then count from 0."""
        unnamed = self._counts - self._named
        often = [kind for kind, _ in unnamed.most_common(_MAX_COUNTED)]
        for kind in often:
            self._on_message(
                f"set aside {self._counts[kind]} images in all for this reason: "
                f"{one_line(self._examples[kind])}"
            )
        rest = unnamed.total() - sum(unnamed[kind] for kind in often)
        if rest:
            self._on_message(f"set aside {rest} images for further reasons")
        if unnamed:
            self._on_message(
                f"set aside {self._counts.total()} images in all; quarantine.csv lists them"
            )
        self._counts.clear()
        self._named.clear()
