"""Scores of stored predictions, with patient-level intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from foveate.metrics import calibration_bins, confusion, score_all


def evaluate_rows(
    rows: Sequence[Mapping[str, str]], classes: Sequence[str], *, seed: int = 0, n_boot: int = 1000
) -> dict[str, Any]:
    """The content of ``metrics.json`` from rows of ``predictions.csv``.

    Args:
        rows: with ``label``, ``predicted``, ``patient_id`` and ``prob_<class>``.
        classes: in the order of the model's outputs.
        seed, n_boot: of the bootstrap over patients.
    """
    order = {name: i for i, name in enumerate(classes)}
    known = [row for row in rows if row["label"] in order]
    prob = np.array([[float(row[f"prob_{c}"]) for c in classes] for row in known])
    prob = prob.reshape(len(known), len(classes))
    target = np.array([order[row["label"]] for row in known], dtype=np.int64)
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
