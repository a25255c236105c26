"""Scores of stored predictions, with patient-level intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from foveate.metrics import calibration_bins, confusion, paired_bootstrap, score_all
from foveate.metrics.base import Floats, Ints


def evaluate_rows(
    rows: Sequence[Mapping[str, str]], classes: Sequence[str], *, seed: int = 0, n_boot: int = 1000
) -> dict[str, Any]:
    """The content of ``metrics.json`` from rows of ``predictions.csv``.

    Args:
        rows: with ``label``, ``predicted``, ``patient_id`` and ``prob_<class>``.
        classes: in the order of the model's outputs.
        seed, n_boot: of the bootstrap over patients.
    """
    known, prob, target = _answers(rows, classes)
    order = {name: i for i, name in enumerate(classes)}
    predicted = np.array([order[row["predicted"]] for row in known], dtype=np.int64)
    patients = [row["patient_id"] for row in known]
    scores = score_all(
        prob,
        target,
        patients,
        predicted=predicted,
        ordinal=len(classes) > 2,
        seed=seed,
        n_boot=n_boot,
    )
    return {
        "classes": list(classes),
        "n_images": len(known),
        "n_patients": len(set(patients)),
        "metrics": {name: asdict(score) for name, score in scores.items()},
        "confusion": confusion(predicted, target, len(classes)).tolist(),
        "calibration": calibration_bins(prob, target),
    }


def compare_rows(
    rows: Sequence[Mapping[str, str]],
    others: Sequence[Mapping[str, str]],
    classes: Sequence[str],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """How much better one set of predictions is than another of the same images, by metric.

    Args:
        rows, others: of ``predictions.csv``; images that only one of them has are left out.
        classes: in the order of the models' outputs.
        seed: of the bootstrap over patients.

    Returns:
        by metric, the difference with its 95 % interval over patients; metrics that need two
        classes are left out where only one occurs.
    """
    other_of = {row["image_id"]: row for row in others}
    shared = [row for row in rows if row["image_id"] in other_of]
    known, prob, target = _answers(shared, classes)
    _, other, _ = _answers([other_of[row["image_id"]] for row in known], classes)
    patients = [row["patient_id"] for row in known]
    found = {}
    for metric in ("auroc", "log_loss"):
        difference = paired_bootstrap(prob, other, target, patients, metric=metric, seed=seed)
        if difference is not None:
            found[metric] = asdict(difference)
    return found


def _answers(
    rows: Sequence[Mapping[str, str]], classes: Sequence[str]
) -> tuple[list[Mapping[str, str]], Floats, Ints]:
    """Rows with a known label, their probabilities ``(n, k)`` and targets ``(n,)``."""
    order = {name: i for i, name in enumerate(classes)}
    known = [row for row in rows if row["label"] in order]
    prob = np.array([[float(row[f"prob_{c}"]) for c in classes] for row in known])
    target = np.array([order[row["label"]] for row in known], dtype=np.int64)
    return known, prob.reshape(len(known), len(classes)), target
