"""The child process of a check: reads paths with options of readers, and answers each with a line.

Started by `foveate.checks.children` as ``python -m foveate.checks.child``. What libraries print
cannot disturb the answers, which go to a copy of standard output. A file that takes too long ends
the process, also where a decoder never returns to Python.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path

_SLACK_S = 5
"""Seconds after the limit until the process ends itself, where nobody has ended it before."""


def main() -> None:
    """Answer until standard input ends. Arguments: seconds, bytes of memory, plug-in folders."""
    seconds, memory_bytes = int(sys.argv[1]), int(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the command ends its children itself
    from foveate.checks.probe import probe
    from foveate.parts import add_plugin_folder

    for folder in sys.argv[3:]:
        add_plugin_folder(Path(folder))
    _load_libraries()
    _limit_memory(memory_bytes)
    for line in sys.stdin:
        signal.alarm(seconds + _SLACK_S)
        path, readers = json.loads(line)
        answer = probe(Path(path), readers)
        signal.alarm(0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _load_libraries() -> None:
    """Import what readers import when they open their first file, whose time would count it."""
    names = (
        "PIL.Image",
        "tifffile",
        "imagecodecs",
        "nibabel",
        "openslide",
        "scipy.ndimage",
        "torch",
    )
    for name in (*names, "pydicom.pixels"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _limit_memory(memory_bytes: int) -> None:
    """Limit the memory that this process may allocate; files that it maps do not count."""
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    with contextlib.suppress(OSError, ValueError):  # a system without this limit, or a lower one
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, hard))


if __name__ == "__main__":
    main()
