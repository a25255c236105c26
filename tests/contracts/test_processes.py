"""A training step in two processes gives the gradients of one process, for every method."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.parts import names
from helpers.commands import one_thread_environment

METHODS = names("methods")
READS_PATCHES = [name for name in METHODS if name != "downsampled"]
SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def rows(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Run a step of every method in two processes and in one; returns gradients and buffers."""
    out = tmp_path_factory.mktemp("gradients") / "rows.pt"
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(tiny_cohort), str(out), *METHODS],
        capture_output=True,
        text=True,
        env=one_thread_environment(),
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    stored: Mapping[str, Any] = torch.load(out, weights_only=True)
    return stored


def relative_difference(row: Mapping[str, Any]) -> float:
    """Return the norm of the difference of all tensors, divided by their norm."""
    ours, theirs = row["ours"], row["theirs"]
    assert ours.keys() == theirs.keys(), "the same parameters have gradients"
    gap = torch.cat([(ours[k].double() - theirs[k].double()).flatten() for k in theirs])
    flattened = torch.cat([theirs[k].double().flatten() for k in theirs])
    return float(gap.norm() / flattened.norm())


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_give_the_gradients_of_one(name: str, rows: Mapping[str, Any]) -> None:
    row = rows[f"{name} whole"]
    assert row["aside"] == []
    assert relative_difference(row) < 1e-6


@pytest.mark.parametrize("name", READS_PATCHES)
def test_an_image_unreadable_in_one_process_is_skipped_by_both(
    name: str, rows: Mapping[str, Any]
) -> None:
    """No process waits for it; a process without a readable image contributes nothing."""
    for label, n in (("one missing", 1), ("none of a process", 2)):
        row = rows[f"{name} {label}"]
        assert len(row["aside"]) == n
        assert row["aside"] == row["same"]
        assert relative_difference(row) < 1e-6
