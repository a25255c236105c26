"""Estimators match the enumeration of all draws; the order of draws passes a chi-square test."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from foveate.nn.sampling import (
    draw_with_replacement,
    draw_without_replacement,
    estimate_deviation,
    expectation,
    expectation_with_replacement,
    kl_divergences,
    select_strongest,
    smoothed_log_softmax,
)

K, N, D = 5, 3, 4


def kl_divergence(log_a: Tensor, log_prior: Tensor) -> Tensor:
    return kl_divergences(log_a, log_prior).mean()


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


Estimator = Callable[[Tensor, Tensor], Tensor]
Draws = list[tuple[tuple[int, ...], float]]


def _ordered_draws(a: Tensor, n: int = N) -> Draws:
    """Return every ordered draw without replacement and its probability."""
    a = a.detach()
    return [(o, _draw_probability(a, o)) for o in itertools.permutations(range(len(a)), n)]


def _independent_draws(a: Tensor, n: int = N) -> Draws:
    """Return every draw with replacement and its probability."""
    a = a.detach()
    return [(o, float(a[list(o)].prod())) for o in itertools.product(range(len(a)), repeat=n)]


def _over_draws(
    estimator: Estimator, draws: Draws, logits: Tensor, features: Tensor, weights: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Return first and second moments, over all draws, of the estimate and its two gradients."""
    first: list[Tensor] = []
    second: list[Tensor] = []
    for order, share in draws:
        a, drawn = logits.softmax(0), list(order)
        estimate = estimator(a[None, drawn], features[None, drawn])[0]
        actual = torch.autograd.grad(estimate @ weights, [logits, features])
        values = [estimate.detach(), *actual]
        first = [t + share * v for t, v in zip(first or [0] * 3, values, strict=True)]
        second = [t + share * v**2 for t, v in zip(second or [0] * 3, values, strict=True)]
    return first, second


def _without(baseline: bool) -> Estimator:
    return lambda a, f: expectation(a, f, baseline=baseline)


def _with(baseline: bool) -> Estimator:
    return lambda a, f: expectation_with_replacement(a, f, baseline=baseline)


