"""Metrics of many weightings of the same images at once.

Leaving a patient out is a weighting of the images by 0 and 1. Every function takes ``(r, n)``
weights and returns ``(r,)`` values; one row of ones is the plain score. NaN where a weighting
leaves nothing to score.

Scores of two models have two scales, so ranks are compared between images of one fold only.
"""

from __future__ import annotations

import numpy as np

from foveate.metrics.types import Floats, Ints


def auroc(score: Floats, positive: Floats, weight: Floats, fold: Ints) -> Floats:
    """Share of the pairs of a positive and a negative of one fold that are ranked rightly.

    Ties count half. With one fold it is the area under the ROC curve.

    Args:
        score: ``(n,)``.
        positive: ``(n,)``, 1 for positives, else 0.
        weight: ``(r, n)``.
        fold: ``(n,)``, of the model that scored each image.
    """
    right = pairs = np.zeros(len(weight))
    for each in np.unique(fold):
        own = fold == each
        pos, neg = _by_score(score[own], positive[own], weight[:, own])
        below = np.cumsum(neg, 1) - neg
        right = right + (pos * (below + neg / 2)).sum(1)
        pairs = pairs + pos.sum(1) * neg.sum(1)
    return _divided(right, pairs)


def average_precision(score: Floats, positive: Floats, weight: Floats, fold: Ints) -> Floats:
    """Area under the precision-recall curve as a step sum; the mean of folds by their pairs.

    Source: the definition of scikit-learn's `average_precision_score`.
    """
    total = pairs = np.zeros(len(weight))
    for each in np.unique(fold):
        own = fold == each
        pos, neg = _by_score(-score[own], positive[own], weight[:, own])
        hits, alarms = np.cumsum(pos, 1), np.cumsum(neg, 1)
        # Where nothing is above the threshold yet, nothing is gained either.
        precision = hits / np.maximum(hits + alarms, 1e-300)
        count = pos.sum(1) * neg.sum(1)
        total = total + count * (pos * precision).sum(1) / np.maximum(pos.sum(1), 1e-300)
        pairs = pairs + count
    return _divided(total, pairs)


def accuracy(confusion: Floats) -> Floats:
    """Share on the diagonal of ``(r, k, k)``; row is the truth, column the prediction."""
    diagonal: Floats = np.trace(confusion, axis1=1, axis2=2)
    return np.asarray(diagonal / confusion.sum((1, 2)))


def balanced_accuracy(confusion: Floats) -> Floats:
    """Mean recall over the classes that occur in any of the weightings."""
    occurring = confusion.sum((0, 2)) > 0
    recall = np.diagonal(confusion, axis1=1, axis2=2)[:, occurring]
    return np.asarray(_divided(recall, confusion.sum(2)[:, occurring]).mean(1))


def kappa(confusion: Floats, power: int) -> Floats:
    """Cohen's kappa with disagreement ``|i - j| ** power``; power 0 counts all alike.

    Where truth and prediction are one and the same class throughout, it is 0 by convention.

    Source: Cohen, Psychological Bulletin 70 (1968), 213.
    """
    k = confusion.shape[1]
    gap = np.abs(np.subtract.outer(np.arange(k), np.arange(k))).astype(float)
    cost = (gap > 0).astype(float) if power == 0 else gap**power
    seen = (confusion * cost).sum((1, 2))
    chance = np.einsum("ri,rj->rij", confusion.sum(2), confusion.sum(1))
    expected = (chance * cost).sum((1, 2)) / confusion.sum((1, 2))
    return np.where(expected > 0, 1 - seen / np.where(expected > 0, expected, 1), 0.0)


def _divided(value: Floats, by: Floats) -> Floats:
    return np.divide(value, by, out=np.full_like(value, np.nan), where=by > 0)


def _by_score(score: Floats, positive: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Weight of positives and of negatives at each distinct score, rising; ``(r, scores)``."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    sorted_weight = weight[:, order]
    pos = np.add.reduceat(sorted_weight * positive[order], starts, axis=1)
    return pos, np.add.reduceat(sorted_weight, starts, axis=1) - pos
