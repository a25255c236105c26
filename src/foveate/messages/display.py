"""Show progress, and report why images are set aside without repeating a reason too often."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from foveate.errors import one_line

_NAMED_PER_REASON = 3
"""How many images are named per reason."""


class Display(Protocol):
    """A place that shows progress: a terminal, a log, or none."""

    def say(self, text: str) -> None:
        """Show a line that stays."""

    def bar(self, title: str, done: float, total: int, note: str = "") -> None:
        """Show a progress bar; `done` of `total` steps may be a fraction within a step."""


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
        self._display.say(f"warning: {record.getMessage()}")


def training_bar(display: Display, title: str) -> Callable[[Any], None]:
    """Return a callback that shows each stage of training as one bar on a display.

    It shows nothing of an epoch before its first step.
    """

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


class QuarantineMessages:
    """Shows why images are set aside: a reason for a few images, with a count at the end.

    Args:
        display: the display.
    """

    def __init__(self, display: Display) -> None:
        self._display = display
        self._counts: Counter[str] = Counter()
        self._shown: set[str] = set()

    def once(self, text: str) -> None:
        """Show a text the first time only."""
        if text not in self._shown:
            self._shown.add(text)
            self._display.say(text)

    def set_aside(self, image_id: str, path: str, reason: str) -> None:
        """Show that an image is set aside, unless its reason was shown often enough."""
        plain = reason.replace(path, "").replace(Path(path).name, "").strip(": ")
        self._counts[plain] += 1
        if self._counts[plain] <= _NAMED_PER_REASON:
            self._display.say(f"set aside {image_id}: {one_line(reason)}")

    def set_all_aside(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Show all rows of ``quarantine.csv``, and the counts."""
        for row in rows:
            self.set_aside(row["image_id"], row["path"], row["reason"])
        self.end()

    def end(self) -> None:
        """Show how many images were set aside for the reasons that are no longer shown."""
        for reason, n in self._counts.items():
            if n > _NAMED_PER_REASON:
                self._display.say(
                    f"set aside {n} images in all for this reason: {one_line(reason)}"
                )
