"""Child processes that open images one after the other, so that a file can end only its own."""

from __future__ import annotations

import json
import os
import queue
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foveate.parts import plugin_folders
from foveate.readers import ReaderOptions

_FIRST_S = 120
"""Seconds that a child may take to start, besides the limit for its first file."""

Answer = dict[str, Any]


@dataclass(frozen=True)
class ProbeOptions:
    """How one image is opened, and its limits.

    Attributes:
        seconds: time until the child that opens it is ended.
        memory_gib: memory that the child may allocate.
        readers: options of readers.
    """

    seconds: int
    memory_gib: float
    readers: ReaderOptions = field(default_factory=dict)


def probe_all(
    paths: Sequence[Path], n: int, options: ProbeOptions
) -> Iterator[tuple[Path, Answer]]:
    """Probe images in child processes, and yield the answer about each as soon as it is there.

    A child probes many images. If one makes it crash, hang or use too much memory, only this image
    has failed, and a new child continues.

    Args:
        paths: the images.
        n: number of child processes.
        options: how each image is opened.

    Yields:
        the path, and what `foveate.checks.probe.probe` returns, or ``failed`` with the reason.
    """
    waiting: queue.SimpleQueue[Path] = queue.SimpleQueue()
    answers: queue.SimpleQueue[tuple[Path, Answer]] = queue.SimpleQueue()
    for path in paths:
        waiting.put(path)
    children = [_Child(options) for _ in range(min(n, len(paths)))]
    for child in children:
        # Daemons, so that a child that even the system cannot end does not keep this process.
        threading.Thread(target=_serve, args=(child, waiting, answers), daemon=True).start()
    try:
        for _ in paths:
            yield answers.get()
    finally:
        for child in children:
            child.close()


def _serve(
    child: _Child,
    waiting: queue.SimpleQueue[Path],
    answers: queue.SimpleQueue[tuple[Path, Answer]],
) -> None:
    """Let a child probe the waiting images until none is left, or until it is closed."""
    with suppress(queue.Empty):
        while not child.closed:
            path = waiting.get_nowait()
            answers.put((path, child.probe(path)))
    child.stop()


class _Child:
    """A child process that is started when it is needed, and started again after its end."""

    def __init__(self, options: ProbeOptions) -> None:
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self._n_answers = 0
        self.closed = False

    def probe(self, path: Path) -> Answer:
        """Return the answer about an image; where the child ends, ask a fresh one once more."""
        answer, blamed = self._ask(path)
        # Memory that earlier images left behind is not the fault of this one.
        if not blamed and not self.closed:
            self.stop()
            answer, _ = self._ask(path)
        return answer

    def _ask(self, path: Path) -> tuple[Answer, bool]:
        """Ask the child about an image; return the answer, and whether the image is to blame.

        A child that has answered about other images before may have ended for their sake.
        """
        fresh, limit = self._n_answers == 0, self._options.seconds
        process = self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps([os.fspath(path), self._options.readers]) + "\n")
            process.stdin.flush()
        wait_s = limit + (_FIRST_S if fresh else 0)
        if not select.select([process.stdout], [], [], wait_s)[0]:
            self.stop()
            return {"failed": _describe_slow(path, limit)}, True
        line = process.stdout.readline()
        if not line.endswith("\n"):
            return {"failed": _describe_end(path, self._end(), self._options)}, fresh
        self._n_answers += 1
        answer: Answer = json.loads(line)
        short = "memory" in answer.get("failed", "") and not fresh
        return answer, not short

    def _start(self) -> subprocess.Popen[str]:
        """Return the running child; start one where there is none."""
        if self._process is None:
            package = Path(__file__).parents[2]
            known = os.environ.get("PYTHONPATH")
            limits = (str(self._options.seconds), str(int(self._options.memory_gib * 2**30)))
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "foveate.checks.child", *limits),
                    *map(str, plugin_folders()),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                encoding="utf-8",
                cwd=tempfile.gettempdir(),
                env=os.environ
                | {"PYTHONPATH": os.pathsep.join(filter(None, (str(package), known)))}
                | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"},
            )
        return self._process

    def _end(self) -> int:
        """Wait briefly for the end of the child, and return its code; end it where it lives."""
        code = 0
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(5)
        self.stop()
        return code

    def stop(self) -> None:
        """End the child without waiting for it: one that waits for a dead disk cannot end."""
        process, self._process, self._n_answers = self._process, None, 0
        if process is not None:
            process.kill()
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):
                    if stream is not None:
                        stream.close()
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)

    def close(self) -> None:
        """End the child for good; the thread that reads from it sees the end of its answers."""
        self.closed = True
        process = self._process
        if process is not None:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)


def _describe_slow(path: Path, seconds: int) -> str:
    return (
        f"{path}: not read within {seconds} seconds; is the disk or network slow, or the file "
        "damaged? Copy it to a local disk, or allow more with --seconds"
    )


def _describe_end(path: Path, code: int, options: ProbeOptions) -> str:
    """Describe why a child has ended that was asked about an image."""
    if code == -14:  # SIGALRM
        return _describe_slow(path, options.seconds)
    if code == -9:
        return (
            f"{path}: the system ended its reader, probably for a lack of memory; take fewer "
            "--workers, or convert the file to a tiled TIFF"
        )
    return (
        f"{path}: its reader crashes (signal {-code}); the file is damaged: copy, download or "
        "export it again"
        if code < 0
        else f"{path}: its reader ends without an answer; the file is damaged: export it again"
    )
