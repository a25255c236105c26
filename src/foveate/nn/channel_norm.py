"""Layer norm over the channels of each cell: a normalisation that looks at no neighbour."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class ChannelNorm(nn.LayerNorm):
    """Of maps ``(b, c, *space)``: each cell's channels to mean 0 and variance 1, then scaled.

    Unlike batch norm it needs no batch, unlike group norm no whole image: networks with it stream
    exactly.

    Args:
        channels: c.
        n_axes: spatial axes.
    """

    def __init__(self, channels: int, *, n_axes: int = 2) -> None:
        super().__init__(channels, eps=1e-6)
        self.to_last = (0, *range(2, n_axes + 2), 1)
        self.to_first = (0, n_axes + 1, *range(1, n_axes + 1))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """Of the same shape."""
        x = input.permute(self.to_last)
        x = functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(self.to_first)
