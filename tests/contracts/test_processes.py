"""A training step in two processes gives the gradients of one process, for every method."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from foveate.parts import names
from helpers.commands import one_thread_environment

METHODS = names("methods")
QUICK = ("abmil", "glimpse")
"""Methods of the quick suite; a step of all of them takes minutes."""
SCRIPT = Path(__file__).with_name("two_processes.py")

Rows = Callable[[str], Mapping[str, Any]]


def parameters(*left_out: str) -> list[Any]:
    """Return all methods but some as parameters; those that are not quick are marked ``slow``."""
    marks = {name: () if name in QUICK else (pytest.mark.slow,) for name in METHODS}
    return [pytest.param(name, marks=marks[name]) for name in METHODS if name not in left_out]


@pytest.fixture(scope="module")
def rows(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Return a function that runs a step of a method in two processes and in one.

    It returns gradients and buffers by case. Quick methods share one start of the processes, and so
    do the others.
    """

    @functools.cache
    def run(quick: bool) -> Mapping[str, Any]:
        out = tmp_path_factory.mktemp("gradients") / "rows.pt"
        chosen = [name for name in METHODS if (name in QUICK) == quick]
        result = subprocess.run(
            [sys.executable, str(SCRIPT), str(tiny_cohort), str(out), *chosen],
            capture_output=True,
            text=True,
            env=one_thread_environment(),
            timeout=900,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        stored: Mapping[str, Any] = torch.load(out, weights_only=True)
        return stored

    return lambda name: run(name in QUICK)


def relative_difference(row: Mapping[str, Any]) -> float:
    """Return the norm of the difference of all tensors, divided by their norm."""
    ours, theirs = row["ours"], row["theirs"]
    assert ours.keys() == theirs.keys(), "the same parameters have gradients"
    gap = torch.cat([(ours[k].double() - theirs[k].double()).flatten() for k in theirs])
    flattened = torch.cat([theirs[k].double().flatten() for k in theirs])
    return float(gap.norm() / flattened.norm())


@pytest.mark.parametrize("name", parameters())
def test_two_processes_give_the_gradients_of_one(name: str, rows: Rows) -> None:
    row = rows(name)[f"{name} whole"]
    assert row["aside"] == []
    assert relative_difference(row) < 1e-6


@pytest.mark.parametrize("name", parameters("downsampled"))
def test_an_image_unreadable_in_one_process_is_skipped_by_both(name: str, rows: Rows) -> None:
    """No process waits for it; a process without a readable image contributes nothing."""
    for label, n in (("one missing", 1), ("none of a process", 2)):
        row = rows(name)[f"{name} {label}"]
        assert len(row["aside"]) == n
        assert row["aside"] == row["same"]
        assert relative_difference(row) < 1e-6
