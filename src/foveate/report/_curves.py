"""Curves behind the figures: from scores and labels to points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foveate.evidence import Floats
from foveate.report.base import Row, number


@dataclass(frozen=True)
class Scored:
    """Predictions as arrays.

    Attributes:
        classes: ``k`` names.
        prob: ``(n, k)``.
        target: ``(n,)``, numbers of the classes.
    """

    classes: list[str]
    prob: Floats
    target: Floats

    def shown(self) -> list[tuple[str, Floats, Floats]]:
        """The curves to draw, as name, score and truth: the second of two classes, or every one."""
        picked = [1] if len(self.classes) == 2 else range(len(self.classes))
        return [(self.classes[k], self.prob[:, k], self.target == k) for k in picked]


def scored(rows: Sequence[Row], classes: list[str]) -> Scored | None:
    """Rows with a known label and all probabilities; None when there is none."""
    prob, target = [], []
    for row in rows:
        values = [number(row, f"prob_{name}") for name in classes]
        if row.get("label") in classes and not any(v is None for v in values):
            prob.append([float(v) for v in values if v is not None])
            target.append(classes.index(row["label"]))
    if not prob or len(classes) < 2:
        return None
    return Scored(classes, np.array(prob), np.array(target, dtype=np.float64))


def roc(score: Floats, positive: Floats) -> tuple[Floats, Floats] | None:
    """False and true positive rates at every distinct score; None with one class only."""
    true, false = _counts(score, positive)
    if true[-1] == 0 or false[-1] == 0:
        return None
    return np.r_[0, false / false[-1]], np.r_[0, true / true[-1]]


def precision_recall(score: Floats, positive: Floats) -> tuple[Floats, Floats] | None:
    """Recall and precision at every distinct score; None with one class only."""
    true, false = _counts(score, positive)
    if true[-1] == 0 or false[-1] == 0:
        return None
    precision = true / (true + false)
    return np.r_[0, true / true[-1]], np.r_[precision[0], precision]


def wilson(share: float, n: float) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    z2 = 1.959964**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return middle - half, middle + half


def _counts(score: Floats, positive: Floats) -> tuple[Floats, Floats]:
    """True and false positives when everything at or above each distinct score is called so."""
    order = np.argsort(-score, kind="stable")
    ends = np.r_[np.flatnonzero(np.diff(score[order])), len(score) - 1]
    true = np.cumsum(positive[order].astype(np.float64))[ends]
    return true, ends + 1 - true
