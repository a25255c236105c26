"""A labelled table may be predicted part by part, and is scored when all parts are collected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import foveate as fv
from foveate.runs.folder import read_json
from helpers.commands import Completed


def test_parts_give_the_scores_of_the_whole_table(
    picture_run: Path, picture_table: Path, tmp_path: Path, foveate: Callable[..., Completed]
) -> None:
    whole = fv.evaluate(picture_run, picture_table, tmp_path / "whole")
    out = tmp_path / "parts"
    first = fv.evaluate(picture_run, picture_table, out, fv.EvaluateOptions(part="1/2"))
    assert (first.metrics, first.failed) == ({}, {})
    assert repr(first) == "a part of the images, 0 failed"
    assert not (out / "metrics.json").exists()
    second = foveate("evaluate", picture_run, picture_table, "--out", out, "--part", "2/2")
    assert second.returncode == 0, second.stderr
    assert "the same command without --part collects all parts" in second.stdout

    result = foveate("evaluate", picture_run, picture_table, "--out", out)
    assert result.returncode == 0, result.stderr
    assert "24 of 24 images are answered already" in result.stderr
    assert read_json(out / "metrics.json") == whole.metrics
