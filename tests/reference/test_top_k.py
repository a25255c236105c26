"""Perturbed top-k matches exact quadrature of the smoothed choice and a dense version."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys

import pytest
import torch
from scipy.stats import norm
from torch import Tensor

import foveate.nn.top_k as module
from foveate.errors import OptionError
from foveate.nn.top_k import TopK, perturbed_top_k

SIGMA = 0.3
SCORES = torch.tensor([0.1, 0.5, 0.35, -0.2, 0.4], dtype=torch.float64)
K = len(SCORES)


def _normal(x: Tensor) -> Tensor:
    return torch.special.ndtr(x)


def _smoothed(scores: Tensor, n: int, sigma: float) -> Tensor:
    """Exact ``(n, k)`` mean of the sorted indicator: a sum over all sets, an integral for each.

    A set is the top n when the smallest of it exceeds the largest of the rest, at t say.
    """
    k = len(scores)
    ends = scores.detach()
    low, high = float(ends.min()) - 8 * sigma, float(ends.max()) + 8 * sigma
    t = torch.linspace(low, high, 4001, dtype=scores.dtype)[:, None]
    below = _normal((t - scores) / sigma)
    above = _normal((scores - (t[1:] + t[:-1]) / 2) / sigma)
    total = torch.zeros(n, k, dtype=scores.dtype)
    for chosen in itertools.combinations(range(k), n):
        rest = [i for i in range(k) if i not in chosen]
        largest = below[:, rest].prod(1).diff()
        probability = (largest * above[:, list(chosen)].prod(1)).sum()
        rows = torch.zeros(n, k, dtype=scores.dtype)
        rows[range(n), list(chosen)] = 1.0
        total = total + probability * rows
    return total


def _dense(top: TopK, k: int) -> Tensor:
    """Return ``(b, n, k)`` weights over all cells."""
    out = torch.zeros(*top.weight.shape[:2], k, dtype=top.weight.dtype)
    where = top.index.unsqueeze(1).expand_as(top.weight)
    return out.scatter_add(2, where, top.weight * top.used.unsqueeze(1))


def _replicates(n: int, g: Tensor, *, samples: int, many: int) -> tuple[Tensor, Tensor]:
    """Return weights ``(many, n, k)`` and gradients ``(many, k)`` of independent estimates."""
    scores = SCORES.expand(many, -1).clone().requires_grad_()
    dense = _dense(perturbed_top_k(scores, n, sigma=SIGMA, samples=samples), K)
    (gradient,) = torch.autograd.grad((dense * g).sum(), scores)
    return dense.detach(), gradient


def _distance(actual: Tensor, truth: Tensor) -> float:
    """Return the largest distance of the mean from the truth, in standard errors."""
    error = actual.std(0) / math.sqrt(len(actual))
    return float(((actual.mean(0) - truth).abs() / error.clamp_min(1e-12)).max())


@pytest.mark.parametrize("n", [1, 2, 3])
def test_value_and_gradient_match_quadrature(n: int) -> None:
    torch.manual_seed(n)
    g = torch.randn(n, K, dtype=torch.float64)
    leaf = SCORES.clone().requires_grad_()
    exact = _smoothed(leaf, n, SIGMA)
    (truth,) = torch.autograd.grad((exact * g).sum(), leaf)
    values, gradients = _replicates(n, g, samples=500, many=1000)
    assert _distance(values, exact.detach()) < 4.5
    assert _distance(gradients, truth) < 4.5
    # The same check refuses the published gradients.
    jacobian = torch.autograd.functional.jacobian(lambda s: _smoothed(s, n, SIGMA), SCORES)
    diagonal = (g * jacobian.diagonal(dim1=1, dim2=2)).sum(0)
    assert _distance(gradients, diagonal) > 20
    assert _distance(K * gradients, truth) > 20
    if n > 1:
        assert _distance(n * gradients, truth) > 20


def test_the_quadrature_is_correct() -> None:
    """Its derivative matches central differences, and its value counted choices."""
    n, step = 2, 1e-5
    jacobian = torch.autograd.functional.jacobian(lambda s: _smoothed(s, n, SIGMA), SCORES)
    for i in range(K):
        shift = torch.zeros(K, dtype=torch.float64)
        shift[i] = step
        sides = [_smoothed(SCORES + sign * shift, n, SIGMA) for sign in (1, -1)]
        slope = (sides[0] - sides[1]) / (2 * step)
        torch.testing.assert_close(slope, jacobian[:, :, i], atol=1e-6, rtol=0)
    torch.manual_seed(0)
    noise = torch.randn(200_000, K, dtype=torch.float64)
    chosen = (SCORES + SIGMA * noise).topk(n).indices.sort(-1).values
    counted = torch.stack([torch.bincount(c, minlength=K) for c in chosen.T]) / len(noise)
    assert (counted - _smoothed(SCORES, n, SIGMA)).abs().max() < 0.006


def test_two_cells_match_the_closed_form() -> None:
    torch.manual_seed(0)
    gap, many = 0.2, 2000
    leaf = torch.tensor([gap, 0.0], dtype=torch.float64).expand(many, -1).clone().requires_grad_()
    weight = _dense(perturbed_top_k(leaf, 1, sigma=SIGMA, samples=200), 2)
    (gradient,) = torch.autograd.grad(weight[:, 0, 0].sum(), leaf)
    x = gap / (SIGMA * math.sqrt(2))
    slope = math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) / (SIGMA * math.sqrt(2))
    assert _distance(weight[:, 0, :1].detach(), _normal(torch.tensor([x]))) < 4
    assert _distance(gradient, torch.tensor([slope, -slope])) < 4


@pytest.mark.parametrize("samples", [2, 3])
def test_few_samples_do_not_shrink_the_gradient(samples: int) -> None:
    """Dividing by the samples, with their mean subtracted, would shrink it to 1 - 1/samples."""
    torch.manual_seed(0)
    g = torch.randn(2, K, dtype=torch.float64)
    leaf = SCORES.clone().requires_grad_()
    (truth,) = torch.autograd.grad((_smoothed(leaf, 2, SIGMA) * g).sum(), leaf)
    _, gradients = _replicates(2, g, samples=samples, many=100_000)
    assert _distance(gradients, truth) < 4.5
    assert _distance((1 - 1 / samples) * gradients, truth) > 20


def _conditional(z: Tensor, scores: Tensor, n: int) -> Tensor:
    """Return the mean of each cell's noise given the choice, one cell at a time, by scipy."""
    actual = torch.zeros_like(z)
    for at in itertools.product(*map(range, z.shape[:2])):
        x = scores[at[0]] + SIGMA * z[at]
        order = x.argsort(descending=True).tolist()
        for i in range(len(x)):
            if i in order[:n]:
                low = float(x[order[n]] - scores[at[0], i]) / SIGMA
                actual[(*at, i)] = norm.pdf(low) / norm.sf(low)
            else:
                high = float(x[order[n - 1]] - scores[at[0], i]) / SIGMA
                actual[(*at, i)] = -norm.pdf(high) / norm.cdf(high)
    return actual


