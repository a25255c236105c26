"""Log warnings about files, without a line for each of a thousand files of one kind.

Warnings of libraries that read files are kept from the terminal.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
import warnings
from collections import defaultdict
from pathlib import Path

log = logging.getLogger("foveate")

NAMED = 3
"""How many files of a kind are named; at level DEBUG the log names all."""

_lock = threading.Lock()
_paths: defaultdict[str, set[Path]] = defaultdict(set)


def warn_once(level: int, kind: str, path: Path, text: str) -> None:
    """Log a message about a file, once per file and for the first three files of a kind.

    Args:
        level: level of `logging`.
        kind: the kind of message, by which files are counted.
        path: the file, with which the line begins.
        text: the message.
    """
    with _lock:
        paths = _paths[kind]
        if path in paths:
            return
        paths.add(path)
        n = len(paths)
    if n > NAMED:
        level = logging.DEBUG
    log.log(level, "%s: %s", path, text)
    if n == NAMED:
        log.log(level, "further files of which the same is true are not named")


@functools.cache
def ignore_warnings_of(package: str) -> None:
    """Keep the warnings of a library from the terminal, from the first call on.

    Later calls change nothing: whenever a filter is set, Python shows all other warnings once more.

    Args:
        package: name of the library's package.
    """
    warnings.filterwarnings("ignore", module=rf"{re.escape(package)}(\.|$)")


def reset_warnings() -> None:
    """Count files from 0 again, for another run in the same process."""
    with _lock:
        _paths.clear()
