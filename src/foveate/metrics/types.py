"""Scores, checked inputs, and the few types that all metrics share."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVEL = 0.95
"""Confidence level of every interval."""

ALPHA = 1 - LEVEL


@dataclass(frozen=True)
class Score:
    """A number, its 95 % interval, and where the interval comes from.

    Attributes:
        n: images that were scored.
    """

    value: float
    lo: float
    hi: float
    method: str
    n: int


@dataclass(frozen=True)
class Difference:
    """Score of run a minus score of run b on the same images, with a two-sided p value."""

    value: float
    lo: float
    hi: float
    p_value: float
    method: str
    n: int


def checked(prob: Floats, target: Ints) -> tuple[Floats, Ints]:
    """Probabilities as float64 ``(n, k)`` and targets as int64 ``(n,)``.

    Raises:
        ValueError: shapes disagree, a number is not finite, a row does not sum to 1 (within
            1e-4), or a target is no class.
    """
    prob, target = np.asarray(prob, np.float64), np.asarray(target)
    if prob.ndim != 2 or prob.shape[1] < 2 or len(prob) == 0:
        raise ValueError(
            f"probabilities of shape {prob.shape}, expected (n, k) with n >= 1, k >= 2"
        )
    if target.shape != prob.shape[:1]:
        raise ValueError(f"{target.shape} targets for {len(prob)} rows of probabilities")
    if not np.isfinite(prob).all() or (prob < 0).any():
        raise ValueError("probabilities must be finite and at least 0")
    if not np.allclose(prob.sum(1), 1, rtol=0, atol=1e-4):
        raise ValueError("rows of probabilities must sum to 1")
    if target.dtype.kind not in "iu" or target.min() < 0 or target.max() >= prob.shape[1]:
        raise ValueError(f"targets must be whole numbers from 0 to {prob.shape[1] - 1}")
    return prob, target.astype(np.int64)


def numbered(names: Sequence[Hashable], n: int, what: str = "patients") -> Ints:
    """A number from 0 per image, equal for images with the same name of `what`.

    Raises:
        ValueError: not one name per image.
    """
    if len(names) != n:
        raise ValueError(f"{len(names)} {what} for {n} images")
    order: dict[Hashable, int] = {}
    return np.array([order.setdefault(p, len(order)) for p in names], dtype=np.int64)
