"""Poolings and relations against slow loops, in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.errors import OptionError
from foveate.nn.attention import RelationLayer
from foveate.nn.heads import Head
from foveate.nn.pooling import AdditivePool, CrossPool, GatedPool, MaxPool, MeanPool
from foveate.nn.selection import attention_logits

DIM = 8
HEADS = (Head("grade", 3, True, "sum"), Head("finding", 2, False, "max"))
POOLS: dict[str, Callable[[], nn.Module]] = {
    "additive": lambda: AdditivePool(DIM, HEADS, k_min=2.0),
    "cross": lambda: CrossPool(DIM, HEADS, attention_heads=2, dropout=0.0),
    "gated": lambda: GatedPool(DIM, hidden=5),
    "mean": MeanPool,
    "max": MaxPool,
}


def trained(module: nn.Module, seed: int = 0) -> nn.Module:
    """Return a module with weights of ordinary size, as after training, in float64."""
    torch.manual_seed(seed)
    for p in module.parameters():
        nn.init.normal_(p, std=0.6)
    return module.double()


def bag(lengths: tuple[int, ...], seed: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(*valid.shape, DIM, dtype=torch.float64), valid


def assert_equal_in_float64(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


# -- pooling ---------------------------------------------------------------------------------------


def _slow_additive(pool: AdditivePool, f: Tensor, k_min: float) -> tuple[list[Tensor], list[float]]:
    """Return probabilities per head and shares per patch of one image."""
    answers, shares = [], [0.0] * len(f)
    for part, head in zip(pool.parts, HEADS, strict=True):
        w = [torch.sigmoid(part.gate(x)) for x in f]
        squash = torch.softmax if head.exclusive else lambda z, _: torch.sigmoid(z)
        p = [squash(part.opinion(x), -1) for x in f]
        total = sum(w)
        answer = sum(a * b for a, b in zip(w, p, strict=True))
        if head.exclusive:
            answer = answer + max(torch.zeros(()), k_min - total) / head.size
        answers.append(answer / max(total, torch.tensor(k_min)))
        chosen = [int(answer.argmax())] if head.exclusive else range(head.size)
        terms = [(a * sum(b[c] for c in chosen)).item() for a, b in zip(w, p, strict=True)]
        shares = [s + x / sum(terms) / len(HEADS) for s, x in zip(shares, terms, strict=True)]
    return answers, shares


@pytest.mark.parametrize("k_min", [0.5, 1.0, 3.0])
def test_additive_pool_matches_the_loop(k_min: float) -> None:
    pool = trained(AdditivePool(DIM, HEADS, k_min=k_min))
    lengths = (1, 2, 7)
    f, valid = bag(lengths)
    f.requires_grad_()
    logits, weight = pool(f, valid)
    probability = torch.cat([logits[:, :3].exp(), logits[:, 3:].sigmoid()], 1)
    (fast,) = torch.autograd.grad(probability.square().sum(), f)
    slow = []
    for i, n in enumerate(lengths):
        answers, shares = _slow_additive(pool, f[i, :n], k_min)
        slow.append(torch.cat(answers))
        assert_equal_in_float64(weight[i, :n], torch.tensor(shares, dtype=torch.float64))
    assert_equal_in_float64(probability, torch.stack(slow))
    (expected,) = torch.autograd.grad(torch.stack(slow).square().sum(), f)
    assert_equal_in_float64(fast, expected)


def test_cross_pool_matches_the_loop() -> None:
    pool = trained(CrossPool(DIM, HEADS, attention_heads=2, dropout=0.3)).eval()
    lengths = (5, 1, 3)
    f, valid = bag(lengths)
    logits, weight = pool(f, valid)
    for i, n in enumerate(lengths):
        answers, attention = [], torch.zeros(n, dtype=torch.float64)
        for t, question in enumerate(pool.questions):
            q, mixed = pool.to_query.weight @ question, []
            for head in (slice(0, 4), slice(4, 8)):
                k = [(pool.to_key.weight @ x)[head] for x in f[i, :n]]
                v = [(pool.to_value.weight @ x)[head] for x in f[i, :n]]
                e = torch.stack([torch.exp(q[head] @ vector / 2) for vector in k])
                a = e / e.sum()
                mixed.append(sum(share * vector for share, vector in zip(a, v, strict=True)))
                attention += a / (2 * len(HEADS))
            z = pool.norms[0](question + pool.out.weight @ torch.cat(mixed))
            z = pool.norms[1](z + pool.mlp(z))
            answers.append(pool.heads[t](z))
        assert_equal_in_float64(logits[i], torch.cat(answers))
        assert_equal_in_float64(weight[i, :n], attention)


def test_cross_pool_has_the_gradients_of_keys_and_values() -> None:
    pool = trained(CrossPool(DIM, HEADS, attention_heads=2, dropout=0.3)).eval()
    f, valid = bag((5, 1, 3))
    f.requires_grad_()
    expected = [f, *pool.parameters()]
    logits, _ = pool(f, valid)
    fast = torch.autograd.grad(logits.sin().sum(), expected)
    key, value = pool.keys(f), pool.to_value(f).view(3, 5, 2, 4)
    scores = torch.einsum("thd,bnhd->bthn", pool.query(), key) / 2
    a = scores.masked_fill(~valid[:, None, None], -torch.inf).softmax(-1)
    z = pool.norms[0](
        pool.questions + pool.out(torch.einsum("bthn,bnhd->bthd", a, value).flatten(2))
    )
    z = pool.norms[1](z + pool.mlp(z))
    plain = torch.cat([head(z[:, t]) for t, head in enumerate(pool.heads)], -1)
    assert_equal_in_float64(logits, plain)
    for one, other in zip(fast, torch.autograd.grad(plain.sin().sum(), expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_cross_pool_scores_do_not_depend_on_the_mode() -> None:
    pool = CrossPool(DIM, HEADS, attention_heads=2, dropout=0.5)
    f = torch.randn(40, DIM) * 5
    valid = torch.ones(1, 40, dtype=torch.bool)
    assert torch.equal(pool.train()(f[None], valid)[1], pool.eval()(f[None], valid)[1])
    scores = attention_logits(pool.train().query(), pool.keys(f))
    assert torch.equal(scores, attention_logits(pool.eval().query(), pool.keys(f)))
    assert torch.equal(scores[10:20], attention_logits(pool.query(), pool.keys(f[10:20])))
    assert len(scores.unique(dim=0)) == 40


def test_cross_pool_is_exact_for_distant_logits() -> None:
    pool = CrossPool(DIM, HEADS, attention_heads=2, dropout=0.0)
    f = (torch.randn(2, 6, DIM) * 1e4).requires_grad_()
    logits, _ = pool(f, torch.ones(2, 6, dtype=torch.bool))
    spread = logits[:, :3] + torch.tensor([0.0, 100.0, -100.0])
    loss = functional.cross_entropy(spread, torch.tensor([2, 2]))
    loss.backward()
    assert loss.isfinite()
    assert loss > 150
    assert f.grad is not None
    assert f.grad.isfinite().all()


def test_cross_pool_refuses_heads_that_do_not_fit() -> None:
    with pytest.raises(OptionError, match="attention_heads 3"):
        CrossPool(DIM, HEADS, attention_heads=3)


def test_mean_and_max_pool_match_the_loop() -> None:
    f, valid = bag((4, 2))
    mean, even = MeanPool()(f, valid)
    top, share = MaxPool()(f, valid)
    for i, n in enumerate((4, 2)):
        rows = f[i, :n].tolist()
        assert mean[i].tolist() == pytest.approx([sum(c) / n for c in zip(*rows, strict=True)])
        assert top[i].tolist() == [max(c) for c in zip(*rows, strict=True)]
        won = [sum(row[c] == top[i, c].item() for c in range(DIM)) / DIM for row in rows]
        assert share[i, :n].tolist() == pytest.approx(won)
        assert even[i, :n].tolist() == pytest.approx([1 / n] * n)


@pytest.mark.parametrize("name", POOLS)
def test_every_pool_ignores_padding_and_order(name: str) -> None:
    """Shares sum to 1, padding and order change nothing, and empty images are finite."""
    pool = trained(POOLS[name]())
    f, valid = bag((5,))
    outcomes = []
    for rows, known in (
        (f, valid),
        (functional.pad(f, (0, 0, 0, 3), value=90.0), functional.pad(valid, (0, 3))),
    ):
        pool.zero_grad()
        pooled, weight = pool(rows.requires_grad_(), known)
        pooled.square().sum().backward()
        gradients = [p.grad.clone() for p in pool.parameters() if p.grad is not None]
        outcomes.append((pooled.detach(), weight.detach(), rows.grad, gradients))
    alone, padded = outcomes
    assert_equal_in_float64(alone[0], padded[0])
    assert_equal_in_float64(alone[1], padded[1][:, :5])
    assert_equal_in_float64(alone[2], padded[2][:, :5])
    assert (padded[1][:, 5:] == 0).all()
    assert (padded[2][:, 5:] == 0).all()
    for a, b in zip(alone[3], padded[3], strict=True):
        assert_equal_in_float64(a, b)
    assert alone[1].sum().item() == pytest.approx(1)
    assert (alone[1] >= 0).all()
    order = torch.tensor([3, 0, 4, 1, 2])
    pooled, weight = pool(f[:, order], valid)
    assert_equal_in_float64(pooled, alone[0])
    assert_equal_in_float64(weight, alone[1][:, order])
    empty, nothing = pool(f.detach().requires_grad_(), torch.zeros_like(valid))
    assert empty.isfinite().all()
    assert (nothing == 0).all()


# -- relations -------------------------------------------------------------------------------------


def _slow_relate(layer: RelationLayer, x: Tensor, position: Tensor, centre: Tensor) -> Tensor:
    """Relate the tokens of one image without padding, by a loop over pairs."""
    n, d, size = len(x), x.shape[1], x.shape[1] // layer.heads
    wq, wk, wv = layer.query_key_value.weight.split(d)
    z = layer.norm(x)
    q, k, v = (z + position) @ wq.T, (z + position) @ wk.T, z @ wv.T
    mixed = torch.zeros_like(x)
    for h, i in itertools.product(range(layer.heads), range(n)):
        part = slice(h * size, (h + 1) * size)
        total, actual = torch.ones(()).double(), torch.zeros(size).double()
        for j in range(n):
            if j == i:
                continue
            logit = q[i, part] @ k[j, part] / math.sqrt(size)
            logit = logit - math.dist(centre[i], centre[j]) / layer.log_reach[h].exp()
            for axis, lean in enumerate(layer.lean[h]):
                step = float(centre[j, axis] - centre[i, axis])
                logit = logit + 10 * lean * math.tanh(4 * step)
            total = total + logit.exp()
            actual = actual + logit.exp() * v[j, part]
        mixed[i, part] = actual / total
    x = x + layer.scale[0] * layer.out(mixed)
    return x + layer.scale[1] * layer.mlp(x)


def scene(n: int, ndim: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    x, position = torch.randn(2, 1, n, DIM, dtype=torch.float64)
    return x, position, 6 * torch.randn(1, n, ndim, dtype=torch.float64)


@pytest.mark.parametrize("ndim", [2, 3])
def test_relate_matches_a_loop_over_pairs(ndim: int) -> None:
    layer = trained(RelationLayer(DIM, heads=2, ndim=ndim))
    x, position, centre = scene(7, ndim)
    valid = torch.ones(1, 7, dtype=torch.bool)
    actual = layer(x, position, valid, centre)
    expected = _slow_relate(layer, x[0], position[0], centre[0])
    assert_equal_in_float64(actual[0], expected)
    fast = torch.autograd.grad(actual.square().sum(), list(layer.parameters()))
    slow = torch.autograd.grad(expected.square().sum(), list(layer.parameters()))
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    for other in (centre / 2, -centre):
        moved = layer(x, position, valid, other)
        assert (moved - actual).abs().max() > 1e-3


def test_relate_ignores_origin_and_order() -> None:
    layer = trained(RelationLayer(DIM, heads=2))
    x, position, centre = scene(9)
    valid = torch.ones(1, 9, dtype=torch.bool)
    actual = layer(x, position, valid, centre)
    assert_equal_in_float64(
        layer(x, position, valid, centre + torch.tensor([300.0, -70.0])), actual
    )
    order = torch.randperm(9)
    permuted = layer(x[:, order], position[:, order], valid, centre[:, order])
    assert_equal_in_float64(permuted, actual[:, order])
    # Tokens that keep their places while their contents move are something else.
    assert (layer(x[:, order], position[:, order], valid, centre) - permuted).abs().max() > 1e-2


def test_relate_ignores_padding() -> None:
    layer = trained(RelationLayer(DIM, heads=2))
    x, position, centre = scene(6)
    valid = torch.ones(1, 6, dtype=torch.bool)
    outcomes = []
    for extra in (0, 3):
        layer.zero_grad()
        rows = functional.pad(x, (0, 0, 0, extra), value=40.0).requires_grad_()
        where = functional.pad(centre, (0, 0, 0, extra))
        code = functional.pad(position, (0, 0, 0, extra), value=7.0)
        actual = layer(rows, code, functional.pad(valid, (0, extra)), where)[:, :6]
        actual.square().sum().backward()
        gradients = [p.grad.clone() for p in layer.parameters() if p.grad is not None]
        outcomes.append((actual.detach(), rows.grad, gradients))
    assert_equal_in_float64(outcomes[0][0], outcomes[1][0])
    assert_equal_in_float64(outcomes[0][1], outcomes[1][1][:, :6])
    assert (outcomes[1][1][:, 6:] == 0).all()
    for a, b in zip(outcomes[0][2], outcomes[1][2], strict=True):
        assert_equal_in_float64(a, b)


def test_relate_starts_near_identity_and_accepts_one_token() -> None:
    torch.manual_seed(0)
    layer = RelationLayer(64)
    x, centre = torch.randn(2, 30, 64), 20 * torch.randn(2, 30, 2)
    valid = torch.ones(2, 30, dtype=torch.bool)
    valid[1, 1:] = False
    change = layer(x, torch.zeros_like(x), valid, centre) - x
    assert change.isfinite().all()
    assert change[valid].norm() < 0.1 * x[valid].norm()
    reach = layer.log_reach.exp().tolist()
    assert reach == pytest.approx([1, 4, 16, 64], rel=1e-5)


@pytest.mark.parametrize("pairs", [9, 65, 150])
def test_tiled_relate_equals_untiled_relate(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveate.nn.attention._ROWS", 4)
    at_once = trained(RelationLayer(16, heads=4))
    tiles = RelationLayer(16, heads=4, pairs=pairs).double()
    tiles.load_state_dict(at_once.state_dict())
    torch.manual_seed(1)
    tokens, position = torch.randn(2, 2, 13, 16, dtype=torch.float64)
    centre = 9 * torch.randn(2, 13, 2, dtype=torch.float64)
    valid = torch.arange(13) < torch.tensor([[13], [8]])
    actual = []
    for layer in (at_once, tiles):
        x, code = tokens.clone().requires_grad_(), position.clone().requires_grad_()
        out = layer(x, code, valid, centre)
        assert torch.equal(out.detach(), layer(x, code, valid, centre).detach())
        (out.sin() * valid.unsqueeze(-1)).sum().backward()
        actual.append([out, x.grad, code.grad, *(p.grad for p in layer.parameters())])
    for one, other in zip(*actual, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_tiled_relate_is_exact_for_distant_logits() -> None:
    layer = RelationLayer(16, heads=4, pairs=16)
    x = (1e3 * torch.randn(1, 30, 16)).requires_grad_()
    valid = torch.ones(1, 30, dtype=torch.bool)
    with torch.no_grad():
        layer.query_key_value.weight.mul_(100)
    out = layer(x, torch.zeros_like(x), valid, torch.randn(1, 30, 2))
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
