"""The influence of each patient on a score, by the jackknife: leaving out one patient at a time.

All images of a patient are left out together, so that their correlation counts. The sum of the
squared influences is the variance of the score: for an AUROC of one image per patient exactly that
of DeLong, DeLong and Clarke-Pearson, Biometrics 44 (1988), 837.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 11.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from foveate.metrics.types import Floats, Ints

_MAX_GROUPS = 400
"""Patients of a larger cohort are left out several at a time, to bound the time."""

_MIN_GROUPS = 30
"""Smallest number of groups of one class and fold, where there are as many patients."""


@dataclass(frozen=True)
class Cohort:
    """The classes, patients and folds of images, and the groups of patients of the jackknife.

    Attributes:
        target: class of each image, ``(n,)``.
        patient: number of each image's patient, ``(n,)``.
        fold: number of the model that scored each image, ``(n,)``.
        group: number of the group that each image is left out with, ``(n,)``: a patient, or
            several patients where there are very many.
        stratum: most frequent class of each group's images, ``(groups,)``.
    """

    target: Ints
    patient: Ints
    fold: Ints
    group: Ints
    stratum: Ints

    @property
    def n_patients(self) -> int:
        """Number of patients of all images."""
        return int(self.patient.max()) + 1

    @property
    def n_groups(self) -> int:
        """Number of groups that are left out one at a time."""
        return len(self.stratum)

    @property
    def has_singleton_class(self) -> bool:
        """Whether a class has one group only, so that its spread cannot be observed."""
        return bool((np.unique(self.stratum, return_counts=True)[1] < 2).any())

    def leave_one_out_weights(self) -> Floats:
        """Return weights of the images ``(groups, n)``: row g is 0 for group g, else 1."""
        weights: Floats = (self.group[None] != np.arange(self.n_groups)[:, None]).astype(np.float64)
        return weights

    def sum_by_group(self, value: Floats) -> Floats:
        """Sum values ``(n, …)`` over the images of each group: ``(groups, …)``."""
        out = np.zeros((self.n_groups, *value.shape[1:]))
        np.add.at(out, self.group, value)
        return out

    def compute_influence(self, full: float, without: Floats) -> Floats:
        """Compute the influence of each group on a score that ranks classes against each other.

        The number of patients of each class counts as fixed: influences are centred within a
        class, as differences between classes are no noise.

        Args:
            full: score of all images.
            without: score without each group, ``(groups,)``; NaN where nothing is left to score.

        Returns:
            The influences ``(groups,)``.
        """
        influence = np.where(np.isnan(without), 0.0, full - np.nan_to_num(without))
        for label in np.unique(self.stratum):
            inside = self.stratum == label
            m = int(inside.sum())
            influence[inside] = (influence[inside] - influence[inside].mean()) * np.sqrt(
                (m - 1) / m
            )
        return np.asarray(influence)


def group_patients(target: Ints, patient: Ints, fold: Ints) -> Cohort:
    """Divide the patients into groups that are left out together, of one class and one fold.

    Args:
        target: class of each image, ``(n,)``.
        patient: number of each image's patient, ``(n,)``.
        fold: number of the model that scored each image, ``(n,)``.
    """
    n = int(patient.max()) + 1
    images = np.zeros((n, int(target.max()) + 1))
    np.add.at(images, (patient, target), 1)
    label, patient_fold, group = images.argmax(1), np.zeros(n, np.int64), np.zeros(n, np.int64)
    patient_fold[patient] = fold
    stratum: list[int] = []
    for c in np.unique(label):
        for f in np.unique(patient_fold[label == c]):
            members = np.flatnonzero((label == c) & (patient_fold == f))
            count = len(members)
            if n > _MAX_GROUPS:
                count = min(count, max(_MIN_GROUPS, round(_MAX_GROUPS * count / n)))
            group[members] = len(stratum) + np.arange(len(members)) % count
            stratum += [int(c)] * count
    return Cohort(target, patient, fold, group[patient], np.array(stratum, np.int64))


def choose_images(cohort: Cohort, inside: Ints, target: Ints) -> Cohort:
    """Return the cohort of some of the images, with the classes that are stated.

    Args:
        cohort: the images.
        inside: numbers of the images that are chosen, ``(m,)``.
        target: class of each chosen image, ``(m,)``.
    """
    patient = np.unique(cohort.patient[inside], return_inverse=True)[1].astype(np.int64)
    return group_patients(target, patient, cohort.fold[inside])


def measure_leaving_out(cohort: Cohort, measure: Callable[[Floats], Floats]) -> Floats:
    """Compute a measure with each group left out, in blocks that fit into memory.

    Args:
        cohort: the images and their groups.
        measure: function from weights of the images ``(r, n)`` to values ``(r,)``.

    Returns:
        The values ``(groups,)``.
    """
    weight = cohort.leave_one_out_weights()
    step = max(1, 5_000_000 // weight.shape[1])
    parts = [measure(weight[i : i + step]) for i in range(0, len(weight), step)]
    return np.concatenate(parts)


def count_effective_patients(patient: Ints) -> float:
    """Compute the effective number of patients where all images of a patient count as one.

    Args:
        patient: number of each image's patient, ``(n,)``.

    Source: Kish, Survey Sampling (1965), 11.7.
    """
    count = np.unique(patient, return_counts=True)[1].astype(np.float64)
    return float(count.sum() ** 2 / (count**2).sum())
