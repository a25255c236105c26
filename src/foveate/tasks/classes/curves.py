"""Curves behind the figures: from scores and labels to points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.metrics.types import Floats
from foveate.presentation import finite
from foveate.tasks.base import Rows

Points = tuple[Floats, Floats]
Curve = Callable[[Floats, Floats], Points | None]

_GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Scored:
    """Predictions as arrays.

    Attributes:
        classes: ``k`` names.
        prob: ``(n, k)``.
        target: ``(n,)``, numbers of the classes.
        fold: ``(n,)``, the fold whose model answered.
    """

    classes: list[str]
    prob: Floats
    target: Floats
    fold: list[str]

    @property
    def folds(self) -> list[str]:
        """The folds, in order."""
        return sorted(set(self.fold), key=lambda name: (len(name), name))

    def shown(self) -> list[int]:
        """The classes whose curves are drawn: the second of two, or every one."""
        return [1] if len(self.classes) == 2 else list(range(len(self.classes)))

    def by_fold(self, curve: Curve, k: int) -> dict[str, Points]:
        """The curve of a class in each fold that holds it beside others."""
        found = {}
        for name in self.folds:
            own = np.array([fold == name for fold in self.fold])
            points = curve(self.prob[own, k], self.target[own] == k)
            if points is not None:
                found[name] = points
        return found


def scored(rows: Rows, classes: Sequence[str]) -> Scored | None:
    """Rows with a known label and all probabilities; None when there is none."""
    prob, target, fold = [], [], []
    for row in rows:
        values = [finite(row, f"prob_{name}") for name in classes]
        if row.get("label") in classes and not any(v is None for v in values):
            prob.append([float(v) for v in values if v is not None])
            target.append(classes.index(row["label"]))
            fold.append(row.get("fold", ""))
    if not prob or len(classes) < 2:
        return None
    return Scored(list(classes), np.array(prob), np.array(target, dtype=np.float64), fold)


def roc(score: Floats, positive: Floats) -> Points | None:
    """False and true positive rates, rising; None with one class only."""
    from sklearn.metrics import roc_curve

    if np.all(positive) or not np.any(positive):
        return None
    false, true, _ = roc_curve(positive, score)
    return false, true


def precision_recall(score: Floats, positive: Floats) -> Points | None:
    """Recall, rising, and the precision there; None with one class only."""
    from sklearn.metrics import precision_recall_curve

    if np.all(positive) or not np.any(positive):
        return None
    precision, recall, _ = precision_recall_curve(positive, score)
    return recall[::-1], precision[::-1]


def mean_roc(curves: Sequence[Points]) -> Points:
    """The mean true positive rate of several curves at each false positive rate."""
    rates = [np.interp(_GRID, false, true) for false, true in curves]
    return np.r_[0, _GRID], np.r_[0, np.mean(rates, 0)]


def mean_precision_recall(curves: Sequence[Points]) -> Points:
    """The mean precision of several curves at each recall."""
    steps = [precision[np.searchsorted(recall, _GRID - 1e-9)] for recall, precision in curves]
    return _GRID, np.asarray(np.mean(steps, 0))
