"""A file that makes its reader hang, crash or take much memory costs the check this file only."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from conftest import picture
from foveate import parts
from foveate.checks.children import ProbeOptions, probe_all

READER = '''
"""A reader of files that begin with a word: what it does then."""
import os, signal, time
from pathlib import Path

from foveate.readers.base import AbstractReader


class Wild(AbstractReader):
    """Hangs, crashes, or takes memory, as the file says."""

    families = "wild files"
    priority = 99

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        word = path.read_text().split()[0]
        if word == "HANG":
            time.sleep(600)
        if word == "SPIN":
            while True:
                pass
        if word == "CRASH":
            os.kill(os.getpid(), signal.SIGSEGV)
        if word == "EXIT":
            os._exit(0)
        if word == "GREEDY":
            self.taken = bytearray(3 << 30)
        print("noise on standard output", flush=True)
        raise RuntimeError("any error")

    def _read_level(self, level, origin_px, size_px):
        raise RuntimeError("never reached")

    def close(self):
        pass

    @classmethod
    def recognises(cls, path, head):
        return head.split(b" ")[0].isupper() and head.endswith(b"!")
'''
LIMITS = ProbeOptions(seconds=8, memory_gib=2.0)


@pytest.fixture
def wild(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "plugins" / "readers").mkdir(parents=True)
    (tmp_path / "plugins" / "readers" / "wild.py").write_text(READER, encoding="utf-8")
    monkeypatch.setattr(parts, "_folders", [*parts._folders, tmp_path / "plugins"])
    return tmp_path


def write_wild(folder: Path, word: str) -> Path:
    path = folder / f"{word.lower()}.wild"
    path.write_text(f"{word} !", encoding="utf-8")
    return path


@pytest.mark.slow
def test_each_bad_file_costs_only_itself(wild: Path) -> None:
    words = ["HANG", "CRASH", "EXIT", "GREEDY", "ERROR", "SPIN"]
    bad = {word: write_wild(wild, word) for word in words}
    good = [picture(wild / f"{i}.png", i) for i in range(7)]
    mixed = [path for pair in zip(good, bad.values(), strict=False) for path in pair] + good[6:]
    answers = dict(probe_all(mixed, 2, LIMITS))
    assert set(answers) == set(mixed)
    for path in good:
        assert answers[path]["shape"] == [96, 96]
    texts = {
        "HANG": "not read within 8 seconds",
        "SPIN": "not read within 8 seconds",
        "CRASH": "its reader crashes (signal 11)",
        "EXIT": "its reader ends without an answer",
        "GREEDY": "memory",
        "ERROR": "its content is not what its reader expects",
    }
    for word, text in texts.items():
        assert text in answers[bad[word]]["failed"]
        assert str(bad[word]) in answers[bad[word]]["failed"]


def test_no_child_outlives_the_check(wild: Path) -> None:
    hanging = [write_wild(wild, "HANG"), picture(wild / "a.png", 1)]
    probing = probe_all(hanging, 2, ProbeOptions(60, 2.0))
    next(probing)
    children = [p for p in psutil.Process().children() if "foveate.checks.child" in _words(p)]
    assert children
    probing.close()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_child_ends_itself_when_the_command_has_been_killed(wild: Path) -> None:
    path = write_wild(wild, "HANG")
    code = (
        "from pathlib import Path\nfrom foveate.parts import add_plugin_folder\n"
        "from foveate.checks.children import ProbeOptions, probe_all\n"
        f"add_plugin_folder(Path({str(wild / 'plugins')!r}))\n"
        f"list(probe_all([Path({str(path)!r})], 1, ProbeOptions(2, 2.0)))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        end = time.monotonic() + 60
        children: list[psutil.Process] = []
        while not children and time.monotonic() < end:
            children = psutil.Process(parent.pid).children()
            time.sleep(0.02)
        os.kill(parent.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=90)
    assert not alive
