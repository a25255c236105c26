"""All scores of one run with intervals over patients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import expit, logit, ndtri

from foveate.metrics import _bounds as bounds
from foveate.metrics import _weighted as weighted
from foveate.metrics._delong import auroc_covariance
from foveate.metrics._resample import patient_weights
from foveate.metrics._values import N_BINS, confidence_and_hit, ranked, squared_error, surprise
from foveate.metrics.base import ALPHA, Floats, Ints, Score, checked, numbered

_MOST_CELLS = 5_000_000
_KAPPAS = {"kappa": 0, "kappa_linear": 1, "kappa_quadratic": 2}
_BY_RANK = ("auroc", "auprc")
_BY_CLASS = (*_BY_RANK, "balanced_accuracy", *_KAPPAS)
_SMALL = "a class has one patient only: no interval can be given"
_PERFECT = "no error seen: bound by Clopper-Pearson over patients"


def score_all(
    prob: Floats,
    target: Ints,
    patients: Sequence[str],
    *,
    predicted: Ints | None = None,
    ordinal: bool = False,
    seed: int = 0,
    n_boot: int = 1000,
) -> dict[str, Score]:
    """All metrics with 95 % intervals from resampled patients (all of a patient's images together).

    ``auroc`` and ``auprc`` are of the second class, or the mean of each class against the rest;
    with one class only they are left out, and so are balanced accuracy and kappa.
    ``auroc_delong`` is the same AUROC with DeLong's interval on the logit scale.

    Args:
        prob: ``(n, k)``.
        target: ``(n,)``.
        patients: of each image.
        predicted: classes, where they are not the most probable ones (a threshold was chosen).
        ordinal: the classes are ordered, so weighted kappas make sense.
        seed: of the resampling.
        n_boot: resamples.

    Raises:
        ValueError: the inputs are no probabilities, targets and patients.
    """
    prob, target = checked(prob, target)
    owner = numbered(patients, len(target))
    predicted = prob.argmax(1) if predicted is None else np.asarray(predicted)
    one = _values(prob, predicted, target, np.ones((1, len(target))), ordinal)
    drawn = patient_weights(target, owner, n_boot, seed)
    step = max(1, _MOST_CELLS // len(target))
    parts = [
        _values(prob, predicted, target, drawn[i : i + step], ordinal)
        for i in range(0, n_boot, step)
    ]
    limits = _limits(target, owner, prob.shape[1])
    scores = {}
    for name, value in one.items():
        resampled = np.concatenate([part[name] for part in parts])
        scores[name] = _score(name, float(value[0]), resampled, limits, len(target))
    delong = delong_auroc(prob[:, 1], target, patients) if prob.shape[1] == 2 else None
    return scores if delong is None else scores | {"auroc_delong": delong}


def delong_auroc(prob_pos: Floats, target: Ints, patients: Sequence[str]) -> Score | None:
    """AUROC of two classes with DeLong's variance on the logit scale, by patients.

    Several images of a patient are no independent ones: Obuchowski's variance sees to that.

    Returns:
        `None` when only one class occurs.

    Source: DeLong et al. (1988) and Obuchowski (1997), see `_delong`; the logit scale after
    Pepe, The Statistical Evaluation of Medical Tests (2003), 5.2, so that limits stay in 0 to 1.
    """
    owner = numbered(patients, len(target))
    positive = (np.asarray(target) == 1).astype(np.int64)
    if len(np.unique(positive)) < 2:
        return None
    score = np.asarray(prob_pos, np.float64)
    value = float(weighted.auroc(score, positive.astype(float), np.ones((1, len(score))))[0])
    if min(bounds.patients_per_class(positive, owner)) < 2:
        return Score(value, 0.0, 1.0, _SMALL, len(score))
    if value in (0.0, 1.0):
        lo, hi = _at_the_end(value, bounds.all_right(bounds.disjoint_pairs(positive, owner)))
        return Score(value, lo, hi, _PERFECT, len(score))
    _, covariance = auroc_covariance(score[None], positive, owner)
    spread = ndtri(1 - ALPHA / 2) * math.sqrt(covariance[0, 0]) / (value * (1 - value))
    lo, hi = expit(logit(value) - spread), expit(logit(value) + spread)
    return Score(value, float(lo), float(hi), "DeLong by patients, logit scale", len(score))


def _values(
    prob: Floats, predicted: Ints, target: Ints, weight: Floats, ordinal: bool
) -> dict[str, Floats]:
    """Every metric of every weighting, ``(r,)`` each."""
    confusion = weighted.confusions(predicted, target, weight, prob.shape[1])
    confidence, hit = confidence_and_hit(prob, target)
    values = {}
    if len(np.unique(target)) > 1:
        values["auroc"] = ranked(weighted.auroc, prob, target, weight)
        values["auprc"] = ranked(weighted.average_precision, prob, target, weight)
        values["balanced_accuracy"] = weighted.balanced_accuracy(confusion)
        for name, power in _KAPPAS.items():
            if ordinal or power == 0:
                values[name] = weighted.kappa(confusion, power)
    values["accuracy"] = weighted.accuracy(confusion)
    values["brier"] = weighted.mean(squared_error(prob, target), weight)
    values["log_loss"] = weighted.mean(surprise(prob, target), weight)
    values["ece"] = weighted.calibration_error(confidence, hit, weight, N_BINS)
    return values


def _limits(target: Ints, owner: Ints, k: int) -> dict[str, float]:
    """Lower bound of each metric that was perfect; none for those that a class is too small for."""
    per_class = bounds.patients_per_class(target, owner)
    limits = {"accuracy": bounds.all_right(int(owner.max()) + 1)}
    if len(per_class) < 2 or min(per_class) < 2:
        return limits
    limits["auroc"] = bounds.all_right(bounds.disjoint_pairs(target, owner))
    limits["balanced_accuracy"] = bounds.all_right(min(per_class))
    n_pos = min(int((target == c).sum()) for c in np.unique(target))
    limits["auprc"] = bounds.precision_at(limits["auroc"], n_pos, len(target) - n_pos)
    for name, power in _KAPPAS.items():
        limits[name] = bounds.kappa_at(limits["accuracy"], target, k, power)
    return limits


def _score(name: str, value: float, resampled: Floats, limits: dict[str, float], n: int) -> Score:
    if name in _BY_CLASS and name not in limits:
        return Score(value, -1.0 if name in _KAPPAS else 0.0, 1.0, _SMALL, n)
    ends = (1.0,) if name in _KAPPAS else (0.0, 1.0)
    if name in limits and value in ends and np.ptp(resampled) == 0:
        lo, hi = _at_the_end(value, limits[name])
        return Score(value, lo, hi, _PERFECT, n)
    lo, hi = (float(q) for q in np.quantile(resampled, [ALPHA / 2, 1 - ALPHA / 2]))
    method = f"percentile of {len(resampled)} resamples of patients, stratified by class"
    if name == "ece":
        # Noise in a bin adds to the gap, never takes away, and a resample adds once more: its
        # distribution is turned about the value, which takes that bias off.
        lo, hi = max(0.0, min(2 * value - hi, value)), min(1.0, max(2 * value - lo, value))
        method = method.replace("percentile", f"{N_BINS} equal bins, reversed percentile")
    return Score(value, lo, hi, method, n)


def _at_the_end(value: float, limit: float) -> tuple[float, float]:
    return (limit, 1.0) if value == 1 else (0.0, 1 - limit)
