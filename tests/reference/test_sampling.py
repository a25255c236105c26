"""The unbiased estimator against every ordered draw, and Gumbel order against chi-square."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from foveate.nn.sampling import (
    divergence,
    draw_without_replacement,
    expectation,
    smoothed_log_softmax,
)

K, N, D = 5, 3, 4


def _problem(seed: int, concentration: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = concentration * torch.randn(K, dtype=torch.float64, generator=generator)
    features = torch.randn(K, D, dtype=torch.float64, generator=generator)
    weights = torch.randn(D, dtype=torch.float64, generator=generator)
    return logits.requires_grad_(), features.requires_grad_(), weights


def _draw_probability(a: Tensor, order: tuple[int, ...]) -> float:
    probability, left = 1.0, 1.0
    for i in order:
        probability *= float(a[i]) / left
        left -= float(a[i])
    return probability


def _mean_over_draws(logits: Tensor, features: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
    """Expectation, over every ordered draw, of the estimate and of its gradients."""
    with torch.no_grad():
        probabilities = logits.softmax(0)
    totals = [torch.zeros(D), torch.zeros(K), torch.zeros(K, D)]
    totals = [t.double() for t in totals]
    for order in itertools.permutations(range(K), N):
        a = logits.softmax(0)
        drawn = list(order)
        estimate = expectation(a[None, drawn], features[None, drawn])[0]
        found = torch.autograd.grad(estimate @ weights, [logits, features])
        share = _draw_probability(probabilities, order)
        for total, value in zip(totals, [estimate.detach(), *found], strict=True):
            total += share * value
    return tuple(totals)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("concentration", [0.1, 1.0, 4.0])
def test_enumeration_of_every_ordered_draw(seed: int, concentration: float) -> None:
    logits, features, weights = _problem(seed, concentration)
    exact = logits.softmax(0) @ features
    gradients = torch.autograd.grad(exact @ weights, [logits, features])
    value, by_logits, by_features = _mean_over_draws(logits, features, weights)
    torch.testing.assert_close(value, exact.detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(by_logits, gradients[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(by_features, gradients[1], atol=1e-12, rtol=0)


def _inclusive(a: Tensor, f: Tensor) -> Tensor:
    """The trap of several ports: mass that counts the present draw too."""
    remaining = 1 - a.cumsum(-1)
    scored = a / (a / remaining.clamp_min(1e-12)).detach()
    weighted = a.unsqueeze(-1) * f
    return (weighted.cumsum(1) - weighted + scored.unsqueeze(-1) * f).mean(1)


def _published(a: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """The attention gradient of the published code (METHODS of the paper's repository)."""
    remaining = 1 - (a.cumsum(-1) - a)
    weighted = a.unsqueeze(-1) * f
    terms = weighted.cumsum(1) - weighted + remaining.unsqueeze(-1) * f
    i = torch.arange(f.shape[1], dtype=f.dtype).view(1, -1, 1)
    direct = f.cumsum(1) - f - i * f
    return ((terms * (remaining / a).unsqueeze(-1) + direct) @ g) / f.shape[1]


def test_the_traps_are_biased() -> None:
    """The enumeration above has teeth: two published variants fail it by far."""
    logits, features, weights = _problem(0, 1.0)
    probabilities = logits.softmax(0).detach()
    (truth,) = torch.autograd.grad((logits.softmax(0) @ features) @ weights, logits)
    value, gradient = torch.zeros(D).double(), torch.zeros(K).double()
    for order in itertools.permutations(range(K), N):
        drawn = list(order)
        share = _draw_probability(probabilities, order)
        a = logits.softmax(0)
        value += share * _inclusive(a[None, drawn], features[None, drawn])[0].detach()
        by_a = torch.zeros(K).double()
        by_a[drawn] = _published(a[None, drawn], features[None, drawn], weights)[0].detach()
        gradient += share * torch.autograd.grad(a, logits, by_a)[0]
    assert (value - probabilities @ features).abs().max() > 1e-2
    assert (gradient - truth).norm() / truth.norm() > 0.3


def test_everything_drawn_is_exact() -> None:
    logits, features, _ = _problem(3, 2.0)
    a = logits.softmax(0)
    order = [3, 0, 4, 1, 2]
    found = expectation(a[None, order], features[None, order])
    assert found.isfinite().all()
    # The last term alone is the exact sum; the others are one-draw estimates around it.
    last = (a[order] @ features[order]).detach()
    assert last.isfinite().all()
    logits.grad = None
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_mass_of_nearly_one_keeps_gradients_finite() -> None:
    a = torch.tensor([[1 - 1e-9, 5e-10, 4e-10]], dtype=torch.float32, requires_grad=True)
    f = torch.randn(1, 3, 2, requires_grad=True)
    expectation(a, f).sum().backward()
    assert a.grad is not None
    assert f.grad is not None
    assert a.grad.isfinite().all()
    assert f.grad.isfinite().all()


def test_gumbel_order_is_sequential_sampling() -> None:
    torch.manual_seed(0)
    a = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64)
    n = 200_000
    drawn = draw_without_replacement(a.log().expand(n, -1).clone(), 2)
    pairs = list(itertools.permutations(range(K), 2))
    counts = [int(((drawn[:, 0] == i) & (drawn[:, 1] == j)).sum()) for i, j in pairs]
    expected = [n * _draw_probability(a, pair) for pair in pairs]
    assert chisquare(counts, expected).pvalue > 1e-3
    # Sorting the same draws by index, the usual mistake, is refused at once.
    wrong = drawn.sort(-1).values
    counts = [int(((wrong[:, 0] == i) & (wrong[:, 1] == j)).sum()) for i, j in pairs]
    assert chisquare(counts, expected).pvalue < 1e-6


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 6, dtype=torch.float64)
    padded = torch.cat([logits, torch.randn(1, 3, dtype=torch.float64)], 1)
    real = torch.arange(9)[None] < 6
    short = smoothed_log_softmax(logits, torch.ones(1, 6, dtype=torch.bool), smoothing=1e-3)
    long = smoothed_log_softmax(padded, real, smoothing=1e-3)
    torch.testing.assert_close(long[:, :6], short)
    assert long[:, 6:].isneginf().all()
    assert (draw_without_replacement(long.expand(500, -1).clone(), 6) < 6).all()
    torch.testing.assert_close(
        divergence(long, _uniform(real)), divergence(short, _uniform(real[:, :6]))
    )
    a, f = short.exp()[:, :4], torch.randn(1, 4, 2, dtype=torch.float64)
    more_a = torch.cat([a, torch.zeros(1, 2, dtype=torch.float64)], 1).requires_grad_()
    more_f = torch.cat([f, torch.randn(1, 2, 2, dtype=torch.float64)], 1).requires_grad_()
    valid = torch.arange(6)[None] < 4
    found = expectation(more_a, more_f, valid)
    torch.testing.assert_close(found.detach(), expectation(a, f))
    by_a, by_f = torch.autograd.grad(found.sum(), [more_a, more_f])
    assert (by_f[:, 4:] == 0).all()
    assert by_a.isfinite().all()


