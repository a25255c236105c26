"""Position codes from physical coordinates, independent of image size and number of patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PositionCode(nn.Module):
    """Fourier features of continuous coordinates, then a learnt linear map.

    Coordinates are counted in patches (position divided by patch extent), so that one code serves
    images of any size; wavelengths grow geometrically from 4 to `longest` patches per axis. A last
    feature is the logarithm of the token's own extent in patches, so tiles and patches differ.
    """

    frequencies: Tensor

    def __init__(self, dim: int, *, ndim: int = 2, bands: int = 8, longest: float = 4096.0) -> None:
        super().__init__()
        wavelengths = torch.logspace(math.log2(4.0), math.log2(longest), bands, base=2.0)
        self.register_buffer("frequencies", 2 * math.pi / wavelengths)
        self.project = nn.Linear(2 * bands * ndim + 1, dim)

    def forward(self, centre: Tensor, extent: Tensor) -> Tensor:
        """Code of tokens.

        Args:
            centre: ``(…, ndim)`` in patches.
            extent: ``(…)`` size of the token's region, in patches.

        Returns:
            ``(…, dim)``.
        """
        angle = (centre.unsqueeze(-1) * self.frequencies).flatten(-2)
        features = torch.cat([angle.sin(), angle.cos(), extent.log().unsqueeze(-1)], -1)
        code: Tensor = self.project(features.to(self.project.weight.dtype))
        return code
