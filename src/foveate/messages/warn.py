"""Warnings about files, without a line for each of a thousand files that are alike."""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from pathlib import Path

log = logging.getLogger("foveate")

NAMED = 3
"""So many files of a kind are named; the log of debugging names all."""

_lock = threading.Lock()
_told: defaultdict[str, set[Path]] = defaultdict(set)


def tell(level: int, kind: str, path: Path, text: str) -> None:
    """Log `text` about a file: once a file, and for the first three files of a kind.

    Args:
        level: as of `logging`.
        kind: what these messages have in common.
        path: the file, with which the line begins.
        text: what is to be said of it.
    """
    with _lock:
        told = _told[kind]
        if path in told:
            return
        told.add(path)
        n = len(told)
    if n > NAMED:
        level = logging.DEBUG
    log.log(level, "%s: %s", path, text)
    if n == NAMED:
        log.log(level, "further files of which the same is true are not named")


def forget() -> None:
    """Begin anew, for another run in the same process."""
    with _lock:
        _told.clear()
