"""The edits of `benchmarks/traps.py` match the present sources."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "benchmarks"


def test_each_edit_matches_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import traps

    assert Path(sys.modules["traps"].__file__ or "").parent == BENCH
    for name in ("src", "benchmarks"):
        (tmp_path / name).symlink_to(BENCH.parent / name, target_is_directory=True)
    known = traps.known_traps()
    assert len(known) > 30
    for trap in known:
        assert traps.edited_files(tmp_path, trap)


@pytest.mark.slow
def test_each_named_test_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))
    import traps

    tests = sorted({f"tests/{trap.test}" for trap in traps.known_traps()})
    words = ["-n", "0", "--collect-only", "-q", "-m", "slow or not slow", *tests]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=BENCH.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
