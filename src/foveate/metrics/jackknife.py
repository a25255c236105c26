"""What each patient adds to a score, by leaving patients out one at a time.

All images of a patient go together, so their likeness is counted. The sum of the squared
influences is the variance of the score: for an AUROC of one image per patient exactly that of
DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), 837.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 11.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from foveate.metrics.types import Floats, Ints

_MOST_GROUPS = 400
_LEAST_GROUPS = 30


@dataclass(frozen=True)
class Cohort:
    """Images, whose they are, and who is left out together.

    Attributes:
        target: ``(n,)``, the class of each image.
        owner: ``(n,)``, the number of its patient.
        fold: ``(n,)``, the number of the model that scored it.
        group: ``(n,)``; a patient is a group, or several are where there are very many.
        stratum: ``(groups,)``, the most frequent class of each group's images.
    """

    target: Ints
    owner: Ints
    fold: Ints
    group: Ints
    stratum: Ints

    @property
    def n_patients(self) -> int:
        """How many."""
        return int(self.owner.max()) + 1

    @property
    def n_groups(self) -> int:
        """How many."""
        return len(self.stratum)

    @property
    def lonely(self) -> bool:
        """Whether a class is that of one group only, so that its spread cannot be seen."""
        return bool((np.unique(self.stratum, return_counts=True)[1] < 2).any())

    def without_each(self) -> Floats:
        """Weights of the images with each group left out, ``(groups, n)``."""
        kept: Floats = (self.group[None] != np.arange(self.n_groups)[:, None]).astype(np.float64)
        return kept

    def sums(self, value: Floats) -> Floats:
        """Sums over the images of each group of ``(n, …)``: ``(groups, …)``."""
        out = np.zeros((self.n_groups, *value.shape[1:]))
        np.add.at(out, self.group, value)
        return out

    def influence(self, whole: float, without: Floats) -> Floats:
        """What each group adds to a score that ranks classes against each other, ``(groups,)``.

        Args:
            whole: the score of all images.
            without: the score without each group; NaN where nothing is left to score.

        The numbers of patients of each class are taken as given: what differs between classes
        is no noise.
        """
        added = np.where(np.isnan(without), 0.0, whole - np.nan_to_num(without))
        for label in np.unique(self.stratum):
            own = self.stratum == label
            m = int(own.sum())
            added[own] = (added[own] - added[own].mean()) * np.sqrt((m - 1) / m)
        return np.asarray(added)


def gather(target: Ints, owner: Ints, fold: Ints) -> Cohort:
    """Patients in groups that are left out together, each of one class and one fold."""
    n = int(owner.max()) + 1
    images = np.zeros((n, int(target.max()) + 1))
    np.add.at(images, (owner, target), 1)
    label, own_fold = images.argmax(1), np.zeros(n, np.int64)
    own_fold[owner] = fold
    place = np.zeros(n, np.int64)
    stratum: list[int] = []
    for c in np.unique(label):
        share = _MOST_GROUPS * int((label == c).sum()) / n
        for f in np.unique(own_fold[label == c]):
            members = np.flatnonzero((label == c) & (own_fold == f))
            part = share * len(members) / int((label == c).sum())
            count = len(members)
            if n > _MOST_GROUPS:
                count = min(count, max(_LEAST_GROUPS, round(part)))
            place[members] = len(stratum) + np.arange(len(members)) % count
            stratum += [int(c)] * count
    return Cohort(target, owner, fold, place[owner], np.array(stratum, np.int64))


def without_each(cohort: Cohort, measure: Callable[[Floats], Floats]) -> Floats:
    """A measure of weightings, with each group left out; in parts that fit into memory."""
    weight = cohort.without_each()
    step = max(1, 5_000_000 // weight.shape[1])
    parts = [measure(weight[i : i + step]) for i in range(0, len(weight), step)]
    return np.concatenate(parts)


def effective(owner: Ints) -> float:
    """Patients that images stand for, where those of one patient are as good as one.

    Source: Kish, Survey Sampling (1965), 11.7.
    """
    count = np.unique(owner, return_counts=True)[1].astype(np.float64)
    return float(count.sum() ** 2 / (count**2).sum())
