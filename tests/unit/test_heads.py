"""Instance heads: pooling, initial logits, padding and extreme values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from foveate.errors import OptionError
from foveate.nn.heads import Head, InstanceHead

DIM = 12
PRESENCE = Head("presence", 3, False, "max")
GRADE = Head("grade", 4, True, "sum")
PRIOR = Head("prior", 2, True, "none")
SPREAD = Head("spread", 2, False, "sum")
ALL = (PRESENCE, GRADE, PRIOR, SPREAD)


def trained(heads: tuple[Head, ...], *, k_min: float = 1.0, seed: int = 0) -> InstanceHead:
    """Return a module with weights of ordinary size, as after training, in float64."""
    torch.manual_seed(seed)
    head = InstanceHead(DIM, heads, k_min=k_min).double()
    for p in head.parameters():
        torch.nn.init.normal_(p, std=0.7)
    return head


def bag(lengths: tuple[int, ...], seed: int = 1) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    valid = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(*valid.shape, DIM, dtype=torch.float64), valid


def test_each_head_pools_as_documented() -> None:
    head = trained(ALL)
    f, valid = bag((5, 2))
    logits = head(f, valid)
    assert logits.shape == (2, 11)
    presence, grade, prior, spread = head.parts
    for i, n in enumerate((5, 2)):
        alone = torch.stack([presence.score(f[i, k]) for k in range(n)])
        for c in range(3):
            assert logits[i, c].item() == pytest.approx(max(alone[:, c].tolist()), rel=1e-12)
        w = [torch.sigmoid(grade.sum.gate(f[i, k])) for k in range(n)]
        p = [grade.sum.opinion(f[i, k]).softmax(-1) for k in range(n)]
        total = sum(w)
        answer = sum(a * b for a, b in zip(w, p, strict=True)) + max(0.0, 1 - total) / 4
        torch.testing.assert_close(logits[i, 3:7].exp(), answer / max(1.0, total))
        torch.testing.assert_close(logits[i, 7:9], prior.bias)
        w = [torch.sigmoid(spread.sum.gate(f[i, k])) for k in range(n)]
        p = [torch.sigmoid(spread.sum.opinion(f[i, k])) for k in range(n)]
        answer = sum(a * b for a, b in zip(w, p, strict=True)) / max(1.0, sum(w))
        torch.testing.assert_close(logits[i, 9:].sigmoid(), answer)


@pytest.mark.parametrize("head", [*ALL, Head("one", 1, False, "sum"), Head("one", 1, False, "max")])
def test_initial_outputs_are_near_chance_with_gradients(head: Head) -> None:
    torch.manual_seed(0)
    fresh = InstanceHead(64, (head,))
    f = torch.randn(8, 50, 64, requires_grad=True)
    logits = fresh(f, torch.ones(8, 50, dtype=torch.bool))
    centred = logits - (logits.mean(-1, keepdim=True) if head.exclusive else 0)
    assert centred.abs().max() < 0.4
    centred.square().sum().backward()
    if head.pooling != "none":
        assert f.grad is not None
        assert f.grad.abs().sum() > 0


@pytest.mark.parametrize("heads", [(h,) for h in ALL] + [ALL])
def test_padding_changes_nothing(heads: tuple[Head, ...]) -> None:
    head = trained(heads)
    f, valid = bag((4,))
    garbage = torch.full((1, 3, DIM), 50.0, dtype=torch.float64)
    outcomes = []
    for rows, known in (
        (f, valid),
        (torch.cat([f, garbage], 1), functional.pad(valid, (0, 3), value=False)),
    ):
        head.zero_grad()
        rows.requires_grad_()
        logits = head(rows, known)
        logits.square().sum().backward()
        gradients = [p.grad.clone() for p in head.parameters() if p.grad is not None]
        outcomes.append((logits.detach(), gradients, rows.grad))
    torch.testing.assert_close(outcomes[0][0], outcomes[1][0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(outcomes[0][1], outcomes[1][1], rtol=1e-12, atol=1e-12)
    if any(h.pooling != "none" for h in heads):
        torch.testing.assert_close(outcomes[0][2], outcomes[1][2][:, :4], rtol=1e-12, atol=1e-12)
        assert (outcomes[1][2][:, 4:] == 0).all()


def test_an_image_without_patches_returns_the_biases() -> None:
    head = trained(ALL)
    f, valid = bag((3, 3))
    valid[1] = False
    logits = head(f, valid)
    presence, grade, prior, spread = head.parts
    biases = (presence.score.bias, grade.sum.opinion.bias.log_softmax(-1), prior.bias)
    torch.testing.assert_close(logits[1], torch.cat([*biases, spread.sum.opinion.bias]))
    logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("size", [1.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("gate", [-1.0, 1.0])
@pytest.mark.parametrize("head", [GRADE, SPREAD, PRESENCE])
def test_extreme_logits_stay_finite_in_float32(head: Head, gate: float, size: float) -> None:
    instance = InstanceHead(DIM, (head,))
    torch.manual_seed(0)
    for p in instance.parameters():
        torch.nn.init.normal_(p, std=math.sqrt(size))
    if head.pooling == "sum":
        instance.parts[0].sum.gate.score.bias.data.fill_(gate * size)
    f = (torch.randn(3, 6, DIM) * math.sqrt(size)).requires_grad_()
    logits = instance(f, torch.tensor([[True] * 6, [True] * 3 + [False] * 3, [False] * 6]))
    if head.exclusive:
        losses = [functional.cross_entropy(logits, torch.full((3,), c)) for c in range(4)]
    else:
        ones = torch.ones_like(logits)
        bce = functional.binary_cross_entropy_with_logits
        losses = [bce(logits, ones), bce(logits, 1 - ones)]
    total = torch.stack(losses).sum()
    total.backward()
    assert total.isfinite()
    assert f.grad is not None
    assert f.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in instance.parameters() if p.grad is not None)


@pytest.mark.parametrize("exclusive", [True, False])
def test_a_patch_wrong_by_100_gets_the_full_gradient(exclusive: bool) -> None:
    """One patch with an open gate whose logits are wrong by 100: loss 100, slope 1."""
    head = InstanceHead(DIM, (Head("q", 2, exclusive, "sum"),))
    part = head.parts[0].sum
    part.gate.score.bias.data.fill_(40.0)
    part.opinion.bias.data.copy_(torch.tensor([-50.0, 50.0] if exclusive else [-100.0, 100.0]))
    logits = head(torch.zeros(1, 1, DIM), torch.ones(1, 1, dtype=torch.bool))
    if exclusive:
        loss = functional.cross_entropy(logits, torch.tensor([0]))
    else:
        wanted = torch.tensor([[1.0, 0.0]])
        loss = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / 2
    loss.backward()
    assert loss.item() == pytest.approx(100, abs=1e-3)
    expected = torch.tensor([-1.0, 1.0]) / (1 if exclusive else 2)
    torch.testing.assert_close(part.opinion.bias.grad, expected)


def test_k_min_demands_evidence_from_more_patches() -> None:
    """With `k_min` equal patches of open gate, the answer is as certain as the patch."""
    for k_min in (1.0, 4.0):
        head = InstanceHead(DIM, (Head("q", 1, False, "sum"),), k_min=k_min)
        head.parts[0].sum.gate.score.bias.data.fill_(40.0)
        head.parts[0].sum.opinion.bias.data.fill_(40.0)
        for n in (1, 2, 4, 8):
            logits = head(torch.zeros(1, n, DIM), torch.ones(1, n, dtype=torch.bool))
            assert logits.sigmoid().item() == pytest.approx(min(1.0, n / k_min), abs=1e-5)
    with pytest.raises(OptionError, match="k_min"):
        InstanceHead(DIM, (GRADE,), k_min=0.0)
