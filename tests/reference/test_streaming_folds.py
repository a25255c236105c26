"""Frozen batch norms that are folded into the convolution before them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.streaming import NotLocal, Streamed

DOUBLE = torch.float64


def frozen_norm(n: int, *, affine: bool = True) -> nn.BatchNorm2d:
    """Make a frozen norm with arbitrary statistics and weights."""
    norm = nn.BatchNorm2d(n, affine=affine, eps=1e-3).eval().to(DOUBLE)
    for values, low in ((norm.running_mean, -1.0), (norm.running_var, 0.3)):
        assert values is not None
        nn.init.uniform_(values, low, 1.7)
    if affine:
        nn.init.uniform_(norm.weight, -1.5, 1.5)
        nn.init.uniform_(norm.bias, -1, 1)
    return norm


class FunctionalNorm(nn.Module):
    """The norm as a function, with positional or keyword arguments."""

    def __init__(self, *, named: bool) -> None:
        super().__init__()
        self.norm, self.named = frozen_norm(5), named

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        if self.named:
            return functional.batch_norm(
                x,
                running_var=norm.running_var,
                eps=0.2,
                running_mean=norm.running_mean,
                bias=norm.bias,
            )
        return functional.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.1, norm.eps
        )


class MapUsedTwice(nn.Module):
    """A network that uses the convolution's map beside the normalised one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 5, 3, 2, 1), frozen_norm(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return torch.tanh(self.norm(x)) + x


def stack(middle: list[nn.Module], *, bias: bool = True, groups: int = 1) -> nn.Module:
    first = [nn.Conv2d(3, 5, 3, 2, 1, bias=bias), *middle, nn.ReLU(inplace=True)]
    last = nn.Conv2d(5, 10, 3, padding=2, dilation=2, groups=groups, padding_mode="zeros")
    return nn.Sequential(*first, last, frozen_norm(10)).to(DOUBLE)


FOLDED: dict[str, Callable[[], nn.Module]] = {
    "bias": lambda: stack([frozen_norm(5)]),
    "no bias, groups": lambda: stack([frozen_norm(5)], bias=False, groups=5),
    "not affine": lambda: stack([frozen_norm(5, affine=False)]),
    "as a function": lambda: stack([FunctionalNorm(named=False)]),
    "by name": lambda: stack([FunctionalNorm(named=True)], bias=False),
    "after a layer that is idle": lambda: stack([nn.Dropout(0.0).eval(), frozen_norm(5)]),
    "two in a row": lambda: stack([frozen_norm(5), frozen_norm(5)]),
}
KEPT: dict[str, Callable[[], nn.Module]] = {
    "the map is used, too": lambda: nn.Sequential(MapUsedTwice(), nn.Conv2d(5, 4, 3)).to(DOUBLE),
    "another layer between": lambda: nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.Tanh(), frozen_norm(5), nn.Conv2d(5, 4, 3)
    ).to(DOUBLE),
    "mirrored borders": lambda: nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1, padding_mode="reflect"), frozen_norm(5)
    ).to(DOUBLE),
}


def list_norm_steps(streamed: Streamed) -> int:
    """List the steps that are a norm, not folded into a convolution."""
    graph = streamed._graph_of((3, 41, 38), torch.device("cpu"), DOUBLE)
    kinds = [
        isinstance(step.apply, nn.BatchNorm2d) or step.apply is functional.batch_norm
        for step in graph.steps
    ]
    return sum(kinds)


def assert_equal_to_plain(net: nn.Module) -> Streamed:
    x = torch.randn(2, 3, 41, 38, dtype=DOUBLE)
    y = net(x)
    weight = torch.randn_like(y)
    learnt = [p for p in net.parameters() if p.requires_grad]
    expected = torch.autograd.grad((y * weight).sum(), learnt, allow_unused=True)
    streamed = Streamed(net, tile=9)
    z = streamed(x)
    torch.testing.assert_close(z, y, rtol=1e-12, atol=1e-12)
    actual = torch.autograd.grad((z * weight).sum(), learnt, allow_unused=True)
    for ours, plain in zip(actual, expected, strict=True):
        if plain is not None:
            torch.testing.assert_close(ours, plain, rtol=0, atol=1e-11 * float(plain.abs().max()))
    return streamed


@pytest.mark.parametrize("name", FOLDED)
def test_a_norm_after_a_convolution_is_folded(name: str) -> None:
    torch.manual_seed(0)
    assert list_norm_steps(assert_equal_to_plain(FOLDED[name]())) == 0


@pytest.mark.parametrize("name", KEPT)
def test_other_norms_are_not_folded(name: str) -> None:
    torch.manual_seed(0)
    assert list_norm_steps(assert_equal_to_plain(KEPT[name]())) == 1


@pytest.mark.parametrize("learns", ["conv", "norm", "bias of the norm"])
def test_only_trainable_parameters_get_gradients(learns: str) -> None:
    torch.manual_seed(0)
    net = stack([frozen_norm(5)])
    for name, p in net.named_parameters():
        layer, kind = name.split(".")
        is_norm = isinstance(net[int(layer)], nn.BatchNorm2d)
        p.requires_grad_(
            {"conv": not is_norm, "norm": is_norm}.get(learns, is_norm and kind == "bias")
        )
    assert_equal_to_plain(net)


def test_changed_weights_are_folded_again() -> None:
    torch.manual_seed(0)
    net = stack([frozen_norm(5)])
    streamed = assert_equal_to_plain(net)
    x = torch.randn(1, 3, 41, 38, dtype=DOUBLE)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.3)
        net[1].running_var.mul_(0.7)
        torch.testing.assert_close(streamed(x), net(x), rtol=1e-12, atol=1e-12)


def test_a_norm_that_goes_back_to_training_is_refused() -> None:
    net = stack([frozen_norm(5)])
    streamed = Streamed(net, tile=9)
    streamed(torch.randn(1, 3, 41, 38, dtype=DOUBLE))
    net.train()
    with pytest.raises(NotLocal, match="batch statistics"):
        streamed(torch.randn(1, 3, 41, 38, dtype=DOUBLE))
