"""Running ``foveate`` in child processes, and checking what a command printed."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from helpers import fork_server

Completed = subprocess.CompletedProcess[str]

MAX_SECONDS = 600
"""Time after which a child process counts as hanging."""


def one_thread_environment() -> dict[str, str]:
    """Return an environment in which child processes use one thread each."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def command_words(*words: object) -> list[str]:
    """Return the words of a ``foveate`` command for `subprocess`."""
    return [sys.executable, "-m", "foveate", *map(str, words)]


class Child:
    """A ``foveate`` command in a process of its own, with the methods of `subprocess.Popen`.

    The process is forked from one that has imported everything (`helpers.fork_server`). Tests of
    what happens during the imports take `command_words` and `subprocess` instead.

    Args:
        words: the words of the command after ``foveate``.
        cwd: its working folder, that of this process by default.
        env: variables to add to its environment.
        limit: a resource of `resource.setrlimit` and its limit for the process.

    Attributes:
        pid: number of the process.
        returncode: its exit code, negative where a signal ended it; None while it runs.
    """

    def __init__(
        self,
        *words: object,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        limit: tuple[int, int] | None = None,
    ) -> None:
        self.args = [str(word) for word in words]
        request = {
            "words": self.args,
            "cwd": str(cwd or Path.cwd()),
            "env": one_thread_environment() | (env or {}),
            "limit": limit,
        }
        pipes = [os.pipe() for _ in range(3)]
        socket.send_fds(_fork_server(), [json.dumps(request).encode()], [w for _, w in pipes])
        for _, write in pipes:
            os.close(write)
        output, errors, self._numbers = (os.fdopen(read) for read, _ in pipes)
        readers = ThreadPoolExecutor(2)  # so that no pipe is ever full
        self._printed = readers.submit(output.read), readers.submit(errors.read)
        readers.shutdown(wait=False)
        self.pid = int(self._numbers.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, or None while the command runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float = MAX_SECONDS) -> int:
        """Return the exit code.

        Args:
            timeout: the longest time to wait in seconds.

        Raises:
            subprocess.TimeoutExpired: the command runs longer.
        """
        if self.returncode is None:
            if not select.select([self._numbers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._numbers.readline())
            self._numbers.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the command without giving it a chance to tidy up, and wait for its end."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def communicate(self, timeout: float = MAX_SECONDS) -> tuple[str, str]:
        """Wait for the end, and return what was printed: output and errors."""
        self.wait(timeout)
        output, errors = self._printed
        return output.result(timeout), errors.result(timeout)


@functools.cache
def _fork_server() -> socket.socket:
    """Start the server of this process; return the socket that takes requests."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        subprocess.Popen(
            [sys.executable, fork_server.__file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=one_thread_environment(),
        )
    return ours  # when this process ends, so does the server


def run_child(*words: object, **options: Any) -> Completed:
    """Run ``foveate`` in a child process to its end; the arguments are those of `Child`."""
    child = Child(*words, **options)
    try:
        output, errors = child.communicate()
    except subprocess.TimeoutExpired:
        child.kill()
        raise
    return Completed(child.args, child.wait(), output, errors)


def read_refusal(result: Completed) -> str:
    """Return the single error line of a refused command."""
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    complaints = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(complaints) == 1, result.stderr
    return complaints[0]


def assert_refused(result: Completed, *parts: str) -> None:
    """Check that a command ended with a single error line, which contains all parts."""
    complaint = read_refusal(result)
    assert result.stderr.rstrip().splitlines()[-1] == complaint
    for part in parts:
        assert part in complaint, complaint