@pytest.mark.parametrize("keep", [None, 3])
@pytest.mark.parametrize("at_once", [2**20, 100])
def test_sparse_computation_equals_the_dense_version(
    monkeypatch: pytest.MonkeyPatch, at_once: int, keep: int | None
) -> None:
    """Computation in blocks and over few cells equals that over all cells at once."""
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    b, k, n, samples = 2, 12, 3, 40
    torch.manual_seed(0)
    scores = torch.randn(b, k, dtype=torch.float64, requires_grad=True)
    g = torch.randn(b, n, k, dtype=torch.float64)
    torch.manual_seed(3)
    top = perturbed_top_k(scores, n, sigma=SIGMA, samples=samples, keep=keep)
    torch.rand(7)  # what happens in between does not matter
    actual = _dense(top, k)
    (gradient,) = torch.autograd.grad((actual * g).sum(), scores)

    torch.manual_seed(3)
    part = max(1, at_once // (b * k))
    sizes = [min(part, samples - i) for i in range(0, samples, part)]
    z = torch.cat([torch.randn(b, c, k, dtype=g.dtype) for c in sizes], 1)
    chosen = (scores.detach()[:, None] + SIGMA * z).topk(n).indices.sort(-1).values
    rows = torch.zeros(b, samples, n, k, dtype=g.dtype).scatter_(3, chosen[..., None], 1.0)
    if keep is not None:
        times = rows.sum((1, 2))
        most_chosen = times.sort(dim=-1, descending=True, stable=True).indices[:, :keep]
        rows = rows * torch.zeros_like(times).scatter_(1, most_chosen, 1.0)[:, None, None]
        assert top.index.shape[1] == keep
        assert (top.weight.sum(-1) < 1).any()
    torch.testing.assert_close(actual.detach(), rows.mean(1))
    s = (rows * g[:, None]).sum((2, 3))
    s = s - s.mean(1, keepdim=True)
    noise = _conditional(z, scores.detach(), n)
    expected = (s[..., None] * noise).sum(1) / (samples - 1) / SIGMA
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-9)


