"""The simulations of the intervals know the truth of every score that a task states."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import coverage_tasks
import permuted

sys.path.pop(0)


@pytest.mark.parametrize("name", list(coverage_tasks.STUDIES))
def test_every_score_of_a_task_has_a_truth(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage_tasks, "MANY", 20_000)
    study = coverage_tasks.STUDIES[name]()
    rows = coverage_tasks.simulate(name, study, 60, 2, 3)
    scores = {row["score"] for row in rows}
    assert set(study.task.tabled) <= scores
    for row in rows:
        gap = abs(float(row["truth"]) - float(row["mean"]))
        assert gap < 1.5 * float(row["width"]), row
    tested = {row["score"] for row in rows if row["rejected"]}
    assert tested <= scores
    assert len(tested) >= 2
    assert f"| {name} | {rows[0]['score']} |" in coverage_tasks.markdown(
        [{key: str(value) for key, value in row.items()} for row in rows]
    )


def test_the_mean_over_seeds_is_summarised() -> None:
    row = {"labels": "shuffled", "lo": "0.3", "hi": "0.6", "balanced_accuracy": "0.5",
           "seconds": "3"}  # fmt: skip
    rows = [row | {"seed": str(k), "auroc": str(0.4 + 0.1 * k)} for k in range(3)]
    rows.append(row | {"labels": "true", "seed": "0", "auroc": "1.0", "lo": "0.9"})
    text = permuted.markdown(rows)
    assert "Mean AUROC of 3 runs on shuffled labels: 0.500" in text
    assert "3 of 3 intervals contain 0.5" in text
    assert "| true | 0 | 1.000" in text
