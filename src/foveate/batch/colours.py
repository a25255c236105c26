"""Describe the colours of an image by numbers that need no network."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

N_COLOURS = 21
"""Number of colour statistics: mean, spread and five quantiles of three channels."""

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_MAX_PIXELS = 20_000


@torch.no_grad()
def describe_colours(
    rgb: Float[Tensor, " 3 *space"], weight: Shaped[Tensor, " 1 *space"] | None = None
) -> Float[Tensor, "1 colours"]:
    """Compute mean, spread and quantiles of each channel, ``(1, N_COLOURS)``.

    Args:
        rgb: ``(3, *space)`` in [0, 1].
        weight: ``(1, *space)``; pixels where it is 0 do not count. All pixels count by default,
            and if it is 0 everywhere.
    """
    pixels = rgb.float().flatten(1)
    if weight is not None and (weight > 0).any():
        pixels = pixels[:, weight.flatten() > 0]
    n = pixels.shape[1]
    if n > _MAX_PIXELS:  # a subset, evenly spaced: quantiles have to sort the pixels
        pixels = pixels[:, torch.linspace(0, n - 1, _MAX_PIXELS, device=rgb.device).long()]
    ranks = torch.tensor(_QUANTILES, device=rgb.device)
    quantiles = torch.quantile(pixels, ranks, dim=1).T
    spread = pixels.std(1, correction=0)
    return torch.cat([pixels.mean(1), spread, quantiles.flatten()])[None]
