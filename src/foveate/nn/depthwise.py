"""A depthwise convolution with a fast gradient on CPUs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution; on CPUs, maps smaller than its kernel are stacked.

    They are where it keeps the size of a map: stride 1, zeros of half a kernel around it.

    The gradient of kernels of 5 x 5 on maps of 2 x 2 to 4 x 4 takes PyTorch three to four times as
    long as with all maps of the batch in one column, zeros between them
    (``benchmarks/depthwise.py``, AMD EPYC). The results are equal up to rounding.
    """

    def forward(self, input: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c _y _x"]:  # noqa: A002
        """Convolve maps ``(b, c, y, x)``, each channel by itself."""
        is_small = max(input.shape[-2:]) < min(self.kernel_size)
        keeps_size = self.padding == tuple(n // 2 for n in self.kernel_size)
        plain = keeps_size and self.stride == self.dilation == (1, 1)
        on_cpu = input.device.type == "cpu" and torch.is_grad_enabled()
        if is_small and plain and on_cpu and self.padding_mode == "zeros":
            return self._convolve_column(input)
        return super().forward(input)

    def _convolve_column(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        """Convolve the maps ``(b, c, y, x)`` as one map, ``padding`` rows of zeros above each."""
        b, c, h, w = x.shape
        gap, side = (n // 2 for n in self.kernel_size)
        rows = functional.pad(x.permute(0, 2, 3, 1), (0, 0, 0, 0, gap, 0))
        column = rows.reshape(1, b * (h + gap), w, c).permute(0, 3, 1, 2)
        result = functional.conv2d(
            column, self.weight, self.bias, padding=(gap, side), groups=self.groups
        )
        separate = result.permute(0, 2, 3, 1).reshape(b, h + gap, w, c)
        return separate[:, gap:].permute(0, 3, 1, 2)
