"""Signals while a command begins, prints or ends, and outputs whose readers have ended."""

from __future__ import annotations

import fcntl
import signal
import struct
import subprocess
import sys
import termios
import textwrap
import time
from pathlib import Path

import pytest

from helpers.commands import command_words, one_thread_environment

LINE = "interrupted. The same command continues where this one stopped."
SIGNALS = (signal.SIGINT, signal.SIGTERM)
SECONDS = 600.0
PIPE_BYTES = 4096


def heed_interruptions() -> None:  # a shell's background jobs ignore them
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_script(text: str, number: int) -> tuple[int, str]:
    """Run a script in a child process, which may send itself the signal ``NUMBER``.

    Args:
        text: the script.
        number: the signal.

    Returns:
        Exit code and standard error.
    """
    head = f"import os, sys\nNUMBER = {number:d}\n"
    result = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(text)],
        capture_output=True,
        text=True,
        env=one_thread_environment(),
        preexec_fn=heed_interruptions,
        timeout=SECONDS,
        check=False,
    )
    return result.returncode, result.stderr.strip()


AT_AN_IMPORT = """
    import runpy
    from importlib.abc import MetaPathFinder

    class Sender(MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == {module!r} and self in sys.meta_path:
                sys.meta_path.remove(self)
                os.kill(os.getpid(), NUMBER)

    sys.meta_path.insert(0, Sender())
    sys.argv = ["foveate", "methods"]
    runpy.run_module("foveate", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("number", "module"),
    [(2, "foveate.cli.commands"), (15, "click"), (2, "foveate.api.commands")],
)
def test_a_signal_during_an_import_ends_the_command_without_a_trace(
    number: int, module: str
) -> None:
    code, err = run_script(AT_AN_IMPORT.format(module=module), number)
    assert code == 128 + number, err
    assert err in ("", LINE)


IN_A_FINALISER = """
    import time, click
    from foveate.cli import main

    class Finalised:
        def __del__(self):
            os.kill(os.getpid(), NUMBER)
            for _ in range(1000):
                pass  # here the exception is raised, and Python drops it

    @click.command()
    def work():
        Finalised()
        begun = time.monotonic()
        while time.monotonic() < begun + 20:
            pass
        print("not stopped", file=sys.stderr)

    sys.argv = ["work"]
    main(work)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_python_drops_stops_the_command_a_moment_later(number: int) -> None:
    assert run_script(IN_A_FINALISER, number) == (128 + number, LINE)


SWALLOWED = """
    import click
    from foveate.cli import main

    @click.command()
    def work():
        try:
            os.kill(os.getpid(), NUMBER)
            for _ in range(1000):
                pass
        except BaseException:
            {then}

    sys.argv = ["work"]
    main(work)
"""


@pytest.mark.parametrize(("number", "then"), [(2, "pass"), (15, "raise ValueError('cut off')")])
def test_a_command_that_was_interrupted_never_ends_as_another(number: int, then: str) -> None:
    assert run_script(SWALLOWED.format(then=then), number) == (128 + number, LINE)


AT_THE_END = """
    import atexit, runpy
    atexit.register(os.kill, os.getpid(), NUMBER)
    sys.argv = ["foveate", "methods"]
    runpy.run_module("foveate", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_the_last_line_leaves_no_trace(number: int) -> None:
    assert run_script(AT_THE_END, number) == (128 + number, "")


def count_waiting_bytes(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    buffer = fcntl.ioctl(process.stdout.fileno(), termios.FIONREAD, struct.pack("i", 0))
    return int(struct.unpack("i", buffer)[0])


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_results_are_printed(number: int) -> None:
    process = subprocess.Popen(
        command_words("methods", "--markdown"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=one_thread_environment(),
        preexec_fn=heed_interruptions,
    )
    assert process.stdout is not None
    fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    until = time.monotonic() + SECONDS
    while count_waiting_bytes(process) < PIPE_BYTES:  # then it waits for a reader
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(number)
    time.sleep(0.2)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + number
    assert err.strip() == LINE


def run_without_reader(*words: object, also_errors: bool) -> tuple[int, str]:
    """Run a command whose standard output, and standard error too, nobody reads."""
    process = subprocess.Popen(
        command_words(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if also_errors else subprocess.PIPE,
        text=True,
        env=one_thread_environment(),
    )
    assert process.stdout is not None
    process.stdout.close()
    err = "" if process.stderr is None else process.stderr.read()
    return process.wait(timeout=SECONDS), err


@pytest.mark.parametrize("words", [("methods", "--markdown"), ("--help",)])
def test_a_closed_pipe_ends_no_command(words: tuple[str, ...]) -> None:
    assert run_without_reader(*words, also_errors=False) == (0, "")


@pytest.mark.parametrize("also_errors", [False, True])
def test_a_prediction_that_nobody_listens_to_is_complete(
    picture_run: Path, picture_table: Path, tmp_path: Path, *, also_errors: bool
) -> None:
    images = sorted((picture_table.parent / "in").glob("*.png"))[:3]
    words = ("predict", picture_run, *images, "--out", tmp_path / "out", "--heatmaps", "0")
    code, err = run_without_reader(*words, also_errors=also_errors)
    assert code == 0, err
    assert "Traceback" not in err
    assert "pipe" not in err.lower()
    assert (tmp_path / "out" / "predictions.csv").read_text().count("\n") == 4


def test_a_full_disk_below_standard_output_is_one_error() -> None:
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            command_words("methods"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=one_thread_environment(),
            check=False,
        )
    assert result.returncode == 1
    assert result.stderr == (
        "error: standard output: No space left on device; check that you may read and write "
        "there, and that the disk or network works\n"
    )
