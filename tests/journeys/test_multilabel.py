"""Several labels from the table to the report: a linear model finds which colours are there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveate.runs.folder import read_json, read_rows
from helpers.commands import Completed
from helpers.squares import LINEAR, write_squares, write_table

Command = Callable[..., Completed]

SHADES = {"red": (0, 120, 120), "green": (120, 0, 120), "blue": (120, 120, 0)}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures with squares of up to three colours; one value in eight is not known.

    The labels are certain, so that the best AUROC is 1.
    """
    folder = tmp_path_factory.mktemp("colours")
    rng, rows = np.random.default_rng(0), []
    for i in range(72):
        there = rng.integers(0, 2, 3)
        counts = {
            shade: int(rng.integers(8, 17) * is_there)
            for shade, is_there in zip(SHADES.values(), there, strict=True)
        }
        write_squares(folder / f"i{i:02d}.png", counts, rng)
        cells = ["" if rng.uniform() < 1 / 8 else int(is_there) for is_there in there]
        listed = "|".join(n for n, t in zip(SHADES, there, strict=True) if t) or "none"
        rows.append((f"i{i:02d}.png", f"P{i:02d}", *cells, listed))
    return write_table(folder / "t.csv", ("path", "patient", *SHADES, "colours"), rows)


@pytest.fixture
def run(table: Path, foveate: Command) -> Path:
    """Train once; a second call reuses the run."""
    out = table.parent / "run"
    result = foveate("train", table, "--out", out, "--label", "red,green,blue", *LINEAR)
    assert result.returncode == 0, result.stderr
    assert "task: multilabel, labels red, green, blue, several at once" in result.stderr
    return out


def test_labels_are_learnt(run: Path) -> None:
    metrics = read_json(run / "metrics.json")
    scores = metrics["metrics"]
    assert list(scores) == ["auroc", "auprc", "brier", "log_loss"]
    assert scores["auroc"]["lo"] > 0.7
    assert scores["auroc"]["hi"] > 0.98
    assert [entry["label"] for entry in metrics["labels"]] == list(SHADES)
    assert all(entry["auroc"]["value"] > 0.7 for entry in metrics["labels"])
    point = read_json(run / "fold_0" / "model" / "model.json")["provenance"]
    assert all(0 < point[f"threshold_{name}"] < 1 for name in SHADES)
    for row in read_rows(run / "predictions_oof.csv"):
        called = row["predicted"].split("|")
        for name in SHADES:
            at_least = float(row[f"prob_{name}"]) >= point[f"threshold_{name}"] - 1e-6
            assert (name in called) == at_least


def test_the_page_shows_each_label(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    for words in ("mean AUROC", "Scores by label", "on average over 3 labels", "sensitivity"):
        assert words in page, words
    assert "onfusion" not in page
    assert (run / "figures" / "roc.png").is_file()


def test_lists_are_evaluated_by_the_same_model(run: Path, table: Path, foveate: Command) -> None:
    words = ("--label", "colours", "--out", table.parent / "ev")
    scored = foveate("evaluate", run, table, *words)
    assert scored.returncode == 0, scored.stderr
    assert read_json(table.parent / "ev" / "metrics.json")["n_images"] == 72
