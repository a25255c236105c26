"""Intervals of a proportion of independent trials."""

from __future__ import annotations

from foveate.metrics.types import LEVEL


def proportion_interval(successes: int, n: int) -> tuple[float, float]:
    """Compute the exact 95 % interval of a proportion (Clopper and Pearson); (0, 1) if n is 0.

    Args:
        successes: number of successes.
        n: number of trials.
    """
    return _interval(successes, n, "exact")


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Compute Wilson's 95 % interval of a proportion (1927); (0, 1) if n is 0.

    Args:
        successes: number of successes.
        n: number of trials.
    """
    return _interval(successes, n, "wilson")


def _interval(successes: int, n: int, method: str) -> tuple[float, float]:
    from scipy.stats import binomtest  # here, as its import takes a while

    if n == 0:
        return 0.0, 1.0
    interval = binomtest(successes, n).proportion_ci(LEVEL, method)
    return float(interval.low), float(interval.high)
