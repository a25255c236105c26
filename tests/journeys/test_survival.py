"""Survival from two columns of a table to the report: a linear model finds the risk."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveate.metrics import concordance_of
from foveate.runs.folder import read_json, read_rows
from helpers.commands import Completed
from helpers.squares import LINEAR, write_squares, write_table

Command = Callable[..., Completed]

DARK = (120, 120, 120)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures whose number of dark squares is the logarithm of their hazard."""
    folder = tmp_path_factory.mktemp("survival")
    rng, rows = np.random.default_rng(0), []
    for i in range(80):
        count = int(rng.integers(0, 31))
        write_squares(folder / f"i{i:02d}.png", {DARK: count}, rng)
        until_event = rng.exponential(900 * math.exp(-count / 6))
        censored = rng.uniform(50, 900)
        time, event = min(until_event, censored), int(until_event <= censored)
        rows.append((f"i{i:02d}.png", f"P{i:02d}", f"{time:.0f}", "NA" if i == 7 else event, count))
    return write_table(folder / "t.csv", ("path", "patient", "OS.time", "OS", "age"), rows)


@pytest.fixture
def run(table: Path, foveate: Command) -> Path:
    """Train once; a second call reuses the run."""
    out = table.parent / "run"
    result = foveate("train", table, "--out", out, *LINEAR)
    assert result.returncode == 0, result.stderr
    assert "'OS' = 1 is an event" in result.stderr
    assert "task: survival" in result.stderr
    assert "1 rows without a 'OS.time,OS' left out" in result.stderr
    return out


def test_the_risk_orders_as_well_as_the_truth(run: Path, table: Path) -> None:
    scores = read_json(run / "metrics.json")["metrics"]
    order = ["c_index", "c_index_uno", "auroc_horizons", "brier", "brier_constant"]
    assert list(scores) == order
    assert scores["auroc_horizons"]["lo"] > 0.5
    horizons = read_json(run / "metrics.json")["horizons"]
    assert len(horizons) == 3
    areas = [entry["auroc"]["value"] for entry in horizons]
    assert scores["auroc_horizons"]["value"] == pytest.approx(np.mean(areas))
    rows = read_rows(run / "predictions_oof.csv")
    counts = {Path(row["path"]).stem: float(row["age"]) for row in read_rows(table)}
    known = [(counts[row["image_id"]], *row["label"].rsplit(" ", 1)) for row in rows]
    best = concordance_of(
        np.array([count for count, _, _ in known]),
        np.array([float(time) for _, _, time in known]),
        np.array([int(word == "event at") for _, word, _ in known]),
    )
    assert best is not None
    assert scores["c_index"]["lo"] > 0.5
    assert scores["c_index"]["hi"] > best
    assert scores["brier"]["value"] < scores["brier_constant"]["value"]
    for row in rows:
        survival = [float(v) for k, v in row.items() if k.startswith("survival_") and "sd" not in k]
        assert survival == sorted(survival, reverse=True)
        assert float(row["risk"]) == pytest.approx(1 - np.mean(survival), abs=1e-6)


def test_the_page_shows_curves_of_high_and_low_risk(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    for words in ("c-index", "of 100 comparable pairs", "Uno&#39;s c-index", "AUROC by horizon",
                  "Kaplan-Meier", "log-rank p", "censored</th>",
                  "The highest risks first."):  # fmt: skip
        assert words in page, words
    for words in ("onfusion", "one class"):
        assert words not in page, words
    assert (run / "figures" / "survival.png").is_file()


def test_a_model_of_survival_reads_the_columns_of_other_tables(
    run: Path, table: Path, foveate: Command
) -> None:
    scored = foveate("evaluate", run, table, "--out", table.parent / "ev")
    assert scored.returncode == 0, scored.stderr
    assert "c_index" in scored.stdout
    assert read_json(table.parent / "ev" / "metrics.json")["n_images"] == 79
