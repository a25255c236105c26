"""Affine maps of images: small random ones of patches, and resampling by a chosen one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def warp(
    patches: Float[Tensor, "m c h w"],
    draws: Float[Tensor, "m 4"],
    *,
    degrees: float = 15.0,
    scale: float = 0.15,
) -> Float[Tensor, "m c h w"]:
    """Rotate, scale and shear each patch a little about its centre.

    Beyond the edges the outermost pixels are repeated.

    Args:
        patches: patches, ``(m, c, h, w)``.
        draws: numbers from -1 to 1, ``(m, 4)``: for the angles of rotation and shear, and the two
            sides.
        degrees: largest angle of rotation and of shear.
        scale: largest relative change of either side.

    Returns:
        The warped patches ``(m, c, h, w)``.
    """
    m = len(patches)
    if m == 0:
        return patches
    draws = draws.double()
    angle, shear = (draws[:, i] * math.radians(degrees) for i in (0, 1))
    size = torch.exp(draws[:, 2:] * math.log1p(scale))
    cos, sin = angle.cos(), angle.sin()
    rotation = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    sheared = torch.eye(2, dtype=torch.float64).repeat(m, 1, 1)
    sheared[:, 0, 1] = shear.tan()
    theta = torch.cat([rotation @ sheared @ torch.diag_embed(size), torch.zeros(m, 2, 1)], -1)
    return _sample(patches, theta.to(patches.device, torch.float32), patches.shape[2:], "border")


def resample_affine(
    x: Float[Tensor, "m c *space"],
    linear: Float[Tensor, "m d d"],
    shift_px: Float[Tensor, "m d"],
    cells: Sequence[int],
    *,
    stride_px: float = 1.0,
    centre_px: float = 0.5,
    outside: Literal["zeros", "border", "reflection"] = "border",
) -> Float[Tensor, "m c *cells"]:
    """Read each cell of a new map at the point of `x` that an affine map assigns to it.

    The cell at point ``p`` is read at ``linear @ p + shift``, by linear interpolation between the
    cells of `x`. Points are in input pixels from the corner of an image, along ``(z,) y, x``. `x`
    gets a gradient.

    Args:
        x: images or maps of images, ``(m, c, *space)``.
        linear: matrices of the affine maps, ``(m, d, d)`` float64.
        shift_px: shifts of the affine maps in pixels, ``(m, d)`` float64.
        cells: number of cells of the new map, per axis.
        stride_px: pixels per cell, of `x` and of the new map.
        centre_px: coordinate of the centre of cell 0, in pixels, of `x` and of the new map.
        outside: rule for points beyond the outermost cells of `x`: 0, the nearest cell, or the
            mirrored one.

    Returns:
        The new map ``(m, c, *cells)`` in the dtype of `x`.
    """
    if len(x) == 0:
        return x.new_zeros(0, x.shape[1], *cells)
    in_cells = torch.tensor(x.shape[2:], dtype=torch.float64)
    out_cells = torch.tensor(list(cells), dtype=torch.float64)
    # In units of cells: cell i is read at ``linear @ i + offset``.
    first = torch.full_like(in_cells, centre_px)
    offset = (linear @ first + shift_px - first) / stride_px
    # PyTorch counts both maps from -1 to 1 between their outer edges.
    offset = linear @ ((out_cells - 1) / 2) + offset
    theta = torch.cat([linear * (out_cells / 2), offset.unsqueeze(-1)], -1)
    theta = theta * (2 / in_cells).unsqueeze(-1)
    theta[..., -1] += 1 / in_cells - 1
    # PyTorch expects axes in the order x, y(, z).
    axes = [*reversed(range(len(in_cells))), len(in_cells)]
    theta = theta[:, axes[:-1]][:, :, axes].to(x.device, torch.float32)
    return _sample(x, theta, cells, outside)


def _sample(
    x: Float[Tensor, "m c *space"],
    theta: Float[Tensor, "m d _d"],
    cells: Sequence[int],
    outside: str,
) -> Float[Tensor, "m c *cells"]:
    """Sample ``x (m, c, *space)`` by affine maps ``theta (m, d, d + 1)``: ``(m, c, *cells)``."""
    # Autocast would round coordinates to half precision.
    with torch.autocast(x.device.type, enabled=False):
        grid = functional.affine_grid(theta, [len(x), x.shape[1], *cells], align_corners=False)
        moved = functional.grid_sample(
            x.float(), grid, mode="bilinear", padding_mode=outside, align_corners=False
        )
    return moved.to(x.dtype)
