"""Curves for the figures, computed from probabilities and labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.metrics.types import Floats
from foveate.presentation import read_number
from foveate.tasks.base import Rows

Points = tuple[Floats, Floats]
Curve = Callable[[Floats, Floats], Points | None]

_GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class LabelledAnswers:
    """Answers to labelled images as arrays.

    Attributes:
        classes: names of the classes, ``k`` of them.
        prob: probabilities, ``(n, k)``.
        target: numbers of the true classes, ``(n,)``.
        fold: names of the folds whose models answered, ``n`` of them.
    """

    classes: list[str]
    prob: Floats
    target: Floats
    fold: list[str]

    @property
    def folds(self) -> list[str]:
        """Names of the folds, in order."""
        return sorted(set(self.fold), key=lambda name: (len(name), name))

    def drawn_classes(self) -> list[int]:
        """Return the numbers of the classes whose curves are drawn: the second of two, or all."""
        return [1] if len(self.classes) == 2 else list(range(len(self.classes)))

    def trace_folds(self, curve: Curve, k: int) -> dict[str, Points]:
        """Compute the curve of class `k` in each fold that has images of it and of others.

        Args:
            curve: computes the curve from probabilities and truth ``(n,)``; None where it has no
                points.
            k: number of the class.
        """
        curves = {}
        for name in self.folds:
            in_fold = np.array([fold == name for fold in self.fold])
            points = curve(self.prob[in_fold, k], self.target[in_fold] == k)
            if points is not None:
                curves[name] = points
        return curves


def collect_answers(rows: Rows, classes: Sequence[str]) -> LabelledAnswers | None:
    """Collect the rows with a known label and all probabilities; return None without such rows.

    Args:
        rows: rows of ``predictions.csv``.
        classes: names of the classes.
    """
    prob, target, fold = [], [], []
    for row in rows:
        values = [read_number(row, f"prob_{name}") for name in classes]
        if row.get("label") in classes and not any(v is None for v in values):
            prob.append([float(v) for v in values if v is not None])
            target.append(classes.index(row["label"]))
            fold.append(row.get("fold", ""))
    if not prob or len(classes) < 2:
        return None
    return LabelledAnswers(list(classes), np.array(prob), np.array(target, dtype=np.float64), fold)


def compute_roc(score: Floats, positive: Floats) -> Points | None:
    """Compute false and true positive rates, ``(p,)`` rising; None with one class only.

    Args:
        score: probabilities of the class, ``(n,)``.
        positive: whether an image is of the class, ``(n,)``.
    """
    from sklearn.metrics import roc_curve

    if np.all(positive) or not np.any(positive):
        return None
    false, true, _ = roc_curve(positive, score)
    return false, true


def compute_precision_recall(score: Floats, positive: Floats) -> Points | None:
    """Compute recall, rising, and the precision there, ``(p,)``; None with one class only.

    Args:
        score: probabilities of the class, ``(n,)``.
        positive: whether an image is of the class, ``(n,)``.
    """
    from sklearn.metrics import precision_recall_curve

    if np.all(positive) or not np.any(positive):
        return None
    precision, recall, _ = precision_recall_curve(positive, score)
    return recall[::-1], precision[::-1]


def average_roc(curves: Sequence[Points]) -> Points:
    """Average the true positive rates of several curves at equal false positive rates."""
    rates = [np.interp(_GRID, false, true) for false, true in curves]
    return np.r_[0, _GRID], np.r_[0, np.mean(rates, 0)]


def average_precision_recall(curves: Sequence[Points]) -> Points:
    """Average the precision of several curves at equal recall."""
    steps = [precision[np.searchsorted(recall, _GRID - 1e-9)] for recall, precision in curves]
    return _GRID, np.asarray(np.mean(steps, 0))
