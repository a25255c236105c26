"""Plain values of the metrics, without intervals; each is one weighting of `_weighted`."""

from __future__ import annotations

import numpy as np

from foveate.metrics import _weighted as weighted
from foveate.metrics.base import Floats, Ints, checked

N_BINS = 10
"""Equal-width bins of the calibration error, unless told otherwise."""


def auroc(prob: Floats, target: Ints) -> float | None:
    """Area under the ROC curve; with more than two classes the mean of each against the rest.

    Classes that do not occur are left out of the mean.

    Returns:
        `None` when only one class occurs.

    Raises:
        ValueError: the inputs are no probabilities and targets.
    """
    prob, target = checked(prob, target)
    if len(np.unique(target)) < 2:
        return None
    return float(ranked(weighted.auroc, prob, target, _ones(target))[0])


def auprc(prob: Floats, target: Ints) -> float | None:
    """Average precision; with more than two classes the mean of each against the rest.

    Returns:
        `None` when only one class occurs.

    Raises:
        ValueError: the inputs are no probabilities and targets.
    """
    prob, target = checked(prob, target)
    if len(np.unique(target)) < 2:
        return None
    return float(ranked(weighted.average_precision, prob, target, _ones(target))[0])


def confusion(predicted: Ints, target: Ints, k: int) -> Ints:
    """How often each class (row) was predicted as each class (column), ``(k, k)``."""
    cells = np.bincount(np.asarray(target) * k + np.asarray(predicted), minlength=k * k)
    return cells.reshape(k, k).astype(np.int64)


def accuracy(predicted: Ints, target: Ints) -> float:
    """Share of images predicted right."""
    return float(np.mean(np.asarray(predicted) == np.asarray(target)))


def balanced_accuracy(predicted: Ints, target: Ints) -> float:
    """Mean recall over the classes that occur."""
    return float(weighted.balanced_accuracy(_one_confusion(predicted, target))[0])


def kappa(predicted: Ints, target: Ints, *, power: int = 0, k: int | None = None) -> float:
    """Cohen's kappa: power 0 plain, 1 linear and 2 quadratic weights for ordered classes.

    Where truth and prediction are one and the same class throughout, it is 0 by convention.
    """
    return float(weighted.kappa(_one_confusion(predicted, target, k), power)[0])


def brier(prob: Floats, target: Ints) -> float:
    """Mean squared error of the probabilities: of the positive class for two classes (0 to 1).

    With more classes it is summed over them (0 to 2).

    Source: Brier, Monthly Weather Review 78 (1950), 1; for two classes half of his.
    """
    return float(squared_error(*checked(prob, target)).mean())


def log_loss(prob: Floats, target: Ints) -> float:
    """Mean negative logarithm of the true class's probability, clipped at machine precision."""
    return float(surprise(*checked(prob, target)).mean())


def calibration_error(prob: Floats, target: Ints, *, n_bins: int = N_BINS) -> float:
    """Expected calibration error over equal-width bins: mean gap weighted by images.

    Of the positive class's probability for two classes, of the predicted class's for more.

    Source: Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al., ICML 2017.
    """
    confidence, hit = confidence_and_hit(*checked(prob, target))
    ones = _ones(target)
    return float(weighted.calibration_error(confidence, hit, ones, n_bins)[0])


def calibration_bins(
    prob: Floats, target: Ints, n_bins: int = N_BINS
) -> list[dict[str, float | int]]:
    """The bins of `calibration_error` that hold images.

    Returns:
        For each, ``mean_prob``, ``fraction`` that is of the class, and ``n`` images.
    """
    confidence, hit = confidence_and_hit(*checked(prob, target))
    number = weighted.bin_of(confidence, n_bins)
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


def ranked(curve: object, prob: Floats, target: Ints, weight: Floats) -> Floats:
    """Area of the positive class, or the mean over the occurring classes against the rest."""
    assert callable(curve)
    classes = [1] if prob.shape[1] == 2 else list(np.unique(target))
    areas = [curve(prob[:, c], (target == c).astype(float), weight) for c in classes]
    return np.asarray(np.mean(areas, 0))


def squared_error(prob: Floats, target: Ints) -> Floats:
    """Brier's loss of each image."""
    k = prob.shape[1]
    loss: Floats = ((prob - np.eye(k)[target]) ** 2).sum(1)
    return loss / 2 if k == 2 else loss


def surprise(prob: Floats, target: Ints) -> Floats:
    """Logarithmic loss of each image."""
    true = prob[np.arange(len(prob)), target]
    return np.asarray(-np.log(np.clip(true, np.finfo(np.float64).eps, 1)))


def confidence_and_hit(prob: Floats, target: Ints) -> tuple[Floats, Floats]:
    """The probability that calibration is judged by, and whether it came true."""
    if prob.shape[1] == 2:
        return prob[:, 1], (target == 1).astype(np.float64)
    return prob.max(1), (prob.argmax(1) == target).astype(np.float64)


def _ones(target: Ints) -> Floats:
    return np.ones((1, len(target)))


def _one_confusion(predicted: Ints, target: Ints, k: int | None = None) -> Floats:
    predicted, target = np.asarray(predicted), np.asarray(target)
    k = k or int(max(predicted.max(), target.max())) + 1
    return confusion(predicted, target, k).astype(np.float64)[None]
