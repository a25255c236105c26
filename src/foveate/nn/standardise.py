"""Features brought to mean 0 and spread 1, by figures found once on training images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_LEAST_SPREAD = 1e-2


class Standardise(nn.Module):
    """Subtracts a mean and divides by a spread, both settled from data and stored with the model.

    Args:
        n_features: length of a vector.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("spread", torch.ones(n_features))

    @torch.no_grad()
    def settle(self, features: Tensor) -> None:
        """Take mean and spread from features ``(n, n_features)``, n at least 1.

        A feature that hardly varies is not blown up: its spread counts as at least a hundredth of
        the largest.
        """
        exact = features.double()
        spread = exact.std(0, correction=0)
        least = max(_LEAST_SPREAD * float(spread.max()), 1e-6)
        self.mean.copy_(exact.mean(0))
        self.spread.copy_(spread.clamp_min(least))

    def forward(self, features: Tensor) -> Tensor:
        """``(…, n_features)`` of the same shape."""
        return (features - self.mean) / self.spread
