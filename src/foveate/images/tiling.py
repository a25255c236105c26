"""Covering an image with a lattice of patches."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from foveate.geometry import Lattice
from foveate.images.evidence import Floats

LEAST_FOREGROUND = 0.05
"""Share of a patch that must be foreground for the patch to be worth a look."""


def tile_foreground(
    mask: NDArray[np.bool_],
    *,
    mask_spacing_um: float,
    extent_um: tuple[float, ...],
    patch_um: float,
    offset_um: tuple[float, ...] = (0.0, 0.0),
    min_fraction: float = LEAST_FOREGROUND,
) -> Floats:
    """Corners of the lattice patches that hold some foreground.

    Args:
        mask: foreground at glimpse resolution, one axis per spatial axis.
        mask_spacing_um: size of a mask pixel.
        extent_um: of the image.
        patch_um: side of a patch, which is also the step of the lattice.
        offset_um: shift of the lattice, from 0 to one patch; patches may then begin outside.
        min_fraction: least share of foreground; when no patch has it, all are returned.

    Returns:
        ``(n, d)`` in reading order; at least one.
    """
    start = tuple(-(o % patch_um) for o in offset_um)
    counts = [
        max(1, math.ceil((e - s) / patch_um - 1e-9)) for e, s in zip(extent_um, start, strict=True)
    ]
    axes = [s + patch_um * np.arange(n) for s, n in zip(start, counts, strict=True)]
    corners = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))
    share = _box_means(
        mask.astype(np.float64), corners / mask_spacing_um, patch_um / mask_spacing_um
    )
    kept = corners[share >= min_fraction]
    return kept if len(kept) else corners


def cell_means(values: Floats, lattice: Lattice, *, spacing_um: float) -> Floats:
    """Means of a map over the cells of a lattice, exactly, also where edges cut through pixels.

    Args:
        values: one axis per spatial axis; counts as 0 beyond its edges.
        lattice: square cells.
        spacing_um: size of a pixel of `values`.

    Returns:
        of the lattice's shape.
    """
    cells = np.indices(lattice.shape).reshape(len(lattice.shape), -1).T
    corner = np.asarray(lattice.origin_um) + cells * np.asarray(lattice.cell_um)
    means = _box_means(values, corner / spacing_um, lattice.cell_um[0] / spacing_um)
    return means.reshape(lattice.shape)


def _box_means(values: Floats, origin: Floats, side: float) -> Floats:
    """Means of boxes with fractional corners over an array that is 0 outside."""
    integral = integral_image(values[..., None], values.ndim)
    return box_sums(integral, origin, side)[:, 0] / side**values.ndim


def integral_image(values: Floats, ndim: int) -> Floats:
    """The integral image over the first `ndim` axes, with a row of zeros before each."""
    for axis in range(ndim):
        values = np.cumsum(values, axis)
    return np.pad(values, [(1, 0)] * ndim + [(0, 0)])


def box_sums(integral: Floats, origin: Floats, side: float) -> Floats:
    """Sums ``(n, c)`` of boxes with fractional corners, from an integral image ``(…, c)``."""
    ndim = integral.ndim - 1
    total = np.zeros((len(origin), integral.shape[-1]))
    for corner in np.ndindex(*(2,) * ndim):
        sign = (-1) ** (ndim - sum(corner))
        total += sign * _interpolate(integral, origin + side * np.asarray(corner))
    return total


def _interpolate(grid: Floats, place: Floats) -> Floats:
    """Multilinear interpolation, clamped at the edges (an integral image is flat beyond them)."""
    ndim = grid.ndim - 1
    top = np.asarray(grid.shape[:-1]) - 1
    place = np.clip(place, 0, top)
    low = np.minimum(np.floor(place).astype(np.int64), np.maximum(top - 1, 0))
    rest = place - low
    out = np.zeros((len(place), grid.shape[-1]))
    for corner in np.ndindex(*(2,) * ndim):
        index = np.minimum(low + np.asarray(corner), top)
        weight = np.where(np.asarray(corner) == 1, rest, 1 - rest).prod(-1)
        out += weight[:, None] * grid[tuple(index.T)]
    return out