def _assert_unbiased(
    estimator: Estimator, draws: Draws, logits: Tensor, features: Tensor, weights: Tensor
) -> None:
    exact = logits.softmax(0) @ features
    truth = [exact.detach(), *torch.autograd.grad(exact @ weights, [logits, features])]
    actual, _ = _over_draws(estimator, draws, logits, features, weights)
    for mean, expected in zip(actual, truth, strict=True):
        torch.testing.assert_close(mean, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("concentration", [0.1, 1.0, 4.0])
def test_enumeration_of_every_ordered_draw(seed: int, concentration: float, baseline: bool) -> None:
    logits, features, weights = _problem(seed, concentration)
    draws = _ordered_draws(logits.softmax(0))
    _assert_unbiased(_without(baseline), draws, logits, features, weights)


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("concentration", [0.1, 1.0, 4.0])
def test_enumeration_of_every_draw_with_replacement(
    seed: int, concentration: float, baseline: bool
) -> None:
    logits, features, weights = _problem(seed, concentration)
    draws = _independent_draws(logits.softmax(0))
    _assert_unbiased(_with(baseline), draws, logits, features, weights)


@pytest.mark.parametrize("n", [1, 2, K])
def test_estimators_with_one_draw_and_with_all_cells(n: int) -> None:
    """One draw has no baseline; with all cells drawn, no mass remains."""
    logits, features, weights = _problem(5, 1.0)
    a = logits.softmax(0).detach()
    for baseline in (False, True):
        _assert_unbiased(_without(baseline), _ordered_draws(a, n), logits, features, weights)
        few = _independent_draws(a, min(n, 2))
        _assert_unbiased(_with(baseline), few, logits, features, weights)


def test_baselines_lower_the_variance_where_features_have_a_common_mean() -> None:
    logits, features, weights = _problem(0, 0.3)
    features = (features.detach() + 3 * weights).requires_grad_()
    a = logits.softmax(0).detach()
    cases = [(_without, _ordered_draws(a)), (_with, _independent_draws(a))]
    for make, draws in cases:
        variance = []
        for baseline in (False, True):
            first, second = _over_draws(make(baseline), draws, logits, features, weights)
            variance.append(float((second[1] - first[1] ** 2).sum()))
        assert variance[1] < 0.7 * variance[0]


@pytest.mark.parametrize("concentration", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("replacement", [False, True])
def test_deviation_matches_the_estimate(concentration: float, replacement: bool) -> None:
    """The squared deviation is an unbiased variance of features and of linear logits."""
    logits, features, weights = _problem(2, concentration)
    a, f = logits.softmax(0).detach(), features.detach()
    head = torch.stack([weights, weights.flip(0)], 1)
    for values in (f, f @ head):
        squares: Tensor | float = 0.0
        variance: Tensor | float = 0.0
        for order, share in _independent_draws(a) if replacement else _ordered_draws(a):
            drawn = list(order)
            estimate = (_with if replacement else _without)(False)(
                a[None, drawn], values[None, drawn]
            )
            variance += share * (estimate[0] - a @ values) ** 2
            actual = estimate_deviation(
                a[None, drawn], values[None, drawn], replacement=replacement
            )
            squares += share * actual[0] ** 2
        torch.testing.assert_close(squares, variance, atol=1e-12, rtol=1e-10)


def test_deviation_of_one_draw_is_unknown() -> None:
    a = torch.tensor([[0.5, 0.2], [0.5, 0.2], [0.0, 0.0]])
    valid = torch.tensor([[True, True], [True, False], [False, False]])
    actual = estimate_deviation(a, torch.randn(3, 2, 2), valid)
    assert actual[0].isfinite().all()
    assert actual[1:].isnan().all()


def _inclusive(a: Tensor, f: Tensor) -> Tensor:
    """Estimate as several ports do: the remaining mass already lacks the present draw."""
    remaining = 1 - a.cumsum(-1)
    scored = a / (a / remaining.clamp_min(1e-12)).detach()
    weighted = a.unsqueeze(-1) * f
    return (weighted.cumsum(1) - weighted + scored.unsqueeze(-1) * f).mean(1)


def _published(a: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """Return the attention gradient of the published code (METHODS of the paper's repository)."""
    remaining = 1 - (a.cumsum(-1) - a)
    weighted = a.unsqueeze(-1) * f
    terms = weighted.cumsum(1) - weighted + remaining.unsqueeze(-1) * f
    i = torch.arange(f.shape[1], dtype=f.dtype).view(1, -1, 1)
    direct = f.cumsum(1) - f - i * f
    return ((terms * (remaining / a).unsqueeze(-1) + direct) @ g) / f.shape[1]


def test_published_variants_are_biased() -> None:
    """Enumeration detects the large bias of published variants."""
    logits, features, weights = _problem(0, 1.0)
    draws = _ordered_draws(logits.softmax(0))
    probabilities = logits.softmax(0).detach()
    (truth,) = torch.autograd.grad((logits.softmax(0) @ features) @ weights, logits)
    actual, _ = _over_draws(_inclusive, draws, logits, features, weights)
    assert (actual[0] - probabilities @ features).abs().max() > 1e-2
    expected = probabilities.unsqueeze(1) * weights
    assert (actual[2] - expected).norm() / expected.norm() > 0.1
    gradient = torch.zeros(K).double()
    for order, share in draws:
        drawn = list(order)
        a = logits.softmax(0)
        by_a = torch.zeros(K).double()
        by_a[drawn] = _published(a[None, drawn], features[None, drawn], weights)[0].detach()
        gradient += share * torch.autograd.grad(a, logits, by_a)[0]
    assert (gradient - truth).norm() / truth.norm() > 0.3


def test_the_last_draw_keeps_its_own_mass() -> None:
    """With every cell drawn, the remaining mass includes that of the last draw."""
    logits, features, _ = _problem(1, 1.0)
    a = logits.softmax(0).detach()[None]
    actual = features.detach()[None].clone().requires_grad_()
    expectation(a, actual).sum().backward()
    assert actual.grad is not None
    torch.testing.assert_close(actual.grad[0, -1], (a[0, -1] / K).expand(D))


def _hindsight(a: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """Return the part of ``dL/da`` of a baseline that includes the present draw."""
    v = f @ g
    before = a.cumsum(1) - a
    left, terms = 1 - before, (a * v).cumsum(1) - a * v + (1 - before) * v
    b = terms.cumsum(1) / torch.arange(1, a.shape[1] + 1)
    return -(left * b / a + b.sum(1, keepdim=True) - b.cumsum(1)) / a.shape[1]


def test_a_baseline_that_includes_its_draw_is_biased() -> None:
    logits, features, weights = _problem(0, 1.0)
    bias = torch.zeros(K).double()
    for order, share in _ordered_draws(logits.softmax(0)):
        a, drawn = logits.softmax(0), list(order)
        by_a = torch.zeros(K).double()
        by_a[drawn] = _hindsight(a[None, drawn], features[None, drawn], weights)[0].detach()
        bias += share * torch.autograd.grad(a, logits, by_a)[0]
    (truth,) = torch.autograd.grad((logits.softmax(0) @ features) @ weights, logits)
    assert bias.norm() / truth.norm() > 0.05


@pytest.mark.parametrize("n", [2, 3])
def test_a_mean_of_all_draws_as_baseline_shrinks_the_gradient(n: int) -> None:
    """With replacement, this baseline scales the gradient by 1 - 1/n."""
    logits = torch.tensor([0.3, -0.4], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    (truth,) = torch.autograd.grad((logits.softmax(0) @ rewards).sum(), logits)
    with_all, with_others = torch.zeros(2).double(), torch.zeros(2).double()
    for order, share in _independent_draws(logits.softmax(0), n):
        drawn, a = list(order), logits.softmax(0)
        centred = (rewards[drawn, 0] - rewards[drawn, 0].mean()) / (n * a[drawn].detach())
        with_all += share * torch.autograd.grad(a[drawn] @ centred, logits)[0]
        estimate = expectation_with_replacement(
            logits.softmax(0)[None, drawn], rewards[None, drawn], baseline=True
        )
        with_others += share * torch.autograd.grad(estimate.sum(), logits)[0]
    torch.testing.assert_close(with_all, (1 - 1 / n) * truth, atol=1e-12, rtol=0)
    torch.testing.assert_close(with_others, truth, atol=1e-12, rtol=0)


@pytest.mark.parametrize("estimator", [_without(False), _without(True), _with(False), _with(True)])
@pytest.mark.parametrize("rest", [[5e-10, 4e-10], [1e-38, 1e-44], [3e-8, 0.0]])
def test_mass_of_nearly_one_keeps_gradients_finite(estimator: Estimator, rest: list[float]) -> None:
    a = torch.tensor([[1 - 1e-9, *rest]], dtype=torch.float32)
    log_a = a.log().clamp_min(-120.0).requires_grad_()
    f = torch.randn(1, 3, 2, requires_grad=True)
    estimate = estimator(log_a.exp(), f)
    (estimate * 100).sum().backward()
    assert estimate.isfinite().all()
    for leaf in (log_a, f):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    # Rounded masses that summed to more than 1 would weigh the last feature negatively.
    assert f.grad is not None
    assert (f.grad >= 0).all()


def test_float32_gradients_agree_with_float64() -> None:
    """With cells of very different attention, both precisions agree."""
    logits = torch.tensor([[30.0, 12.0, 3.0, 0.0, -20.0]], dtype=torch.float64)
    f = torch.randn(1, 5, 3, dtype=torch.float64)
    for baseline in (False, True):
        actual = []
        for dtype in (torch.float64, torch.float32):
            leaf = logits.to(dtype, copy=True).requires_grad_()
            a = leaf.softmax(-1)
            expectation(a, f.to(dtype), baseline=baseline).sum().backward()
            assert leaf.grad is not None
            actual.append(leaf.grad.double())
        torch.testing.assert_close(actual[1], actual[0], atol=1e-6, rtol=1e-5)


def test_gumbel_order_is_sequential_sampling() -> None:
    torch.manual_seed(0)
    a = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.05], dtype=torch.float64)
    n = 200_000
    drawn = draw_without_replacement(a.log().expand(n, -1).clone(), 2)
    pairs = list(itertools.permutations(range(K), 2))
    counts = [int(((drawn[:, 0] == i) & (drawn[:, 1] == j)).sum()) for i, j in pairs]
    expected = [n * _draw_probability(a, pair) for pair in pairs]
    assert chisquare(counts, expected).pvalue > 1e-3
    # The same draws sorted by index, the usual mistake, fail the test.
    wrong = drawn.sort(-1).values
    counts = [int(((wrong[:, 0] == i) & (wrong[:, 1] == j)).sum()) for i, j in pairs]
    assert chisquare(counts, expected).pvalue < 1e-6


def test_draws_with_replacement_follow_attention() -> None:
    torch.manual_seed(0)
    a = torch.tensor([0.0, 0.5, 0.2, 0.0, 0.25, 0.05, 0.0], dtype=torch.float64)
    drawn = draw_with_replacement(a.log().expand(3, -1), 60_000)
    counts = torch.bincount(drawn.flatten(), minlength=len(a))
    assert (counts[a == 0] == 0).all()
    assert chisquare(counts[a > 0], 180_000 * a[a > 0]).pvalue > 1e-3
    pairs = torch.bincount((drawn[:, ::2] * 7 + drawn[:, 1::2]).flatten(), minlength=49)
    expected = (a[:, None] * a).flatten() * 90_000
    assert chisquare(pairs[expected > 0], expected[expected > 0]).pvalue > 1e-3


@pytest.mark.parametrize(("u", "expected"), [(0.0, 1), (1.0, 5)])
def test_uniform_numbers_0_and_1_draw_no_padding(
    monkeypatch: pytest.MonkeyPatch, u: float, expected: int
) -> None:
    a = torch.tensor([[0.0, 0.5, 0.2, 0.0, 0.25, 0.05, 0.0]])
    monkeypatch.setattr(torch, "rand", lambda *shape, **kwargs: torch.full(shape, u, **kwargs))
    assert draw_with_replacement(a.log(), 2).tolist() == [[expected] * 2]


def test_drawing_from_a_row_of_padding_is_no_error() -> None:
    drawn = draw_with_replacement(torch.full((1, 4), -torch.inf), 3)
    assert ((drawn >= 0) & (drawn < 4)).all()


def test_weights_of_the_strongest_cells_sum_to_one() -> None:
    log_a = torch.tensor([[1.0, 3.0, 2.0, 3.0], [0.0, -torch.inf, 1.0, -torch.inf]])
    log_a = torch.cat([log_a, torch.full((1, 4), -torch.inf)]).log_softmax(-1)
    log_a = log_a.masked_fill(log_a.isnan(), -torch.inf).requires_grad_()
    index, weight = select_strongest(log_a, 3)
    assert index.tolist()[0] == [1, 3, 2]
    assert index.tolist()[1][:2] == [2, 0]
    expected = torch.tensor([3.0, 3.0, 2.0]).softmax(0)
    torch.testing.assert_close(weight[0], expected)
    torch.testing.assert_close(weight[1], torch.tensor([*torch.tensor([1.0, 0.0]).softmax(0), 0.0]))
    assert (weight[2] == 0).all()
    (weight * torch.arange(3.0)).sum().backward()
    assert log_a.grad is not None
    assert log_a.grad.isfinite().all()


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("make", [_without, _with])
def test_padded_draws_change_nothing(make: Callable[..., Estimator], baseline: bool) -> None:
    function = expectation if make is _without else expectation_with_replacement
    a = torch.randn(2, 6, dtype=torch.float64).softmax(-1)
    f = torch.randn(2, 6, 3, dtype=torch.float64)
    f[0, 4:] = torch.nan
    valid = torch.arange(6) < torch.tensor([[4], [6]])
    weights = torch.randn(3, dtype=torch.float64)
    short = [a[:1, :4].clone().requires_grad_(), f[:1, :4].clone().requires_grad_()]
    long = [a.clone().requires_grad_(), f.clone().requires_grad_()]
    expected = function(*short, baseline=baseline)
    actual = function(*long, valid, baseline=baseline)
    torch.testing.assert_close(actual[:1], expected)
    by_short = torch.autograd.grad((expected @ weights).sum(), short)
    by_long = torch.autograd.grad((actual @ weights).sum(), long)
    for one, other in zip(by_short, by_long, strict=True):
        torch.testing.assert_close(other[:1, :4], one)
        assert (other[0, 4:] == 0).all()


def test_gradients_are_exact_for_logits_100_apart() -> None:
    """Log-softmax keeps the gradient that ``log(p + eps)`` loses."""
    real = torch.ones(1, 3, dtype=torch.bool)
    logits = torch.tensor([[100.0, 0.0, -100.0]], requires_grad=True)
    loss = -smoothed_log_softmax(logits, real, smoothing=0.0)[0, 2]
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 200.0
    torch.testing.assert_close(gradient, torch.tensor([[1.0, 0.0, -1.0]]))
    (lost,) = torch.autograd.grad(-(logits.softmax(-1) + 1e-6).log()[0, 2], logits)
    assert lost.abs().max() < 1e-6
    for smoothing in (0.0, 1e-3):
        actual = []
        for dtype in (torch.float64, torch.float32):
            leaf = logits.detach().to(dtype).requires_grad_()
            log_a = smoothed_log_softmax(leaf, real, smoothing=smoothing)
            (by_leaf,) = torch.autograd.grad(kl_divergence(log_a, _uniform(real).to(dtype)), leaf)
            assert by_leaf.isfinite().all()
            actual.append(by_leaf.double())
        torch.testing.assert_close(actual[1], actual[0], atol=1e-6, rtol=1e-4)


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
        kl_divergence(long, _uniform(real)), kl_divergence(short, _uniform(real[:, :6]))
    )


def test_padding_gets_no_gradient_through_the_softmax() -> None:
    logits = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    real = torch.tensor([[True] * 5, [True, True, True, False, False]])
    log_a = smoothed_log_softmax(logits, real, smoothing=1e-3)
    kl_divergence(log_a, _uniform(real)).backward()
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
    torch.testing.assert_close(kl_divergence(log_a, _uniform(real)), expected)


def test_the_spread_loss_spreads_attention() -> None:
    logits = torch.randn(1, 8, requires_grad=True)
    real = torch.ones(1, 8, dtype=torch.bool)
    before = smoothed_log_softmax(logits, real, smoothing=0.0)
    kl_divergence(before, _uniform(real).float()).backward()
    assert logits.grad is not None
    after = smoothed_log_softmax(logits.detach() - logits.grad, real, smoothing=0.0)
    assert _entropy(after) > _entropy(before)
