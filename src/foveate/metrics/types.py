"""Types of scores and arrays that all metrics share, and the checks of their inputs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.errors import ArrayError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVEL = 0.95
"""Confidence level of every interval."""

ALPHA = 1 - LEVEL


@dataclass(frozen=True)
class Score:
    """A score and its 95 % interval.

    Attributes:
        value: the score.
        lo: lower limit of the interval.
        hi: upper limit of the interval.
        method: name of the method that made the interval.
        n: number of images that were scored.
    """

    value: float
    lo: float
    hi: float
    method: str
    n: int


@dataclass(frozen=True)
class Difference:
    """The score of run a minus the score of run b on the same images.

    Attributes:
        value: the difference.
        lo: lower limit of its 95 % interval.
        hi: upper limit of its 95 % interval.
        p_value: two-sided p value of the hypothesis that the difference is 0.
        method: name of the method that made the interval.
        n: number of images that were scored.
    """

    value: float
    lo: float
    hi: float
    p_value: float
    method: str
    n: int


def check_inputs(prob: Floats, target: Ints) -> tuple[Floats, Ints]:
    """Check probabilities and targets, and return them as float64 ``(n, k)`` and int64 ``(n,)``.

    Args:
        prob: probabilities ``(n, k)``, at least two classes.
        target: numbers of the true classes ``(n,)``.

    Raises:
        ArrayError: shapes disagree, a number is not finite, a row does not sum to 1 (within
            1e-4), or a target is no class.
    """
    prob, target = np.asarray(prob, np.float64), np.asarray(target)
    if prob.ndim != 2 or prob.shape[1] < 2 or len(prob) == 0:
        raise ArrayError(
            f"probabilities of shape {prob.shape}, expected (n, k) with n >= 1, k >= 2"
        )
    if target.shape != prob.shape[:1]:
        raise ArrayError(
            f"{target.shape} targets for {len(prob)} rows of probabilities, expected one for each"
        )
    if not np.isfinite(prob).all() or (prob < 0).any():
        raise ArrayError("probabilities must be finite and at least 0: apply a softmax to logits")
    if not np.allclose(prob.sum(1), 1, rtol=0, atol=1e-4):
        raise ArrayError("rows of probabilities must sum to 1: divide each by its sum")
    if target.dtype.kind not in "iu" or target.min() < 0 or target.max() >= prob.shape[1]:
        raise ArrayError(
            f"targets must be whole numbers from 0 to {prob.shape[1] - 1}: give the places of the "
            "classes, not their names"
        )
    return prob, target.astype(np.int64)


def number_names(names: Sequence[Hashable], n: int, noun: str = "patients") -> Ints:
    """Assign each distinct name of an image a number from 0, in order of appearance.

    Args:
        names: name of each image's patient or fold.
        n: number of images.
        noun: what the names are, for the message.

    Returns:
        The numbers ``(n,)``.

    Raises:
        ArrayError: not one name per image.
    """
    if len(names) != n:
        raise ArrayError(f"{len(names)} {noun} for {n} images, expected one for each")
    order: dict[Hashable, int] = {}
    return np.array([order.setdefault(p, len(order)) for p in names], dtype=np.int64)
