"""Is run a better than run b on the same images? Each difference with an interval over patients."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import ndtr, ndtri

from foveate.metrics.scores import Measured, by_loss, by_rank, prepare
from foveate.metrics.types import ALPHA, Difference, Floats, Ints

_TRUST = 2.0
"""How many patients speak for two runs that go wrong independently, beside those that show it."""


def compare_scores(
    prob_a: Floats,
    prob_b: Floats,
    target: Ints,
    patients: Sequence[str],
    *,
    folds: Sequence[Hashable] | None = None,
) -> dict[str, Difference]:
    """How much better run a is than run b, by ``auroc``, ``auprc``, ``brier`` and ``log_loss``.

    Args:
        prob_a: ``(n, k)`` of run a.
        prob_b: ``(n, k)`` of run b, of the same images.
        target: ``(n,)``.
        patients: of each image.
        folds: of each image, the models that answered; ranks are compared within a fold only.

    Raises:
        ValueError: inputs that do not fit.

    Source: the limits of the difference from those of each score and their correlation as in
    Zou, Psychological Methods 12 (2007), 399; the correlation is that of what each patient adds.
    """
    prob_a, cohort = prepare(prob_a, target, patients, folds)
    prob_b, _ = prepare(prob_b, target, patients, folds)
    same = bool(np.array_equal(prob_a, prob_b))
    ours, theirs = (by_rank(p, cohort) | by_loss(p, cohort) for p in (prob_a, prob_b))
    return {name: difference(ours[name], theirs[name], same) for name in ours if name != "ece"}


def difference(a: Measured, b: Measured, same: bool) -> Difference:
    """Return the difference of two scores of the same images; `same` where all answers are."""
    n = a.score.n
    if same:
        return Difference(0.0, 0.0, 0.0, 1.0, "both gave the same answers", n)
    x, y = a.score, b.score
    alike = _correlation(a.influence, b.influence)
    value = x.value - y.value
    down = _combined(x.value - x.lo, y.hi - y.value, alike)
    up = _combined(x.hi - x.value, y.value - y.lo, alike)
    towards = down if value > 0 else up
    z = float(ndtri(1 - ALPHA / 2)) * abs(value) / max(towards, 1e-300)
    p_value = 1.0 if value == 0 else float(2 * ndtr(-z))
    method = "limits of both scores and their correlation over patients"
    return Difference(value, value - down, value + up, p_value, method, n)


def _combined(p: float, q: float, alike: float) -> float:
    return float(np.sqrt(max(p * p + q * q - 2 * alike * p * q, 0.0)))


def _correlation(a: Floats, b: Floats) -> float:
    """Of the influences; drawn towards 0 where few patients show any."""
    sums = float(np.sqrt((a**2).sum() * (b**2).sum()))
    if sums <= 0:
        return 0.0
    both = np.abs(a * b)
    patients = float(both.sum() ** 2 / max(float((both**2).sum()), 1e-300))
    return float((a * b).sum()) / sums * patients / (patients + _TRUST)
