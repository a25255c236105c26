"""Convolutions with standardised kernels: a normalisation that never looks at the image."""

from __future__ import annotations

import math

from torch import Tensor, nn, ones
from torch.nn import functional


class StandardConv2d(nn.Conv2d):
    """A convolution whose kernels have mean 0, and variance ``2 / n`` times a learnt gain squared.

    n is the number of weights of one kernel: the variance that keeps the scale of what passes
    through ReLUs (He et al., ICCV 2015). Even ground, however bright, gives the first layer
    nothing, so small parts on it are learnt from the first steps. As nothing is normalised by the
    image, networks with it stream exactly.

    Source: Qiao et al., "Weight Standardization", 2019; with gain and scale as in Brock et al.,
    "Characterizing signal propagation to close the performance gap in unnormalized ResNets", ICLR
    2021. Where we differ: the gain of ReLU is that of He et al.

    Args:
        before, after: channels.
        kernel: side.
        stride, padding: as of `torch.nn.Conv2d`.
    """

    def __init__(
        self, before: int, after: int, kernel: int, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(before, after, kernel, stride=stride, padding=padding)
        assert self.bias is not None
        nn.init.zeros_(self.bias)
        self.gain = nn.Parameter(ones(after, 1, 1, 1))

    def kernels(self) -> Tensor:
        """``(after, before, kernel, kernel)``, as they are used."""
        n = self.in_channels * math.prod(self.kernel_size)
        flat = functional.layer_norm(self.weight.flatten(1), (n,), eps=1e-8)
        return flat.view_as(self.weight) * (self.gain * math.sqrt(2 / n))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """``(b, before, h, w)`` to ``(b, after, h', w')``."""
        return functional.conv2d(input, self.kernels(), self.bias, self.stride, self.padding)
