"""Intervals of a share of independent trials, by scipy (imported late: it takes a while)."""

from __future__ import annotations

from foveate.metrics.types import LEVEL


def proportion_interval(successes: int, n: int) -> tuple[float, float]:
    """Exact 95 % interval of a proportion (Clopper and Pearson); ``(0, 1)`` for no trial at all."""
    return _interval(successes, n, "exact")


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927); ``(0, 1)`` for no trial at all."""
    return _interval(successes, n, "wilson")


def _interval(successes: int, n: int, method: str) -> tuple[float, float]:
    from scipy.stats import binomtest

    if n == 0:
        return 0.0, 1.0
    found = binomtest(successes, n).proportion_ci(LEVEL, method)
    return float(found.low), float(found.high)
