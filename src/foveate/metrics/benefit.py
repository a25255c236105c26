"""Decision curves: what treating by a probability gains, at many thresholds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit

from foveate.metrics.types import ALPHA, Floats, Ints, number_names

_THRESHOLDS = np.arange(1, 50) / 50
_IMAGINARY_PATIENTS = 6.0
"""Patients that are added to the interval: half are positive, and half of either are called."""


def measure_benefits(
    prob: Floats, positive: Ints, patients: Sequence[str]
) -> list[dict[str, float]]:
    """Compute the net benefit at thresholds from 0.02 to 0.98, with 95 % intervals over patients.

    It is the share of images that are rightly called positive, less the share of those wrongly
    called so, which count by the odds of the threshold: a mean over images of what calling them
    gains. Its spread comes from the sums of the patients.

    Args:
        prob: probability of the class, ``(n,)``.
        positive: 1 where an image is of the class, else 0, ``(n,)``.
        patients: name of each image's patient, ``(n,)``.

    Returns:
        For each ``threshold`` the net benefit as ``value``, its limits ``lo`` and ``hi``, and
        ``treat_all``, the net benefit if every image were called positive.

    Source: Vickers and Elkin, Medical Decision Making 26 (2006), 565. Imaginary patients keep the
    interval from shrinking to nothing, as in Agresti and Coull, The American Statistician 52
    (1998), 119.
    """
    odds = _THRESHOLDS / (1 - _THRESHOLDS)
    called = prob[:, None] >= _THRESHOLDS
    gain: Floats = np.where(positive[:, None] > 0, 1.0, -odds) * called
    value, share = gain.mean(0), float(positive.mean())
    middle, half = _measure_spread(gain, odds, number_names(patients, len(positive)))
    points = {
        "threshold": _THRESHOLDS,
        "value": value,
        "lo": np.maximum(-odds, np.minimum(value, middle - half)),
        "hi": np.minimum(1.0, np.maximum(value, middle + half)),
        "treat_all": share - (1 - share) * odds,
    }
    rows = zip(*(column.tolist() for column in points.values()), strict=True)
    return [dict(zip(points, row, strict=True)) for row in rows]


def _measure_spread(gain: Floats, odds: Floats, patient: Ints) -> tuple[Floats, Floats]:
    """Compute the middle and half the width of the intervals, ``(thresholds,)`` each.

    Args:
        gain: what calling each image gains at each threshold, ``(n, thresholds)``.
        odds: odds of the thresholds, ``(thresholds,)``.
        patient: number of each image's patient, ``(n,)``.
    """
    n, n_patients = len(gain), int(patient.max()) + 1
    total = np.zeros((n_patients, gain.shape[1]))
    np.add.at(total, patient, gain)
    count = np.bincount(patient)[:, None]
    each, quarter = n / n_patients, _IMAGINARY_PATIENTS / 4
    size = n + _IMAGINARY_PATIENTS * each
    middle = (total.sum(0) + each * quarter * (1 - odds)) / size
    squares = np.square(total - middle * count).sum(0)
    for gained in (1.0, -odds, 0.0, 0.0):  # the last two are not called
        squares = squares + each**2 * quarter * np.square(gained - middle)
    m = n_patients + _IMAGINARY_PATIENTS
    quantile = float(stdtrit(max(1, n_patients - 1), 1 - ALPHA / 2))
    return middle, quantile * np.sqrt(squares * m / (m - 1)) / size
