"""Importing foveate and asking for help take little CPU time, which other work does not change."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

MAX_CPU_S = 0.5


def measure_cpu_s(*words: str) -> float:
    """Measure the user and system time of a Python process, in seconds."""
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the system does not measure a child alone")
@pytest.mark.parametrize(
    "words", [("-c", "import foveate"), ("-m", "foveate", "--help")], ids=["import", "help"]
)
def test_starting_takes_little_cpu_time(words: tuple[str, ...]) -> None:
    best_s = min(measure_cpu_s(*words) for _ in range(3))
    assert best_s < MAX_CPU_S, f"{best_s:.2f} s of CPU time"


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="the system does not measure a child alone")
def test_cpu_time_of_a_busy_process_is_measured() -> None:
    busy = "import time\nwhile time.process_time() < 0.6: pass"
    assert measure_cpu_s("-c", busy) >= 0.6
