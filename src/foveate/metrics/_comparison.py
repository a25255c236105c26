"""Paired tests: is run a better than run b on the same images?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import ndtr, ndtri

from foveate.metrics import _bounds as bounds
from foveate.metrics import _weighted as weighted
from foveate.metrics._delong import auroc_covariance
from foveate.metrics._resample import patient_weights
from foveate.metrics._values import ranked, squared_error, surprise
from foveate.metrics.base import ALPHA, Difference, Floats, Ints, checked, numbered

Metric = Callable[[Floats, Ints, Floats], Floats]


def paired_delong(
    prob_pos_a: Floats, prob_pos_b: Floats, target: Ints, patients: Sequence[str]
) -> Difference | None:
    """Difference of two AUROCs on the same images, by DeLong's paired test over patients.

    Returns:
        `None` when one class only occurs, or a class has one patient only.

    Source: DeLong et al. (1988), Obuchowski (1997), see `_delong`. Where both runs order all
    images alike the variance is 0; the interval is then as wide as that of a perfect AUROC, and
    the p value that of a sign test over pairs of patients.
    """
    owner = numbered(patients, len(target))
    positive = (np.asarray(target) == 1).astype(np.int64)
    per_class = bounds.patients_per_class(positive, owner)
    if len(per_class) < 2 or min(per_class) < 2:
        return None
    scores = np.stack([np.asarray(p, np.float64) for p in (prob_pos_a, prob_pos_b)])
    auroc, cov = auroc_covariance(scores, positive, owner)
    value = float(auroc[0] - auroc[1])
    error = math.sqrt(max(0.0, float(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1])))
    n = len(owner)
    if error < 1e-9:
        pairs = bounds.disjoint_pairs(positive, owner)
        wide = 1 - bounds.all_right(pairs)
        p_value = 1.0 if abs(value) < 1e-12 else min(1.0, 2 * 0.5**pairs)
        lo, hi = max(-1.0, value - wide), min(1.0, value + wide)
        return Difference(value, lo, hi, p_value, "no variance: Clopper-Pearson, sign test", n)
    spread = float(ndtri(1 - ALPHA / 2)) * error
    p_value = float(2 * ndtr(-abs(value) / error))
    lo, hi = max(-1.0, value - spread), min(1.0, value + spread)
    return Difference(value, lo, hi, p_value, "DeLong paired by patients", n)


def paired_bootstrap(
    prob_a: Floats,
    prob_b: Floats,
    target: Ints,
    patients: Sequence[str],
    *,
    metric: str = "auroc",
    seed: int = 0,
    n_boot: int = 2000,
) -> Difference | None:
    """Difference of a metric between two runs: the same resampled patients for both.

    Args:
        prob_a: ``(n, k)`` of run a.
        prob_b: ``(n, k)`` of run b.
        target: ``(n,)``.
        patients: of each image.
        metric: auroc, auprc, accuracy, balanced_accuracy, brier or log_loss.
        seed: of the resampling.
        n_boot: resamples.

    Returns:
        `None` when the metric needs two classes and only one occurs.

    Raises:
        ValueError: an unknown metric, or inputs that do not fit.

    Source: the p value is twice the share of resamples on the other side of 0, counted with one
    more as in Davison and Hinkley, Bootstrap Methods (1997), 4.2.
    """
    if metric not in _METRICS:
        raise ValueError(f"metric: got '{metric}', expected one of {', '.join(_METRICS)}")
    (prob_a, target), (prob_b, _) = checked(prob_a, target), checked(prob_b, target)
    if len(np.unique(target)) < 2 and metric in ("auroc", "auprc", "balanced_accuracy"):
        return None
    owner = numbered(patients, len(target))
    weight = patient_weights(target, owner, n_boot, seed)
    measure, ones = _METRICS[metric], np.ones((1, len(target)))
    value = float((measure(prob_a, target, ones) - measure(prob_b, target, ones))[0])
    drawn = measure(prob_a, target, weight) - measure(prob_b, target, weight)
    lo, hi = (float(q) for q in np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2]))
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p_value = min(1.0, 2 * (tail + 1) / (n_boot + 1))
    method = f"percentile of {n_boot} resamples of patients, the same for both runs"
    return Difference(value, lo, hi, p_value, method, len(target))


def _confusion(prob: Floats, target: Ints, weight: Floats) -> Floats:
    return weighted.confusions(prob.argmax(1), target, weight, prob.shape[1])


_METRICS: dict[str, Metric] = {
    "auroc": lambda p, t, w: ranked(weighted.auroc, p, t, w),
    "auprc": lambda p, t, w: ranked(weighted.average_precision, p, t, w),
    "accuracy": lambda p, t, w: weighted.accuracy(_confusion(p, t, w)),
    "balanced_accuracy": lambda p, t, w: weighted.balanced_accuracy(_confusion(p, t, w)),
    "brier": lambda p, t, w: weighted.mean(squared_error(p, t), w),
    "log_loss": lambda p, t, w: weighted.mean(surprise(p, t), w),
}
