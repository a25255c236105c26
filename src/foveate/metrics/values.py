"""Values of the metrics without intervals, and the losses and bins that they are computed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from foveate.metrics import weighted
from foveate.metrics.types import Floats, Ints, check_inputs

N_BINS = 10
"""Equal-width bins of the calibration error."""

Curve = Callable[[Floats, Floats, Floats, Ints], Floats]
"""A function of `foveate.metrics.weighted`: (score, positive, weight, fold) to areas ``(r,)``."""


def auroc(prob: Floats, target: Ints) -> float | None:
    """Compute the area under the ROC curve; for several classes, the mean of each against the rest.

    Classes that do not occur are left out of the mean.

    Args:
        prob: probabilities, ``(n, k)``.
        target: class of each image, ``(n,)``.

    Returns:
        The area; None where only one class occurs.

    Raises:
        ArrayError: the inputs are no probabilities and targets.
    """
    prob, target = check_inputs(prob, target)
    fold = np.zeros_like(target)
    classes = find_ranked_classes(target, fold, prob.shape[1])
    if not classes:
        return None
    weight = np.ones((1, len(target)))
    return float(mean_area(weighted.auroc, prob, target, weight, fold, classes)[0])


def confusion(predicted: Ints, target: Ints, k: int) -> Ints:
    """Count how often each true class (row) was predicted as each class (column), ``(k, k)``.

    Args:
        predicted: predicted class of each image, ``(n,)``.
        target: class of each image, ``(n,)``.
        k: number of classes.
    """
    cells = np.bincount(np.asarray(target) * k + np.asarray(predicted), minlength=k * k)
    return cells.reshape(k, k).astype(np.int64)


def calibration_bins(prob: Floats, target: Ints) -> list[dict[str, float | int]]:
    """Divide the images into `N_BINS` bins of equal width by their stated probability.

    That is the probability of the positive class of two, or of the predicted class of more.

    Args:
        prob: probabilities, ``(n, k)``.
        target: class of each image, ``(n,)``.

    Returns:
        For each bin that contains images: their mean probability ``mean_prob``, the ``fraction``
        of them that is of the class, and their number ``n``.

    Source: Naeini, Cooper and Hauskrecht, AAAI 2015; Guo et al., ICML 2017.
    """
    confidence, correct = confidence_and_outcome(*check_inputs(prob, target))
    bin_index = assign_bins(confidence)
    return [
        {
            "mean_prob": float(confidence[bin_index == i].mean()),
            "fraction": float(correct[bin_index == i].mean()),
            "n": int((bin_index == i).sum()),
        }
        for i in np.unique(bin_index)
    ]


def threshold_youden(prob_pos: Floats, target: Ints) -> float | None:
    """Find the threshold with the largest sensitivity + specificity - 1.

    Images at or above the threshold are positive. It lies halfway between two neighbouring scores,
    so that new images can fall on either side. Among equally good thresholds, the one nearest to
    0.5 is taken.

    Args:
        prob_pos: probability of the positive class of each image, ``(n,)``.
        target: class of each image, 1 for positive, ``(n,)``.

    Returns:
        The threshold; None where only one class occurs.

    Source: Youden, Cancer 3 (1950), 32.
    """
    score, positive = np.asarray(prob_pos, np.float64), np.asarray(target) == 1
    if positive.all() or not positive.any():
        return None
    values = np.unique(score)
    candidates = np.r_[values[0], (values[1:] + values[:-1]) / 2]
    gain = _share_above(score[positive], candidates) - _share_above(score[~positive], candidates)
    best = candidates[gain >= gain.max() - 1e-12]
    return float(best[np.argmin(np.abs(best - 0.5))])


def _share_above(scores: Floats, thresholds: Floats) -> Floats:
    """Compute the share of the scores ``(n,)`` at or above each threshold ``(m,)``."""
    n_above = len(scores) - np.searchsorted(np.sort(scores), thresholds)
    return np.asarray(n_above / len(scores))


# -- parts of metrics -------------------------------------------------------------------------


def find_ranked_classes(target: Ints, fold: Ints, k: int) -> list[int]:
    """Find the classes that can be ranked against others: those beside others in some fold.

    Args:
        target: class of each image, ``(n,)``.
        fold: number of the model that scored each image, ``(n,)``.
        k: number of classes.

    Returns:
        Numbers of the classes. With two classes only the second, as both areas are equal.
    """
    classes = [
        c for c in range(k) if any(0 < np.mean(target[fold == f] == c) < 1 for f in np.unique(fold))
    ]
    return [1] if classes and k == 2 else classes


def mean_area(
    curve: Curve, prob: Floats, target: Ints, weight: Floats, fold: Ints, classes: Sequence[int]
) -> Floats:
    """Compute the mean area under a curve over classes, each against the rest.

    Args:
        curve: function that computes the area.
        prob: probabilities, ``(n, k)``.
        target: class of each image, ``(n,)``.
        weight: weightings of the images, ``(r, n)``.
        fold: number of the model that scored each image, ``(n,)``.
        classes: numbers of the classes.

    Returns:
        The mean for each weighting, ``(r,)``.
    """
    areas = [curve(prob[:, c], (target == c).astype(float), weight, fold) for c in classes]
    return np.asarray(np.mean(areas, 0))


def brier_loss(prob: Floats, target: Ints) -> Floats:
    """Compute the Brier loss of each image, ``(n,)``, from ``(n, k)`` and ``(n,)``.

    With two classes it is that of the positive class (0 to 1), else the sum over classes (0 to 2).

    Args:
        prob: probabilities ``(n, k)``.
        target: numbers of the true classes ``(n,)``.

    Source: Brier, Monthly Weather Review 78 (1950), 1; for two classes half of his.
    """
    k = prob.shape[1]
    loss: Floats = ((prob - np.eye(k)[target]) ** 2).sum(1)
    return loss / 2 if k == 2 else loss


def log_loss(prob: Floats, target: Ints) -> Floats:
    """Compute the logarithmic loss of each image, ``(n,)``, from ``(n, k)`` and ``(n,)``.

    The probability is clipped at machine precision.

    Args:
        prob: probabilities ``(n, k)``.
        target: numbers of the true classes ``(n,)``.
    """
    true = prob[np.arange(len(prob)), target]
    return np.asarray(-np.log(np.clip(true, np.finfo(np.float64).eps, 1)))


def confidence_and_outcome(prob: Floats, target: Ints) -> tuple[Floats, Floats]:
    """Return the probabilities that calibration is judged by, and whether they came true.

    Args:
        prob: probabilities, ``(n, k)``.
        target: class of each image, ``(n,)``.

    Returns:
        The probability of the positive class of two, or of the predicted class of more, ``(n,)``;
        and 1 where the image is of that class, else 0, ``(n,)``.
    """
    if prob.shape[1] == 2:
        return prob[:, 1], (target == 1).astype(np.float64)
    return prob.max(1), (prob.argmax(1) == target).astype(np.float64)


def assign_bins(prob: Floats) -> Ints:
    """Return the number of the bin of `N_BINS` that each probability ``(n,)`` lies in, ``(n,)``.

    A bin contains its lower edge; the last bin contains both.

    Args:
        prob: probabilities ``(n,)``.
        n_bins: number of bins from 0 to 1.
    """
    edges = np.linspace(0, 1, N_BINS + 1)
    return np.clip(np.searchsorted(edges, prob, side="right") - 1, 0, N_BINS - 1).astype(np.int64)
