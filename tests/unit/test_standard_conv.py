"""Convolutions with standardised kernels."""

from __future__ import annotations

import torch
from torch.nn import functional

from foveate.nn.standard_conv import StandardConv2d


def test_kernels_have_mean_0_and_the_stated_variance_whatever_the_weights() -> None:
    layer = StandardConv2d(3, 8, 4).double()
    with torch.no_grad():
        layer.weight.mul_(7.0).add_(3.0)
        layer.gain.copy_(torch.arange(8.0).view(-1, 1, 1, 1))
    kernels = layer.kernels().flatten(1)
    torch.testing.assert_close(kernels.mean(1), torch.zeros(8, dtype=torch.double))
    expected = torch.arange(8.0, dtype=torch.double) ** 2 * 2 / 48
    torch.testing.assert_close(kernels.var(1, correction=0), expected, rtol=1e-5, atol=0)


def test_it_is_a_convolution_with_those_kernels() -> None:
    layer = StandardConv2d(2, 5, 3, stride=2, padding=1).double()
    x = torch.randn(2, 2, 9, 12, dtype=torch.double)
    plain = functional.conv2d(x, layer.kernels(), layer.bias, 2, 1)
    torch.testing.assert_close(layer(x), plain)
    weights = [p.detach().clone().requires_grad_() for p in (layer.weight, layer.gain)]

    def kernels(weight: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(_Kernels(layer), {"0.weight": weight, "0.gain": gain}, ())

    assert torch.autograd.gradcheck(kernels, weights)


class _Kernels(torch.nn.Sequential):
    def forward(self) -> torch.Tensor:
        layer = self[0]
        assert isinstance(layer, StandardConv2d)
        return layer.kernels()


def test_even_ground_gives_nothing_however_bright() -> None:
    layer = StandardConv2d(3, 6, 4, stride=2)
    for bright in (-2.0, 0.0, 2.6):
        assert layer(torch.full((1, 3, 20, 20), bright)).abs().max() < 1e-5
