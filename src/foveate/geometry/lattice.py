"""Lattices of cells, and the converters between cells, pixels and micrometres."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from foveate.geometry import Vector, points_um_from_px

_Floats = NDArray[np.float64]
_Length = TypeVar("_Length", float, _Floats)


@dataclass(frozen=True)
class Lattice:
    """A regular grid of attention cells laid over an image, in micrometres.

    Attributes:
        origin_um: corner of cell ``(0, 0)``.
        cell_um: size of a cell, per axis.
        shape: number of cells, per axis.
    """

    origin_um: Vector
    cell_um: Vector
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return math.prod(self.shape)


def lattice_um_from_map(
    shape: Sequence[int], *, stride_px: float, centre_px: float, spacing_um: float
) -> Lattice:
    """Lay the lattice of the cells of a map over the image that the map was computed of.

    Args:
        shape: cells of the map, per axis.
        stride_px: side of a cell in pixels of the image.
        centre_px: centre of the first cell in pixels of the image.
        spacing_um: spacing of the image.
    """
    cell_um = stride_px * spacing_um
    corner_um = centre_px * spacing_um - cell_um / 2
    return Lattice((corner_um,) * len(shape), (cell_um,) * len(shape), tuple(shape))


def points_um_from_cell(points_cell: NDArray[np.generic], lattice: Lattice) -> _Floats:
    """Convert points ``(…, d)`` from cells of a lattice, where 0 is its corner, to micrometres.

    Args:
        points_cell: the points.
        lattice: places of the cells.
    """
    return points_um_from_px(
        np.asarray(points_cell, np.float64), lattice.cell_um, lattice.origin_um
    )


def points_px_from_cell(points_cell: _Length, *, stride_px: float, centre_px: float) -> _Length:
    """Convert coordinates on one axis from cells of a map to pixels of its image.

    Args:
        points_cell: the coordinates; 0 is the centre of the first cell.
        stride_px: side of a cell.
        centre_px: centre of the first cell.
    """
    return centre_px + stride_px * points_cell


def points_cell_from_px(points_px: _Length, *, stride_px: float, centre_px: float) -> _Length:
    """Convert coordinates on one axis from pixels of an image to cells of its map.

    Args:
        points_px: the coordinates.
        stride_px: side of a cell.
        centre_px: centre of the first cell, which is 0 in the result.
    """
    return (points_px - centre_px) / stride_px
