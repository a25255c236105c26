"""All scores of one run with intervals over patients."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from foveate.metrics import intervals, weighted
from foveate.metrics.jackknife import (
    Cohort,
    choose_images,
    group_patients,
    measure_leaving_out,
)
from foveate.metrics.types import Floats, Ints, Score, check_inputs, number_names
from foveate.metrics.values import (
    N_BINS,
    Curve,
    assign_bins,
    brier_loss,
    confidence_and_outcome,
    find_ranked_classes,
    log_loss,
    mean_area,
)

KAPPAS = {"kappa": 0, "kappa_linear": 1, "kappa_quadratic": 2}
_NO_SPREAD = "; a class has one patient only, whose spread is assumed"
_FOLDS = "; of pairs within a fold, {} of {} folds"


@dataclass(frozen=True)
class MeasuredScore:
    """A score with the influence of each group of patients on it.

    Attributes:
        score: the score.
        influence: influence of each group, ``(groups,)``; empty where it is not known.
    """

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
    """Compute all scores with 95 % intervals over patients; a patient's images stay together.

    ``auroc`` and ``auprc`` are those of the second of two classes, or the mean over all classes of
    each against the rest. They are left out where no fold contains two classes. Balanced accuracy
    and kappa are left out where only one class occurs. ``sensitivity`` and ``specificity`` are
    those of the second of two classes.

    Args:
        prob: probabilities, ``(n, k)``.
        target: class of each image, ``(n,)``.
        patients: name of each image's patient, ``(n,)``.
        predicted: predicted class of each image, ``(n,)``, where it is not the most probable one
            (a threshold was chosen).
        folds: name of the model that answered for each image, ``(n,)``. Ranks are compared within
            a fold only, as probabilities of two models have two scales; decisions and losses are
            pooled. None means one model for all.
        ordinal: whether the classes are ordered, so that weighted kappas make sense.

    Returns:
        The scores by name.

    Raises:
        ArrayError: the inputs are no probabilities, targets and patients.
    """
    prob, cohort = make_cohort(prob, target, patients, folds)
    predicted = prob.argmax(1) if predicted is None else np.asarray(predicted)
    scores = score_ranks(prob, cohort)
    scores |= score_decisions(predicted, cohort, prob.shape[1], ordinal)
    scores |= score_losses(prob, cohort)
    return {name: measured.score for name, measured in scores.items()}


def make_cohort(
    prob: Floats, target: Ints, patients: Sequence[str], folds: Sequence[Hashable] | None
) -> tuple[Floats, Cohort]:
    """Check the inputs of a metric, and group the images by patient.

    Args:
        prob: probabilities, ``(n, k)``.
        target: class of each image, ``(n,)``.
        patients: name of each image's patient, ``(n,)``.
        folds: name of the model that answered for each image, ``(n,)``; None for one model.

    Returns:
        The probabilities as float64 ``(n, k)``, and the cohort.

    Raises:
        ArrayError: the inputs are no probabilities, targets and patients.
    """
    prob, target = check_inputs(prob, target)
    n = len(target)
    fold = number_names(folds, n, "folds") if folds is not None else np.zeros(n, np.int64)
    return prob, group_patients(target, number_names(patients, n), fold)


def score_ranks(prob: Floats, cohort: Cohort) -> dict[str, MeasuredScore]:
    """Compute ``auroc`` and ``auprc`` of probabilities ``(n, k)``, if a fold has two classes.

    Args:
        prob: probabilities ``(n, k)``.
        cohort: targets, folds and patients of the n images.
    """
    classes = find_ranked_classes(cohort.target, cohort.fold, prob.shape[1])
    if not classes:
        return {}
    areas: tuple[tuple[str, Curve, intervals.Variance], ...] = (
        ("auroc", weighted.auroc, intervals.auroc_variance(cohort, classes)),
        ("auprc", weighted.average_precision, intervals.precision_variance(cohort, classes)),
    )
    classes_of_fold = {f: set(cohort.target[cohort.fold == f]) for f in np.unique(cohort.fold)}
    used = [f for f, labels in classes_of_fold.items() if len(labels) > 1]
    n = int(np.isin(cohort.fold, used).sum())
    note = _FOLDS.format(len(used), len(classes_of_fold)) if len(classes_of_fold) > 1 else ""
    note += _NO_SPREAD if cohort.has_singleton_class else ""
    method = "score interval, jackknife over patients"
    scores = {}
    for name, curve, variance in areas:

        def measure(weight: Floats, curve: Curve = curve) -> Floats:
            return mean_area(curve, prob, cohort.target, weight, cohort.fold, classes)

        value = float(measure(np.ones((1, len(prob))))[0])
        influence = cohort.compute_influence(value, measure_leaving_out(cohort, measure))
        lo, hi = intervals.invert_score_test(value, variance, influence, cohort.has_singleton_class)
        scores[name] = MeasuredScore(Score(value, lo, hi, method + note, n), influence)
    return scores


def score_decisions(
    predicted: Ints, cohort: Cohort, k: int, ordinal: bool
) -> dict[str, MeasuredScore]:
    """Compute accuracy, and balanced accuracy and kappas where two classes or more occur.

    With two classes also sensitivity and specificity, where their class occurs.

    Args:
        predicted: predicted class of each image, ``(n,)``.
        cohort: the images.
        k: number of classes.
        ordinal: whether the classes are ordered, so that weighted kappas are computed.
    """
    measures = {"accuracy": (weighted.accuracy, 0.0)}
    if len(np.unique(cohort.target)) > 1:
        measures["balanced_accuracy"] = (weighted.balanced_accuracy, 0.0)
        for name, power in KAPPAS.items():
            if ordinal or power == 0:
                measures[name] = (partial(weighted.kappa, power=power), -1.0)
    scores = {
        name: _score_decision(predicted, cohort, k, measure, low)
        for name, (measure, low) in measures.items()
    }
    return scores | (_score_rates(predicted, cohort) if k == 2 else {})


def _score_rates(predicted: Ints, cohort: Cohort) -> dict[str, MeasuredScore]:
    """Compute sensitivity and specificity of two classes, of patients who have such images."""
    scores = {}
    for name, c in (("sensitivity", 1), ("specificity", 0)):
        inside = np.flatnonzero(cohort.target == c)
        if len(inside):
            part = choose_images(cohort, inside, cohort.target[inside])
            scores[name] = _score_decision(predicted[inside], part, 2, weighted.accuracy, 0.0)
    return scores


def _score_decision(
    predicted: Ints, cohort: Cohort, k: int, measure: Callable[[Floats], Floats], low: float
) -> MeasuredScore:
    value, bounds, influence = intervals.measure_decisions(cohort, predicted, k, measure, low)
    score = Score(value, *bounds, "Agresti-Coull, jackknife over patients", len(predicted))
    return MeasuredScore(score, influence)


def score_losses(prob: Floats, cohort: Cohort) -> dict[str, MeasuredScore]:
    """Compute Brier score, logarithmic loss and calibration error of probabilities ``(n, k)``.

    Args:
        prob: probabilities ``(n, k)``.
        cohort: targets, folds and patients of the n images.
    """
    n, k = prob.shape
    target = cohort.target
    scores = {}
    for name, loss, uniform_loss, high in (
        ("brier", brier_loss(prob, target), 0.25 if k == 2 else 1 - 1 / k, min(k - 1.0, 2.0)),
        ("log_loss", log_loss(prob, target), math.log(k), math.inf),
    ):
        value, (lo, hi), influence = intervals.measure_losses(cohort, loss, uniform_loss, high)
        score = Score(value, lo, hi, "logarithmic scale, jackknife over patients", n)
        scores[name] = MeasuredScore(score, influence)
    confidence, correct = confidence_and_outcome(prob, target)
    bin_index = assign_bins(confidence)
    value, (lo, hi) = intervals.measure_calibration(cohort, confidence, correct, bin_index)
    score = Score(value, lo, hi, f"{N_BINS} equal bins, their noise taken off", n)
    return scores | {"ece": MeasuredScore(score, np.zeros(0))}
