"""Linear models match logistic regression, and predict training images by left-out fits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional

from foveate.nn.linear_fit import (
    STRENGTHS,
    RowLosses,
    compute_pseudo_bma_weights,
    fit_linear,
    fit_trust,
)
from foveate.nn.overview import N_LEFT_OUT_FOLDS, OverviewHead, PatchTrust


def sigmoid_losses(target: Tensor) -> RowLosses:
    """Return the losses of one output with a sigmoid."""

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        truth = target[rows].to(logits.dtype)
        return functional.binary_cross_entropy_with_logits(logits[:, 0], truth, reduction="none")

    return loss


def softmax_losses(target: Tensor) -> RowLosses:
    """Return the losses of a softmax."""

    def loss(logits: Tensor, rows: Tensor) -> Tensor:
        return functional.cross_entropy(logits, target[rows], reduction="none")

    return loss


def problem(n: int, d: int, k: int, *, seed: int = 0, signal: float = 1.0) -> tuple[Tensor, Tensor]:
    """Draw features ``(n, d)`` of spread 1, and classes that depend on some of them."""
    rng = np.random.default_rng(seed)
    target = np.arange(n) % k
    x = rng.normal(size=(n, d))
    x[:, :k] += signal * np.eye(k)[target]
    x = (x - x.mean(0)) / x.std(0)
    return torch.from_numpy(x), torch.from_numpy(target)


def fit_scikit_learn(x: Tensor, target: Tensor, strength: float) -> LogisticRegression:
    """Fit scikit-learn's logistic regression to convergence."""
    model = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=10_000)
    return model.fit(x.numpy(), target.numpy())


def in_parts(n: int, k: int = 5) -> Tensor:
    """Return parts of unequal sizes, which all contain every class."""
    return torch.arange(n) % 13 % k


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize(("n", "d"), [(120, 8), (40, 60)])
def test_two_class_fits_match_scikit_learn(n: int, d: int, strength: float) -> None:
    x, target = problem(n, d, 2)
    fit = fit_linear(x, sigmoid_losses(target), 1, in_parts(n), 5, strengths=(strength,))
    other = fit_scikit_learn(x, target, strength)
    np.testing.assert_allclose(fit.weight[0, :, 0], other.coef_[0], atol=1e-4)
    np.testing.assert_allclose(fit.bias[0], other.intercept_, atol=1e-4)
    assert fit.strength == strength


@pytest.mark.parametrize("strength", STRENGTHS)
def test_multiclass_fits_match_scikit_learn(strength: float) -> None:
    """The biases of a softmax are determined up to a constant."""
    x, target = problem(120, 8, 3)
    fit = fit_linear(x, softmax_losses(target), 3, in_parts(120), 5, strengths=(strength,))
    other = fit_scikit_learn(x, target, strength)
    np.testing.assert_allclose(fit.weight[0].T, other.coef_, atol=1e-4)
    centred = fit.bias[0] - fit.bias[0].mean()
    np.testing.assert_allclose(centred, other.intercept_ - other.intercept_.mean(), atol=1e-4)


def refitted(x: Tensor, target: Tensor, parts: Tensor, strength: float) -> np.ndarray:
    """Return logits ``(n,)`` of each row by scikit-learn's fit to all other parts."""
    actual = np.zeros(len(x))
    for part in parts.unique().tolist():
        out = parts == part
        other = fit_scikit_learn(x[~out], target[~out], strength)
        actual[out.numpy()] = other.decision_function(x[out].numpy())
    return actual


@pytest.mark.parametrize(("n", "d"), [(120, 8), (40, 60)])
def test_left_out_logits_match_refits(n: int, d: int) -> None:
    x, target = problem(n, d, 2)
    for strength in STRENGTHS:
        fit = fit_linear(x, sigmoid_losses(target), 1, in_parts(n), 5, strengths=(strength,))
        again = refitted(x, target, in_parts(n), strength)
        np.testing.assert_allclose(fit.left_out[:, 0], again, atol=1e-3)
        loss = float(
            sigmoid_losses(target)(torch.from_numpy(again)[:, None], torch.arange(n)).mean()
        )
        assert fit.loss == pytest.approx(loss, abs=1e-4)