def test_the_mean_noise_varies_less_than_the_noise() -> None:
    torch.manual_seed(0)
    g = torch.randn(2, K, dtype=torch.float64)
    _, gradients = _replicates(2, g, samples=100, many=500)
    z = torch.randn(500, 100, K, dtype=torch.float64)
    chosen = (SCORES + SIGMA * z).topk(2).indices.sort(-1).values
    s = g[0, chosen[..., 0]] + g[1, chosen[..., 1]]
    plain = ((s - s.mean(1, keepdim=True))[..., None] * z).sum(1) / 99 / SIGMA
    error = (plain.var(0) + gradients.var(0)).div(500).sqrt()
    assert ((plain.mean(0) - gradients.mean(0)).abs() < 4.5 * error).all()
    assert gradients.var(0).sum() < 0.5 * plain.var(0).sum()


def test_cells_out_of_reach_have_no_gradient() -> None:
    torch.manual_seed(0)
    scores = torch.rand(1, 3000)
    scores[0, :6] += 2.0
    scores.requires_grad_()
    top = perturbed_top_k(scores, 3, sigma=0.1, samples=50)
    (top.weight * torch.randn_like(top.weight)).sum().backward()
    assert scores.grad is not None
    assert (scores.grad[0, 6:] == 0).all()
    assert (scores.grad[0, :6] != 0).all()


def test_only_touched_cells_are_returned() -> None:
    scores = torch.full((2, 50), -100.0)
    scores[0, [3, 20]] = 0.0
    scores[1, [3, 20, 21, 40]] = 0.0
    top = perturbed_top_k(scores, 2, sigma=0.05, samples=300)
    assert top.index[0][top.used[0]].tolist() == [3, 20]
    assert top.index[1][top.used[1]].tolist() == [3, 20, 21, 40]
    assert (top.weight[0][:, ~top.used[0]] == 0).all()
    torch.testing.assert_close(top.weight.sum(-1), torch.ones(2, 2))
    # Rows are sorted by position: the first row is never the last cell.
    torch.testing.assert_close(_dense(top, 50)[0, :, [3, 20]], torch.eye(2))
    assert _dense(top, 50)[1, 0, 40] == 0
    assert _dense(top, 50)[1, 1, 3] == 0


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_padding_is_never_chosen(sigma: float) -> None:
    torch.manual_seed(0)
    scores = torch.randn(3, 6).requires_grad_()
    with torch.no_grad():
        scores[:, 4:] = 50.0
    valid = torch.tensor([[True] * 4 + [False] * 2, [True] + [False] * 5, [False] * 6])
    top = perturbed_top_k(scores, 3, sigma=sigma, samples=50, valid=valid)
    assert valid.gather(1, top.index)[top.used].all()
    rows = torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(top.weight.sum(-1).detach(), rows)
    if sigma > 0:
        (top.weight * torch.randn_like(top.weight)).sum().backward()
        assert scores.grad is not None
        assert scores.grad.isfinite().all()
        assert (scores.grad[~valid] == 0).all()
        assert (scores.grad[0, :4] != 0).any()


def test_zero_noise_gives_the_hard_choice() -> None:
    scores = torch.tensor([[0.5, 2.0, 1.0, 2.0, 1.0]], requires_grad=True)
    before = torch.get_rng_state()
    top = perturbed_top_k(scores, 3, sigma=0.0)
    assert torch.equal(before, torch.get_rng_state())
    assert top.index.tolist() == [[1, 2, 3]]
    torch.testing.assert_close(top.weight[0], torch.eye(3))
    assert not top.weight.requires_grad
    close = perturbed_top_k(scores, 3, sigma=1e-9, samples=9)
    assert set(close.index[0].tolist()) <= {1, 2, 3, 4}


def test_more_cells_requested_than_exist() -> None:
    top = perturbed_top_k(torch.randn(1, 2, requires_grad=True), 5, sigma=0.1, samples=20)
    torch.testing.assert_close(top.weight[0].detach(), torch.eye(2))


@pytest.mark.parametrize(("sigma", "samples"), [(-0.1, 10), (0.1, 1)])
def test_impossible_options_are_refused(sigma: float, samples: int) -> None:
    with pytest.raises(OptionError, match="samples"):
        perturbed_top_k(torch.zeros(1, 3), 1, sigma=sigma, samples=samples)


_MEMORY = """
import resource, torch
from foveate.nn.top_k import perturbed_top_k
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
scores = torch.rand(1, 100_000, requires_grad=True)
perturbed_top_k(scores, 8, sigma=.05, samples=2).weight.sum().backward()
before = peak()
top = perturbed_top_k(scores, 8, sigma=.05, samples=500)
(top.weight * torch.rand_like(top.weight)).sum().backward()
print(peak() - before)
"""


def test_memory_stays_small_for_100_000_cells() -> None:
    """The noise alone is 191 MiB, the dense indicators 1.5 GiB."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    result = subprocess.run(
        [sys.executable, "-c", _MEMORY], capture_output=True, text=True, env=environment, check=True
    )
    assert float(result.stdout) < 80
