"""Metrics of the same images under many weightings at once.

Leaving out a patient is a weighting of the images by 0 and 1. Functions of ranks take weights
``(r, n)``, functions of decisions weighted confusion matrices ``(r, k, k)``; all return values
``(r,)``. One row of ones gives the plain score. A value is NaN where its weighting leaves nothing
to score.

Scores of two models have two scales, so ranks are compared between images of one fold only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foveate.metrics.types import Floats, Ints

_PAIRED_ROWS = 512
"""Images that are compared with all others at once, to bound the memory."""


def auroc(score: Floats, positive: Floats, weight: Floats, fold: Ints) -> Floats:
    """Compute the share of pairs, of a positive and a negative of one fold, in the right order.

    Ties count half. With one fold it is the area under the ROC curve.

    Args:
        score: score of each image, ``(n,)``.
        positive: 1 for positive images, else 0, ``(n,)``.
        weight: weightings of the images, ``(r, n)``.
        fold: number of the model that scored each image, ``(n,)``.
    """
    ordered = pairs = np.zeros(len(weight))
    for f in np.unique(fold):
        inside = fold == f
        pos, neg = _sum_by_score(score[inside], positive[inside], weight[:, inside])
        below = np.cumsum(neg, 1) - neg
        ordered = ordered + (pos * (below + neg / 2)).sum(1)
        pairs = pairs + pos.sum(1) * neg.sum(1)
    return _divide(ordered, pairs)


def average_precision(score: Floats, positive: Floats, weight: Floats, fold: Ints) -> Floats:
    """Compute the area under the precision-recall curve as a step sum.

    The areas of several folds are averaged, weighted by the pairs of a positive and a negative.

    Args:
        score: score of each image, ``(n,)``.
        positive: 1 for positive images, else 0, ``(n,)``.
        weight: weightings of the images, ``(r, n)``.
        fold: number of the model that scored each image, ``(n,)``.

    Source: the definition of scikit-learn's `average_precision_score`.
    """
    total = pairs = np.zeros(len(weight))
    for f in np.unique(fold):
        inside = fold == f
        pos, neg = _sum_by_score(-score[inside], positive[inside], weight[:, inside])
        true_pos, false_pos = np.cumsum(pos, 1), np.cumsum(neg, 1)
        # Where no image is above the threshold, the precision is 0 and so is the recall gained.
        precision = true_pos / np.maximum(true_pos + false_pos, 1e-300)
        count = pos.sum(1) * neg.sum(1)
        total = total + count * (pos * precision).sum(1) / np.maximum(pos.sum(1), 1e-300)
        pairs = pairs + count
    return _divide(total, pairs)


def concordance(
    risk: Floats,
    time: Floats,
    event: Ints,
    weight: Floats,
    fold: Ints,
    importance: Floats | None = None,
) -> Floats:
    """Compute the share of pairs of one fold in which the one with the earlier event has more risk.

    Equal risks count half. A pair is compared where an event of one comes before the time of the
    other, or at the same time if the other has no event. With no time censored it says how well an
    order is predicted.

    Args:
        risk: score of each image, larger where the event is expected earlier, ``(n,)``.
        time: time of the event, or until which none was seen, ``(n,)``.
        event: 1 where the event was seen, else 0, ``(n,)``.
        weight: weightings of the images, ``(r, n)``.
        fold: number of the model that scored each image, ``(n,)``.
        importance: weight of the pairs in which an image has the earlier event, ``(n,)``; None for
            equal weights.

    Source: Harrell, Lee and Mark, Statistics in Medicine 15 (1996), 361.
    """
    share = np.ones(len(risk)) if importance is None else importance
    ordered = pairs = np.zeros(len(weight))
    for f in np.unique(fold):
        inside = np.flatnonzero(fold == f)
        w, t, e, x = weight[:, inside], time[inside], event[inside] > 0, risk[inside]
        for start in range(0, len(inside), _PAIRED_ROWS):
            i = slice(start, start + _PAIRED_ROWS)
            first = find_comparable(t[i], e[i], t, e) * share[inside][i, None]
            gap = x[i, None] - x[None]
            pairs = pairs + ((w[:, i] @ first) * w).sum(1)
            ordered = ordered + ((w[:, i] @ (first * ((gap > 0) + (gap == 0) / 2))) * w).sum(1)
    return _divide(ordered, pairs)


def find_comparable(
    time: Floats, event: NDArray[np.bool_], others: Floats, other_events: NDArray[np.bool_]
) -> Floats:
    """Return 1 where the event of one image is known to come before that of another, ``(m, n)``.

    Args:
        time: times of m images, ``(m,)``.
        event: whether an event ended each of them, ``(m,)``.
        others: times of n others, ``(n,)``.
        other_events: whether an event ended each of them, ``(n,)``.
    """
    later = (time[:, None] < others) | ((time[:, None] == others) & ~other_events)
    return np.asarray(later & event[:, None], np.float64)


def accuracy(confusion: Floats) -> Floats:
    """Compute the share on the diagonal of confusion matrices ``(r, k, k)``.

    Rows are true classes, columns predicted ones.
    """
    diagonal: Floats = np.trace(confusion, axis1=1, axis2=2)
    return np.asarray(diagonal / confusion.sum((1, 2)))


def within_one(confusion: Floats) -> Floats:
    """Compute the share of predictions that are off by one class at most, from ``(r, k, k)``."""
    near = np.abs(np.subtract.outer(*[np.arange(confusion.shape[1])] * 2)) <= 1
    return np.asarray((confusion * near).sum((1, 2)) / confusion.sum((1, 2)))


def closeness(confusion: Floats) -> Floats:
    """Compute how near predictions are to ordered classes, from ``(r, k, k)``.

    It is 1 where all are right, and 0 where all are off by the largest number of classes.
    """
    k = confusion.shape[1]
    gap = np.abs(np.subtract.outer(np.arange(k), np.arange(k))) / (k - 1)
    return np.asarray(1 - (confusion * gap).sum((1, 2)) / confusion.sum((1, 2)))


def balanced_accuracy(confusion: Floats) -> Floats:
    """Compute the mean recall over the classes that occur in any weighting, from ``(r, k, k)``."""
    occurring = confusion.sum((0, 2)) > 0
    recall = np.diagonal(confusion, axis1=1, axis2=2)[:, occurring]
    return np.asarray(_divide(recall, confusion.sum(2)[:, occurring]).mean(1))


def kappa(confusion: Floats, power: int) -> Floats:
    """Compute Cohen's kappa of confusion matrices ``(r, k, k)``.

    Where all images are of one class and predicted as it, kappa is 0 by convention.

    Args:
        confusion: confusion matrices, ``(r, k, k)``.
        power: exponent of the disagreement ``|i - j| ** power`` between class i and class j; with
            0 all disagreements count 1.

    Source: Cohen, Psychological Bulletin 70 (1968), 213.
    """
    k = confusion.shape[1]
    gap = np.abs(np.subtract.outer(np.arange(k), np.arange(k))).astype(float)
    cost = (gap > 0).astype(float) if power == 0 else gap**power
    observed = (confusion * cost).sum((1, 2))
    chance = np.einsum("ri,rj->rij", confusion.sum(2), confusion.sum(1))
    expected = (chance * cost).sum((1, 2)) / confusion.sum((1, 2))
    return np.where(expected > 0, 1 - observed / np.where(expected > 0, expected, 1), 0.0)


def _divide(value: Floats, divisor: Floats) -> Floats:
    """Divide arrays of one shape element by element; NaN where the divisor is 0."""
    return np.divide(value, divisor, out=np.full_like(value, np.nan), where=divisor > 0)


def _sum_by_score(score: Floats, positive: Floats, weight: Floats) -> tuple[Floats, Floats]:
    """Sum the weights of positives and of negatives at each distinct score, in rising order.

    Args:
        score: score of each image, ``(n,)``.
        positive: 1 for positive images, else 0, ``(n,)``.
        weight: weightings of the images, ``(r, n)``.

    Returns:
        The sums of positives and of negatives, both ``(r, scores)``.
    """
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) > 0])
    sorted_weight = weight[:, order]
    pos = np.add.reduceat(sorted_weight * positive[order], starts, axis=1)
    return pos, np.add.reduceat(sorted_weight, starts, axis=1) - pos
