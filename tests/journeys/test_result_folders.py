"""Pictures that foveate wrote are never predicted, wherever the results lie."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import picture
from foveate.runs.folder import read_rows
from helpers.commands import Completed, assert_refused

Command = Callable[..., Completed]


@pytest.fixture
def images(tmp_path: Path, picture_run: Path) -> Path:
    """Write three pictures, with a run, a prediction's pictures and a part's answers beside."""
    folder = tmp_path / "in"
    for i in range(3):
        picture(folder / f"N{i}.png", i)
    shutil.copytree(picture_run, folder / "run")
    picture(folder / "run" / "heatmaps" / "N0.png", 0)
    for out, answers in (("out", "answers.jsonl"), ("array", "parts/1_of_2/answers.jsonl")):
        (folder / out / answers).parent.mkdir(parents=True)
        (folder / out / answers).write_text("{}\n")
        picture(folder / out / "heatmaps" / "N0.png", 0)
    return folder


def test_results_inside_the_folder_of_the_images_are_left_out_and_named(
    picture_run: Path, images: Path, tmp_path: Path, foveate: Command
) -> None:
    result = foveate(
        "predict", picture_run, images, "--out", tmp_path / "answers", "--heatmaps", "0"
    )
    assert result.returncode == 0, result.stderr
    assert "3 files in" in result.stderr
    names = ", ".join(str(images / name) for name in ("array", "out", "run"))
    assert f"left out, as results of foveate: {names}" in result.stderr
    rows = read_rows(tmp_path / "answers" / "predictions.csv")
    assert [row["image_id"] for row in rows] == ["N0", "N1", "N2"]


def test_results_among_the_paths_are_left_out_and_named(
    picture_run: Path, images: Path, tmp_path: Path, foveate: Command
) -> None:
    """As a shell's ``in/*`` gives them."""
    result = foveate(
        *("predict", picture_run, *sorted(images.iterdir())),
        *("--out", tmp_path / "answers", "--heatmaps", "0"),
    )
    assert result.returncode == 0, result.stderr
    assert f"left out, as results of foveate: {images / 'array'}, " in result.stderr
    assert len(read_rows(tmp_path / "answers" / "predictions.csv")) == 3


@pytest.mark.parametrize(
    "name", ["run", "run/heatmaps", "run/figures", "run/heatmaps/N0.png", "array/heatmaps", "out"]
)
def test_results_alone_are_refused(
    picture_run: Path, images: Path, tmp_path: Path, foveate: Command, name: str
) -> None:
    path = images / name
    assert path.exists()
    result = foveate("predict", picture_run, path, "--out", tmp_path / "answers")
    assert_refused(result, f"{path}: results of foveate, whose pictures are no images to predict")


def test_images_inside_the_folder_of_a_run_are_predicted(
    picture_run: Path, images: Path, foveate: Command
) -> None:
    run = images / "run"
    picture(run / "new" / "N7.png", 7)
    for _ in range(2):
        result = foveate("predict", run, run / "new", "--out", run / "answers", "--heatmaps", "0")
        assert result.returncode == 0, result.stderr
    assert [row["image_id"] for row in read_rows(run / "answers" / "predictions.csv")] == ["N7"]
