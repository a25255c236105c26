"""All scores of one run with intervals over patients."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from foveate.metrics import intervals, weighted
from foveate.metrics.jackknife import Cohort, gather, without_each
from foveate.metrics.types import Floats, Ints, Score, checked, numbered
from foveate.metrics.values import (
    N_BINS,
    Curve,
    bin_of,
    confidence_and_hit,
    ranked,
    ranked_classes,
    squared_error,
    surprise,
)

KAPPAS = {"kappa": 0, "kappa_linear": 1, "kappa_quadratic": 2}
_NO_SPREAD = "; a class has one patient only, whose spread is assumed"
_FOLDS = "; of pairs within a fold, {} of {} folds"


@dataclass(frozen=True)
class Measured:
    """A score, and what each group of patients adds to it, ``(groups,)``; empty if not known."""

    score: Score
    influence: Floats


def score_all(
    prob: Floats,
    target: Ints,
    patients: Sequence[str],
    *,
    predicted: Ints | None = None,
    folds: Sequence[Hashable] | None = None,
    ordinal: bool = False,
) -> dict[str, Score]:
    """All metrics with 95 % intervals over patients (all of a patient's images together).

    ``auroc`` and ``auprc`` are of the second class, or the mean of each class against the rest;
    where no fold holds two classes they are left out, and with one class so are balanced accuracy
    and kappa.

    Args:
        prob: ``(n, k)``.
        target: ``(n,)``.
        patients: of each image.
        predicted: classes, where they are not the most probable ones (a threshold was chosen).
        folds: of each image, the model that answered. Ranks are compared within a fold only, as
            probabilities of two models have two scales; decisions and losses are pooled.
        ordinal: the classes are ordered, so weighted kappas make sense.

    Raises:
        ValueError: the inputs are no probabilities, targets and patients.
    """
    prob, cohort = prepare(prob, target, patients, folds)
    predicted = prob.argmax(1) if predicted is None else np.asarray(predicted)
    found = by_rank(prob, cohort) | by_decision(predicted, cohort, prob.shape[1], ordinal)
    found |= by_loss(prob, cohort)
    return {name: measured.score for name, measured in found.items()}


def prepare(
    prob: Floats, target: Ints, patients: Sequence[str], folds: Sequence[Hashable] | None
) -> tuple[Floats, Cohort]:
    """Checked probabilities, and who the images are of.

    Raises:
        ValueError: the inputs are no probabilities, targets and patients.
    """
    prob, target = checked(prob, target)
    n = len(target)
    fold = numbered(folds, n, "folds") if folds is not None else np.zeros(n, np.int64)
    return prob, gather(target, numbered(patients, n), fold)


def by_rank(prob: Floats, cohort: Cohort) -> dict[str, Measured]:
    """``auroc`` and ``auprc``; neither where no fold holds two classes."""
    classes = ranked_classes(cohort.target, cohort.fold, prob.shape[1])
    if not classes:
        return {}
    areas: tuple[tuple[str, Curve, intervals.Variance, str], ...] = (
        ("auroc", weighted.auroc, intervals.auroc_variance(cohort, classes),
         "score interval, jackknife over patients"),
        ("auprc", weighted.average_precision, intervals.precision_variance(cohort, classes),
         "score interval, jackknife over patients"),
    )  # fmt: skip
    together = {f: set(cohort.target[cohort.fold == f]) for f in np.unique(cohort.fold)}
    used = [f for f, labels in together.items() if len(labels) > 1]
    n = int(np.isin(cohort.fold, used).sum())
    note = _FOLDS.format(len(used), len(together)) if len(together) > 1 else ""
    note += _NO_SPREAD if cohort.lonely else ""
    found = {}
    for name, curve, variance, method in areas:

        def measure(weight: Floats, curve: Curve = curve) -> Floats:
            return ranked(curve, prob, cohort.target, weight, cohort.fold, classes)

        value = float(measure(np.ones((1, len(prob))))[0])
        influence = cohort.influence(value, without_each(cohort, measure))
        lo, hi = intervals.by_test(value, variance, influence, cohort.lonely)
        found[name] = Measured(Score(value, lo, hi, method + note, n), influence)
    return found


def by_decision(predicted: Ints, cohort: Cohort, k: int, ordinal: bool) -> dict[str, Measured]:
    """Accuracy, and with two classes or more balanced accuracy and kappas."""
    measures = {"accuracy": (weighted.accuracy, 0.0)}
    if len(np.unique(cohort.target)) > 1:
        measures["balanced_accuracy"] = (weighted.balanced_accuracy, 0.0)
        for name, power in KAPPAS.items():
            if ordinal or power == 0:
                measures[name] = (partial(weighted.kappa, power=power), -1.0)
    found = {}
    for name, (measure, low) in measures.items():
        value, (lo, hi), influence = intervals.of_decisions(cohort, predicted, k, measure, low)
        score = Score(value, lo, hi, "Agresti-Coull, jackknife over patients",
                      len(predicted))  # fmt: skip
        found[name] = Measured(score, influence)
    return found


def by_loss(prob: Floats, cohort: Cohort) -> dict[str, Measured]:
    """Brier score, logarithmic loss and calibration error."""
    n, k = prob.shape
    target = cohort.target
    found = {}
    for name, loss, unknowing, high in (
        ("brier", squared_error(prob, target), 0.25 if k == 2 else 1 - 1 / k, min(k - 1.0, 2.0)),
        ("log_loss", surprise(prob, target), math.log(k), math.inf),
    ):
        value, (lo, hi), influence = intervals.of_losses(cohort, loss, unknowing, high)
        score = Score(value, lo, hi, "logarithmic scale, jackknife over patients", n)
        found[name] = Measured(score, influence)
    confidence, hit = confidence_and_hit(prob, target)
    number = bin_of(confidence, N_BINS)
    value, (lo, hi) = intervals.of_calibration(cohort, confidence, hit, number)
    score = Score(value, lo, hi, f"{N_BINS} equal bins, their noise taken off", n)
    return found | {"ece": Measured(score, np.zeros(0))}
