"""Scores of several labels of an image, each present, absent or not known."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from foveate.metrics import intervals, weighted
from foveate.metrics.jackknife import Cohort, choose_images, group_patients
from foveate.metrics.scores import MeasuredScore, score_ranks
from foveate.metrics.types import Floats, Ints, Score, number_names
from foveate.metrics.values import Curve, auroc, find_ranked_classes

_CURVES = {
    "auroc": (weighted.auroc, intervals.auroc_variance),
    "auprc": (weighted.average_precision, intervals.precision_variance),
}
"""The area of each mean score, and the model of its variance."""


def score_labels(
    prob: Floats, truth: Floats, patients: Sequence[str], folds: Sequence[Hashable]
) -> dict[str, MeasuredScore]:
    """Compute the mean AUROC and AUPRC over labels, Brier score and logarithmic loss.

    Values that are not known count nowhere. A label that no fold has in both values is left out of
    the means; these are left out where there is no such label.

    Args:
        prob: probability of each label, ``(n, k)``.
        truth: 1 where a label is present, 0 where it is absent, NaN where that is not known,
            ``(n, k)``; of each image at least one is known.
        patients: name of each image's patient, ``(n,)``.
        folds: name of the model that answered for each image, ``(n,)``.
    """
    n = len(prob)
    if not n:
        return {}
    fold, patient = number_names(folds, n, "folds"), number_names(patients, n)
    cohort = group_patients(np.zeros(n, np.int64), patient, fold)
    scores = measure_areas(prob, truth, cohort)
    if cohort.n_patients < 2:
        return scores
    known = ~np.isnan(truth)
    target = np.where(known, truth, 0)
    share = np.clip(np.where(target > 0, prob, 1 - prob), np.finfo(np.float64).eps, 1)
    for name, loss, usual, high in (
        ("brier", (1 - share) ** 2, 0.25, 1.0),
        ("log_loss", -np.log(share), math.log(2), math.inf),
    ):
        mean = (loss * known).sum(1) / np.maximum(known.sum(1), 1)
        value, bounds, influence = intervals.measure_losses(cohort, mean, usual, high)
        how = "logarithmic scale, jackknife over patients"
        scores[name] = MeasuredScore(Score(value, *bounds, how, n), influence)
    return scores


def score_label(
    prob: Floats, truth: Floats, patients: Sequence[str], folds: Sequence[Hashable]
) -> dict[str, Score]:
    """Compute AUROC and AUPRC of one label; empty where no fold has both of its values.

    Args:
        prob: probability of the label, ``(n,)``.
        truth: 1 where it is present, 0 where it is absent, NaN where that is not known, ``(n,)``.
        patients: name of each image's patient, ``(n,)``.
        folds: name of the model that answered for each image, ``(n,)``.
    """
    inside = np.flatnonzero(~np.isnan(truth)).tolist()
    if not inside:
        return {}
    cohort = group_patients(
        truth[inside].astype(np.int64),
        number_names([patients[i] for i in inside], len(inside)),
        number_names([folds[i] for i in inside], len(inside), "folds"),
    )
    both = np.stack([1 - prob[inside], prob[inside]], 1)
    return {name: measured.score for name, measured in score_ranks(both, cohort).items()}


def average_auroc(prob: Floats, truth: Floats) -> float | None:
    """Compute the mean AUROC of the labels with both values; None where there is no such label.

    Args:
        prob: probability of each label, ``(n, k)``.
        truth: 1, 0, or NaN where it is not known, ``(n, k)``.
    """
    areas = []
    for p, t in zip(prob.T, truth.T, strict=True):
        known = ~np.isnan(t)
        if known.any():
            both = np.stack([1 - p[known], p[known]], 1)
            areas.append(auroc(both, t[known].astype(np.int64)))
    there = [area for area in areas if area is not None]
    return float(np.mean(there)) if there else None


def measure_areas(
    prob: Floats,
    truth: Floats,
    cohort: Cohort,
    *,
    names: Sequence[str] = tuple(_CURVES),
    importance: Floats | None = None,
    noun: str = "labels",
) -> dict[str, MeasuredScore]:
    """Compute the means of areas over the labels that can be ranked, with intervals.

    The variance of a mean is modelled as the mean of the labels' variances, as if these were fully
    correlated, which is the worst case.

    Args:
        prob: probability of each label, ``(n, k)``.
        truth: 1, 0, or NaN where it is not known, ``(n, k)``.
        cohort: patients and folds of the images.
        names: names of the areas, ``auroc`` and ``auprc``.
        importance: weight of each image for each label, ``(n, k)``; None for equal weights.
        noun: what the labels are, for the name of the method.

    Returns:
        The means by name; empty where no fold has both values of a label.
    """
    share = np.ones_like(prob) if importance is None else importance
    n_labels = truth.shape[1]
    labels = [_choose_known(truth[:, c], prob[:, c], share[:, c], cohort) for c in range(n_labels)]
    ranked = [label for label in labels if label is not None]
    if not ranked:
        return {}
    single = any(label.cohort.has_singleton_class for label in ranked)
    how = f"mean of {len(ranked)} {noun}, " if n_labels > 1 else ""
    how += "score interval, jackknife over patients"
    scores = {}
    for name in names:
        curve, model = _CURVES[name]
        areas = partial(_compute_areas, ranked, curve)
        full = areas(np.ones((1, len(prob))))
        value = float(full.mean())
        without = np.concatenate([areas(w) for w in _split_rows(cohort.leave_one_out_weights())])
        # A label without both values, once a patient is left out, keeps its area.
        without = np.where(np.isnan(without), full, without).mean(1)
        influence = cohort.compute_influence(value, without)
        variances = [model(label.cohort, [1]) for label in ranked]
        bounds = intervals.invert_score_test(value, partial(_average, variances), influence, single)
        scores[name] = MeasuredScore(Score(value, *bounds, how, len(prob)), influence)
    return scores


@dataclass(frozen=True)
class _Label:
    """The images for which it is known whether they have a label.

    Attributes:
        inside: numbers of the images, ``(m,)``.
        prob: probabilities of the label, ``(m,)``.
        importance: weights of the images, ``(m,)``.
        cohort: the images, of class 1 where the label is present.
    """

    inside: Ints
    prob: Floats
    importance: Floats
    cohort: Cohort


def _choose_known(truth: Floats, prob: Floats, importance: Floats, cohort: Cohort) -> _Label | None:
    """Return the images with a known value; None where no fold has both values."""
    inside = np.flatnonzero(~np.isnan(truth))
    if not len(inside):
        return None
    part = choose_images(cohort, inside, truth[inside].astype(np.int64))
    ranked = find_ranked_classes(part.target, part.fold, 2)
    return _Label(inside, prob[inside], importance[inside], part) if ranked else None


def _compute_areas(labels: Sequence[_Label], curve: Curve, weight: Floats) -> Floats:
    """Compute the area of each label for weightings of all images ``(r, n)``: ``(r, labels)``."""
    columns = [
        curve(
            label.prob,
            label.cohort.target.astype(np.float64),
            weight[:, label.inside] * label.importance,
            label.cohort.fold,
        )
        for label in labels
    ]
    return np.stack(columns, 1)


def _split_rows(weight: Floats) -> list[Floats]:
    """Divide weightings ``(r, n)`` into blocks that fit into memory."""
    step = max(1, 5_000_000 // weight.shape[1])
    return [weight[i : i + step] for i in range(0, len(weight), step)]


def _average(variances: Sequence[intervals.Variance], value: float) -> float:
    return float(np.mean([variance(value) for variance in variances]))
