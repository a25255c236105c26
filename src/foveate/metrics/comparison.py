"""Compare the scores of two runs on the same images, with intervals over patients."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from scipy.special import ndtr, ndtri

from foveate.metrics.scores import MeasuredScore, make_cohort, score_losses, score_ranks
from foveate.metrics.types import ALPHA, Difference, Floats, Ints

_PRIOR_PATIENTS = 2.0
"""Imaginary patients on whom the two runs err independently; they shrink the correlation."""


def compare_scores(
    prob_a: Floats,
    prob_b: Floats,
    target: Ints,
    patients: Sequence[str],
    *,
    folds: Sequence[Hashable] | None = None,
) -> dict[str, Difference]:
    """Compute the scores of run a minus those of run b, with intervals and p values.

    Args:
        prob_a: probabilities of run a, ``(n, k)``.
        prob_b: probabilities of run b for the same images, ``(n, k)``.
        target: class of each image, ``(n,)``.
        patients: name of each image's patient, ``(n,)``.
        folds: name of the model that answered for each image, ``(n,)``; ranks are compared within
            a fold only. None means one model for all.

    Returns:
        The difference by the name of the score: ``brier`` and ``log_loss``, and ``auroc`` and
        ``auprc`` where a fold contains two classes.

    Raises:
        ArrayError: the inputs are no probabilities, targets and patients of equal length.

    Source: the limits of the difference follow from those of the two scores and their correlation
    as in Zou, Psychological Methods 12 (2007), 399; it is the correlation of the influences of the
    patients on the two scores.
    """
    prob_a, cohort = make_cohort(prob_a, target, patients, folds)
    prob_b, _ = make_cohort(prob_b, target, patients, folds)
    identical = bool(np.array_equal(prob_a, prob_b))
    scores_a, scores_b = (
        score_ranks(p, cohort) | score_losses(p, cohort) for p in (prob_a, prob_b)
    )
    return {
        name: subtract_scores(scores_a[name], scores_b[name], identical)
        for name in scores_a
        if name != "ece"
    }


def subtract_all(
    ours: Mapping[str, MeasuredScore],
    theirs: Mapping[str, MeasuredScore],
    names: Sequence[str],
    identical: bool,
) -> dict[str, Difference]:
    """Return the differences of those of the named scores that both sides have.

    Args:
        ours: scores by name.
        theirs: scores of other answers about the same images.
        names: names of the scores.
        identical: whether all answers are equal.
    """
    both = [name for name in names if name in ours and name in theirs]
    return {name: subtract_scores(ours[name], theirs[name], identical) for name in both}


def subtract_scores(a: MeasuredScore, b: MeasuredScore, identical: bool) -> Difference:
    """Return the difference of two scores of the same images; `identical` where all answers are.

    Args:
        a: a score, with its values when one patient is left out.
        b: the same score of the other answers.
        identical: whether all answers are equal.
    """
    n = a.score.n
    if identical:
        return Difference(0.0, 0.0, 0.0, 1.0, "both gave the same answers", n)
    x, y = a.score, b.score
    correlation = _correlate(a.influence, b.influence)
    value = x.value - y.value
    down = _combine_margins(x.value - x.lo, y.hi - y.value, correlation)
    up = _combine_margins(x.hi - x.value, y.value - y.lo, correlation)
    margin_to_zero = down if value > 0 else up
    z = float(ndtri(1 - ALPHA / 2)) * abs(value) / max(margin_to_zero, 1e-300)
    p_value = 1.0 if value == 0 else float(2 * ndtr(-z))
    method = "limits of both scores and their correlation over patients"
    return Difference(value, value - down, value + up, p_value, method, n)


def adjust_p_values(p_values: Sequence[float]) -> list[float]:
    """Adjust the p values of several tests so that the chance of any false alarm stays bounded.

    Args:
        p_values: p values of the single tests.

    Returns:
        The adjusted p values in the same order; each is at least as large as its own.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979), 65.

    Example:
        >>> from foveate.metrics import adjust_p_values
        >>> adjust_p_values([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def pick_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of points than which no other is better and cheaper, cheapest first.

    Args:
        points: score, where larger is better, and cost of each point.

    Example:
        >>> from foveate.metrics import pick_front
        >>> pick_front([(0.9, 10.0), (0.8, 1.0), (0.7, 5.0)])
        [1, 0]
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][1], -points[i][0]))
    front: list[int] = []
    for i in order:
        if not front or points[i][0] > points[front[-1]][0]:
            front.append(i)
    return front


def _combine_margins(p: float, q: float, correlation: float) -> float:
    return float(np.sqrt(max(p * p + q * q - 2 * correlation * p * q, 0.0)))


def _correlate(a: Floats, b: Floats) -> float:
    """Correlate two influences ``(groups,)``, shrunk towards 0 where few patients have any."""
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    if norm <= 0:
        return 0.0
    product = np.abs(a * b)
    patients = float(product.sum() ** 2 / max(float((product**2).sum()), 1e-300))
    return float((a * b).sum()) / norm * patients / (patients + _PRIOR_PATIENTS)
