"""Helpers of the longer studies: child processes with their cost, and resumable CSV files."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class ChildResult:
    """The exit code and the cost of a child process.

    Attributes:
        code: its exit code; negative where a signal ended it.
        seconds: of the wall clock.
        peak_mib: highest resident memory of it, or of the largest of its own children.
    """

    code: int
    seconds: float
    peak_mib: float


def run_child(
    command: Sequence[str], log: Path, env: Mapping[str, str] | None = None
) -> ChildResult:
    """Run a command to its end; both streams are appended to `log`.

    Memory is what the system counted for this child (``wait4``), which begins at what this
    process held when the child was born: importing PyTorch here would be in it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("a", encoding="utf-8") as out:
        out.write(f"$ {' '.join(command)}\n")
        out.flush()
        child = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=os.environ | dict(env or {})
        )
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise
    child.returncode = os.waitstatus_to_exitcode(status)
    unit = 1024 if sys.platform != "darwin" else 2**20
    return ChildResult(child.returncode, time.monotonic() - started, usage.ru_maxrss / unit)


def describe_outcome(result: ChildResult, log: Path, *, fine: Iterable[int] = (0,)) -> str:
    """Return ``ok``, or the exit code and the last line of the log."""
    if result.code in fine:
        return "ok"
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing said")
    return f"exit {result.code}: {last}"[:200]


class Rows:
    """Rows of a CSV file that is appended to; the last row of each key is valid.

    Args:
        path: of the file; made with its first row.
        columns: of the file.
        key: columns that tell rows apart.
    """

    def __init__(self, path: Path, columns: Sequence[str], key: Sequence[str]) -> None:
        self.path, self.columns, self._key = path, tuple(columns), tuple(key)

    def all(self) -> list[dict[str, str]]:
        """Return the valid rows of the file as text."""
        if not self.path.is_file():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            by_key = {tuple(row[c] for c in self._key): row for row in csv.DictReader(file)}
        return list(by_key.values())

    def find(self, *key: object) -> dict[str, str] | None:
        """Return the row of a key, or None."""
        texts = tuple(str(part) for part in key)
        return next((r for r in self.all() if tuple(r[c] for c in self._key) == texts), None)

    def add(self, row: Row) -> None:
        """Append a row and flush it to disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.is_file()
        if not new:
            with self.path.open(encoding="utf-8", newline="") as file:
                known = next(csv.reader(file), [])
            if tuple(known) != self.columns:
                sys.exit(f"{self.path} has other columns, of another version: move it away")
        with self.path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n", restval="")
            if new:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            os.fsync(file.fileno())


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(lines)


def mean(rows: Iterable[Mapping[str, str]], column: str) -> float | None:
    """Return the mean of a column over the rows that have a value; None if none has."""
    values = [float(row[column]) for row in rows if row.get(column)]
    return sum(values) / len(values) if values else None


def format_figure(value: float | str | None, form: str = "{:.3f}") -> str:
    """Format a number as text, or as a dash if it is missing."""
    return "–" if value is None or value == "" else form.format(float(value))


def format_interval(rows: Sequence[Mapping[str, str]], name: str, lo: str, hi: str) -> str:
    """Return ``0.912 (0.830 to 0.970)``, each number a mean over rows."""
    values = [mean(rows, column) for column in (name, lo, hi)]
    if values[0] is None:
        return "–"
    return f"{values[0]:.3f} ({format_figure(values[1])} to {format_figure(values[2])})"


def group_rows(
    rows: Iterable[dict[str, str]], key: Callable[[dict[str, str]], Any]
) -> dict[Any, list[dict[str, str]]]:
    """Group rows by key, in the order in which keys first occur."""
    groups: dict[Any, list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def delete_large_files(run: Path, *, models: bool = False) -> None:
    """Delete checkpoints and, if asked, trained models of a run."""
    for name in ("checkpoints", *(("model",) if models else ())):
        for folder in [p for p in run.rglob(name) if p.is_dir()]:
            shutil.rmtree(folder)


def parse_numbers(text: str) -> list[int]:
    """Parse ``0-3,7`` to ``[0, 1, 2, 3, 7]``."""
    values: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        values += range(int(first), int(last) + 1) if dash else [int(first)]
    return values
