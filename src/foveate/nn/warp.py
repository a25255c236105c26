"""Small turns and scalings of patches, a different one for each: augmentation."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def warp(patches: Tensor, *, degrees: float = 15.0, scale: float = 0.15) -> Tensor:
    """Turn, scale and shear each patch a little about its centre; edges are repeated outwards.

    Draws come from torch's global generator.

    Args:
        patches: ``(m, c, h, w)``.
        degrees: largest turn and shear.
        scale: largest change of either side, as a share.

    Returns:
        of the same shape.
    """
    m = len(patches)
    if m == 0:
        return patches
    draws = 2 * torch.rand(m, 4) - 1
    turn, shear = (draws[:, i] * math.radians(degrees) for i in (0, 1))
    size = torch.exp(draws[:, 2:] * math.log1p(scale))
    cos, sin = turn.cos(), turn.sin()
    rotation = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    sheared = torch.eye(2).repeat(m, 1, 1)
    sheared[:, 0, 1] = shear.tan()
    theta = torch.cat([rotation @ sheared @ torch.diag_embed(size), torch.zeros(m, 2, 1)], -1)
    grid = functional.affine_grid(theta.to(patches), list(patches.shape), align_corners=False)
    return functional.grid_sample(
        patches, grid, mode="bilinear", padding_mode="border", align_corners=False
    )
