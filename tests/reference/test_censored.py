"""Scores and likelihood of censored times against lifelines, scikit-learn and published numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lifelines import CoxPHFitter, KaplanMeierFitter
from lifelines.datasets import load_rossi
from lifelines.utils import concordance_index
from sklearn.metrics import roc_auc_score

from foveate.metrics import concordance_of
from foveate.metrics.survival import score_horizons, score_survival, weigh_pairs
from foveate.tasks.survival import SurvivalTask

# Recidivism of 432 prisoners in weeks: Rossi, Berk and Lenihan (1980); the coefficients as in Fox
# and Weisberg, An R Companion to Applied Regression, appendix on Cox regression.
PUBLISHED = {"fin": -0.379, "age": -0.057, "race": 0.314, "wexp": -0.150, "mar": -0.434,
             "paro": -0.085, "prio": 0.091}  # fmt: skip


def draw(
    n: int, seed: int, censoring: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw risks, times until an event, and times and events that were seen."""
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=n)
    until_event = rng.exponential(np.exp(-risk))
    censored = rng.exponential(censoring, n)
    return risk, until_event, np.minimum(until_event, censored), until_event <= censored


def scores_of(
    risk: np.ndarray, horizons: list[float], time: np.ndarray, event: np.ndarray
) -> dict[str, float]:
    """Score risks as answers whose stated survival falls with the risk."""
    survival = np.exp(-np.outer(np.exp(risk), horizons))
    stated = np.column_stack([risk, survival])
    patients = [str(i) for i in range(len(risk))]
    measured = score_survival(
        stated, np.array(horizons), time, event.astype(np.int64), patients, [""] * len(risk)
    )
    for m in measured.values():
        assert m.score.lo < m.score.value < m.score.hi
    return {name: m.score.value for name, m in measured.items()}


def test_without_censoring_both_c_indices_are_equal_and_the_auroc_is_plain() -> None:
    risk, time, _, _ = draw(80, 0)
    event = np.ones(80, bool)
    horizons = [float(np.median(time)), float(time.max()) + 1]
    scores = scores_of(risk, horizons, time, event)
    assert scores["c_index_uno"] == pytest.approx(scores["c_index"], rel=1e-12)
    expected = roc_auc_score(time <= horizons[0], risk)
    # No image is free of an event at the last horizon, which is left out.
    assert scores["auroc_horizons"] == pytest.approx(expected, rel=1e-12)


def test_unos_index_counts_pairs_by_the_chance_of_being_followed() -> None:
    """A slow version with the Kaplan-Meier estimate of lifelines."""
    risk, _, time, event = draw(60, 1)
    end = float(np.quantile(time[event], 0.8))
    followed = KaplanMeierFitter().fit(time, ~event)
    ordered = pairs = 0.0
    for i in np.flatnonzero(event & (time <= end)):
        weight = float(followed.predict(time[i] - 1e-9)) ** -2
        later = time > time[i]
        pairs += weight * later.sum()
        ordered += weight * (later & (risk < risk[i])).sum()
    scores = scores_of(risk, [end / 2, end], time, event)
    assert scores["c_index_uno"] == pytest.approx(ordered / pairs, rel=1e-9)
    assert scores["c_index_uno"] != pytest.approx(scores["c_index"], abs=1e-4)


def test_the_auroc_at_a_horizon_weighs_events_by_the_chance_of_being_followed() -> None:
    risk, _, time, event = draw(60, 2)
    horizon = float(np.median(time))
    followed = KaplanMeierFitter().fit(time, ~event)
    ordered = pairs = 0.0
    for i in np.flatnonzero(event & (time <= horizon)):
        weight = 1 / float(followed.predict(time[i] - 1e-9))
        free = time > horizon
        pairs += weight * free.sum()
        ordered += weight * (free & (risk < risk[i])).sum()
    (measured,) = score_horizons(
        np.exp(-np.exp(risk))[:, None], np.array([horizon]), time, event.astype(np.int64),
        [str(i) for i in range(60)], [""] * 60,
    ).values()  # fmt: skip
    assert measured.score.value == pytest.approx(ordered / pairs, rel=1e-9)
    assert measured.score.method == "score interval, jackknife over patients"


def test_the_length_of_the_follow_up_has_no_influence_on_unos_index_and_the_auroc() -> None:
    """Harrell's index moves where late pairs are seldom seen; the weighted scores stay."""
    risk, until_event, short, seen = draw(1500, 3, censoring=0.4)
    end = float(np.quantile(until_event, 0.6))
    horizons = [end / 2, end]
    whole = scores_of(risk, horizons, until_event, np.ones(len(risk), bool))
    part = scores_of(risk, horizons, short, seen)
    for name in ("c_index_uno", "auroc_horizons"):
        assert part[name] == pytest.approx(whole[name], abs=0.02), name
    assert abs(part["c_index"] - whole["c_index"]) > 0.02


def test_events_after_the_end_have_no_weight() -> None:
    weight = weigh_pairs(np.array([1.0, 2, 3, 4]), np.array([1, 0, 1, 1]), 3.0)
    np.testing.assert_allclose(weight, [1, 0, (3 / 2) ** 2, 0])


def test_our_hazards_have_the_coefficients_of_cox() -> None:
    """With a bin for each week, the loss of the task on linear logits is the model of Cox.

    The odds of a hazard of one per cent a week differ from its rate by one per cent, so that the
    coefficients agree to about two digits.
    """
    table = load_rossi()
    names = list(PUBLISHED)
    cox = CoxPHFitter().fit(table, "week", "arrest")
    published = np.array(list(PUBLISHED.values()))
    np.testing.assert_allclose(cox.params_[names].to_numpy(), published, atol=6e-4)

    weeks = np.unique(table["week"][table["arrest"] == 1]).astype(float).tolist()
    task = SurvivalTask(edges=weeks, horizons=[26.0, 52.0])
    features = torch.tensor(table[names].to_numpy(np.float64))
    scaled = (features - features.mean(0)) / features.std(0)
    target = torch.tensor(table[["week", "arrest"]].to_numpy(np.float64))
    coefficients = torch.zeros(len(names), dtype=torch.float64, requires_grad=True)
    baseline = torch.full((len(weeks),), -5.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [coefficients, baseline], max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = task.loss((scaled @ coefficients)[:, None] + baseline, target)
        loss.backward()
        return loss

    optimizer.step(closure)
    ours = coefficients.detach().numpy() / features.std(0).numpy()
    spread = cox.standard_errors_[names].to_numpy()
    assert np.abs(ours - published).max() < 0.02
    assert (np.abs(ours - cox.params_[names].to_numpy()) / spread).max() < 0.1

    values = task.decode((scaled @ coefficients.detach())[:, None] + baseline.detach(), {}).numpy()
    week, arrest = table["week"].to_numpy(np.float64), table["arrest"].to_numpy(np.int64)
    index = concordance_of(values[:, 0], week, arrest)
    assert index == pytest.approx(concordance_index(week, -values[:, 0], arrest), rel=1e-9)
    assert index == pytest.approx(cox.concordance_index_, abs=0.002)
    assert index == pytest.approx(0.640, abs=0.002), "published"
    survival = cox.predict_survival_function(table, times=[26.0, 52.0]).to_numpy().T
    assert np.abs(values[:, 1:] - survival).max() < 0.02
