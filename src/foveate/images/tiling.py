"""Cover an image with a lattice of patches, and average maps over its cells."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from foveate.geometry import length_px_from_um
from foveate.geometry.lattice import Lattice, points_um_from_cell
from foveate.images.evidence import Floats

MIN_FOREGROUND = 0.05
"""The least share of foreground with which a patch is looked at."""


def tile_foreground(
    mask: NDArray[np.bool_],
    *,
    mask_spacing_um: float,
    extent_um: tuple[float, ...],
    patch_um: float,
    offset_um: tuple[float, ...] = (0.0, 0.0),
    min_fraction: float = MIN_FOREGROUND,
) -> Floats:
    """Return the corners of those patches of a lattice that hold foreground, in micrometres.

    Args:
        mask: foreground of the glimpse, ``((z,) y, x)``.
        mask_spacing_um: spacing of the glimpse.
        extent_um: extent of the image per axis.
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
        mask.astype(np.float64),
        length_px_from_um(corners, mask_spacing_um),
        length_px_from_um(patch_um, mask_spacing_um),
    )
    chosen = corners[share >= min_fraction]
    return chosen if len(chosen) else corners


def cell_means(values: Floats, lattice: Lattice, *, spacing_um: float) -> Floats:
    """Average a map over the cells of a lattice; pixels that an edge cuts count by their share.

    Args:
        values: the map, ``((z,) y, x)``; counts as 0 beyond its edges.
        lattice: the lattice, of square cells.
        spacing_um: spacing of `values`.

    Returns:
        means in the shape of the lattice.
    """
    cells = np.indices(lattice.shape).reshape(len(lattice.shape), -1).T
    corner_px = length_px_from_um(points_um_from_cell(cells, lattice), spacing_um)
    side_px = length_px_from_um(lattice.cell_um[0], spacing_um)
    return _box_means(values, corner_px, side_px).reshape(lattice.shape)


def _box_means(values: Floats, origin_px: Floats, side_px: float) -> Floats:
    """Average an array, ``((z,) y, x)`` and 0 outside, over boxes with fractional corners.

    Returns ``(n,)`` for corners `origin_px` ``(n, d)``.
    """
    integral = integral_image(values[..., None], values.ndim)
    return box_sums(integral, origin_px, side_px)[:, 0] / side_px**values.ndim


def integral_image(values: Floats, ndim: int) -> Floats:
    """Compute the integral image over the first `ndim` axes, padded with zeros before each.

    Args:
        values: values ``((z,) y, x, c)``.
        ndim: number of the axes that are summed over.
    """
    for axis in range(ndim):
        values = np.cumsum(values, axis)
    return np.pad(values, [(1, 0)] * ndim + [(0, 0)])


def box_sums(integral: Floats, origin_px: Floats, side_px: float) -> Floats:
    """Sum boxes with fractional corners by their integral image ``((z,) y, x, c)``: ``(n, c)``.

    Args:
        integral: the integral image.
        origin_px: corners of the boxes, ``(n, d)``, in pixels of the array.
        side_px: side of the boxes.
    """
    ndim = integral.ndim - 1
    total = np.zeros((len(origin_px), integral.shape[-1]))
    for corner in np.ndindex(*(2,) * ndim):
        sign = (-1) ** (ndim - sum(corner))
        total += sign * _interpolate(integral, origin_px + side_px * np.asarray(corner))
    return total


def _interpolate(grid: Floats, place: Floats) -> Floats:
    """Interpolate ``((z,) y, x, c)`` linearly at places ``(n, d)``: ``(n, c)``.

    Places are clamped to the grid, since an integral image is flat beyond its edges.
    """
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