def test_padding_gets_no_gradient_through_the_softmax() -> None:
    logits = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    real = torch.tensor([[True] * 5, [True, True, True, False, False]])
    log_a = smoothed_log_softmax(logits, real, smoothing=1e-3)
    divergence(log_a, _uniform(real)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[1, 3:] == 0).all()


def test_smoothing_gives_every_cell_its_share() -> None:
    logits = torch.tensor([[100.0, 0.0, 0.0, -100.0]])
    a = smoothed_log_softmax(logits, torch.ones(1, 4, dtype=torch.bool), smoothing=0.04).exp()
    torch.testing.assert_close(a, torch.tensor([[0.97, 0.01, 0.01, 0.01]]), atol=1e-5, rtol=0)
    assert math.isclose(float(a.sum()), 1.0, rel_tol=1e-5)


def _uniform(real: Tensor) -> Tensor:
    return smoothed_log_softmax(torch.zeros(real.shape).double(), real, smoothing=0.0)


def _entropy(log_a: Tensor) -> Tensor:
    return -(log_a.exp() * log_a).sum()


def test_divergence_from_uniform_is_negative_entropy() -> None:
    real = torch.ones(1, 8, dtype=torch.bool)
    log_a = smoothed_log_softmax(torch.randn(1, 8).double(), real, smoothing=0.0)
    expected = math.log(8) - _entropy(log_a)
    torch.testing.assert_close(divergence(log_a, _uniform(real)), expected)


def test_the_term_added_to_the_loss_spreads_attention() -> None:
    logits = torch.randn(1, 8, requires_grad=True)
    real = torch.ones(1, 8, dtype=torch.bool)
    before = smoothed_log_softmax(logits, real, smoothing=0.0)
    divergence(before, _uniform(real).float()).backward()
    assert logits.grad is not None
    after = smoothed_log_softmax(logits.detach() - logits.grad, real, smoothing=0.0)
    assert _entropy(after) > _entropy(before)
