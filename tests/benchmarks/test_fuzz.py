"""A short run of the mutation fuzz; `python benchmarks/fuzz.py` is the long one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz.py"


def run_fuzz(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FUZZ), *words], capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize(
    ("kind", "n", "least_read"),
    [("images", 120, 20), ("tables", 16, 2), ("configs", 60, 2), ("models", 16, 1)],
)
def test_mutated_inputs_succeed_or_are_refused_clearly(kind: str, n: int, least_read: int) -> None:
    result = run_fuzz("--inputs", str(n), "--seed", "11", "--kinds", kind)
    assert result.returncode == 0, result.stdout + result.stderr
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (\w+)", result.stdout)}
    assert counts["read"] >= least_read
    assert counts["refused"] >= least_read
    assert counts["read"] + counts["refused"] == n


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_the_fuzz_detects_a_reader_that_raises_dies_or_hangs(tmp_path: Path) -> None:
    """A plug-in that misbehaves on a word in its file is reported for each such input."""
    (tmp_path / "seeds").mkdir()
    (tmp_path / "seeds" / "bad.odd").write_bytes(b"ODD" + bytes(100))
    (tmp_path / "plug" / "readers").mkdir(parents=True)
    (tmp_path / "plug" / "readers" / "odd.py").write_text(ODD, encoding="utf-8")
    program = (
        f"import sys, pathlib; sys.path.insert(0, {str(FUZZ.parent)!r}); "
        "from foveate.parts import add_plugin_folder; "
        f"add_plugin_folder(pathlib.Path({str(tmp_path / 'plug')!r})); "
        "import fuzz; fuzz.write_seeds = lambda folder: None; "
        "sys.argv = ['fuzz', '--inputs', '40', '--kinds', 'images', '--seeds', "
        f"{str(tmp_path / 'seeds')!r}]; "
        "sys.exit(fuzz.main())"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "foreign: " in result.stdout
    assert "signal: " in result.stdout
    assert "SIGABRT" in result.stdout


ODD = '''
import os
from foveate.readers.base import AbstractReader


class OddReader(AbstractReader):
    """Ends badly."""

    priority = 99

    def __init__(self, path):
        if len(path.read_bytes()) % 2:
            os.abort()
        raise KeyboardInterrupt

    @classmethod
    def recognises(cls, path, head):
        return head.startswith(b"ODD")

    def _read_level(self, level, origin_px, size_px):
        raise AssertionError

    def close(self):
        pass
'''
