"""Images moved by affine maps: small random ones of patches, and any that is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


def warp(patches: Tensor, draws: Tensor, *, degrees: float = 15.0, scale: float = 0.15) -> Tensor:
    """Turn, scale and shear each patch a little about its centre; edges are repeated outwards.

    Args:
        patches: ``(m, c, h, w)``.
        draws: ``(m, 4)`` from -1 to 1: of turn, shear and the two sides.
        degrees: largest turn and shear.
        scale: largest change of either side, as a share.

    Returns:
        of the same shape.
    """
    m = len(patches)
    if m == 0:
        return patches
    draws = draws.double()
    turn, shear = (draws[:, i] * math.radians(degrees) for i in (0, 1))
    size = torch.exp(draws[:, 2:] * math.log1p(scale))
    cos, sin = turn.cos(), turn.sin()
    rotation = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    sheared = torch.eye(2, dtype=torch.float64).repeat(m, 1, 1)
    sheared[:, 0, 1] = shear.tan()
    theta = torch.cat([rotation @ sheared @ torch.diag_embed(size), torch.zeros(m, 2, 1)], -1)
    return _sampled(patches, theta.to(patches.device, torch.float32), patches.shape[2:], "border")


def resample(
    x: Tensor,
    linear: Tensor,
    shift: Tensor,
    cells: Sequence[int],
    *,
    stride: float = 1.0,
    centre: float = 0.5,
    outside: Literal["zeros", "border", "reflection"] = "border",
) -> Tensor:
    """Take each cell of a new map from where an affine map says that it lies in `x`.

    A cell at ``p`` is read at ``linear @ p + shift``, linearly between the cells of `x`. Points are
    counted in input pixels from the corner of an image, along ``(z,) y, x``. Gradient flows to `x`.

    Args:
        x: ``(m, c, *space)``, images or maps of images.
        linear: ``(m, d, d)``, of float64.
        shift: ``(m, d)``.
        cells: of the new map, per axis.
        stride: pixels per cell, of `x` and of the new map.
        centre: where the centre of cell 0 of both lies.
        outside: what is read beyond the outermost cells of `x`.

    Returns:
        ``(m, c, *cells)`` of the type of `x`.
    """
    if len(x) == 0:
        return x.new_zeros(0, x.shape[1], *cells)
    found = torch.tensor(x.shape[2:], dtype=torch.float64)
    wanted = torch.tensor(list(cells), dtype=torch.float64)
    # In cells: cell i is read at cell ``linear @ i + at``.
    first = torch.full_like(found, centre)
    at = (linear @ first + shift - first) / stride
    # PyTorch counts either map from -1 to 1 between its outer edges.
    at = linear @ ((wanted - 1) / 2) + at
    theta = torch.cat([linear * (wanted / 2), at.unsqueeze(-1)], -1) * (2 / found).unsqueeze(-1)
    theta[..., -1] += 1 / found - 1
    # It also takes axes as x, y(, z).
    axes = [*reversed(range(len(found))), len(found)]
    theta = theta[:, axes[:-1]][:, :, axes].to(x.device, torch.float32)
    return _sampled(x, theta, cells, outside)


def _sampled(x: Tensor, theta: Tensor, cells: Sequence[int], outside: str) -> Tensor:
    """What PyTorch reads at `theta`; places are not rounded to half precision."""
    with torch.autocast(x.device.type, enabled=False):
        grid = functional.affine_grid(theta, [len(x), x.shape[1], *cells], align_corners=False)
        moved = functional.grid_sample(
            x.float(), grid, mode="bilinear", padding_mode=outside, align_corners=False
        )
    return moved.to(x.dtype)
