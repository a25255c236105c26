"""Drawing patients with replacement, class by class."""

from __future__ import annotations

import numpy as np

from foveate.metrics.base import Floats, Ints

_ROUNDS = 200


def patient_weights(target: Ints, patients: Ints, n_boot: int, seed: int) -> Floats:
    """How often each image is in each resample, ``(n_boot, n)``.

    Patients are drawn with replacement within their class (a patient's most frequent one) and
    bring all their images. A resample that lacks a class, which only patients with images of
    several classes can cause, is drawn again.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13.
    """
    rng = np.random.default_rng(seed)
    k, n_patients = int(target.max()) + 1, int(patients.max()) + 1
    images = np.zeros((n_patients, k))
    np.add.at(images, (patients, target), 1)
    stratum = images.argmax(1)
    holds = images[:, images.sum(0) > 0] > 0
    drawn = _drawn(stratum, n_boot, rng)
    for _ in range(_ROUNDS):
        lacking = np.flatnonzero(((drawn @ holds) == 0).any(1))
        if not len(lacking):
            break
        drawn[lacking] = _drawn(stratum, len(lacking), rng)
    else:
        drawn[lacking] = 1
    return drawn[:, patients]


def _drawn(stratum: Ints, n_boot: int, rng: np.random.Generator) -> Floats:
    drawn = np.zeros((n_boot, len(stratum)))
    for label in np.unique(stratum):
        members = np.flatnonzero(stratum == label)
        share = np.full(len(members), 1 / len(members))
        drawn[:, members] = rng.multinomial(len(members), share, size=n_boot)
    return drawn
