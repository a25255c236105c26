"""Every method trains and predicts from the command line with default settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import SMALL_RUN
from foveate.parts import names
from foveate.runs.folder import read_json
from helpers.commands import Completed


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(names("methods")))
def test_a_method_trains_and_predicts(
    method: str, tiny_cohort: Path, tmp_path: Path, foveate: Callable[..., Completed]
) -> None:
    out, again = tmp_path / "run", tmp_path / "again"
    words = ("--method", method, *SMALL_RUN, "--epochs", "1", "--heatmaps", "1")
    words = (*words, "--view.spacing-um", "2", "--view.patch-px", "32")
    result = foveate("train", tiny_cohort, "--out", out, *words)
    assert result.returncode == 0, result.stderr
    assert (out / "report.html").is_file()
    result = foveate("evaluate", out, tiny_cohort, "--out", again)
    assert result.returncode == 0, result.stderr
    assert 0 <= read_json(again / "metrics.json")["metrics"]["auroc"]["value"] <= 1