def test_the_strength_minimises_the_left_out_loss() -> None:
    for signal in (0.0, 0.3, 3.0):
        x, target = problem(60, 20, 2, signal=signal)
        losses = {
            s: fit_linear(x, sigmoid_losses(target), 1, in_parts(60), 5, strengths=(s,)).loss
            for s in STRENGTHS
        }
        chosen = fit_linear(x, sigmoid_losses(target), 1, in_parts(60), 5)
        assert chosen.strength == min(losses, key=lambda s: losses[s])
        assert chosen.loss == pytest.approx(min(losses.values()))


# -- shares and trust ------------------------------------------------------------------------------


def test_group_shares_follow_the_left_out_likelihood() -> None:
    losses = [0.50, 0.52, 0.70]
    for n, rows in ((10, 10), (50, 50), (5000, 50)):
        likelihood = np.exp(-rows * np.array(losses))
        expected = likelihood / likelihood.sum()
        np.testing.assert_allclose(compute_pseudo_bma_weights(losses, n), expected, rtol=1e-9)


def test_trust_is_the_best_factor_on_logits() -> None:
    """Logits that are twice too large are halved; logits that are half too small are doubled."""
    generator = torch.Generator().manual_seed(0)
    exact = 2 * torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    target = (torch.rand(4000, generator=generator) < exact[:, 0].sigmoid()).long()
    for factor in (0.6, 1.0, 4.0):
        trust = fit_trust(factor * exact, sigmoid_losses(target))
        assert trust == pytest.approx(1 / factor, abs=0.1)


def settled(groups: Sequence[int], x: Tensor, target: Tensor) -> OverviewHead:
    head = OverviewHead(groups, 1)
    head.fit(x.float(), sigmoid_losses(target), in_parts(len(x)))
    return head


def test_confident_random_logits_get_no_trust() -> None:
    trusts = []
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        noise = 2 * torch.randn(100, 1, generator=generator, dtype=torch.float64)
        trusts.append(fit_trust(noise, sigmoid_losses(torch.arange(100) % 2)))
    assert np.mean(trusts) < 0.1, trusts


def test_uninformative_features_give_small_logits() -> None:
    """On noise features, logits are small over ten draws; the entropy of the labels is ln 2."""
    sizes, losses = [], []
    for seed in range(10):
        x, target = problem(60, 40, 2, seed=seed, signal=0.0)
        logits = settled((20, 20), x, target)(x.float(), in_parts(60))
        sizes.append(float(logits.abs().mean()))
        losses.append(float(sigmoid_losses(target)(logits, torch.arange(60)).mean()))
    assert np.mean(sizes) < 0.15, sizes
    assert np.mean(losses) < np.log(2) + 0.02, losses


def test_informative_features_are_trusted() -> None:
    x, target = problem(60, 40, 2, signal=8.0)
    head = settled((20, 20), x, target)
    assert float(head.trust) >= 1.0
    assert (((head(x.float())[:, 0] > 0) == (target > 0)).float().mean()) == 1.0


def test_the_informative_feature_group_has_the_largest_share() -> None:
    x, target = problem(100, 20, 2, signal=3.0)
    head = settled((10, 10), x, target)
    assert float(head.share[0]) > 0.99
    assert float(head.share.sum()) == pytest.approx(1.0)


def test_feature_groups_of_small_scale_are_used() -> None:
    """Colours differ by hundredths where features of a network differ by tens."""
    x, target = problem(100, 20, 2, signal=3.0)
    scale = torch.tensor([0.01] * 10 + [30.0] * 10)
    plain = settled((10, 10), x, target)
    scaled = settled((10, 10), x * scale, target)
    torch.testing.assert_close(scaled((x * scale).float()), plain(x.float()), rtol=1e-3, atol=1e-3)


# -- the head --------------------------------------------------------------------------------------


def test_an_unfitted_head_returns_zero_logits() -> None:
    head = OverviewHead((3, 4), 2)
    assert not head.is_fitted
    assert not head(torch.randn(5, 7)).any()


