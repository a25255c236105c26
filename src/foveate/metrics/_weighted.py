"""Metrics of many weightings of the same images at once.

A bootstrap resample is a weight per image: how often its patient was drawn. Every function takes
``(r, n)`` weights of `r` resamples and returns ``(r,)`` values; one row of ones is the plain score.
Each class must have weight in each row.
"""

from __future__ import annotations

import numpy as np

from foveate.metrics.base import Floats, Ints


def auroc(score: Floats, positive: Floats, weight: Floats) -> Floats:
    """Area under the ROC curve; ties count half.

    Args:
        score: ``(n,)``.
        positive: ``(n,)``, 1 for positives, else 0.
        weight: ``(r, n)``.
    """
    pos, neg = _by_score(score, positive, weight)
    below = np.cumsum(neg, 1) - neg
    pairs: Floats = (pos * (below + neg / 2)).sum(1)
    return np.asarray(pairs / (pos.sum(1) * neg.sum(1)))


def average_precision(score: Floats, positive: Floats, weight: Floats) -> Floats:
    """Area under the precision-recall curve as a step sum, without interpolation.

    Source: the definition of scikit-learn's `average_precision_score`.
    """
    pos, neg = _by_score(-score, positive, weight)
    hits, alarms = np.cumsum(pos, 1), np.cumsum(neg, 1)
    # Where nothing is above the threshold yet, nothing is gained either.
    precision = hits / np.maximum(hits + alarms, 1e-300)
    found: Floats = (pos * precision).sum(1)
    return np.asarray(found / pos.sum(1))


def confusions(predicted: Ints, target: Ints, weight: Floats, k: int) -> Floats:
    """``(r, k, k)``: row is the truth, column the prediction."""
    cell = np.zeros((len(target), k * k))
    cell[np.arange(len(target)), target * k + predicted] = 1
    return np.asarray(weight @ cell).reshape(-1, k, k)


def accuracy(confusion: Floats) -> Floats:
    """Share on the diagonal."""
    diagonal: Floats = np.trace(confusion, axis1=1, axis2=2)
    return np.asarray(diagonal / confusion.sum((1, 2)))


def balanced_accuracy(confusion: Floats) -> Floats:
    """Mean recall over the classes that occur."""
    occurring = confusion.sum((0, 2)) > 0
    recall = np.diagonal(confusion, axis1=1, axis2=2)[:, occurring]
    return np.asarray((recall / confusion.sum(2)[:, occurring]).mean(1))


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


def mean(loss: Floats, weight: Floats) -> Floats:
    """Weighted mean of a loss per image."""
    return np.asarray((weight @ loss) / weight.sum(1))


def calibration_error(prob: Floats, hit: Floats, weight: Floats, n_bins: int) -> Floats:
    """Expected calibration error over equal-width bins."""
    cell = np.zeros((len(prob), n_bins))
    cell[np.arange(len(prob)), bin_of(prob, n_bins)] = 1
    gap = np.abs(weight @ (cell * (prob - hit)[:, None])).sum(1)
    return np.asarray(gap / weight.sum(1))


def bin_of(prob: Floats, n_bins: int) -> Ints:
    """The equal-width bin of each probability; a bin holds its lower edge, the last both."""
    edges = np.linspace(0, 1, n_bins + 1)
    return np.clip(np.searchsorted(edges, prob, side="right") - 1, 0, n_bins - 1).astype(np.int64)


def _by_score(score: Floats, positive: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Weight of positives and of negatives at each distinct score, rising; ``(r, scores)``."""
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    sorted_weight = weight[:, order]
    pos = np.add.reduceat(sorted_weight * positive[order], starts, axis=1)
    return pos, np.add.reduceat(sorted_weight, starts, axis=1) - pos
