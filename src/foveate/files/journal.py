"""What is known so far, one line each, written as soon as it is known; a kill loses nothing.

The first line says what the lines rest on. A line that was cut short is dropped when the file is
read again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.errors import CheckpointError, disk_full
from foveate.files.atomic import no_room, write_text

SCHEMA = 1


class Journal:
    """Entries by key, in a file of JSON lines that only grows.

    Args:
        path: of the file; made when it is not there.
        about: what all entries rest on.
        anew: forget the entries of a file that rests on something else, instead of refusing.

    Raises:
        CheckpointError: the file holds answers that rest on something else, or is none of ours.
        DiskFull: there is no room for it.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], *, anew: bool = False) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        self._end, self._unread = 0, False
        head = json.loads(json.dumps({"schema": SCHEMA, **about}))
        if path.is_file() and path.stat().st_size:
            changed = self._read(head)
            if changed is None:
                return
            if not anew and self._answered():
                raise CheckpointError(
                    f"{path.parent} holds the answers of another command: {changed}. Give another "
                    "--out, or delete this folder"
                )
            self.entries = {}
        write_text(path, json.dumps(head) + "\n")
        self._end = path.stat().st_size

    def add(self, key: str, entry: Mapping[str, Any]) -> None:
        """Write an entry; the last one of a key counts.

        Raises:
            DiskFull: there is no room; the entries before are whole.
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
        """All is done. What failed before this line is tried again by the next command."""
        self._append({"finished": True})

    def _append(self, *lines: Mapping[str, Any]) -> None:
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        # Without a buffer, of which closing would try to write the rest once more.
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
                    raise no_room(self.path) from error
                raise
        self._end += len(data)

    def _read(self, head: Mapping[str, Any]) -> str | None:
        """Read the file; returns what it rests on otherwise than `head`, in words."""
        data = self.path.read_bytes()
        self._end = data.rfind(b"\n") + 1
        lines = data[: self._end].splitlines()
        first = _parsed(lines[0]) if lines else None
        if first is None:
            self._unread = True
            return "it cannot be read"
        for entry in filter(None, map(_parsed, lines[1:])):
            if entry.get("finished"):
                self.entries = {k: e for k, e in self.entries.items() if "failed" not in e}
            elif isinstance(entry.get("key"), str):
                self.entries[entry.pop("key")] = entry
        return _difference(first, head)

    def _answered(self) -> bool:
        """Whether more than failures would be lost."""
        return self._unread or any("failed" not in entry for entry in self.entries.values())


def read_entries(path: Path, about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Read the entries of a journal that another process may be writing; none where it is not.

    Failures count here, even those from before the journal was finished.

    Raises:
        CheckpointError: the entries rest on something else than `about`.
    """
    data = path.read_bytes() if path.is_file() else b""
    lines = [_parsed(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
    if not lines:
        return {}
    head = json.loads(json.dumps({"schema": SCHEMA, **about}))
    changed = "it cannot be read" if lines[0] is None else _difference(lines[0], head)
    if changed is not None:
        raise CheckpointError(
            f"{path.parent} holds the answers of another command: {changed}. Give another --out, "
            "or delete this folder"
        )
    keyed = [line for line in lines[1:] if line is not None and isinstance(line.get("key"), str)]
    return {line.pop("key"): line for line in keyed}


def _difference(first: Mapping[str, Any], head: Mapping[str, Any]) -> str | None:
    """Say what a journal rests on otherwise than `head`; None where all is the same."""
    for key in {**head, **first}:
        if first.get(key) != head.get(key):
            return f"its {key} was {first.get(key)}, now it is {head.get(key)}"
    return None


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
