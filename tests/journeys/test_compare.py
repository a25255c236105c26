"""The command compare: methods on one table, finished runs, refusals, and its page."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import PICTURE_RUN
from foveate.runs.folder import read_json, read_rows, write_rows
from helpers.commands import Completed, read_refusal, run_child

Command = Callable[..., Completed]
OPTIONS = tuple(
    word for word in PICTURE_RUN if word not in ("--method", "mil_mean")
)  # the methods are compared


@pytest.fixture(scope="module")
def compared(picture_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compare two methods on 24 pictures and return the folder."""
    out = tmp_path_factory.mktemp("compared") / "study"
    words = ("compare", picture_table, "--methods", "mil_mean,mil_max", "--out", out, *OPTIONS)
    result = run_child(*words)
    assert result.returncode == 0, result.stderr
    assert "mil_mean" in result.stdout
    return out


@pytest.fixture
def study(compared: Path, tmp_path: Path) -> Path:
    """Return a copy of the comparison, which a test may change."""
    return Path(shutil.copytree(compared, tmp_path / "study"))


def test_methods_are_compared_on_the_same_patients(study: Path, foveate: Command) -> None:
    content = read_json(study / "comparison.json")
    assert [row["name"] for row in content["rows"]] == ["mil_mean", "mil_max"]
    splits = [read_json(study / name / "splits.json")["folds"] for name in ("mil_mean", "mil_max")]
    assert splits[0] == splits[1]
    for row in content["rows"]:
        metrics = read_json(study / row["name"] / "metrics.json")["metrics"]
        assert row["scores"] == metrics
        cost = read_json(study / row["name"] / "cost.json")
        assert row["seconds_per_image"] == cost["seconds_per_image"]
    table = read_rows(study / "comparison.csv")
    (pair,) = (p for p in content["differences"] if p["score"] == "auroc")
    assert float(table[1]["difference"]) == -pair["value"]
    assert float(table[1]["value"]) == pytest.approx(float(table[0]["value"]) - pair["value"])
    page = (study / "comparison.html").read_text(encoding="utf-8")
    assert "mil_max" in page
    assert "http" not in page.replace("http://www.w3.org", "")

    again = foveate("compare", study / "mil_mean", study / "mil_max", "--out", study.parent / "two")
    assert again.returncode == 0, again.stderr
    two = read_json(study.parent / "two" / "comparison.json")
    assert two["differences"] == content["differences"]
    assert [row["run"] for row in two["rows"]] == ["../study/mil_mean", "../study/mil_max"]


def test_runs_that_cannot_be_compared_are_refused(
    study: Path, foveate: Command, tmp_path: Path
) -> None:
    runs, out = (study / "mil_mean", study / "mil_max"), tmp_path / "out"
    assert "expected two or more runs" in read_refusal(foveate("compare", runs[0], "--out", out))
    options = ("compare", *runs, "--out", out, "--folds", "2")
    assert "no effect on runs that are trained" in read_refusal(foveate(*options))
    message = read_refusal(foveate("compare", *runs, "--out", runs[0]))
    assert "is the folder of a run" in message
    (runs[1] / "metrics.json").unlink()
    message = read_refusal(foveate("compare", *runs, "--out", out))
    assert "metrics.json is missing" in message


def test_runs_of_other_labels_are_refused(study: Path, foveate: Command, tmp_path: Path) -> None:
    path = study / "mil_max" / "predictions_oof.csv"
    rows = read_rows(path)
    old = rows[0]["label"]
    rows[0]["label"] = next(row["label"] for row in rows if row["label"] != old)
    write_rows(path, rows, list(rows[0]))
    runs = (study / "mil_mean", study / "mil_max")
    message = read_refusal(foveate("compare", *runs, "--out", tmp_path / "out"))
    assert f"image '{rows[0]['image_id']}' has the label '{old}' in mil_mean, but" in message


@pytest.mark.slow
def test_runs_of_other_splits_are_refused(
    study: Path, picture_table: Path, foveate: Command, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    words = ("train", picture_table, "--out", other, "--method", "mil_mean", "--seed", "3")
    assert foveate(*words, *OPTIONS).returncode == 0
    message = read_refusal(foveate("compare", study / "mil_mean", other, "--out", tmp_path / "o"))
    assert "divides the patients otherwise" in message


def test_one_method_and_unknown_methods_are_refused(
    picture_table: Path, foveate: Command, tmp_path: Path
) -> None:
    words = ("compare", picture_table, "--out", tmp_path / "out", "--methods")
    assert "two or more methods" in read_refusal(foveate(*words, "mil_mean"))
    assert "abmill" in read_refusal(foveate(*words, "mil_mean,abmill"))
    assert not (tmp_path / "out").exists()
    many = ("compare", picture_table, picture_table, "--out", tmp_path / "out")
    assert "is no run: give one table" in read_refusal(foveate(*many))
