"""Write results to a file of JSON lines as soon as they are known, so that a kill loses none.

The first line states the inputs that the results depend on. A line that was cut short is dropped
when the file is read again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.errors import CheckpointError, disk_full
from foveate.files.atomic import disk_full_error, write_text

SCHEMA = 1


class Journal:
    """Entries by key, in a file of JSON lines that only grows.

    Args:
        path: the file; made if it does not exist.
        dependencies: the inputs that all entries depend on.
        anew: drop the entries of a file with other inputs, instead of refusing it.

    Attributes:
        entries: the entries by key.

    Raises:
        CheckpointError: the file holds entries of other inputs, or cannot be read.
        DiskFull: there is no room for the file.
    """

    def __init__(self, path: Path, dependencies: Mapping[str, Any], *, anew: bool = False) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        self._end, self._unread = 0, False
        head = json.loads(json.dumps({"schema": SCHEMA, **dependencies}))
        if path.is_file() and path.stat().st_size:
            changed = self._read(head)
            if changed is None:
                return
            if not anew and self._has_answers():
                raise CheckpointError(
                    f"{path.parent} holds the answers of another command: {changed}. Give another "
                    "--out, or delete this folder"
                )
            self.entries = {}
        write_text(path, json.dumps(head) + "\n")
        self._end = path.stat().st_size

    def add(self, key: str, entry: Mapping[str, Any]) -> None:
        """Write an entry; a later one of the same key replaces it.

        Args:
            key: name of the entry, such as an image's id.
            entry: plain values by name.

        Raises:
            DiskFull: there is no room; earlier entries are complete.
        """
        self._append({"key": key, **entry})
        self.entries[key] = dict(entry)

    def add_all(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        """Write many entries at once.

        Raises:
            DiskFull: there is no room; none of them is written.
        """
        self._append(*({"key": key, **entry} for key, entry in entries.items()))
        self.entries |= {key: dict(entry) for key, entry in entries.items()}

    def finish(self) -> None:
        """Write that all is done, so that the next command tries failed entries again."""
        self._append({"finished": True})

    def _append(self, *lines: Mapping[str, Any]) -> None:
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        # Without a buffer: on a full disk, closing the file would try to write the rest again.
        with self.path.open("r+b", buffering=0) as file:
            file.seek(self._end)
            file.truncate()
            try:
                left = memoryview(data)
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            except OSError as error:
                os.truncate(self.path, self._end)
                if disk_full(error):
                    raise disk_full_error(self.path) from error
                raise
        self._end += len(data)

    def _read(self, head: Mapping[str, Any]) -> str | None:
        """Read the file; return in words how its inputs differ from `head`, or None."""
        data = self.path.read_bytes()
        self._end = data.rfind(b"\n") + 1
        first, *entries = _parse_lines(data) or [None]
        if first is None:
            self._unread = True
            return "it cannot be read"
        for entry in filter(None, entries):
            if entry.get("finished"):
                self.entries = {k: e for k, e in self.entries.items() if "failed" not in e}
            elif isinstance(entry.get("key"), str):
                self.entries[entry.pop("key")] = entry
        return _difference(first, head)

    def _has_answers(self) -> bool:
        """Return whether dropping the entries would lose more than failures."""
        return self._unread or any("failed" not in entry for entry in self.entries.values())


def read_entries(path: Path, dependencies: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Read the entries of a journal that another process may be writing; empty without a file.

    Entries of failures are included, also those from before the journal was finished.

    Args:
        path: the journal.
        dependencies: what entries depend on; the journal must state the same.

    Raises:
        CheckpointError: the entries depend on other inputs.
    """
    data = path.read_bytes() if path.is_file() else b""
    lines = _parse_lines(data)
    if not lines:
        return {}
    head = json.loads(json.dumps({"schema": SCHEMA, **dependencies}))
    changed = "it cannot be read" if lines[0] is None else _difference(lines[0], head)
    if changed is not None:
        raise CheckpointError(
            f"{path.parent} holds the answers of another command: {changed}. Give another --out, "
            "or delete this folder"
        )
    keyed = [line for line in lines[1:] if line is not None and isinstance(line.get("key"), str)]
    return {line.pop("key"): line for line in keyed}


def _difference(first: Mapping[str, Any], head: Mapping[str, Any]) -> str | None:
    """Describe the first input of a journal that differs from `head`; None where all are equal."""
    for key in {**head, **first}:
        was, now = first.get(key), head.get(key)
        if was != now:
            was, now = ("none" if value is None else value for value in (was, now))
            return f"its {key} was {was}, now it is {now}"
    return None


def _parse_lines(data: bytes) -> list[dict[str, Any] | None]:
    """Parse the complete lines of a journal; None for one that is damaged."""
    return [_parse_line(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None
