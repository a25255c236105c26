"""95 % intervals that were chosen by how often they contain the truth (``benchmarks/coverage.py``).

- Ranks (AUROC, average precision): the interval of a score test. It contains all values that the
  observed one does not contradict. The variance under test is the one that a model of the value
  expects, times the ratio of the jackknife's variance over patients to it.
- Decisions (accuracy, balanced accuracy, kappa): two imaginary patients with right answers and two
  with wrong ones are added before the spread is measured.
- Losses: one imaginary patient is added, half of it without loss and half with twice the loss of
  uniform probabilities. The interval is symmetrical on the logarithmic scale.

So no interval shrinks to nothing where no error was observed, and none jumps at the first error.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import ndtri, stdtrit

from foveate.metrics.jackknife import Cohort, count_effective_patients
from foveate.metrics.types import ALPHA, Floats, Ints
from foveate.metrics.weighted import find_comparable

Variance = Callable[[float], float]
Bounds = tuple[float, float]

_Z = float(ndtri(1 - ALPHA / 2))
_PRIOR_PATIENTS = 4.0
"""Patients that the expected variance counts for, against those with an influence."""

_IMAGINARY_PATIENTS = 4.0
"""Patients that are added to an interval of decisions, half of them answered rightly."""


def invert_score_test(
    value: float, variance: Variance, influence: Floats, has_singleton_class: bool
) -> Bounds:
    """Compute the interval of all true values that a score test does not reject, given `value`.

    The interval is never narrower than that of a perfect score of the same patients: a worse
    result must not look more certain.

    Args:
        value: observed score, from 0 to 1.
        variance: function from a true value to the variance that is expected there.
        influence: influence of each group of patients on the score, ``(groups,)``; the sum of its
            squares is the observed variance.
        has_singleton_class: whether a class has one group only, whose spread cannot be observed;
            then the observed variance never lowers the expected one.

    Source: Wilson, JASA 22 (1927), 209, for the idea, which is that of a score test; for the
    AUROC Newcombe, Statistics in Medicine 25 (2006), 559.
    """
    ratio, expected = 1.0, variance(value)
    if expected > 0:
        squares = influence**2
        observed = float(squares.sum())
        patients = observed**2 / float((squares**2).sum()) if observed > 0 else 0.0
        ratio = (patients * observed / expected + _PRIOR_PATIENTS) / (patients + _PRIOR_PATIENTS)
        ratio = max(ratio, 1.0) if has_singleton_class else ratio
    lo = _find_limit(value, 0.0, variance, ratio)
    hi = _find_limit(value, 1.0, variance, ratio)
    min_width = 1.0 - _find_limit(1.0, 0.0, variance, 1.0)
    if hi - lo < min_width:
        lo, hi = (max(0.0, hi - min_width), hi) if value >= 0.5 else (lo, min(1.0, lo + min_width))
    return lo, hi


def _find_limit(value: float, end: float, variance: Variance, ratio: float) -> float:
    """Find by bisection where, from `value` towards `end`, the test begins to reject."""
    near, far = value, end
    for _ in range(60):
        middle = (near + far) / 2
        if (value - middle) ** 2 <= _Z**2 * ratio * variance(middle):
            near = middle
        else:
            far = middle
    return far if abs(far - near) > 1e-9 else near


def auroc_variance(cohort: Cohort, classes: list[int]) -> Variance:
    """Model the variance of an AUROC as a function of its true value, given the patients.

    All images of a patient count as one. With several classes it is the mean of their variances,
    as if the areas of all classes against the rest were fully correlated, which is the worst case.

    Args:
        cohort: the images.
        classes: numbers of the classes whose areas are averaged.

    Source: Hanley and McNeil, Radiology 143 (1982), 29, symmetrical in the classes as in
    Newcombe, Statistics in Medicine 25 (2006), 559, method 5; summed over folds by their pairs.
    """
    scales, extras = [], []
    for c in classes:
        pairs, m, n = _count_pairs(cohort, c)
        scales.append(np.square(pairs / pairs.sum()) / (m * n))
        extras.append((m + n) / 2 - 1)
    return _pair_variance(np.concatenate(scales) / len(classes), np.concatenate(extras))


def _count_pairs(cohort: Cohort, c: int) -> Floats:
    """Count what an AUROC of class `c` against the rest compares, in each fold that has both.

    Args:
        cohort: the images.
        c: number of the class.

    Returns:
        Pairs of images, effective patients of the class, and of the rest: ``(3, folds)``.
    """
    rows, positive = [], cohort.target == c
    for fold in np.unique(cohort.fold):
        pos, neg = (cohort.patient[(cohort.fold == fold) & p] for p in (positive, ~positive))
        if len(pos) and len(neg):
            counts = count_effective_patients(pos), count_effective_patients(neg)
            rows.append((len(pos) * len(neg), *counts))
    return np.array(rows, np.float64).T


def concordance_variance(cohort: Cohort, time: Floats, event: Ints) -> Variance:
    """Model the variance of a concordance as a function of its true value, given the patients.

    It is that of an AUROC with as many effective patients on either side as are the first and the
    second of pairs that are compared.

    Args:
        cohort: the images.
        time: time of each image, ``(n,)``.
        event: 1 where an event was seen, else 0, ``(n,)``.
    """
    rows = []
    for fold in np.unique(cohort.fold):
        inside = cohort.fold == fold
        t, e, patient = time[inside], event[inside] > 0, cohort.patient[inside]
        first = find_comparable(t, e, t, e)
        if first.any():
            early, late = patient[first.any(1)], patient[first.any(0)]
            counts = count_effective_patients(early), count_effective_patients(late)
            rows.append((first.sum(), *counts))
    pairs, m, n = np.array(rows, np.float64).T
    return _pair_variance(np.square(pairs / pairs.sum()) / (m * n), (m + n) / 2 - 1)


def _pair_variance(scale: Floats, extra: Floats) -> Variance:
    """Return the variance of a share of ordered pairs, summed over folds.

    Args:
        scale: factor of each fold, ``(folds,)``.
        extra: number of pairs that share a patient with another pair, ``(folds,)``.
    """

    def variance(value: float) -> float:
        covariance = (1 - value) / (2 - value) + value / (1 + value)
        return float((scale * (1 + extra * covariance)).sum()) * value * (1 - value)

    return variance


def precision_variance(cohort: Cohort, classes: list[int]) -> Variance:
    """Model the variance of an average precision as that of a proportion of the positives.

    Args:
        cohort: the images.
        classes: numbers of the classes whose average precisions are averaged.

    Source: Boyd, Eng and Page, ECML 2013, which finds a binomial interval the best of twelve.
    """
    counts = [count_effective_patients(cohort.patient[cohort.target == c]) for c in classes]
    scale = float(np.mean([1 / count for count in counts]))
    return lambda value: scale * value * (1 - value)


def measure_decisions(
    cohort: Cohort, predicted: Ints, k: int, measure: Callable[[Floats], Floats], low: float
) -> tuple[float, Bounds, Floats]:
    """Compute a measure of the confusion matrix and its interval.

    Args:
        cohort: the images.
        predicted: predicted class of each image, ``(n,)``.
        k: number of classes.
        measure: function from confusion matrices ``(r, k, k)`` to values ``(r,)``, at most 1.
        low: smallest value of the measure.

    Returns:
        The value, its interval, and the influence of each group of patients ``(groups,)``.

    Source: Agresti and Coull, The American Statistician 52 (1998), 119, for shares; here for
    every measure of decisions, with the jackknife instead of the binomial variance.
    """
    cells = np.zeros((len(predicted), k, k))
    cells[np.arange(len(predicted)), cohort.target, predicted] = 1
    observed = cohort.sum_by_group(cells)
    value = float(measure(observed.sum(0)[None])[0])
    groups = np.concatenate([observed, _imagine_patients(cohort, k)])
    without = measure(groups.sum(0) - groups)
    middle = float(measure(groups.sum(0)[None])[0])
    m = len(groups)
    influence = (without.mean() - without) * np.sqrt((m - 1) / m)
    half = _quantile(cohort) * float(np.sqrt((influence**2).sum()))
    bounds = (max(low, min(value, middle - half)), min(1.0, max(value, middle + half)))
    return value, bounds, influence[: len(observed)]


def _imagine_patients(cohort: Cohort, k: int) -> Floats:
    """Return confusion matrices ``(2 m, k, k)`` of imaginary patients of the m classes that occur.

    One half of the patients is predicted right, the other half wrong, each wrong class alike. There
    are none of the other classes, which are part of no mean. Where one class occurs, it has all
    four patients, in four matrices.
    """
    occurring = np.unique(cohort.target)
    occurring = np.repeat(occurring, 2) if len(occurring) == 1 else occurring
    row = np.arange(len(occurring))
    size = len(cohort.target) / cohort.n_patients * _IMAGINARY_PATIENTS / (2 * len(occurring))
    right, wrong = np.zeros((2, len(occurring), k, k))
    right[row, occurring, occurring] = size
    wrong[row, occurring] = size / (k - 1)
    wrong[row, occurring, occurring] = 0
    return np.concatenate([right, wrong])


def measure_losses(
    cohort: Cohort, loss: Floats, uniform_loss: float, high: float
) -> tuple[float, Bounds, Floats]:
    """Compute the mean of a loss that is at least 0, and its interval.

    The upper limit is moved outwards where few patients have most of the loss: there may be more
    such patients among those that were not observed.

    Args:
        cohort: the images.
        loss: loss of each image, ``(n,)``.
        uniform_loss: loss of an answer that gives every class the same probability.
        high: largest value of the loss.

    Returns:
        The mean, its interval, and the influence of each group of patients ``(groups,)``.

    Source: Johnson, JASA 73 (1978), 536, for the idea of a correction by the skewness.
    """
    total, count = cohort.sum_by_group(loss), cohort.sum_by_group(np.ones(len(loss)))
    value = float(total.sum() / count.sum())
    half = len(loss) / cohort.n_patients / 2
    total, count = np.r_[total, 0, 2 * half * uniform_loss], np.r_[count, half, half]
    middle, m = float(total.sum() / count.sum()), len(count) - 1
    influence = (total - middle * count) / count.sum() * np.sqrt(m / (m - 1))
    spread = float(np.sqrt((influence**2).sum())) / middle
    skewness = max(0.0, float((influence**3).mean() / max((influence**2).mean() ** 1.5, 1e-300)))
    quantile = _quantile(cohort)
    up = 1 + skewness * quantile / (4 * math.sqrt(m))
    lo, hi = middle * math.exp(-quantile * spread), middle * math.exp(quantile * spread * up)
    bounds = (min(value, lo), min(high, max(value, hi)))
    return value, bounds, influence[:-2]


def measure_calibration(
    cohort: Cohort, confidence: Floats, correct: Floats, bin_index: Ints
) -> tuple[float, Bounds]:
    """Compute the expected calibration error over bins, and its interval.

    Noise in a bin can only enlarge its gap. The lower limit subtracts this noise: the larger of
    its estimate over patients and of the binomial variance at the stated probabilities.

    Args:
        cohort: the images.
        confidence: stated probability of each image, ``(n,)``.
        correct: 1 where the stated event came true, else 0, ``(n,)``.
        bin_index: number of each image's bin, ``(n,)``.
    """
    n, bins = len(correct), int(bin_index.max()) + 1
    inside = np.zeros((n, bins))
    inside[np.arange(n), bin_index] = 1
    gap = cohort.sum_by_group(inside * (confidence - correct)[:, None]) / n
    size = inside.sum(0)
    chance = (inside.T @ confidence + 1) / (size + 2)  # never exactly 0 or 1
    binomial = size * chance * (1 - chance) / n**2
    noise = np.maximum(np.square(gap).sum(0), binomial)
    value = float(np.abs(gap.sum(0)).sum())
    denoised = float(np.sqrt(np.maximum(np.square(gap.sum(0)) - noise, 0)).sum())
    half = _Z * float(np.sqrt(noise.sum()))
    return value, (max(0.0, min(value, denoised - half)), min(1.0, value + half))


def _quantile(cohort: Cohort) -> float:
    """Return the quantile of Student's t for a two-sided interval over the cohort's patients."""
    return float(stdtrit(max(1, cohort.n_patients - 1), 1 - ALPHA / 2))
