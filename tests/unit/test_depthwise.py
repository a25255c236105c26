"""Depthwise convolutions of small maps equal PyTorch's, with their gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foveate.nn.depthwise import DepthwiseConv2d

SIZES = [(1, 1), (2, 2), (3, 4), (4, 1), (4, 4), (5, 2), (9, 7)]


def build(size: int, *, bias: bool = False) -> tuple[nn.Conv2d, DepthwiseConv2d]:
    """PyTorch's convolution of 6 channels and ours, with the same weights."""
    plain = nn.Conv2d(6, 6, size, padding=size // 2, groups=6, bias=bias).double()
    ours = DepthwiseConv2d(6, 6, size, padding=size // 2, groups=6, bias=bias).double()
    ours.load_state_dict(plain.state_dict())
    return plain, ours


def learn(conv: nn.Conv2d, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """The output of a convolution, and the gradients of a weighted sum of it."""
    x = x.clone().requires_grad_()
    result = conv(x)
    return result, *torch.autograd.grad((result * weight).sum(), [x, *conv.parameters()])


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", SIZES)
def test_values_and_gradients_equal_those_of_pytorch(kernel: int, size: tuple[int, int]) -> None:
    plain, ours = build(kernel, bias=kernel == 3)
    x, weight = torch.randn(3, 6, *size).double(), torch.randn(3, 6, *size).double()
    for expected, got in zip(learn(plain, x, weight), learn(ours, x, weight), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "other", [{"padding": 3}, {"dilation": 2, "padding": 4}, {"padding_mode": "circular"}]
)
def test_other_convolutions_are_those_of_pytorch(other: dict[str, Any]) -> None:
    options = {"padding": 2, "groups": 6, **other}
    plain = nn.Conv2d(6, 6, 5, **options).double()
    ours = DepthwiseConv2d(6, 6, 5, **options).double()
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 6, 4, 4).double()
    torch.testing.assert_close(ours(x), plain(x), rtol=0, atol=0)


def test_gradients_equal_differences() -> None:
    _, ours = build(5)
    x = torch.randn(2, 6, 3, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(ours, (x,))