def test_training_images_get_left_out_logits() -> None:
    """Against scikit-learn's refits of each group, with the fitted shares and trust."""
    x, target = problem(80, 24, 2, seed=3)
    x = 5.0 * x - 2.0
    head = settled((8, 16), x, target)
    assert head.is_fitted
    z = (x - x.mean(0)) / x.std(0, correction=0)
    expected = np.zeros(80)
    for share, group in zip(head.share.tolist(), z.split((8, 16), 1), strict=True):
        fit = fit_linear(group, sigmoid_losses(target), 1, in_parts(80), N_LEFT_OUT_FOLDS)
        expected += share * refitted(group, target, in_parts(80), fit.strength)
    expected *= float(head.trust)
    actual = head(x.float(), in_parts(80))
    np.testing.assert_allclose(actual[:, 0], expected, atol=1e-3)
    assert (actual - head(x.float())).abs().max() > 0.05, "seen images are answered otherwise"
    unseen = head(x.float(), torch.full((80,), -1))
    torch.testing.assert_close(unseen, head(x.float()), rtol=1e-5, atol=1e-5)


def test_memorised_labels_give_no_gain_after_features_change() -> None:
    """Features and labels are noise, then new noise: training images must score at chance."""
    losses = []
    for seed in range(10):
        x, target = problem(60, 40, 2, seed=seed, signal=1.0)
        head = settled((20, 20), x, target)
        moved = x + 0.7 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        fresh, labels = problem(600, 40, 2, seed=100 + seed, signal=1.0)
        fresh = fresh + 0.7 * torch.randn(
            fresh.shape, generator=torch.Generator().manual_seed(seed)
        )
        loss_seen = sigmoid_losses(target)(
            head(moved.float(), in_parts(60)), torch.arange(60)
        ).mean()
        unseen = sigmoid_losses(labels)(head(fresh.float()), torch.arange(600)).mean()
        losses.append(float(loss_seen - unseen))
    assert abs(np.mean(losses)) < 0.05, losses


def test_a_stored_head_gives_the_same_logits() -> None:
    x, target = problem(60, 12, 2)
    head = settled((4, 8), x, target)
    other = OverviewHead((4, 8), 1)
    other.load_state_dict(head.state_dict())
    assert other.is_fitted
    torch.testing.assert_close(other(x.float()), head(x.float()))


# -- trust in patches ------------------------------------------------------------------------------


def patch_trust(base: Tensor, added: Tensor, target: Tensor, *, expected: float = 1.0) -> float:
    """Fit the trust in patches whose logits are added to those of the glimpse."""
    trust = PatchTrust()

    def answer() -> tuple[Tensor, Tensor]:
        return base + trust(added), target

    def each_loss(logits: Tensor, labels: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(
            logits[:, 0], labels.to(logits.dtype), reduction="none"
        )

    trust.fit(answer, each_loss, expected=expected)
    return float(trust.value)


def glimpse_answers(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw calibrated logits of a glimpse ``(n, 1)``, and labels ``(n,)``."""
    generator = torch.Generator().manual_seed(seed)
    base = 1.5 * torch.randn(n, 1, generator=generator)
    return base, (torch.rand(n, generator=generator) < base[:, 0].sigmoid()).long()


def test_memorised_patches_are_not_trusted() -> None:
    """Large random patch logits get no trust, over ten draws of 60 images."""
    trusts = []
    for seed in range(10):
        base, target = glimpse_answers(60, seed)
        noise = 3 * torch.randn(60, 1, generator=torch.Generator().manual_seed(100 + seed))
        trusts.append(patch_trust(base, noise, target))
    assert np.mean(trusts) < 0.2, trusts


def test_patches_that_add_information_are_trusted_fully() -> None:
    target = torch.arange(12) % 2
    assert patch_trust(torch.zeros(12, 1), 6.0 * target[:, None] - 3.0, target) == 1.0


def test_patches_without_more_detail_are_trusted_only_where_they_help() -> None:
    """With 0 expected, small logits get no trust; large and right ones still get nearly all."""
    target = torch.arange(12) % 2
    right = 2.0 * target[:, None] - 1.0
    assert patch_trust(torch.zeros(12, 1), 0.05 * right, target, expected=0.0) < 0.4
    assert patch_trust(torch.zeros(12, 1), 3.0 * right, target, expected=0.0) > 0.8
    nothing = torch.empty(0, 1)
    assert patch_trust(nothing, nothing, torch.empty(0), expected=0.0) == 0.0


def test_patches_stay_trusted_without_finite_logits() -> None:
    nothing = torch.empty(0, 1)
    assert patch_trust(nothing, nothing, torch.empty(0)) == 1.0
    assert patch_trust(torch.zeros(4, 1), torch.full((4, 1), torch.nan), torch.arange(4) % 2) == 1.0
