"""The command audit on a trained run: its file, its section of the page, masks, refusals."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import PICTURE_RUN
from foveate.files.run_layout import RunLayout
from foveate.runs.folder import read_json, read_rows
from helpers.commands import Completed, read_refusal, run_child

Command = Callable[..., Completed]


@pytest.fixture(scope="module")
def folds_run(picture_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two folds of a method with attention on 24 pictures, with masks of half of them."""
    folder = tmp_path_factory.mktemp("audited")
    rows = read_rows(picture_table)
    (folder / "masks").mkdir()
    for i, row in enumerate(rows):
        path = picture_table.parent / row["path"]
        mask = np.zeros(np.asarray(Image.open(path)).shape[:2], np.uint8)
        mask[: len(mask) // 2] = 255
        row["path"] = str(path)
        row["mask"] = f"masks/{path.stem}.png" if i % 2 else ""
        if i % 2:
            Image.fromarray(mask).save(folder / row["mask"])
    table = folder / "table.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    options = [word for word in PICTURE_RUN if word not in ("--method", "mil_mean")]
    words = ("train", table, "--out", folder / "run", "--method", "abmil", "--folds", "2")
    result = run_child(*words, *options)
    assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.fixture
def run(folds_run: Path, tmp_path: Path) -> Path:
    """Return a copy of the run, which a test may change."""
    return Path(shutil.copytree(folds_run, tmp_path / "run"))


@pytest.mark.slow
def test_a_run_is_audited(run: Path, foveate: Command) -> None:
    result = foveate("audit", run, "--images", "4")
    assert result.returncode == 0, result.stderr
    content = read_json(RunLayout(run).audit)
    assert content["n_images"] == 4
    assert {entry["image_id"] for entry in content["images"]} <= {
        row["image_id"] for row in read_rows(RunLayout(run).predictions)
    }
    assert content["localisation"]["n"] == 12
    assert content["localisation"]["mask_share"]["value"] == pytest.approx(0.5, abs=0.02)
    assert content["stability"]["n_models"] == 2
    n_ranked = content["faithfulness"]["n"] if content["faithfulness"] else 0
    assert n_ranked + sum(content["unranked"].values()) == 4
    for line in content["words"]:
        assert line in result.stdout
    page = RunLayout(run).report.read_text(encoding="utf-8")
    assert '<section id="audit">' in page
    assert "localisation: the peak lies in the mask" in page


@pytest.mark.slow
def test_masks_of_a_folder_stand_for_those_of_the_table(run: Path, foveate: Command) -> None:
    rows = read_rows(RunLayout(run).predictions)
    masks = run.parent / "masks"
    masks.mkdir()
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(masks / f"{rows[0]['image_id']}.png")
    result = foveate("audit", run, "--images", "0", "--masks", masks)
    assert result.returncode == 0, result.stderr
    content = read_json(RunLayout(run).audit)
    assert (content["n_images"], content["faithfulness"], content["images"]) == (0, None, [])
    assert content["localisation"]["n"] == 1
    assert content["localisation"]["weight_in_mask"]["value"] == pytest.approx(1.0)
    assert content["localisation"]["weight_in_mask"]["lo"] is None  # one patient


@pytest.mark.slow
def test_audits_that_cannot_be_made_are_refused(run: Path, foveate: Command) -> None:
    assert "no such folder" in read_refusal(foveate("audit", run, "--masks", run / "none"))
    message = read_refusal(foveate("audit", run, "--masks", run / "figures"))
    assert "no file is named as a test image" in message
    RunLayout(run).metrics.unlink()
    assert "metrics.json is missing" in read_refusal(foveate("audit", run))


def test_more_failures_than_allowed_end_predict(
    picture_run: Path, picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    images = tmp_path / "new"
    shutil.copytree(picture_table.parent / "in", images)
    (images / "P01.png").write_text("no picture", encoding="utf-8")
    words = ("predict", picture_run, images, "--out", tmp_path / "out", "--heatmaps", "0")
    assert foveate(*words).returncode == 2
    assert foveate(*words, "--max-failed", "1").returncode == 2
    message = read_refusal(foveate(*words, "--max-failed", "0"))
    assert "1 of 24 images failed, more than the 0 that --max-failed 0 allows" in message
    rows = read_rows(tmp_path / "out" / "predictions.csv")
    assert len(rows) == 23
    assert {"uncertainty", "abstain"} < set(rows[0])
    log = (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")
    assert "images are answered already" in log


def test_more_failures_than_allowed_stop_a_training_early(
    picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    images = tmp_path / "in"
    shutil.copytree(picture_table.parent / "in", images)
    for name in ("P01.png", "P02.png"):
        (images / name).write_text("no picture", encoding="utf-8")
    table = Path(shutil.copy(picture_table, tmp_path / "table.csv"))
    words = ("train", table, "--out", tmp_path / "run", *PICTURE_RUN)
    message = read_refusal(foveate(*words, "--max-failed", "5%"))
    assert "2 of 24 images failed, more than the 1 that --max-failed 5% allows" in message
    assert not (tmp_path / "run" / "fold_0" / "model").exists()
