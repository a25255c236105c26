"""The margin of an answer: how far its probabilities are from another answer."""

from __future__ import annotations

from collections.abc import Sequence

HALF = 0.5 - 1e-9
"""Share of the probability that the median grade and those below it hold at least."""


def margin_from_threshold(value: float, threshold: float) -> float:
    """Compute how far a probability is from its threshold, as a share of the way to 0 or 1.

    Args:
        value: the probability.
        threshold: the probability from which the answer is another one.

    Returns:
        0 at the threshold, 1 at the probabilities 0 and 1.
    """
    way = 1 - threshold if value >= threshold else threshold
    return abs(value - threshold) / way if way > 0 else 0.0


def margin_of_best(values: Sequence[float]) -> float:
    """Compute how far the largest probability lies above the second largest.

    Args:
        values: probabilities of at least two classes.
    """
    second, best = sorted(values)[-2:]
    return best - second


def margin_of_median(values: Sequence[float]) -> float:
    """Compute how far the median grade is from its neighbours.

    Args:
        values: probabilities of the grades in their order.

    Returns:
        0 where half of the probability lies exactly below or above a border of the median grade, 1
        where all of it lies in that grade.
    """
    below = 0.0
    for share in values:
        if below + share >= HALF:
            return 2 * max(0.0, min(below + share - 0.5, 0.5 - below))
        below += share
    return 0.0
