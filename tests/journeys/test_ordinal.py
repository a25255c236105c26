"""Grades from the table to the report: a linear model reaches what the labels allow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from foveate.runs.folder import read_json, read_rows
from helpers.commands import Completed
from helpers.squares import LINEAR, write_squares, write_table

Command = Callable[..., Completed]

GRADES = ("G1", "G2", "G3", "G4")
DARK = (120, 120, 120)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write pictures of 2 to 29 dark squares; eight times the grade and a few more.

    One label in ten is off by a grade, so that the best kappa is below 1.
    """
    folder = tmp_path_factory.mktemp("grades")
    rng, rows = np.random.default_rng(0), []
    for i in range(72):
        grade = int(rng.integers(0, 4))
        count = 8 * grade + int(rng.integers(2, 6))
        write_squares(folder / f"i{i:02d}.png", {DARK: count}, rng)
        if i % 10 == 0:
            grade += 1 if grade < 3 else -1
        rows.append((f"i{i:02d}.png", f"P{i:02d}", GRADES[grade], count))
    return write_table(folder / "labels.csv", ("path", "patient", "grade", "count"), rows)


@pytest.fixture
def run(table: Path, foveate: Command) -> Path:
    """Train once; a second call reuses the run."""
    out = table.parent / "run"
    result = foveate("train", table, "--out", out, "--label", "grade", *LINEAR)
    assert result.returncode == 0, result.stderr
    assert "task: ordinal, grades G1 < G2 < G3 < G4" in result.stderr
    return out


def test_grades_are_learnt_up_to_the_noise_of_their_labels(run: Path, table: Path) -> None:
    scores = read_json(run / "metrics.json")["metrics"]
    assert next(iter(scores)) == "kappa_quadratic"
    assert scores["kappa_quadratic"]["lo"] > 0.3
    assert scores["concordance"]["lo"] > 0.7
    assert scores["within_one"]["value"] > 0.9
    rows = read_rows(run / "predictions_oof.csv")
    counts = {Path(row["path"]).stem: int(row["count"]) for row in read_rows(table)}
    best = [counts[row["image_id"]] // 8 for row in rows]
    truth = [GRADES.index(row["label"]) for row in rows]
    ceiling = cohen_kappa_score(truth, best, weights="quadratic")
    assert scores["kappa_quadratic"]["hi"] > ceiling > 0.8
    for row in rows:
        shares = [float(row[f"prob_{grade}"]) for grade in GRADES]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert float(row["expected_rank"]) == pytest.approx(np.dot(shares, range(4)), abs=1e-4)


def test_the_page_shows_grades_in_order(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    for words in ("quadratic kappa of", "where 0 is chance", "concordance of grades",
                  "Confusion matrix", "within one grade"):  # fmt: skip
        assert words in page, words
    assert "AUROC" not in page
    assert (run / "figures" / "grades.png").is_file()


def test_stored_grades_are_evaluated_elsewhere(run: Path, table: Path, foveate: Command) -> None:
    scored = foveate("evaluate", run, table, "--label", "grade", "--out", table.parent / "ev")
    assert scored.returncode == 0, scored.stderr
    assert "kappa_quadratic" in scored.stdout
