"""Plain values of the metrics, without intervals, and what they are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from foveate.metrics import weighted
from foveate.metrics.types import Floats, Ints, checked

N_BINS = 10
"""Equal-width bins of the calibration error."""

Curve = Callable[[Floats, Floats, Floats, Ints], Floats]


def auroc(prob: Floats, target: Ints) -> float | None:
    """Area under the ROC curve; with more than two classes the mean of each against the rest.

    Classes that do not occur are left out of the mean.

    Returns:
        `None` when only one class occurs.

    Raises:
        ValueError: the inputs are no probabilities and targets.
    """
    prob, target = checked(prob, target)
    classes = ranked_classes(target, np.zeros_like(target), prob.shape[1])
    if not classes:
        return None
    one = np.ones((1, len(target)))
    return float(ranked(weighted.auroc, prob, target, one, np.zeros_like(target), classes)[0])


def confusion(predicted: Ints, target: Ints, k: int) -> Ints:
    """How often each class (row) was predicted as each class (column), ``(k, k)``."""
    cells = np.bincount(np.asarray(target) * k + np.asarray(predicted), minlength=k * k)
    return cells.reshape(k, k).astype(np.int64)


def calibration_bins(
    prob: Floats, target: Ints, n_bins: int = N_BINS
) -> list[dict[str, float | int]]:
    """The equal-width bins of the stated probability that hold images.

    Of the positive class's probability for two classes, of the predicted class's for more.

    Returns:
        For each, ``mean_prob``, ``fraction`` that is of the class, and ``n`` images.

    Source: Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al., ICML 2017.
    """
    confidence, hit = confidence_and_hit(*checked(prob, target))
    number = bin_of(confidence, n_bins)
    return [
        {
            "mean_prob": float(confidence[number == i].mean()),
            "fraction": float(hit[number == i].mean()),
            "n": int((number == i).sum()),
        }
        for i in np.unique(number)
    ]


def threshold_youden(prob_pos: Floats, target: Ints) -> float | None:
    """The threshold with the largest sensitivity + specificity - 1; at or above it is positive.

    It lies halfway between two neighbouring scores, where new images can fall on either side. Of
    equally good ones the nearest to 0.5 is taken.

    Returns:
        `None` when only one class occurs.

    Source: Youden, Cancer 3 (1950), 32.
    """
    score, positive = np.asarray(prob_pos, np.float64), np.asarray(target) == 1
    if positive.all() or not positive.any():
        return None
    values = np.unique(score)
    candidates = np.r_[values[0], (values[1:] + values[:-1]) / 2]
    above_pos = len(score[positive]) - np.searchsorted(np.sort(score[positive]), candidates)
    above_neg = len(score[~positive]) - np.searchsorted(np.sort(score[~positive]), candidates)
    gain = above_pos / positive.sum() - above_neg / (~positive).sum()
    best = candidates[gain >= gain.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - 0.5))])


# -- what a metric is made of, per image ------------------------------------------------------


def ranked_classes(target: Ints, fold: Ints, k: int) -> list[int]:
    """Classes that a fold holds beside others: the second of two, or every such one."""
    found = [
        c
        for c in range(k)
        if any(0 < np.mean(target[fold == each] == c) < 1 for each in np.unique(fold))
    ]
    return [1] if found and k == 2 else found


def ranked(
    curve: Curve, prob: Floats, target: Ints, weight: Floats, fold: Ints, classes: Sequence[int]
) -> Floats:
    """Mean area of these classes, each against the rest, ``(r,)``."""
    areas = [curve(prob[:, c], (target == c).astype(float), weight, fold) for c in classes]
    return np.asarray(np.mean(areas, 0))


def squared_error(prob: Floats, target: Ints) -> Floats:
    """Brier's loss of each image: of the positive class for two (0 to 1), else summed (0 to 2).

    Source: Brier, Monthly Weather Review 78 (1950), 1; for two classes half of his.
    """
    k = prob.shape[1]
    loss: Floats = ((prob - np.eye(k)[target]) ** 2).sum(1)
    return loss / 2 if k == 2 else loss


def surprise(prob: Floats, target: Ints) -> Floats:
    """Logarithmic loss of each image, the probability clipped at machine precision."""
    true = prob[np.arange(len(prob)), target]
    return np.asarray(-np.log(np.clip(true, np.finfo(np.float64).eps, 1)))


def confidence_and_hit(prob: Floats, target: Ints) -> tuple[Floats, Floats]:
    """The probability that calibration is judged by, and whether it came true."""
    if prob.shape[1] == 2:
        return prob[:, 1], (target == 1).astype(np.float64)
    return prob.max(1), (prob.argmax(1) == target).astype(np.float64)


def bin_of(prob: Floats, n_bins: int) -> Ints:
    """The equal-width bin of each probability; a bin holds its lower edge, the last both."""
    edges = np.linspace(0, 1, n_bins + 1)
    return np.clip(np.searchsorted(edges, prob, side="right") - 1, 0, n_bins - 1).astype(np.int64)
