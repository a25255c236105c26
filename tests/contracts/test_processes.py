"""Two processes learn what one would: of every method, and of a whole run that is killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import one_thread
from foveate.parts import names

METHODS = names("methods")
READS_PATCHES = [name for name in METHODS if name != "downsampled"]
SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def rows(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Gradients and buffers after a step of every method, by two processes and by one."""
    out = tmp_path_factory.mktemp("gradients") / "rows.pt"
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), str(tiny_cohort), str(out), *METHODS],
        capture_output=True,
        text=True,
        env=one_thread(),
        timeout=900,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found: Mapping[str, Any] = torch.load(out, weights_only=True)
    return found


def apart(row: Mapping[str, Any]) -> float:
    """Length of the difference of all gradients and buffers, as a share of their length."""
    ours, theirs = row["ours"], row["theirs"]
    assert ours.keys() == theirs.keys(), "the same parameters have gradients"
    gap = torch.cat([(ours[k].double() - theirs[k].double()).flatten() for k in theirs])
    whole = torch.cat([theirs[k].double().flatten() for k in theirs])
    return float(gap.norm() / whole.norm())


@pytest.mark.parametrize("name", METHODS)
def test_gradients_of_two_processes_are_those_of_one(name: str, rows: Mapping[str, Any]) -> None:
    row = rows[f"{name} whole"]
    assert row["aside"] == []
    assert apart(row) < 1e-6


@pytest.mark.parametrize("name", READS_PATCHES)
def test_an_image_that_one_process_cannot_read_is_left_out_by_both(
    name: str, rows: Mapping[str, Any]
) -> None:
    """Nobody waits for it; a process that can read none of its images gives nothing."""
    for label, n in (("one missing", 1), ("none of a process", 2)):
        row = rows[f"{name} {label}"]
        assert len(row["aside"]) == n
        assert row["aside"] == row["same"]
        assert apart(row) < 1e-6
