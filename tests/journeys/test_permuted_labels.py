"""Shuffled labels must give chance: this detects leaks between the parts of a split.

The pictures are so easy that a model which sees a true label anywhere gives itself away: with true
labels every one is predicted. All pictures of a patient are the same but for noise, so a patient on
both sides would be remembered.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveate.runs.folder import read_json, read_rows
from helpers.commands import Completed

PATIENTS, PICTURES_EACH = 48, 2
OPTIONS = (
    *("--method", "downsampled", "--encoder", "small", "--encoder.width", "8"),
    *("--encoder.dim", "16", "--view.patch-px", "16", "--view.glimpse-px", "48"),
    *("--folds", "3", "--epochs", "7", "--train.batch-size", "8", "--train.lr", "5e-3"),
    *("--heatmaps", "1"),
)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 96 pictures of 48 patients; classes differ in red and blue, patients in green."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(7)
    rows = []
    for p in range(PATIENTS):
        colour = np.array([230.0, 120, 60] if p % 2 else [60.0, 120, 230])
        tints = rng.normal(0, (10, 60, 10))  # a patient's tint, unlike the class's
        stripes = 15 * np.sin(np.arange(48) * rng.uniform(0.1, 1.5))[:, None, None]
        for i in range(PICTURES_EACH):
            pixels = colour + tints + stripes + rng.normal(0, 10, (48, 48, 3))
            name = f"p{p:02d}_{i}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
            rows.append({"file": name, "patient_id": f"P{p:02d}", "label": "ab"[p % 2]})
    path = folder / "labels.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def auroc(run: Path) -> dict[str, Any]:
    score: dict[str, Any] = read_json(run / "metrics.json")["metrics"]["auroc"]
    return score


@pytest.mark.slow
def test_true_labels_are_learned_and_permuted_ones_are_not(
    table: Path, tmp_path: Path, foveate: Callable[..., Completed]
) -> None:
    true, shuffled = tmp_path / "true", tmp_path / "shuffled"
    result = foveate("train", table, "--out", true, *OPTIONS)
    assert result.returncode == 0, result.stderr
    result = foveate("train", table, "--out", shuffled, *OPTIONS, "--permute-labels")
    assert result.returncode == 0, result.stderr
    assert "auroc by fold" in result.stdout
    assert len(read_json(shuffled / "metrics.json")["folds"]) == 3
    assert auroc(true)["lo"] > 0.8, "the control: these pictures can be told apart"
    score = auroc(shuffled)
    assert score["lo"] <= 0.5 <= score["hi"], score
    assert score["hi"] - score["lo"] < 0.5, "an interval that contains everything says nothing"

    rows = {r["image_id"]: r for r in read_rows(shuffled / "predictions_oof.csv")}
    truth = {r["image_id"]: r["label"] for r in read_rows(true / "predictions_oof.csv")}
    assert rows.keys() == truth.keys()
    assert len(rows) == PATIENTS * PICTURES_EACH
    labels: dict[str, set[str]] = {}
    for row in rows.values():
        labels.setdefault(row["patient_id"], set()).add(row["label"])
    assert all(len(classes) == 1 for classes in labels.values()), "a patient's images share a label"
    assert Counter(r["label"] for r in rows.values()) == Counter(truth.values())
    moved = sum(rows[key]["label"] != truth[key] for key in truth)
    assert 0.3 < moved / len(truth) < 0.7
