"""Layer norm over the channels of each cell, independent of neighbouring cells."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class ChannelNorm(nn.LayerNorm):
    """Normalisation of each cell of a map to mean 0 and variance 1 over its channels, then scaled.

    Unlike batch norm it does not depend on the batch, unlike group norm not on the whole image:
    networks with it stream exactly.

    Args:
        channels: number of channels.
        n_axes: number of spatial axes.
    """

    def __init__(self, channels: int, *, n_axes: int = 2) -> None:
        super().__init__(channels, eps=1e-6)
        self.to_last = (0, *range(2, n_axes + 2), 1)
        self.to_first = (0, n_axes + 1, *range(1, n_axes + 1))

    def forward(self, input: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:  # noqa: A002
        """Normalise maps ``(b, c, *space)``; the result has the same shape."""
        x = input.permute(self.to_last)
        x = functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(self.to_first)
