"""Position codes from physical coordinates, independent of image size and number of patches."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class PositionCode(nn.Module):
    """Position codes of tokens: Fourier features of their coordinates, then a linear map.

    Coordinates are in patches (position divided by patch extent), so that one code serves images of
    any size. Wavelengths grow geometrically from 4 to `longest` patches per axis. A last feature is
    the logarithm of the token's extent in patches, so that tiles and patches differ.

    Args:
        dim: length of a code.
        ndim: number of axes of an image.
        bands: number of wavelengths per axis.
        longest: longest wavelength, in patches.
    """

    frequencies: Tensor

    def __init__(self, dim: int, *, ndim: int = 2, bands: int = 8, longest: float = 4096.0) -> None:
        super().__init__()
        wavelengths = torch.logspace(math.log2(4.0), math.log2(longest), bands, base=2.0)
        self.register_buffer("frequencies", 2 * math.pi / wavelengths)
        self.project = nn.Linear(2 * bands * ndim + 1, dim)

    def forward(
        self, centre_patch: Float[Tensor, "*b ndim"], extent_patch: Float[Tensor, " *b"]
    ) -> Float[Tensor, "*b dim"]:
        """Compute the position codes of tokens, ``(…, dim)``.

        Args:
            centre_patch: centres of the tokens' regions in patches, ``(…, ndim)``.
            extent_patch: sizes of the tokens' regions in patches, ``(…)``.
        """
        angle = (centre_patch.unsqueeze(-1) * self.frequencies).flatten(-2)
        features = torch.cat([angle.sin(), angle.cos(), extent_patch.log().unsqueeze(-1)], -1)
        code: Tensor = self.project(features.to(self.project.weight.dtype))
        return code
