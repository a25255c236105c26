"""A column of numbers from the table to the page: it is learnt, and better than any constant."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import Ended
from foveate.runs.folder import read_json, read_rows

Command = Callable[..., Ended]

WORDS = (
    *("--label", "length_mm", "--task", "regression", "--method", "downsampled"),
    *("--epochs", "0", "--heatmaps", "2"),
)
"""Linear answers to the features of a frozen encoder: seconds, and exact enough."""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 0 to 16 dark squares, two of a patient; 120 mm, and 7.5 mm for each square."""
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
            writer.writerow([f"i{i:02d}.png", f"P{i // 2:02d}", label if i else "pending"])
    return folder / "labels.csv"


@pytest.fixture
def run(table: Path, foveate: Command) -> Path:
    """Trained once; one row has no number. The second call finds it done."""
    out = table.parent / "run"
    ended = foveate("train", table, "--out", out, *WORDS)
    assert ended.returncode == 2, ended.stderr
    assert "task: regression, numbers of mean" in ended.stderr
    assert "1 of 48 rows left out" in ended.stderr
    return out


def test_it_beats_a_constant_by_far(run: Path) -> None:
    scores = read_json(run / "metrics.json")["metrics"]
    assert list(scores) == ["spearman", "mae", "mae_constant"]
    assert scores["mae"]["hi"] < 0.6 * scores["mae_constant"]["value"]
    assert scores["spearman"]["lo"] > 0.5
    rows = read_rows(run / "predictions_oof.csv")
    errors = [abs(float(row["value"]) - float(row["label"])) for row in rows]
    assert np.mean(errors) == pytest.approx(scores["mae"]["value"], rel=1e-6)
    assert all(row["threshold"] == "" for row in rows)


def test_the_scale_is_that_of_the_training_part(run: Path, table: Path) -> None:
    with table.open(encoding="utf-8") as file:
        labels = {Path(row["path"]).stem: row["length_mm"] for row in csv.DictReader(file)}
    (fold,) = read_json(run / "splits.json")["folds"]
    known = [float(labels[i]) for i in fold["train"]]
    settled = read_json(run / "fold_0" / "model" / "model.json")["settled"]
    assert settled == {
        "mean": pytest.approx(np.mean(known)),
        "spread": pytest.approx(np.std(known)),
    }


def test_the_page_says_it_in_the_unit(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    for words in ("Spearman correlation", "where the median label as the answer", "off by ",
                  "median</th>", "The largest errors first.", "at 0, no relation"):  # fmt: skip
        assert words in page, words
    for words in ("AUROC", "onfusion", "robabilit", "one class"):
        assert words not in page, words
    assert (run / "figures" / "answers.png").is_file()
    assert "label 'pending' is none of numbers" in (run / "quarantine.csv").read_text()


def test_new_images_are_answered_in_the_unit(run: Path, table: Path, foveate: Command) -> None:
    out = table.parent / "new"
    ended = foveate("predict", run, table.parent / "i05.png", "--out", out)
    assert ended.returncode == 0, ended.stderr
    (row,) = read_rows(out / "predictions.csv")
    assert 100 < float(row["value"]) < 260
    assert f"i05: {row['predicted']}  (value {row['predicted']})" in ended.stdout
    scored = foveate("evaluate", run, table, "--label", "length_mm", "--out", table.parent / "ev")
    assert scored.returncode == 2, scored.stderr
    assert "spearman" in scored.stdout
    assert read_json(table.parent / "ev" / "metrics.json")["n_images"] == 47
