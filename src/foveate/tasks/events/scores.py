"""Scores of survival from stored answers, with intervals over patients."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from foveate.metrics import MeasuredScore, score_survival
from foveate.tasks.base import Rows


def measure_answers(
    rows: Rows,
    folds: Sequence[Hashable],
    truth: Sequence[Sequence[float]],
    columns: Sequence[str],
    horizons: Sequence[float],
) -> dict[str, MeasuredScore]:
    """Score rows with known labels; return scores by name.

    Args:
        rows: rows of ``predictions.csv``.
        folds: fold of each row; ranks are compared within a fold.
        truth: time of each row, and 1 for an event.
        columns: columns of the answers: the risk, then survival at each horizon.
        horizons: times at which survival is stated.
    """
    stated = [[float(row[column]) for column in columns] for row in rows]
    pairs = np.array(truth, np.float64).reshape(len(rows), 2)
    return score_survival(
        np.array(stated).reshape(len(rows), len(columns)),
        np.array(horizons),
        pairs[:, 0],
        pairs[:, 1].astype(np.int64),
        [row["patient_id"] for row in rows],
        folds,
    )
