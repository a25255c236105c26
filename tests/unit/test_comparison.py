"""Adjusted p values, the front of good and cheap rows, and the differences between contestants."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from foveate.evaluation.comparison import Contestant, compare_contestants
from foveate.evaluation.scores import compare_rows, evaluate_rows
from foveate.metrics import adjust_p_values, pick_front
from foveate.tasks.binary import BinaryTask


def holm_by_definition(p_values: list[float]) -> list[float]:
    """Adjust by the definition: the largest of the products of all p values up to each one."""
    ranked = sorted(p_values)
    m = len(ranked)
    steps = [(m - k) * p for k, p in enumerate(ranked)]
    return [min(1.0, max(steps[: ranked.index(p) + 1])) for p in p_values]


def test_adjusted_p_values_follow_the_definition() -> None:
    rng = np.random.default_rng(0)
    for m in range(1, 12):
        p_values = rng.random(m).tolist()
        assert adjust_p_values(p_values) == pytest.approx(holm_by_definition(p_values))
    assert adjust_p_values([]) == []


def test_false_alarms_among_all_tests_are_bounded() -> None:
    """Of 2,000 families of ten tests without any effect, about 5 % hold a false alarm."""
    rng = np.random.default_rng(1)
    families = rng.random((2000, 10))
    alarms = np.mean([min(adjust_p_values(row.tolist())) < 0.05 for row in families])
    assert 0.035 < alarms < 0.065


def test_the_front_holds_what_nothing_beats() -> None:
    rng = np.random.default_rng(2)
    points = [(float(a), float(b)) for a, b in rng.random((40, 2))]
    beaten = {
        i
        for i, j in itertools.permutations(range(40), 2)
        if points[j][0] >= points[i][0] and points[j][1] <= points[i][1]
    }
    assert set(pick_front(points)) == set(range(40)) - beaten


def rows(scores: list[float], labels: list[str]) -> list[dict[str, str]]:
    return [
        {
            "image_id": f"i{k}",
            "patient_id": f"p{k}",
            "label": label,
            "predicted": "b" if score > 0.5 else "a",
            "prob_a": f"{1 - score:.6f}",
            "prob_b": f"{score:.6f}",
        }
        for k, (score, label) in enumerate(zip(scores, labels, strict=True))
    ]


def test_each_pair_is_compared_and_equal_answers_are_no_test() -> None:
    rng = np.random.default_rng(3)
    labels = ["a", "b"] * 30
    truth = np.array([label == "b" for label in labels])
    good = np.clip(truth * 0.4 + rng.random(60) * 0.6, 0, 1).tolist()
    poor = rng.random(60).tolist()
    task = BinaryTask(classes=["a", "b"])
    answers = {"good": rows(good, labels), "again": rows(good, labels), "poor": rows(poor, labels)}
    contestants = [
        Contestant(name, table, evaluate_rows(table, task)["metrics"], {}, name)
        for name, table in answers.items()
    ]
    content = compare_contestants(contestants, task)
    main = {
        (pair["first"], pair["second"]): pair
        for pair in content["differences"]
        if pair["score"] == content["score"]
    }
    assert set(main) == set(itertools.combinations(answers, 2))
    same = main["good", "again"]
    assert same["value"] == 0
    assert "p_adjusted" not in same
    pair = main["good", "poor"]
    expected = compare_rows(answers["good"], answers["poor"], task)["auroc"]
    assert pair["value"] == expected["value"] > 0.2
    assert pair["p_adjusted"] == pytest.approx(2 * expected["p_value"]), "two tests were made"
    assert [row["n_patients"] for row in content["rows"]] == [60, 60, 60]
