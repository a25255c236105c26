"""How well one simple fact about images, such as their width, predicts their labels by itself.

The patients are divided into halves many times. In each half, the images are ranked by a rule that
was learnt from the other half: the fact as it is, upwards or downwards, or the mean label of the
images with a similar value. Ranks are compared within a half only. So a fact without relation to
the labels scores at chance on average, however many values it has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import rankdata

from foveate.metrics import intervals, weighted
from foveate.metrics.jackknife import (
    Cohort,
    count_effective_patients,
    group_patients,
    measure_leaving_out,
)
from foveate.metrics.types import ALPHA, Floats, Ints, number_names
from foveate.metrics.values import find_ranked_classes, mean_area

_BINS = 5
"""Groups of equal size that a number is divided into, for rules that neither rise nor fall."""
_BETTER = 0.1
"""By how much the groups must rank better than the number itself, in the half that is learnt."""


@dataclass(frozen=True)
class Association:
    """How well a fact predicts the labels.

    Attributes:
        name: name of the measure.
        value: its value.
        lo: lower limit of its 95 % interval.
        hi: upper limit of its 95 % interval.
        chance: its value at chance.
        p_value: two-sided p value of the hypothesis that the fact says nothing.
        n: number of images.
    """

    name: str
    value: float
    lo: float
    hi: float
    chance: float
    p_value: float
    n: int


def associate_classes(
    fact: Floats, target: Ints, patients: Sequence[str], halves: Ints, *, ordered: bool
) -> Association | None:
    """Measure how well a fact predicts classes: AUROC, for several the mean of each to the rest.

    Args:
        fact: value of each image, ``(n,)``; numbers of categories where it is not `ordered`.
        target: class of each image, ``(n,)``.
        patients: name of each image's patient, ``(n,)``.
        halves: the half, 0 or 1, of each image in several divisions of the patients, ``(r, n)``.
        ordered: whether the values are quantities, not categories.

    Returns:
        The association; None where no division has two classes in both halves.
    """
    k = int(target.max()) + 1
    values: list[float] = []
    ranks = np.zeros((len(target), k))
    truth = np.eye(k)[target]
    one = np.ones((1, len(target)))
    for half in halves:
        classes = find_ranked_classes(target, half, k)
        score = _score_halves(fact, truth, half, ordered)
        if classes:
            area = mean_area(weighted.auroc, score, target, one, half, classes)
            values.append(float(area[0]))
            ranks += _rank_within(score, half)
    if not values:
        return None
    value = float(np.mean(values))
    whole = np.zeros_like(target)
    classes = find_ranked_classes(target, whole, k)
    cohort = group_patients(target, number_names(patients, len(target)), whole)
    variance = intervals.auroc_variance(cohort, classes)
    influence = _measure_influence(ranks, cohort, classes)
    lo, hi = intervals.invert_score_test(value, variance, influence, cohort.has_singleton_class)
    z = (value - 0.5) / math.sqrt(variance(0.5))
    return Association("AUROC", value, lo, hi, 0.5, _two_sided(z), len(target))


def associate_numbers(
    fact: Floats, target: Floats, patients: Sequence[str], halves: Ints, *, ordered: bool
) -> Association | None:
    """Measure how well a fact predicts numbers: the rank correlation.

    Args:
        fact: value of each image, ``(n,)``; numbers of categories where it is not `ordered`.
        target: number of each image, ``(n,)``.
        patients: name of each image's patient, ``(n,)``.
        halves: the half, 0 or 1, of each image in several divisions of the patients, ``(r, n)``.
        ordered: whether the values are quantities, not categories.

    Returns:
        The association; None where labels do not differ, or there are fewer than four patients.

    Source: Fisher's z for ranks as in Bonett and Wright, Psychometrika 65 (2000), 23.
    """
    patients_seen = count_effective_patients(number_names(patients, len(target)))
    if patients_seen < 4 or np.ptp(target) == 0:
        return None
    truth = rankdata(target)[:, None]
    values = []
    for half in halves:
        score = _score_halves(fact, truth, half, ordered)[:, 0]
        parts = [_correlate_ranks(score[half == h], target[half == h]) for h in (0, 1)]
        values.append(float(np.mean(parts)))
    value = float(np.clip(np.mean(values), -0.9999, 0.9999))
    spread = math.sqrt((1 + value**2 / 2) / (patients_seen - 3))
    z = math.atanh(value)
    margin = float(ndtri(1 - ALPHA / 2)) * spread
    lo, hi = math.tanh(z - margin), math.tanh(z + margin)
    p_value = _two_sided(z * math.sqrt(patients_seen - 3))
    return Association("rank correlation", value, lo, hi, 0.0, p_value, len(target))


def _two_sided(z: float) -> float:
    """Return the two-sided p value of a score; 1 below chance, where the rule is of no use."""
    return 1.0 if z <= 0 else float(2 * ndtr(-z))


def _score_halves(fact: Floats, truth: Floats, half: Ints, ordered: bool) -> Floats:
    """Score the images of each half ``(n, k)`` by the rule that is learnt from the other half."""
    score = np.zeros_like(truth)
    for h in (0, 1):
        learn, apply = half != h, half == h
        if learn.any() and apply.any():
            score[apply] = _apply_rule(fact[learn], truth[learn], fact[apply], ordered)
    return score


def _apply_rule(seen: Floats, truth: Floats, asked: Floats, ordered: bool) -> Floats:
    """Score values by what similar ones meant where the truth was seen, ``(m, k)``.

    Args:
        seen: values ``(n,)`` whose truth is known.
        truth: their truth, ``(n, k)``.
        asked: values to score, ``(m,)``.
        ordered: whether the values are quantities.
    """
    if not ordered:
        return _average_by_group(seen, truth, asked)
    edges = np.unique(np.quantile(seen, np.arange(1, _BINS) / _BINS))
    groups, asked_groups = (np.searchsorted(edges, x).astype(float) for x in (seen, asked))
    by_group = _average_by_group(groups, truth, asked_groups)
    of_seen = _average_by_group(groups, truth, groups)
    score = np.empty((len(asked), truth.shape[1]))
    for c in range(truth.shape[1]):
        plain = _measure_order(seen, truth[:, c])
        grouped = _measure_order(of_seen[:, c], truth[:, c])
        takes_groups = grouped > abs(plain) + _BETTER
        score[:, c] = by_group[:, c] if takes_groups else asked * (1 if plain >= 0 else -1)
    return score


def _average_by_group(seen: Floats, truth: Floats, asked: Floats) -> Floats:
    """Average the truth ``(n, k)`` of each group, drawn towards that of all; ``(m, k)``."""
    groups, index = np.unique(seen, return_inverse=True)
    prior = truth.mean(0)
    total = np.zeros((len(groups) + 1, truth.shape[1]))
    np.add.at(total, index, truth)
    count = np.bincount(index, minlength=len(groups) + 1)[:, None]
    mean = (total + prior) / (count + 1)
    place = np.searchsorted(groups, asked)
    known = (place < len(groups)) & (groups[np.minimum(place, len(groups) - 1)] == asked)
    return np.asarray(mean[np.where(known, place, len(groups))])


def _measure_order(score: Floats, truth: Floats) -> float:
    """Measure how far a score has the order of the truth: 1 for all pairs, -1 for none.

    With two classes it is twice the area under the ROC curve minus 1; ties in the score count half.
    """
    ranks = rankdata(truth) - (len(truth) + 1) / 2
    best = float(np.sort(ranks) @ np.arange(len(ranks)))
    return float(ranks @ rankdata(score)) / best if best > 0 else 0.0


def _correlate_ranks(a: Floats, b: Floats) -> float:
    """Compute the Spearman correlation; 0 where one of the two does not differ."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _rank_within(score: Floats, half: Ints) -> Floats:
    """Return the ranks of scores ``(n, k)`` within each half, from 0 to 1."""
    ranks = np.zeros_like(score)
    for h in (0, 1):
        inside = half == h
        if inside.any():
            ranks[inside] = rankdata(score[inside], axis=0) / (inside.sum() + 1)
    return ranks


def _measure_influence(ranks: Floats, cohort: Cohort, classes: list[int]) -> NDArray[np.float64]:
    """Compute the influence of each group of patients on the area of the images' mean ranks."""

    def measure(weight: Floats) -> Floats:
        return mean_area(weighted.auroc, ranks, cohort.target, weight, cohort.fold, classes)

    value = float(measure(np.ones((1, len(ranks))))[0])
    return cohort.compute_influence(value, measure_leaving_out(cohort, measure))
