"""What the longer studies share: child processes with their cost, and a CSV that grows by rows."""

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
class Ended:
    """How a child process ended.

    Attributes:
        code: its exit code; negative where a signal ended it.
        seconds: of the wall clock.
        peak_mib: highest resident memory of it, or of the largest of its own children.
    """

    code: int
    seconds: float
    peak_mib: float


def run_child(command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Ended:
    """Run to the end; both streams are appended to `log`.

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
    return Ended(child.returncode, time.monotonic() - started, usage.ru_maxrss / unit)


def outcome_of(ended: Ended, log: Path, *, fine: Iterable[int] = (0,)) -> str:
    """``ok``, or the exit code and the last line that was said."""
    if ended.code in fine:
        return "ok"
    said = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    last = next((line.strip() for line in reversed(said) if line.strip()), "nothing said")
    return f"exit {ended.code}: {last}"[:200]


class Rows:
    """Rows of a CSV file that is appended to; of rows with the same key, the last one counts.

    Args:
        path: of the file; made with its first row.
        columns: of the file.
        key: columns that tell rows apart.
    """

    def __init__(self, path: Path, columns: Sequence[str], key: Sequence[str]) -> None:
        self.path, self.columns, self._key = path, tuple(columns), tuple(key)

    def all(self) -> list[dict[str, str]]:
        """What the file holds, as text."""
        if not self.path.is_file():
            return []
        with self.path.open(encoding="utf-8", newline="") as file:
            kept = {tuple(row[c] for c in self._key): row for row in csv.DictReader(file)}
        return list(kept.values())

    def find(self, *key: object) -> dict[str, str] | None:
        """The row of this key."""
        wanted = tuple(str(part) for part in key)
        return next((r for r in self.all() if tuple(r[c] for c in self._key) == wanted), None)

    def add(self, row: Row) -> None:
        """Append a row, at once on disk."""
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
    """A Markdown table."""
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join(lines)


def mean(rows: Iterable[Mapping[str, str]], column: str) -> float | None:
    """Over the rows that have this figure; None where none has."""
    found = [float(row[column]) for row in rows if row.get(column)]
    return sum(found) / len(found) if found else None


def said(value: float | str | None, form: str = "{:.3f}") -> str:
    """A figure as text, or a dash."""
    return "–" if value is None or value == "" else form.format(float(value))


def between(rows: Sequence[Mapping[str, str]], name: str, lo: str, hi: str) -> str:
    """``0.912 (0.830 to 0.970)``, each of it a mean over rows."""
    values = [mean(rows, column) for column in (name, lo, hi)]
    if values[0] is None:
        return "–"
    return f"{values[0]:.3f} ({said(values[1])} to {said(values[2])})"


def group(
    rows: Iterable[dict[str, str]], key: Callable[[dict[str, str]], Any]
) -> dict[Any, list[dict[str, str]]]:
    """Rows by key, in the order in which keys first occur."""
    found: dict[Any, list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def drop_bulk(run: Path, *, models: bool = False) -> None:
    """Remove what takes disk and no table needs: checkpoints and, if asked, trained models."""
    for name in ("checkpoints", *(("model",) if models else ())):
        for folder in [p for p in run.rglob(name) if p.is_dir()]:
            shutil.rmtree(folder)


def numbers(text: str) -> list[int]:
    """``0-3,7`` as ``[0, 1, 2, 3, 7]``."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        found += range(int(first), int(last) + 1) if dash else [int(first)]
    return found
