"""Survival against published numbers, slow obvious versions and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import CensoredData, ecdf, logrank

from foveate.metrics import concordance_of, kaplan_meier, log_rank_p
from foveate.metrics.jackknife import group_patients
from foveate.metrics.ordered import score_concordance
from foveate.metrics.survival import brier_losses, read_step
from foveate.nn.continuation import continuation_losses, continuation_shares
from foveate.tasks.survival import SurvivalTask

# Remission of leukaemia in weeks; Freireich et al., Blood 21 (1963), 699, as in Cox (1972).
TREATED = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
TREATED_SEEN = [1, 1, 1, 0, 1, 0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]


def leukaemia() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    time = np.array([*TREATED, *PLACEBO], np.float64)
    event = np.array([*TREATED_SEEN, *[1] * 21])
    return time, event, np.arange(42) < 21


def draw(n: int, seed: int, grid: float = 5.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw risks, times (many of them equal) and events."""
    rng = np.random.default_rng(seed)
    risk = np.round(rng.normal(size=n), 1)
    time = np.ceil(rng.exponential(np.exp(-risk)) * grid)
    return risk, time, rng.integers(0, 2, n)


def test_kaplan_meier_of_the_leukaemia_trial() -> None:
    time, event, treated = leukaemia()
    steps = kaplan_meier(time[treated], event[treated])
    published = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
    for week, share in published.items():
        assert read_step(steps, np.array([float(week)]))[0] == pytest.approx(share, abs=5e-4)
    assert read_step(steps, np.array([6.0]), before=True)[0] == 1


def test_the_log_rank_test_of_the_leukaemia_trial() -> None:
    time, event, treated = leukaemia()
    p = log_rank_p(time, event, treated)
    assert p == pytest.approx(4.17e-5, rel=0.01), "chi square 16.79"
    groups = [CensoredData.right_censored(time[g], event[g] == 0) for g in (treated, ~treated)]
    assert p == pytest.approx(logrank(*groups).pvalue, rel=1e-6)
    assert log_rank_p(time, 0 * event, treated) is None
    assert log_rank_p(time, event, treated | True) is None


def test_kaplan_meier_equals_that_of_scipy() -> None:
    _, time, event = draw(60, 1)
    steps = kaplan_meier(time, event)
    curve = ecdf(CensoredData.right_censored(time, event == 0)).sf
    np.testing.assert_allclose(read_step(steps, curve.quantiles), curve.probabilities, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_the_c_index_counts_pairs(seed: int) -> None:
    risk, time, event = draw(40, seed)
    ordered = pairs = 0.0
    for i in range(40):
        for j in range(40):
            before = time[i] < time[j] or (time[i] == time[j] and not event[j])
            if event[i] and before and i != j:
                pairs += 1
                ordered += (risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j])
    assert concordance_of(risk, time, event) == pytest.approx(ordered / pairs, rel=1e-12)


def test_a_c_index_worked_by_hand() -> None:
    """Events at 1 and 3, censored at 2 and 4: pairs (1,2) (1,3) (1,4) (3,4)."""
    time, event = np.array([1.0, 2, 3, 4]), np.array([1, 0, 1, 0])
    assert concordance_of(np.array([4.0, 3, 2, 1]), time, event) == 1
    assert concordance_of(np.array([2.0, 1, 2, 3]), time, event) == pytest.approx(1.5 / 4)
    assert concordance_of(np.array([1.0, 2]), time[:2], np.array([0, 1])) is None


def test_only_images_of_one_fold_are_compared() -> None:
    risk, time, event = draw(60, 5)
    fold = np.arange(60) % 2
    shifted = risk + 100 * fold
    cohort = group_patients(event, np.arange(60), fold)
    both = score_concordance(shifted, time, event, cohort)
    assert both is not None
    plain = score_concordance(risk, time, event, cohort)
    assert plain is not None
    assert both.score.value == plain.score.value
    assert both.score.lo < both.score.value < both.score.hi


