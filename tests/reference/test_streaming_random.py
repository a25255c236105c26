"""Streaming with layers that draw, in half precision, and among several processes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from timm.layers import DropPath
from torch import Tensor, distributed, nn

from foveate.nn.streaming import Streamed


def stack(*layers: nn.Module) -> nn.Module:
    """Two convolutions with layers between and after them."""
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), *layers, nn.Conv2d(8, 4, 3, padding=1), nn.Tanh()
    )


class Residual(nn.Module):
    """A branch that may be dropped."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(8, 8, 3, padding=1), drop

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.drop(self.conv(x))
        return found


class Kept(nn.Module):
    """Uses a map again after dropout has overwritten it."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(8, 8, 1), drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.drop(y) + y


@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_is_replayed(inplace: bool) -> None:
    """With the generator's state given, the gradient is that of what was computed."""
    net = stack(nn.Conv2d(8, 8, 1), nn.Dropout(0.5, inplace), nn.AlphaDropout(0.3)).double()
    streamed = Streamed(net, tile=11)
    x = torch.randn(2, 3, 29, 34, dtype=torch.float64)
    upstream = torch.randn(2, 4, 15, 17, dtype=torch.float64)

    def loss(change: float) -> Tensor:
        moved = copy.deepcopy(streamed)
        with torch.no_grad():
            for p, d in zip(moved.parameters(), directions, strict=True):
                p.add_(d, alpha=change)
        torch.manual_seed(9)
        found: Tensor = (moved(x + change * along) * upstream).sum()
        return found.detach()

    directions = [torch.randn_like(p) for p in net.parameters()]
    along = torch.randn_like(x)
    x.requires_grad_()
    torch.manual_seed(9)
    total = (streamed(x) * upstream).sum()
    after = torch.get_rng_state()
    torch.rand(5)  # what happens between the passes does not matter
    between = torch.get_rng_state()
    total.backward()
    assert (torch.get_rng_state() == between).all()
    assert x.grad is not None
    slope = float((x.grad * along).sum())
    slope += sum(
        float((p.grad * d).sum()) for p, d in zip(net.parameters(), directions, strict=True)
    )
    x = x.detach()
    step = 1e-5
    expected = float(loss(step) - loss(-step)) / (2 * step)
    assert slope == pytest.approx(expected, rel=1e-6)
    assert (torch.get_rng_state() == after).all()  # as many draws, whatever the weights


def test_dropout_on_one_tile_is_that_of_the_plain_stack() -> None:
    net, x = stack(nn.Dropout(0.5)), torch.randn(1, 3, 29, 34)
    torch.manual_seed(4)
    expected = net(x)
    torch.manual_seed(4)
    torch.testing.assert_close(Streamed(net, tile=64)(x), expected)


DROPS: dict[str, Callable[[], nn.Module]] = {
    "drop path": lambda: Residual(DropPath(0.4)),
    "drop path, not scaled": lambda: Residual(DropPath(0.4, scale_by_keep=False)),
    "always dropped": lambda: Residual(DropPath(1.0)),
    "never dropped": lambda: Residual(DropPath(0.0)),
    "stochastic depth": lambda: Residual(torchvision.ops.StochasticDepth(0.4, "row")),
    "channels": lambda: nn.Dropout2d(0.4),
    "channels in place": lambda: Kept(nn.Dropout2d(0.4, inplace=True)),
    "channels out of place": lambda: Kept(nn.Dropout2d(0.4)),
}


@pytest.mark.parametrize("name", DROPS)
def test_what_is_drawn_per_image_is_that_of_the_plain_stack(name: str) -> None:
    net = stack(DROPS[name](), DROPS[name]()).double()
    images = torch.randn(4, 3, 29, 34, dtype=torch.float64)
    streamed = Streamed(net, tile=11)
    learnt = list(net.parameters())
    torch.manual_seed(6)
    plain = torch.cat([net(image[None]) for image in images])
    expected = torch.autograd.grad(plain.square().sum(), learnt)
    torch.manual_seed(6)
    found = streamed(images)
    assert streamed.counts["forward"] >= 4 * len(images)
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-10)
    for a, b in zip(torch.autograd.grad(found.square().sum(), learnt), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_schedule_of_stochastic_depth_is_followed() -> None:
    drop = DropPath(0.0)
    net, x = stack(Residual(drop)), torch.randn(1, 3, 29, 34)
    streamed = Streamed(net, tile=11)
    torch.testing.assert_close(streamed(x), net(x))
    drop.drop_prob = 1.0
    torch.testing.assert_close(streamed(x), net(x))


# -- half precision -------------------------------------------------------------------------------


def _error(found: Tensor | None, true: Tensor) -> float:
    assert found is not None
    return float((found.double() - true).norm() / true.norm())


@pytest.mark.parametrize("inside", [False, True], ids=["backward outside", "backward inside"])
def test_autocast_is_as_near_the_truth_as_that_of_the_plain_stack(inside: bool) -> None:
    net, x = stack(nn.Conv2d(8, 8, 3, padding=1), nn.GELU()), torch.randn(2, 3, 61, 67)
    true = copy.deepcopy(net).double()
    upstream = torch.randn(2, 4, 31, 34)
    (true(x.double()) * upstream).sum().backward()
    errors = []
    for run in (Streamed(copy.deepcopy(net), tile=16), copy.deepcopy(net)):
        with torch.autocast("cpu", torch.bfloat16):
            total = (run(x) * upstream).sum()
            if inside:
                total.backward()
        if not inside:
            total.backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in run.parameters())
        pairs = zip(run.parameters(), true.parameters(), strict=True)
        errors.append([_error(p.grad, q.grad) for p, q in pairs])
    for streamed, plain in zip(*errors, strict=True):
        assert 1e-6 < streamed < 1.3 * plain + 1e-3


@pytest.mark.parametrize("whole", [False, True], ids=["autocast", "bf16 weights"])
def test_gradients_are_summed_in_single_precision(whole: bool) -> None:
    """81 tiles of 81 cells: sums of bf16 would stop short of 6561."""
    net = nn.Conv2d(1, 1, 1)
    x = torch.ones(1, 1, 81, 81)
    if whole:
        net, x = net.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=not whole):
        found = Streamed(net, tile=9)(x)
    found.backward(torch.ones_like(found))
    assert found.dtype == torch.bfloat16
    assert net.bias is not None
    expected = torch.tensor([81.0 * 81]).to(net.bias.dtype)
    torch.testing.assert_close(net.bias.grad, expected, rtol=0, atol=0)


# -- several processes ----------------------------------------------------------------------------


def test_distributed_data_parallel_gives_the_same_gradients(tmp_path: Path) -> None:
    net, x = stack(nn.Conv2d(8, 8, 1)), torch.randn(2, 3, 29, 34)
    expected = copy.deepcopy(net)
    expected(x).square().sum().backward()
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        parallel = nn.parallel.DistributedDataParallel(Streamed(net, tile=11))
        for _ in range(2):
            parallel.zero_grad()
            parallel(x).square().sum().backward()
    finally:
        distributed.destroy_process_group()
    for p, q in zip(net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-4)
