"""Every method from the command line, with nothing set that it could know itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import SMALL_RUN, Ended
from foveate.parts import names
from foveate.runs.folder import read_json

FAST = ("streaming_cnn",)
"""Those that ask more of their encoder than others do."""


@pytest.mark.parametrize(
    "method",
    [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(names("methods"))
    ],
)
def test_it_trains_and_predicts(
    method: str, tiny_cohort: Path, tmp_path: Path, foveate: Callable[..., Ended]
) -> None:
    out, again = tmp_path / "run", tmp_path / "again"
    words = ("--method", method, *SMALL_RUN, "--epochs", "1", "--heatmaps", "1")
    words = (*words, "--view.spacing-um", "2", "--view.patch-px", "32")
    ended = foveate("train", tiny_cohort, "--out", out, *words)
    assert ended.returncode == 0, ended.stderr
    assert (out / "report.html").is_file()
    ended = foveate("evaluate", out, tiny_cohort, "--out", again)
    assert ended.returncode == 0, ended.stderr
    assert 0 <= read_json(again / "metrics.json")["metrics"]["auroc"]["value"] <= 1