@pytest.mark.slow
def test_the_interval_contains_the_true_c_index() -> None:
    """Risk and log time of correlation -0.6; the concordance of a normal pair is known."""
    truth = 0.5 + math.asin(0.6) / math.pi
    inside = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        risk = rng.normal(size=40)
        time = np.exp(-0.6 * risk + 0.8 * rng.normal(size=40))
        cohort = group_patients(np.ones(40, np.int64), np.arange(40), np.zeros(40, np.int64))
        measured = score_concordance(risk, time, np.ones(40, np.int64), cohort)
        assert measured is not None
        inside += measured.score.lo <= truth <= measured.score.hi
    assert 0.91 <= inside / 200 <= 0.995, inside


def test_the_brier_score_without_censoring_is_the_squared_error() -> None:
    rng = np.random.default_rng(0)
    time, survival = rng.exponential(10, 30), rng.uniform(size=(30, 2))
    horizons = np.array([5.0, 12.0])
    plain = ((time[:, None] > horizons) - survival) ** 2
    loss = brier_losses(survival, horizons, time, np.ones(30, np.int64))
    np.testing.assert_allclose(loss, plain.mean(1), atol=1e-12)


def test_censored_images_are_represented_by_the_others() -> None:
    """Two of four are censored before the horizon; of the rest, one has an event, one goes on."""
    time, event = np.array([1.0, 2, 3, 9]), np.array([0, 0, 1, 0])
    loss = brier_losses(np.full((4, 1), 0.3), np.array([5.0]), time, event)
    np.testing.assert_allclose(loss, [0, 0, 2 * 0.09, 2 * 0.49])


# -- likelihoods -----------------------------------------------------------------------------------


def test_the_likelihood_of_survival_is_that_of_its_bins() -> None:
    task = SurvivalTask(edges=[10.0, 20.0, 40.0], horizons=[10.0, 20.0])
    logits = torch.tensor([[-1.0, 0.5, 0.2]], dtype=torch.float64)
    hazard = logits.sigmoid()[0]
    cases = {
        "event at 10": hazard[0],
        "event at 10.5": (1 - hazard[0]) * hazard[1],
        "event at 99": (1 - hazard[0]) * (1 - hazard[1]) * hazard[2],
        "no event until 4": torch.tensor(1.0),
        "no event until 5": 1 - hazard[0],
        "no event until 14": 1 - hazard[0],
        "no event until 15": (1 - hazard[0]) * (1 - hazard[1]),
        "no event until 99": (1 - hazard).prod(),
    }
    for label, likelihood in cases.items():
        loss = task.loss(logits, task.targets([label]))
        assert float(loss) == pytest.approx(-math.log(float(likelihood)), abs=1e-6), label


def test_survival_falls_between_the_edges_with_a_constant_hazard() -> None:
    task = SurvivalTask(edges=[10.0, 20.0], horizons=[5.0, 10.0, 15.0, 30.0])
    values = task.decode(torch.tensor([[0.0, math.log(3)]]), {})[0].tolist()
    expected = [0.5**0.5, 0.5, 0.5 * 0.25**0.5, 0.5 * 0.25]
    assert values[1:] == pytest.approx(expected, abs=1e-6)
    assert values[0] == pytest.approx(1 - np.mean(expected), abs=1e-6)
    assert task.predict(values, {}) == "event at 10"
    assert task.predict([0.1, 0.9, 0.9, 0.9, 0.8], {}) == "no event until 30"


def test_chances_to_go_on_are_products_and_the_loss_has_their_gradient() -> None:
    logits = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    go_on = logits.sigmoid()
    expected = torch.stack([go_on[:, : k + 1].prod(1) for k in range(3)], 1)
    torch.testing.assert_close(continuation_shares(logits), expected)
    passed, stopped = torch.tensor([0, 1, 2, 3, 1]), torch.tensor([True, True, True, True, False])
    likelihood = torch.stack([
        1 - go_on[0, 0],
        go_on[1, 0] * (1 - go_on[1, 1]),
        go_on[2, 0] * go_on[2, 1] * (1 - go_on[2, 2]),
        go_on[3].prod(),
        go_on[4, 0],
    ])  # fmt: skip
    torch.testing.assert_close(continuation_losses(logits, passed, stopped), -likelihood.log())
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: continuation_losses(x, passed, stopped, 0.1), logits)
