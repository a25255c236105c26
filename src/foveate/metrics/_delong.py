"""Variance of the AUROC from its structural components, with images of one patient together.

Source: DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), 837; by ranks as in Sun and Xu,
IEEE Signal Processing Letters 21 (2014), 1389; for several images per patient Obuchowski,
Biometrics 53 (1997), 567, which is DeLong's when each patient has one image.

m: positives, n: negatives, r: scores of the same images.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foveate.metrics.base import Floats, Ints


def auroc_covariance(scores: Floats, positive: Ints, patients: Ints) -> tuple[Floats, Floats]:
    """AUROC of each score, and their covariance.

    Args:
        scores: ``(r, images)``.
        positive: ``(images,)``, 1 for positives, else 0; each class is that of two patients
            at least.
        patients: ``(images,)``, numbers from 0.

    Returns:
        ``(r,)`` and ``(r, r)``.
    """
    is_pos = positive == 1
    m, n = int(is_pos.sum()), int((~is_pos).sum())
    parts = [_components(score, is_pos) for score in scores]
    auroc = np.array([v10.mean() for v10, _ in parts])
    a = np.stack([_sums(v10 - v10.mean(), patients[is_pos], patients) for v10, _ in parts])
    b = np.stack([_sums(v01 - v01.mean(), patients[~is_pos], patients) for _, v01 in parts])
    i10, i01 = len(np.unique(patients[is_pos])), len(np.unique(patients[~is_pos]))
    i = len(np.unique(patients))
    s10 = i10 / ((i10 - 1) * m) * (a @ a.T)
    s01 = i01 / ((i01 - 1) * n) * (b @ b.T)
    s11 = i / (i - 1) * (a @ b.T)
    return auroc, s10 / m + s01 / n + (s11 + s11.T) / (m * n)


def _components(score: Floats, is_pos: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Share of negatives below each positive, and of positives above each negative."""
    pos, neg = score[is_pos], score[~is_pos]
    rank = _ranks(score)
    v10 = (rank[is_pos] - _ranks(pos)) / len(neg)
    v01 = 1 - (rank[~is_pos] - _ranks(neg)) / len(pos)
    return v10, v01


def _ranks(value: Floats) -> Floats:
    """Ranks from 1; equal values share the middle one (importing `scipy.stats` is slow)."""
    _, place, count = np.unique(value, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count - 1) / 2)[place])


def _sums(value: Floats, owner: Ints, patients: Ints) -> Floats:
    summed = np.zeros(int(patients.max()) + 1)
    np.add.at(summed, owner, value)
    return summed
