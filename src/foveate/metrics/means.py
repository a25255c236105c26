"""The mean of a measure over patients, with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from foveate.metrics.types import ALPHA, Score, number_names


def measure_mean(values: Sequence[float], patients: Sequence[str]) -> Score:
    """Compute the mean of values over patients; the images of a patient count as their mean.

    Args:
        values: value of each image, at least one.
        patients: name of each image's patient.

    Returns:
        The mean, and Student's interval over patients; with one patient the interval is without
        limits.
    """
    owner, numbers = number_names(patients, len(values)), np.asarray(values, np.float64)
    means = np.bincount(owner, numbers) / np.bincount(owner)
    n, mean = len(means), float(means.mean())
    half = math.inf
    if n > 1:
        half = float(stdtrit(n - 1, 1 - ALPHA / 2) * means.std(ddof=1) / math.sqrt(n))
    return Score(mean, mean - half, mean + half, "Student's t over patients", len(values))
