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
    score_all,
)
from foveate.metrics.types import Floats, Ints
from foveate.tasks.base import Rows

COMPARED = ("auroc", "log_loss")
"""Scores whose difference between two sets of answers is told."""


def score_classes(rows: Rows, classes: Sequence[str]) -> dict[str, Score]:
    """Score rows with known labels, by name."""
    prob, target = _answers(rows, classes)
    return score_all(
        prob,
        target,
        [row["patient_id"] for row in rows],
        predicted=_decisions(rows, classes),
        folds=[row.get("fold", "") for row in rows],
        ordinal=len(classes) > 2,
    )


def compare_classes(rows: Rows, others: Rows, classes: Sequence[str]) -> dict[str, Difference]:
    """Compare two sets of answers to the same images, row by row.

    Ranks are compared between images of which both sets' answers are of one model each; scores
    that need two classes are left out where only one occurs.
    """
    prob, target = _answers(rows, classes)
    pairs = zip(rows, others, strict=True)
    found = compare_scores(
        prob,
        _probabilities(others, classes),
        target,
        [row["patient_id"] for row in rows],
        folds=[(ours.get("fold", ""), theirs.get("fold", "")) for ours, theirs in pairs],
    )
    return {name: found[name] for name in COMPARED if name in found}


def count_classes(rows: Rows, classes: Sequence[str]) -> dict[str, Any]:
    """Return classes, confusion matrix and calibration, as ``metrics.json`` holds them."""
    prob, target = _answers(rows, classes)
    matrix = confusion(_decisions(rows, classes), target, len(classes))
    return {
        "classes": list(classes),
        "confusion": matrix.tolist(),
        "calibration": calibration_bins(prob, target),
    }


def _decisions(rows: Rows, classes: Sequence[str]) -> Ints:
    order = {name: i for i, name in enumerate(classes)}
    return np.array([order[row["predicted"]] for row in rows], dtype=np.int64)


def _answers(rows: Rows, classes: Sequence[str]) -> tuple[Floats, Ints]:
    """Return probabilities ``(n, k)`` and targets ``(n,)``."""
    order = {name: i for i, name in enumerate(classes)}
    target = np.array([order[row["label"]] for row in rows], dtype=np.int64)
    return _probabilities(rows, classes), target


def _probabilities(rows: Rows, classes: Sequence[str]) -> Floats:
    """Return probabilities ``(n, k)``."""
    prob = np.array([[float(row[f"prob_{c}"]) for c in classes] for row in rows])
    return prob.reshape(len(rows), len(classes))
