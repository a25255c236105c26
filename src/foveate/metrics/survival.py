"""Estimates from times until an event, some of which are censored."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc

from foveate.metrics.intervals import measure_losses
from foveate.metrics.jackknife import group_patients
from foveate.metrics.multilabel import measure_areas
from foveate.metrics.ordered import score_concordance
from foveate.metrics.scores import MeasuredScore
from foveate.metrics.types import Floats, Ints, Score, number_names
from foveate.metrics.weighted import concordance

_MIN_FOLLOWED = 1e-9
"""Smallest share of images still followed that weights are computed with."""


def kaplan_meier(time: Floats, event: Ints) -> tuple[Floats, Floats]:
    """Estimate the share without an event after each time, as steps from 1 at time 0.

    Args:
        time: time of the event, or until which none was seen, ``(n,)``.
        event: 1 where the event was seen, else 0, ``(n,)``.

    Returns:
        Times, rising from 0, ``(steps,)``, and the share from each of them on, ``(steps,)``.

    Source: Kaplan and Meier, JASA 53 (1958), 457.
    """
    times = np.unique(time)
    at_risk = len(time) - np.searchsorted(np.sort(time), times)
    events = np.array([event[time == t].sum() for t in times], np.float64)
    share = np.cumprod(1 - events / at_risk)
    return np.r_[0.0, times], np.r_[1.0, share]


def read_step(steps: tuple[Floats, Floats], at: Floats, *, before: bool = False) -> Floats:
    """Return the value of a step function from `kaplan_meier` at some times, ``(m,)``.

    Args:
        steps: times and values of the steps.
        at: the times, ``(m,)``.
        before: whether the value just before a time is meant.
    """
    times, values = steps
    index = np.searchsorted(times, at, side="left" if before else "right") - 1
    return np.asarray(values[np.maximum(index, 0)])


def brier_losses(survival: Floats, horizons: Floats, time: Floats, event: Ints) -> Floats:
    """Compute the squared error of probabilities of survival, a mean over horizons, ``(n,)``.

    Images that were censored before a horizon are represented by those that were not, each
    weighted by the inverse of the probability of not being censored.

    Args:
        survival: probability of no event until each horizon, ``(n, horizons)``.
        horizons: the horizons, ``(horizons,)``.
        time: time of the event, or until which none was seen, ``(n,)``.
        event: 1 where the event was seen, else 0, ``(n,)``.

    Source: Graf, Schmoor, Sauerbrei and Schumacher, Statistics in Medicine 18 (1999), 2529.
    """
    censoring = kaplan_meier(time, 1 - event)
    had_event = (time[:, None] <= horizons) & (event[:, None] > 0)
    goes_on = time[:, None] > horizons
    until_event = np.maximum(read_step(censoring, time, before=True), _MIN_FOLLOWED)[:, None]
    until_horizon = np.maximum(read_step(censoring, horizons), _MIN_FOLLOWED)
    loss = had_event * survival**2 / until_event + goes_on * (1 - survival) ** 2 / until_horizon
    return np.asarray(loss.mean(1))


def log_rank_p(time: Floats, event: Ints, group: NDArray[np.bool_]) -> float | None:
    """Compute the p value of the log-rank test that two groups survive alike.

    Args:
        time: time of the event, or until which none was seen, ``(n,)``.
        event: 1 where the event was seen, else 0, ``(n,)``.
        group: whether an image is of the first group, ``(n,)``.

    Returns:
        The two-sided p value; None where a group or all events are missing.

    Source: Mantel, Cancer Chemotherapy Reports 50 (1966), 163.
    """
    gap = variance = 0.0
    for t in np.unique(time[event > 0]):
        at_risk, now = time >= t, (time == t) & (event > 0)
        n, d, share = at_risk.sum(), now.sum(), group[at_risk].mean()
        gap += (now & group).sum() - d * share
        if n > 1:
            variance += d * share * (1 - share) * (n - d) / (n - 1)
    return float(chdtrc(1, gap**2 / variance)) if variance > 0 else None


def score_survival(
    stated: Floats,
    horizons: Floats,
    time: Floats,
    event: Ints,
    patients: Sequence[str],
    folds: Sequence[Hashable],
) -> dict[str, MeasuredScore]:
    """Compute both c-indices, the AUROC at the horizons, and the Brier score, also of a constant.

    Args:
        stated: risk, and probability of survival at each horizon, ``(n, 1 + horizons)``.
        horizons: the horizons, ``(horizons,)``.
        time: time of the event, or until which none was seen, ``(n,)``.
        event: 1 where the event was seen, else 0, ``(n,)``.
        patients: name of each image's patient, ``(n,)``.
        folds: name of the model that answered for each image, ``(n,)``.
    """
    n = len(time)
    if not n:
        return {}
    fold = number_names(folds, n, "folds")
    cohort = group_patients(event, number_names(patients, n), fold)
    orders = {
        "c_index": score_concordance(stated[:, 0], time, event, cohort),
        "c_index_uno": score_concordance(
            stated[:, 0], time, event, cohort, weigh_pairs(time, event, float(horizons[-1]))
        ),
    }
    scores = {name: order for name, order in orders.items() if order is not None}
    scores |= score_horizons(stated[:, 1:], horizons, time, event, patients, folds)
    if cohort.n_patients < 2:
        return scores
    of_all = read_step(kaplan_meier(time, event), horizons)
    for name, survival in (("brier", stated[:, 1:]), ("brier_constant", of_all[None])):
        loss = brier_losses(survival, horizons, time, event)
        value, bounds, influence = measure_losses(cohort, loss, 0.25, math.inf)
        how = "logarithmic scale, jackknife over patients"
        scores[name] = MeasuredScore(Score(value, *bounds, how, n), influence)
    return scores


def weigh_pairs(time: Floats, event: Ints, end: float) -> Floats:
    """Compute the weights of pairs by the image with the earlier event, ``(n,)``.

    A pair stands for those that were lost because one of the two was censored before. So the
    concordance does not depend on how long patients were followed. Events after the end do not
    count, because few images are left there to stand for many.

    Args:
        time: time of the event, or until which none was seen, ``(n,)``.
        event: 1 where the event was seen, else 0, ``(n,)``.
        end: last time that counts.

    Source: Uno, Cai, Pencina, D'Agostino and Wei, Statistics in Medicine 30 (2011), 1105.
    """
    followed = read_step(kaplan_meier(time, 1 - event), time, before=True)
    counts = (event > 0) & (time <= end)
    return np.asarray(counts / np.square(np.maximum(followed, _MIN_FOLLOWED)))


def score_horizons(
    survival: Floats,
    horizons: Floats,
    time: Floats,
    event: Ints,
    patients: Sequence[str],
    folds: Sequence[Hashable],
) -> dict[str, MeasuredScore]:
    """Compute ``auroc_horizons``, the mean over the horizons of the time-dependent AUROC.

    At a horizon it is the chance that of two images, one with an event until then and one without,
    the first has the lower stated survival. Images that were censored before are left out, and the
    events stand for them by weights.

    Args:
        survival: probability of no event until each horizon, ``(n, horizons)``.
        horizons: the horizons, ``(horizons,)``.
        time: time of the event, or until which none was seen, ``(n,)``.
        event: 1 where the event was seen, else 0, ``(n,)``.
        patients: name of each image's patient, ``(n,)``.
        folds: name of the model that answered for each image, ``(n,)``.

    Returns:
        The score; empty where no horizon has images with and without an event.

    Source: Uno, Cai, Tian and Wei, JASA 102 (2007), 527; Hung and Chiang, Canadian Journal of
    Statistics 38 (2010), 8.
    """
    n = len(time)
    fold = number_names(folds, n, "folds")
    cohort = group_patients(np.zeros(n, np.int64), number_names(patients, n), fold)
    had_event = (time[:, None] <= horizons) & (event[:, None] > 0)
    goes_on = time[:, None] > horizons
    followed = read_step(kaplan_meier(time, 1 - event), time, before=True)
    weight = np.where(had_event, 1 / np.maximum(followed, _MIN_FOLLOWED)[:, None], 1.0)
    truth = np.where(had_event, 1.0, np.where(goes_on, 0.0, np.nan))
    areas = measure_areas(
        1 - survival, truth, cohort, names=["auroc"], importance=weight, noun="horizons"
    )
    return {f"{name}_horizons": area for name, area in areas.items()}


def concordance_of(risk: Floats, time: Floats, event: Ints) -> float | None:
    """Compute the c-index without an interval; None where no two images are comparable.

    Args:
        risk: score of each image, larger where the event is expected earlier, ``(n,)``.
        time: time of the event, or until which none was seen, ``(n,)``.
        event: 1 where the event was seen, else 0, ``(n,)``.
    """
    one, fold = np.ones((1, len(risk))), np.zeros(len(risk), np.int64)
    value = float(concordance(risk, time, event, one, fold)[0])
    return None if math.isnan(value) else value
