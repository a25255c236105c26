"""95 % intervals that were chosen by how often they hold the truth (``benchmarks/coverage.py``).

Ranks (AUROC, average precision): all values that the seen one does not contradict, given the
variance that a model of the value expects, times what the jackknife over patients finds of it.
Decisions (accuracy, balanced accuracy, kappa): two imaginary patients who are answered rightly
and two who are not are added before the spread is measured. Losses: an imaginary patient is
added, in halves without loss and with twice that of an answer that knows nothing, and the interval
is even on the logarithmic scale.
So no interval shrinks to nothing where no error was seen, and none jumps at the first one.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.special import ndtri, stdtrit

from foveate.metrics.jackknife import Cohort, effective
from foveate.metrics.types import ALPHA, Floats, Ints

Variance = Callable[[float], float]
Bounds = tuple[float, float]

_Z = float(ndtri(1 - ALPHA / 2))
_TRUST = 4.0
"""How many patients the expected variance counts for, beside those that show their own."""

_IMAGINARY = 4.0


def by_test(value: float, variance: Variance, influence: Floats, lonely: bool) -> Bounds:
    """All values from 0 to 1 that are no further from `value` than their own spread allows.

    It is never narrower than that of a perfect score of the same patients: a worse result must
    not look surer.

    Args:
        value: that was seen.
        variance: that is expected at each true value.
        influence: of each patient; its squares sum to the variance that was seen.
        lonely: a class has one patient, whose spread cannot be seen; it is not below the expected.

    Source: Wilson, JASA 22 (1927), 209, for the idea, which is that of a score test; for the
    AUROC Newcombe, Statistics in Medicine 25 (2006), 559.
    """
    ratio, expected = 1.0, variance(value)
    if expected > 0:
        squares = influence**2
        seen = float(squares.sum())
        patients = seen**2 / float((squares**2).sum()) if seen > 0 else 0.0
        ratio = (patients * seen / expected + _TRUST) / (patients + _TRUST)
        ratio = max(ratio, 1.0) if lonely else ratio
    lo = _edge(value, 0.0, variance, ratio)
    hi = _edge(value, 1.0, variance, ratio)
    least = 1.0 - _edge(1.0, 0.0, variance, 1.0)
    if hi - lo < least:
        lo, hi = (max(0.0, hi - least), hi) if value >= 0.5 else (lo, min(1.0, lo + least))
    return lo, hi


def _edge(value: float, end: float, variance: Variance, ratio: float) -> float:
    """Where, on the way to `end`, the distance outgrows the spread; by halving."""
    near, far = value, end
    for _ in range(60):
        middle = (near + far) / 2
        if (value - middle) ** 2 <= _Z**2 * ratio * variance(middle):
            near = middle
        else:
            far = middle
    return far if abs(far - near) > 1e-9 else near


def auroc_variance(cohort: Cohort, classes: list[int]) -> Variance:
    """What the variance of an AUROC is expected to be, given the patients of each fold.

    Images of a patient count as one. Of several classes, the mean of theirs: areas against the
    rest go up and down together at worst.

    Source: Hanley and McNeil, Radiology 143 (1982), 29, symmetrical in the classes as in
    Newcombe, Statistics in Medicine 25 (2006), 559, method 5; summed over folds by their pairs.
    """
    parts = []
    for c in classes:
        positive = cohort.target == c
        rows = []
        for fold in np.unique(cohort.fold):
            pos, neg = (cohort.owner[(cohort.fold == fold) & p] for p in (positive, ~positive))
            if len(pos) and len(neg):
                rows.append((len(pos) * len(neg), effective(pos), effective(neg)))
        pairs, m, n = np.array(rows, np.float64).T
        parts.append((np.square(pairs / pairs.sum()) / (m * n), (m + n) / 2 - 1))
    scale = np.concatenate([s for s, _ in parts]) / len(parts)
    more = np.concatenate([m for _, m in parts])

    def variance(value: float) -> float:
        clump = (1 - value) / (2 - value) + value / (1 + value)
        return float((scale * (1 + more * clump)).sum()) * value * (1 - value)

    return variance


def precision_variance(cohort: Cohort, classes: list[int]) -> Variance:
    """What the variance of an average precision is expected to be: of a share of the positives.

    Source: Boyd, Eng and Page, ECML 2013, which finds a binomial interval the best of twelve.
    """
    share = np.mean([1 / effective(cohort.owner[cohort.target == c]) for c in classes])
    return lambda value: float(share) * value * (1 - value)


def of_decisions(
    cohort: Cohort, predicted: Ints, k: int, measure: Callable[[Floats], Floats], low: float
) -> tuple[float, Bounds, Floats]:
    """Value of a measure of confusions, its interval, and what each group of patients adds.

    Args:
        cohort: the images.
        predicted: ``(n,)``.
        k: classes.
        measure: ``(r, k, k)`` to ``(r,)``, at most 1.
        low: its smallest value.

    Source: Agresti and Coull, The American Statistician 52 (1998), 119, for shares; here for
    every measure of decisions, with the jackknife instead of the binomial variance.
    """
    cells = np.zeros((len(predicted), k, k))
    cells[np.arange(len(predicted)), cohort.target, predicted] = 1
    own = cohort.sums(cells)
    value = float(measure(own.sum(0)[None])[0])
    # Only classes that occur: others are part of no mean.
    occurring = np.unique(cohort.target)
    size = len(predicted) / cohort.n_patients * _IMAGINARY / (2 * len(occurring))
    right, wrong = np.zeros((2, len(occurring), k, k))
    right[np.arange(len(occurring)), occurring, occurring] = size
    wrong[np.arange(len(occurring)), occurring] = size / (k - 1)
    wrong[np.arange(len(occurring)), occurring, occurring] = 0
    every = np.concatenate([own, right, wrong])
    without = measure(every.sum(0) - every)
    middle = float(measure(every.sum(0)[None])[0])
    m = len(every)
    influence = (without.mean() - without) * np.sqrt((m - 1) / m)
    half = _quantile(cohort) * float(np.sqrt((influence**2).sum()))
    bounds = (max(low, min(value, middle - half)), min(1.0, max(value, middle + half)))
    return value, bounds, influence[: len(own)]


def of_losses(
    cohort: Cohort, loss: Floats, unknowing: float, high: float
) -> tuple[float, Bounds, Floats]:
    """Mean of a loss that is at least 0, its interval, and what each group of patients adds.

    Args:
        cohort: the images.
        loss: ``(n,)``.
        unknowing: the loss of an answer that gives every class the same probability.
        high: its largest value.

    The upper end is moved out where few patients have most of the loss: more such ones may be
    among those that were not seen.

    Source: Johnson, JASA 73 (1978), 536, for the idea of a correction by the skewness.
    """
    total, count = cohort.sums(loss), cohort.sums(np.ones(len(loss)))
    value = float(total.sum() / count.sum())
    half = len(loss) / cohort.n_patients / 2
    total, count = np.r_[total, 0, 2 * half * unknowing], np.r_[count, half, half]
    middle, m = float(total.sum() / count.sum()), len(count) - 1
    influence = (total - middle * count) / count.sum() * np.sqrt(m / (m - 1))
    spread = float(np.sqrt((influence**2).sum())) / middle
    skewed = max(0.0, float((influence**3).mean() / max((influence**2).mean() ** 1.5, 1e-300)))
    quantile = _quantile(cohort)
    up = 1 + skewed * quantile / (4 * math.sqrt(m))
    lo, hi = middle * math.exp(-quantile * spread), middle * math.exp(quantile * spread * up)
    bounds = (min(value, lo), min(high, max(value, hi)))
    return value, bounds, influence[:-2]


def of_calibration(
    cohort: Cohort, confidence: Floats, hit: Floats, number: Ints
) -> tuple[float, Bounds]:
    """Expected calibration error over bins, with its interval.

    Noise in a bin adds to its gap and never takes away. The lower end takes that off, as far as
    patients, or coins of the stated probabilities, would make it.

    Args:
        cohort: the images.
        confidence: ``(n,)``, stated.
        hit: ``(n,)``, 1 where it came true.
        number: ``(n,)``, of the bin.
    """
    n, bins = len(hit), int(number.max()) + 1
    inside = np.zeros((n, bins))
    inside[np.arange(n), number] = 1
    gap = cohort.sums(inside * (confidence - hit)[:, None]) / n
    size = inside.sum(0)
    chance = (inside.T @ confidence + 1) / (size + 2)  # never quite 0 or 1
    coins = size * chance * (1 - chance) / n**2
    noise = np.maximum(np.square(gap).sum(0), coins)
    value = float(np.abs(gap.sum(0)).sum())
    honest = float(np.sqrt(np.maximum(np.square(gap.sum(0)) - noise, 0)).sum())
    half = _Z * float(np.sqrt(noise.sum()))
    return value, (max(0.0, min(value, honest - half)), min(1.0, value + half))


def _quantile(cohort: Cohort) -> float:
    return float(stdtrit(max(1, cohort.n_patients - 1), 1 - ALPHA / 2))
