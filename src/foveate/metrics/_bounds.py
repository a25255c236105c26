"""Honest bounds where resampling sees no error at all, and so would claim certainty.

All rest on Clopper and Pearson, Biometrika 26 (1934), 404: of `n` independent trials all
succeed with probability at most ``value ** n``, so any value below ``(alpha / 2) ** (1 / n)`` is
rejected ("rule of three", with 3.7 in place of 3 for a two-sided 95 % interval).

- Accuracy: the trials are patients.
- AUROC: pairs of a positive and a negative patient that share nobody are independent (as many as
  the smaller class has patients); a perfect AUROC has all of them in order.
- Means over classes: if the mean is below a value, one class is, so the smallest class decides.
- Average precision and kappa: the value that an AUROC, or an accuracy, at its bound would give.
"""

from __future__ import annotations

import numpy as np
from scipy.special import betaincinv

from foveate.metrics.base import ALPHA, Ints


def all_right(n: int) -> float:
    """Lower bound of a probability after `n` successes in `n` independent trials."""
    return float((ALPHA / 2) ** (1 / n))


def patients_per_class(target: Ints, patients: Ints) -> list[int]:
    """Patients with an image of each class that occurs."""
    return [len(np.unique(patients[target == label])) for label in np.unique(target)]


def disjoint_pairs(target: Ints, patients: Ints) -> int:
    """Pairs of patients of a class and of another that share nobody, for the worst class."""
    total = len(np.unique(patients))
    return min(
        min(
            len(np.unique(patients[target == label])),
            len(np.unique(patients[target != label])),
            total // 2,
        )
        for label in np.unique(target)
    )


def precision_at(auroc: float, n_positive: int, n_negative: int) -> float:
    """Average precision of an order in which each positive has as many negatives above it."""
    rank = np.arange(1, n_positive + 1)
    return float((rank / (rank + (1 - auroc) * n_negative)).mean())


def kappa_at(accuracy: float, target: Ints, k: int, power: int) -> float:
    """Kappa of predictions with this accuracy whose errors are the costliest."""
    share = np.bincount(target, minlength=k) / len(target)
    gap = np.abs(np.subtract.outer(np.arange(k), np.arange(k))).astype(float)
    cost = (gap > 0).astype(float) if power == 0 else gap**power
    expected = float(share @ cost @ share)
    return max(-1.0, 1 - (1 - accuracy) * float(cost.max()) / expected)


def proportion_interval(successes: int, n: int) -> tuple[float, float]:
    """Exact 95 % interval of a proportion (Clopper and Pearson); ``(0, 1)`` for no trial at all."""
    if n == 0:
        return 0.0, 1.0
    lo = betaincinv(successes, n - successes + 1, ALPHA / 2) if successes else 0.0
    hi = betaincinv(successes + 1, n - successes, 1 - ALPHA / 2) if successes < n else 1.0
    return float(lo), float(hi)
