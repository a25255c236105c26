"""Parts of a frozen network without batch norms give the outputs of the network."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from foveate.encoders import build_encoder
from foveate.encoders.base import AbstractEncoder
from foveate.encoders.lite0 import Lite0Encoder
from foveate.memory import computes_in_tiles
from foveate.pretrained.folded import FoldedParts, fold_norms


@pytest.fixture(scope="module")
def encoder() -> AbstractEncoder:
    torch.manual_seed(0)
    built = build_encoder("lite0").eval()
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var.mul_(torch.rand(module.num_features) + 0.5)
    return built


def run_plainly(encoder: AbstractEncoder, x: Tensor) -> list[Tensor]:
    """The maps with gradients, for which nothing is folded."""
    with torch.enable_grad():
        return [m.detach() for m in encoder.maps(x.clone().requires_grad_())]


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 97, 130)])
def test_maps_equal_those_of_the_network(encoder: AbstractEncoder, shape: tuple[int, ...]) -> None:
    n, *sides = shape
    x = torch.randn(n, 3, *sides)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        folded = encoder.maps(x)
    for ours, plain in zip(folded, run_plainly(encoder, x), strict=True):
        assert float((ours.float() - plain).abs().max()) < 2e-5 * float(plain.abs().max())


@pytest.mark.skipif(computes_in_tiles(), reason="nothing is folded on a CPU with matrix tiles")
def test_no_norm_is_left_and_changed_weights_count(encoder: AbstractEncoder) -> None:
    assert isinstance(encoder, Lite0Encoder)
    x = torch.randn(1, 3, 64, 64)
    changed = copy.deepcopy(encoder)
    with torch.no_grad():
        before = changed.maps(x)
        copied = changed._folded._folded[0][1]
        assert not any(isinstance(m, nn.BatchNorm2d) for m in copied.modules())
        changed.blocks[2][0].conv_pw.weight.mul_(1.5)
        after = changed.maps(x)
    assert after[1].equal(before[1])
    assert not after[2].allclose(before[2])
    plain = run_plainly(changed, x)
    assert float((after[2] - plain[2]).abs().max()) < 2e-5 * float(plain[2].abs().max())


def test_parts_that_learn_are_not_folded(encoder: AbstractEncoder) -> None:
    learning = copy.deepcopy(encoder).train()
    learning.features(learning.maps(torch.randn(2, 3, 64, 64))).sum().backward()
    grads = {name for name, p in learning.named_parameters() if p.grad is not None}
    assert any(name.startswith("blocks.6") for name in grads)
    assert not any(name.startswith(("stem", "blocks.0")) for name in grads)


def test_a_norm_that_follows_no_convolution_stays() -> None:
    part = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    folded = list(fold_norms(part).children())
    assert isinstance(folded[0], nn.BatchNorm2d)
    assert isinstance(folded[3], nn.Identity)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(nn.Sequential(*folded)(x), part(x))


def test_copies_begin_without_folded_parts() -> None:
    parts, part = FoldedParts(), nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    parts.run(0, part, torch.randn(1, 3, 4, 4))
    assert parts._folded
    assert not copy.deepcopy(parts)._folded
    assert not pickle.loads(pickle.dumps(parts))._folded


@pytest.mark.skipif(computes_in_tiles(), reason="nothing is folded on a CPU with matrix tiles")
def test_parts_that_are_not_trained_are_folded_in_training(encoder: AbstractEncoder) -> None:
    assert isinstance(encoder, Lite0Encoder)
    trained = copy.deepcopy(encoder).train()
    trained.maps(torch.randn(1, 3, 64, 64))[-1].sum().backward()
    assert sorted(trained._folded._folded) == [0, 1, 2, 3]
    taught = [p for block in trained.blocks[3:] for p in block.parameters()]
    assert all(p.grad is not None for p in taught)


@pytest.mark.skipif(computes_in_tiles(), reason="nothing is folded on a CPU with matrix tiles")
def test_gradients_reach_the_input_through_parts_that_are_not_trained(
    encoder: AbstractEncoder,
) -> None:
    x = torch.randn(1, 3, 64, 64, requires_grad=True)
    encoder.maps(x)[0].sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().max()) > 0
