"""Scores of probabilities as they were before the temperature, beside those after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from scipy.special import expit, logit, softmax

from foveate.tasks.base import AbstractTask, Point, Rows

_LOSSES = ("ece", "brier", "log_loss")
_SMALLEST = 5e-7
"""Probability in place of 0, which stored answers with six digits cannot tell from it."""


def evaluate_uncalibrated(
    rows: Rows, task: AbstractTask, points: Mapping[str, Point]
) -> dict[str, Any]:
    """Return what ``metrics.json`` holds about the answers before the temperature.

    Args:
        rows: answers, each of the model of its fold.
        task: task that scores them.
        points: results of `AbstractTask.calibrate` by the name of the fold.

    Returns:
        Losses and calibration under ``uncalibrated``; empty where the temperature cannot be undone.
    """
    known = task.scorable(rows)
    if task.link is None or not known:
        return {}
    plain = undo_temperature(known, task.columns, points, exclusive=task.link == "softmax")
    scores = task.score(plain)
    losses = {name: asdict(scores[name]) for name in _LOSSES if name in scores}
    calibration = task.details(plain).get("calibration", [])
    return {"uncalibrated": {"metrics": losses, "calibration": calibration}}


def undo_temperature(
    rows: Rows, columns: Sequence[str], points: Mapping[str, Point], *, exclusive: bool
) -> list[dict[str, str]]:
    """Return stored answers with the probabilities that their logits had before the temperature.

    Args:
        rows: answers as rows of ``predictions.csv``, each of the model of its fold.
        columns: columns of the probabilities.
        points: results of `AbstractTask.calibrate` by the name of the fold.
        exclusive: whether the probabilities of a row sum to 1; else each is for itself.
    """
    plain = []
    for row in rows:
        temperature = float(points[row.get("fold", "")].get("temperature") or 1.0)
        share = np.clip([float(row[c]) for c in columns], _SMALLEST, 1 - _SMALLEST)
        before = temperature * (np.log(share) if exclusive else logit(share))
        values = softmax(before) if exclusive else expit(before)
        texts = {c: repr(float(value)) for c, value in zip(columns, values, strict=True)}
        plain.append({**row, **texts})
    return plain
