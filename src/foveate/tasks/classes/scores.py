"""Scores of classes from stored answers, with intervals over patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foveate.metrics import (
    Difference,
    Score,
    calibration_bins,
    compare_scores,
    confusion,
    measure_benefits,
    score_all,
)
from foveate.metrics.types import Floats, Ints
from foveate.tasks.base import Rows

COMPARED = ("auroc", "log_loss")
"""Scores by which two sets of answers are compared."""


def score_classes(rows: Rows, classes: Sequence[str]) -> dict[str, Score]:
    """Score rows with known labels, with intervals over patients; return scores by name.

    Args:
        rows: rows of ``predictions.csv`` with known labels.
        classes: names of the classes.
    """
    prob, target = read_answers(rows, classes)
    return score_all(
        prob,
        target,
        [row["patient_id"] for row in rows],
        predicted=read_decisions(rows, classes),
        folds=[row.get("fold", "") for row in rows],
        ordinal=len(classes) > 2,
    )


def compare_classes(rows: Rows, others: Rows, classes: Sequence[str]) -> dict[str, Difference]:
    """Compare two sets of answers to the same images, row by row.

    Ranks are compared only between images that share a fold in both sets, hence a model in each;
    scores that need two classes are left out where only one occurs.

    Args:
        rows: rows of ``predictions.csv`` with known labels.
        others: other answers to the same images, in the same order.
        classes: names of the classes.
    """
    prob, target = read_answers(rows, classes)
    pairs = zip(rows, others, strict=True)
    differences = compare_scores(
        prob,
        _probabilities(others, classes),
        target,
        [row["patient_id"] for row in rows],
        folds=[(ours.get("fold", ""), theirs.get("fold", "")) for ours, theirs in pairs],
    )
    return {name: differences[name] for name in COMPARED if name in differences}


def count_classes(rows: Rows, classes: Sequence[str]) -> dict[str, Any]:
    """Return classes, confusion matrix and calibration, as ``metrics.json`` holds them.

    Args:
        rows: rows of ``predictions.csv`` with known labels.
        classes: names of the classes.
    """
    prob, target = read_answers(rows, classes)
    matrix = confusion(read_decisions(rows, classes), target, len(classes))
    return {
        "classes": list(classes),
        "confusion": matrix.tolist(),
        "calibration": calibration_bins(prob, target),
    }


def detail_classes(rows: Rows, classes: Sequence[str]) -> dict[str, Any]:
    """Return what `count_classes` returns, and the decision curves of classes without an order.

    Args:
        rows: rows of ``predictions.csv`` with known labels.
        classes: names of the classes.
    """
    return count_classes(rows, classes) | _measure_benefit(rows, classes)


def _measure_benefit(rows: Rows, classes: Sequence[str]) -> dict[str, Any]:
    """Return the decision curve of the second of two classes, or of each class against the rest.

    Args:
        rows: rows of ``predictions.csv`` with known labels.
        classes: names of the classes.
    """
    prob, target = read_answers(rows, classes)
    patients = [row["patient_id"] for row in rows]
    drawn = [1] if len(classes) == 2 else range(len(classes))
    curves = [
        {
            "class": classes[c],
            "points": measure_benefits(prob[:, c], (target == c).astype(np.int64), patients),
        }
        for c in drawn
        if len(rows)
    ]
    return {"benefit": curves}


def read_decisions(rows: Rows, classes: Sequence[str]) -> Ints:
    """Return the numbers of the predicted classes, ``(n,)``.

    Args:
        rows: rows of ``predictions.csv``.
        classes: names of the classes.
    """
    order = {name: i for i, name in enumerate(classes)}
    return np.array([order[row["predicted"]] for row in rows], dtype=np.int64)


def read_answers(rows: Rows, classes: Sequence[str]) -> tuple[Floats, Ints]:
    """Return probabilities ``(n, k)`` and targets ``(n,)``.

    Args:
        rows: rows of ``predictions.csv`` with known labels.
        classes: names of the classes.
    """
    order = {name: i for i, name in enumerate(classes)}
    target = np.array([order[row["label"]] for row in rows], dtype=np.int64)
    return _probabilities(rows, classes), target


def _probabilities(rows: Rows, classes: Sequence[str]) -> Floats:
    """Return probabilities ``(n, k)``."""
    prob = np.array([[float(row[f"prob_{c}"]) for c in classes] for row in rows])
    return prob.reshape(len(rows), len(classes))
