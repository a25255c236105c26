"""Progress on a terminal: bars with rate and ETA, or a line at times where there is none."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SECONDS_BETWEEN_LINES = 10.0


class Terminal:
    """A display on standard error: progress bars or lines, and messages.

    Args:
        bars: whether bars are drawn; by default only where standard error is a terminal.
    """

    def __init__(self, *, bars: bool | None = None) -> None:
        self._bars = sys.stderr.isatty() if bars is None else bars
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._title = ""
        self._begun = self._shown = 0.0
        self._first, self._last, self._note = 0.0, -1.0, ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._end()

    def say(self, text: str) -> None:
        """Print a message line, above the bar if there is one."""
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def bar(self, title: str, done: float, total: int, note: str = "") -> None:
        """Show the progress of a part of the work; a new title ends the previous bar.

        Args:
            title: name of this part of the work.
            done: steps that are done; may be a fraction.
            total: number of steps.
            note: text behind the bar.
        """
        if title != self._title:
            self._end()
            self._title, self._begun, self._shown = title, time.monotonic(), 0.0
            self._first, self._last, self._note = done, -1.0, ""
        if self._bars:
            self._draw(title, done, total, note)
        else:
            self._line(title, done, total, note)

    def _draw(self, title: str, done: float, total: int, note: str) -> None:
        from rich import progress
        from rich.console import Console

        if self._progress is None:
            self._progress = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[rate]}"),
                progress.TimeElapsedColumn(),
                progress.TextColumn("ETA"),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._progress.start()
            self._task = self._progress.add_task(title, total=total, rate="", note="")
        if self._task is not None:
            rate = self._rate(done)
            rate_text = "" if rate is None else f"{rate:.2f}/s"
            self._progress.update(
                self._task, completed=done, total=total, note=note, rate=rate_text
            )

    def _line(self, title: str, done: float, total: int, note: str) -> None:
        now = time.monotonic()
        ends = done >= total > self._last
        same = (done, note) == (self._last, self._note)
        if not ends and (same or now - self._shown < _SECONDS_BETWEEN_LINES):
            return
        self._shown, self._last, self._note = now, done, note
        done_text = f"{done:.2f}" if done % 1 else f"{done:.0f}"
        parts, rate = [f"{title}: {done_text}/{total}"], self._rate(done)
        if rate is not None:
            parts.append(f"{rate:.2f}/s")
            if done < total:
                parts.append(f"ETA {(total - done) / rate:.0f} s")
        print("  ".join([*parts, note]).rstrip(), file=sys.stderr, flush=True)

    def _rate(self, done: float) -> float | None:
        """Compute the steps per second since this bar began; None before the first step."""
        seconds = time.monotonic() - self._begun
        return (done - self._first) / seconds if done > self._first and seconds > 0 else None

    def _end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._task, self._title = None, None, ""
