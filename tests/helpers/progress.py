"""A display that records what it is asked to show."""

from __future__ import annotations

from collections.abc import Callable

from foveate.messages.display import ProgressUpdate


class Recorder:
    """Records lines and progress; `on_update`, if any, is called with each update."""

    def __init__(self, on_update: Callable[[ProgressUpdate], object] | None = None) -> None:
        self.lines: list[str] = []
        self.updates: list[ProgressUpdate] = []
        self._on_update = on_update

    def say(self, text: str) -> None:
        """Record a line."""
        self.lines.append(text)

    def bar(self, title: str, done: float, total: int, note: str = "") -> None:
        """Record an update, then call the function, which may end the work by an error."""
        update = ProgressUpdate(title, done, total, note)
        self.updates.append(update)
        if self._on_update is not None:
            self._on_update(update)

    @property
    def titles(self) -> list[str]:
        """The titles of the bars in the order in which they began."""
        return list(dict.fromkeys(update.title for update in self.updates))
