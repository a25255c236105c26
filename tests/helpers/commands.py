"""Running ``foveate`` in child processes, and checking what a command printed."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

Completed = subprocess.CompletedProcess[str]

MAX_SECONDS = 600
"""Time after which a child process counts as hanging."""


def one_thread_environment() -> dict[str, str]:
    """Return an environment in which child processes use one thread each."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def command_words(*words: object) -> list[str]:
    """Return the words of a ``foveate`` command for `subprocess`."""
    return [sys.executable, "-m", "foveate", *map(str, words)]


def run_child(
    *words: object,
    env: dict[str, str] | None = None,
    limit: tuple[int, int] | None = None,
) -> Completed:
    """Run ``foveate`` in a child process.

    Args:
        words: the words of the command after ``foveate``.
        env: variables to add to the environment.
        limit: a resource of `resource.setrlimit` and its limit for the child.
    """

    def set_limit() -> None:
        if limit is not None:
            resource.setrlimit(limit[0], (limit[1], limit[1]))

    return subprocess.run(
        command_words(*words),
        capture_output=True,
        text=True,
        env=one_thread_environment() | (env or {}),
        timeout=MAX_SECONDS,
        preexec_fn=None if limit is None else set_limit,
        check=False,
    )


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
