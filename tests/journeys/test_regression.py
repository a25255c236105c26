"""Regression from the table to the report: predictions beat every constant."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.runs.folder import read_json, read_rows
from helpers.commands import Completed

Command = Callable[..., Completed]

WORDS = (
    *("--label", "length_mm", "--task", "regression", "--method", "downsampled"),
    *("--epochs", "0", "--heatmaps", "2"),
)
"""Flags of a linear model on features of a frozen encoder, which trains in seconds."""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures of 0 to 16 dark squares, two per patient; labels are 120 mm + 7.5 mm each."""
    folder = tmp_path_factory.mktemp("lengths")
    rng = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "patient", "length_mm"])
        for i in range(48):
            count = int(rng.integers(0, 17))
            pixels = rng.integers(170, 200, (128, 128, 3), dtype=np.uint8)
            for cell in rng.permutation(64)[:count]:
                y, x = divmod(int(cell), 8)
                pixels[16 * y + 2 : 16 * y + 12, 16 * x + 2 : 16 * x + 12] //= 3
            Image.fromarray(pixels).save(folder / f"i{i:02d}.png")
            label = f"{120 + 7.5 * count + rng.normal(0, 3):.2f}"
            writer.writerow([f"i{i:02d}.png", f"P{i // 2:02d}", label if i else "large"])
    return folder / "labels.csv"


@pytest.fixture
def run(table: Path, foveate: Command) -> Path:
    """Train once on a table with one missing number; a second call reuses the run."""
    out = table.parent / "run"
    result = foveate("train", table, "--out", out, *WORDS)
    assert result.returncode == 2, result.stderr
    assert "task: regression, numbers of mean" in result.stderr
    assert "1 of 48 rows left out" in result.stderr
    return out


def test_regression_beats_a_constant(run: Path) -> None:
    scores = read_json(run / "metrics.json")["metrics"]
    assert list(scores) == ["spearman", "mae", "mae_constant"]
    assert scores["mae"]["hi"] < 0.6 * scores["mae_constant"]["value"]
    assert scores["spearman"]["lo"] > 0.5
    rows = read_rows(run / "predictions_oof.csv")
    errors = [abs(float(row["value"]) - float(row["label"])) for row in rows]
    assert np.mean(errors) == pytest.approx(scores["mae"]["value"], rel=1e-6)
    assert all(row["threshold"] == "" for row in rows)


def test_the_scale_comes_from_the_training_part(run: Path, table: Path) -> None:
    with table.open(encoding="utf-8") as file:
        labels = {Path(row["path"]).stem: row["length_mm"] for row in csv.DictReader(file)}
    (fold,) = read_json(run / "splits.json")["folds"]
    known = [float(labels[i]) for i in fold["train"]]
    settled = read_json(run / "fold_0" / "model" / "model.json")["settled"]
    assert settled == {
        "mean": pytest.approx(np.mean(known)),
        "spread": pytest.approx(np.std(known)),
    }


def test_the_page_shows_the_unit(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    for words in ("Spearman correlation", "where the median label as the answer", "off by ",
                  "median</th>", "The largest errors first.", "at 0, no relation"):  # fmt: skip
        assert words in page, words
    for words in ("AUROC", "onfusion", "robabilit", "one class"):
        assert words not in page, words
    assert (run / "figures" / "answers.png").is_file()
    assert "label 'large' is none of numbers" in (run / "quarantine.csv").read_text()


def test_new_images_are_predicted_in_the_unit(run: Path, table: Path, foveate: Command) -> None:
    out = table.parent / "new"
    result = foveate("predict", run, table.parent / "i05.png", "--out", out)
    assert result.returncode == 0, result.stderr
    (row,) = read_rows(out / "predictions.csv")
    assert 100 < float(row["value"]) < 260
    assert f"i05: {row['predicted']}  (value {row['predicted']})" in result.stdout
    scored = foveate("evaluate", run, table, "--label", "length_mm", "--out", table.parent / "ev")
    assert scored.returncode == 2, scored.stderr
    assert "spearman" in scored.stdout
    assert read_json(table.parent / "ev" / "metrics.json")["n_images"] == 47
