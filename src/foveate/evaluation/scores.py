"""Scores of stored predictions, with patient-level intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from foveate.metrics import Score, calibration_bins, compare_scores, confusion, score_all
from foveate.metrics.types import Floats, Ints

Rows = Sequence[Mapping[str, str]]

POOLING = (
    "AUROC and AUPRC compare images of one fold only, for the folds' models have scales of their "
    "own; each fold counts by its pairs of a positive and a negative image. Decisions and losses "
    "are those of all folds together."
)
"""What the scores of several folds are, in words."""


def evaluate_rows(rows: Rows, classes: Sequence[str]) -> dict[str, Any]:
    """The content of ``metrics.json`` from rows of ``predictions.csv``.

    Args:
        rows: with ``label``, ``predicted``, ``patient_id`` and ``prob_<class>``; ``fold`` where
            several models answered, each for some of the rows.
        classes: in the order of the model's outputs.

    Returns:
        the scores; with several folds also those of each, under ``folds``, and what the headline
        is, under ``pooling``.
    """
    known, prob, target = _answers(rows, classes)
    predicted = _decisions(known, classes)
    folds = sorted({row.get("fold", "") for row in known}, key=lambda name: (len(name), name))
    found = {
        "classes": list(classes),
        "n_images": len(known),
        "n_patients": len({row["patient_id"] for row in known}),
        "metrics": {name: asdict(score) for name, score in _scores(known, classes).items()},
        "confusion": confusion(predicted, target, len(classes)).tolist(),
        "calibration": calibration_bins(prob, target),
    }
    if len(folds) > 1:
        found["pooling"] = POOLING
        found["folds"] = [
            _fold([row for row in known if row.get("fold", "") == fold], classes, fold)
            for fold in folds
        ]
    return found


def _fold(rows: Rows, classes: Sequence[str], name: str) -> dict[str, Any]:
    """The scores of one fold's model."""
    return {
        "fold": name,
        "n_images": len(rows),
        "n_patients": len({row["patient_id"] for row in rows}),
        "metrics": {key: asdict(score) for key, score in _scores(rows, classes).items()},
    }


def _scores(rows: Rows, classes: Sequence[str]) -> dict[str, Score]:
    """Of rows with a known label."""
    known, prob, target = _answers(rows, classes)
    return score_all(
        prob,
        target,
        [row["patient_id"] for row in known],
        predicted=_decisions(known, classes),
        folds=[row.get("fold", "") for row in known],
        ordinal=len(classes) > 2,
    )


def compare_rows(rows: Rows, others: Rows, classes: Sequence[str]) -> dict[str, Any]:
    """How much better one set of predictions is than another of the same images, by metric.

    Ranks are compared between images of which both sets' answers are of one model each.

    Args:
        rows, others: of ``predictions.csv``; images that only one of them has are left out.
        classes: in the order of the models' outputs.

    Returns:
        by metric, the difference with its 95 % interval over patients; metrics that need two
        classes are left out where only one occurs.
    """
    other_of = {row["image_id"]: row for row in others}
    known, prob, target = _answers([row for row in rows if row["image_id"] in other_of], classes)
    if not known:
        return {}
    both = [(row, other_of[row["image_id"]]) for row in known]
    found = compare_scores(
        prob,
        _probabilities([theirs for _, theirs in both], classes),
        target,
        [row["patient_id"] for row in known],
        folds=[(ours.get("fold", ""), theirs.get("fold", "")) for ours, theirs in both],
    )
    return {name: asdict(found[name]) for name in ("auroc", "log_loss") if name in found}


def _decisions(rows: Rows, classes: Sequence[str]) -> Ints:
    order = {name: i for i, name in enumerate(classes)}
    return np.array([order[row["predicted"]] for row in rows], dtype=np.int64)


def _answers(rows: Rows, classes: Sequence[str]) -> tuple[list[Mapping[str, str]], Floats, Ints]:
    """Rows with a known label, their probabilities ``(n, k)`` and targets ``(n,)``."""
    order = {name: i for i, name in enumerate(classes)}
    known = [row for row in rows if row["label"] in order]
    target = np.array([order[row["label"]] for row in known], dtype=np.int64)
    return known, _probabilities(known, classes), target


def _probabilities(rows: Rows, classes: Sequence[str]) -> Floats:
    """``(n, k)``."""
    prob = np.array([[float(row[f"prob_{c}"]) for c in classes] for row in rows])
    return prob.reshape(len(rows), len(classes))
