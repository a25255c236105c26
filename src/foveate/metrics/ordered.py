"""Scores of an order, with intervals over patients: of grades, or of times until an event."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial

import numpy as np

from foveate.metrics import intervals, weighted
from foveate.metrics.jackknife import Cohort, measure_leaving_out
from foveate.metrics.scores import MeasuredScore, make_cohort, score_losses
from foveate.metrics.types import Floats, Ints, Score

_DECIDED = "Agresti-Coull, jackknife over patients"
_DECISIONS: dict[str, tuple[Callable[[Floats], Floats], float]] = {
    "kappa_quadratic": (partial(weighted.kappa, power=2), -1.0),
    "within_one": (weighted.within_one, 0.0),
    "accuracy": (weighted.accuracy, 0.0),
}


def score_concordance(
    risk: Floats, time: Floats, event: Ints, cohort: Cohort, importance: Floats | None = None
) -> MeasuredScore | None:
    """Compute a concordance and its interval; None where no two images are comparable.

    With equal weights it is Harrell's.

    Args:
        risk: score of each image, larger where the event is expected earlier, ``(n,)``.
        time: time of the event, or until which none was seen, ``(n,)``.
        event: 1 where the event was seen, else 0, ``(n,)``.
        cohort: patients and folds of the images; pairs of one fold are compared.
        importance: weight of the pairs in which an image has the earlier event, ``(n,)``; None for
            equal weights.
    """
    event = event if importance is None else event * (importance > 0)
    measure = partial(
        weighted.concordance, risk, time, event, fold=cohort.fold, importance=importance
    )
    value = float(measure(weight=np.ones((1, len(risk))))[0])
    if np.isnan(value):
        return None
    without = measure_leaving_out(cohort, lambda weight: measure(weight=weight))
    influence = cohort.compute_influence(value, without)
    variance = intervals.concordance_variance(cohort, time, event)
    lo, hi = intervals.invert_score_test(value, variance, influence, cohort.has_singleton_class)
    method = "score interval, jackknife over patients"
    return MeasuredScore(Score(value, lo, hi, method, len(risk)), influence)


def score_grades(
    prob: Floats,
    target: Ints,
    predicted: Ints,
    patients: Sequence[str],
    folds: Sequence[Hashable],
) -> dict[str, MeasuredScore]:
    """Compute the scores of ordered grades; kappa and order are left out with one grade only.

    Args:
        prob: probabilities of the grades, from the lowest to the highest, ``(n, k)``.
        target: true grade of each image, ``(n,)``.
        predicted: predicted grade of each image, ``(n,)``.
        patients: name of each image's patient, ``(n,)``.
        folds: name of the model that answered for each image, ``(n,)``.
    """
    prob, cohort = make_cohort(prob, target, patients, folds)
    n, k = prob.shape
    scores = {}
    for name, (measure, low) in _DECISIONS.items():
        if name != "kappa_quadratic" or len(np.unique(target)) > 1:
            value, bounds, influence = intervals.measure_decisions(
                cohort, predicted, k, measure, low
            )
            scores[name] = MeasuredScore(Score(value, *bounds, _DECIDED, n), influence)
    grade, expected = target.astype(np.float64), prob @ np.arange(k)
    order = score_concordance(expected, -grade, np.ones(n, np.int64), cohort)
    if order is not None:
        scores["concordance"] = order
    near, (lo, hi), influence = intervals.measure_decisions(
        cohort, predicted, k, weighted.closeness, 0.0
    )
    most = k - 1.0
    score = Score(most * (1 - near), most * (1 - hi), most * (1 - lo), _DECIDED, n)
    scores["mae"] = MeasuredScore(score, -most * influence)
    return scores | {"log_loss": score_losses(prob, cohort)["log_loss"]}
