"""Where progress goes, and how often the same thing is said there."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from foveate.errors import one_line

_SAID_EACH = 3
"""So often a reason is said with the name of an image."""


class Display(Protocol):
    """Where progress goes: a terminal, a log, or nowhere."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def bar(self, title: str, done: float, total: int, note: str = "") -> None:
        """Work under way, which may be within one of its parts."""


class Silent:
    """A display that shows nothing."""

    def say(self, text: str) -> None:
        """Drop the line."""

    def bar(self, title: str, done: float, total: int, note: str = "") -> None:
        """Draw nothing."""


class Aloud(logging.Handler):
    """Says warnings of the log on a display as well.

    Args:
        display: is told.
    """

    def __init__(self, display: Display) -> None:
        super().__init__(logging.WARNING)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        """Say the message."""
        self._display.say(f"warning: {record.getMessage()}")


def training_bar(display: Display, title: str) -> Callable[[Any], None]:
    """Shows each stage of training as one bar; nothing of an epoch before its first step."""

    def tick(status: Any) -> None:
        running, note = status.running, ""
        if status.epoch:
            note = f"epoch {status.epoch}"
        if running.get("seconds_computing", 0) > 0:
            waiting = running["seconds_reading"] / running["seconds"]
            note += f"  loss {running['train_loss']:.4f}  waiting for pixels {waiting:.0%}"
        if "validated" in running:
            note += f"  validating {running['validated']:.0%}"
        display.bar(f"{title}: {status.stage}", status.done, status.total, note)

    return tick


class Reasons:
    """Says why images are set aside; the same reason a few times only, with a count at the end.

    Args:
        display: is told.
    """

    def __init__(self, display: Display) -> None:
        self._display = display
        self._counts: Counter[str] = Counter()
        self._told: set[str] = set()

    def once(self, text: str) -> None:
        """Say this the first time only."""
        if text not in self._told:
            self._told.add(text)
            self._display.say(text)

    def set_aside(self, image_id: str, path: str, reason: str) -> None:
        """An image is set aside."""
        plain = reason.replace(path, "").replace(Path(path).name, "").strip(": ")
        self._counts[plain] += 1
        if self._counts[plain] <= _SAID_EACH:
            self._display.say(f"set aside {image_id}: {one_line(reason)}")

    def set_all_aside(self, rows: Sequence[Mapping[str, str]]) -> None:
        """These rows of ``quarantine.csv`` are all that there are."""
        for row in rows:
            self.set_aside(row["image_id"], row["path"], row["reason"])
        self.end()

    def end(self) -> None:
        """Say how often what is no longer said has happened."""
        for reason, n in self._counts.items():
            if n > _SAID_EACH:
                self._display.say(
                    f"set aside {n} images in all for this reason: {one_line(reason)}"
                )
