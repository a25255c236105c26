"""Grids of overlapping square cells: over an image, and over every crop that was chosen in it.

With g cells per axis that overlap by a share o, a crop's grid spans ``f = 1 + (g - 1) (1 - o)``
sides of a cell, so that each level is finer than the one above by the factor f. The finest level's
cells have the side of a patch at the view's spacing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from foveate.batch import LoadedImage, View
from foveate.encoders.base import AbstractEncoder
from foveate.errors import OptionError
from foveate.images.evidence import Floats

_NEAREST = 1e-9


@dataclass(frozen=True)
class Cut:
    """The rule by which a region is cut into cells.

    Attributes:
        cells: number of cells along each axis of a crop.
        overlap: share of a cell's side that it has in common with its neighbour.

    Raises:
        OptionError: cells would not be smaller than the crop.
    """

    cells: int
    overlap: float

    def __post_init__(self) -> None:
        if self.cells < 2:
            raise OptionError(f"method.grid: got {self.cells}, expected 2 or more")
        if not 0 <= self.overlap < 1:
            raise OptionError(f"method.overlap: got {self.overlap}, expected a share from 0 to 1")

    @property
    def zoom(self) -> float:
        """Return the side of a crop in sides of its cells."""
        return 1 + (self.cells - 1) * (1 - self.overlap)

    def inside(self, side: float) -> Floats:
        """Return where the cells of a crop of a side begin on either axis, from its corner."""
        number = np.arange(self.cells, dtype=np.float64)
        begin: Floats = number * (1 - self.overlap) * side / self.zoom
        return begin

    def over(self, extent: float, side: float, shift: float | None) -> Floats:
        """Return where cells begin on one axis of an image, so that they cover it.

        Args:
            extent: extent of the image on that axis.
            side: side of a cell.
            shift: None centres the cells on the image; they may reach beyond its edges. A number
                from 0 to 1 moves them back by that share of their step; one more cell fills the
                gap.
        """
        step = (1 - self.overlap) * side
        n = max(1, math.ceil((extent - side) / step - 1e-9) + 1)
        start = (extent - side - (n - 1) * step) / 2
        first, n = (start, n) if shift is None else (start - step * shift, n + 1)
        begin: Floats = first + step * np.arange(n, dtype=np.float64)
        return begin

    def levels(self, extent_um: Sequence[float], view: View, most: int | None) -> int:
        """Count the levels that lead from the glimpse down to the view's spacing; at least 1.

        There is a level for each zoom between the spacings of glimpse and patches, so that the
        first level already shows more than the glimpse; but no cell is larger than the image.

        Args:
            extent_um: extent of the image along each axis.
            view: spacings of patches and glimpse.
            most: largest number of levels; None for no bound. With fewer levels than needed the
                first grid has more cells.
        """
        span = _count_zooms(max(extent_um) / view.patch_um, self.zoom)
        needed = _count_zooms(view.glimpse_spacing_um / view.spacing_um, self.zoom)
        return max(1, min(span, needed) if most is None else min(span, needed, most))


def _count_zooms(ratio: float, factor: float) -> int:
    return math.ceil(math.log(max(ratio, 1.0)) / math.log(factor) - 1e-9)


# -- what lies in a cell ---------------------------------------------------------------------------


def overlaps(begin: Floats, side: float, n: int, *, stride: float, first: float) -> Floats:
    """Compute the length that each window has in common with each of n cells, ``(windows, n)``.

    Args:
        begin: where windows begin, ``(windows,)``.
        side: side of a window.
        n: number of cells, which lie side by side.
        stride: side of a cell.
        first: centre of cell 0.
    """
    edges = first + stride * (np.arange(n + 1) - 0.5)
    low = np.maximum(begin[:, None], edges[:-1])
    high = np.minimum(begin[:, None] + side, edges[1:])
    common: Floats = np.maximum(high - low, 0.0)
    return common


def compute_window_weights(
    begin: Floats, side: float, n: int, *, stride: float, first: float
) -> Floats:
    """Compute the weight of each cell of a map in the mean over each window: ``(windows, n)``.

    Rows sum to 1. A window beyond the map takes the nearest cell. Arguments as in `overlaps`.
    """
    length = overlaps(begin, side, n, stride=stride, first=first)
    nearest = np.clip(np.rint((begin + side / 2 - first) / stride), 0, n - 1).astype(np.int64)
    length[np.arange(len(begin)), nearest] += _NEAREST * side
    weights: Floats = length / length.sum(1, keepdims=True)
    return weights


def compute_cell_features(
    encoder: AbstractEncoder,
    maps: Sequence[Float[Tensor, "m _c _h _w"]],
    begin_px: tuple[Floats, Floats],
    side_px: float,
) -> Float[Tensor, "m cells c"]:
    """Average all maps over each cell of a grid and concatenate the means, without gradient.

    Args:
        encoder: the encoder that made the maps.
        maps: maps ``(m, c, h, w)`` of m regions, from fine to coarse.
        begin_px: where cells begin on either axis, in pixels of the encoder's input.
        side_px: side of a cell.

    Returns:
        means ``(m, cells, sum c)`` in float32, cells in reading order.
    """
    means = []
    for map_, stride, first in zip(maps, encoder.strides, encoder.map_centres, strict=True):
        rows, columns = (
            torch.from_numpy(compute_window_weights(b, side_px, n, stride=stride, first=first)).to(
                map_.device, torch.float32
            )
            for b, n in zip(begin_px, map_.shape[-2:], strict=True)
        )
        with torch.autocast(map_.device.type, enabled=False):
            mean = torch.einsum("gh,mchw,kw->mgkc", rows, map_.detach().float(), columns)
        means.append(mean.flatten(1, 2))
    return torch.cat(means, -1)


def compute_cell_contrast(
    item: LoadedImage, view: View, begin_um: tuple[Floats, Floats], side_um: float
) -> Floats:
    """Average the contrast over each cell of a grid; 0 closes cells without foreground.

    Where no cell has any foreground, it is 1 on cells that touch the image.

    Args:
        item: the image.
        view: geometry in which the glimpse was read.
        begin_um: where cells begin on either axis.
        side_um: side of a cell.

    Returns:
        contrast ``(cells,)`` in reading order.
    """
    shape, spacing = item.contrast.shape, view.glimpse_spacing_um
    parts, lengths = [], []
    for begin, n in zip(begin_um, shape, strict=True):
        low = int(np.clip(np.floor(begin.min() / spacing), 0, n - 1))
        high = int(np.clip(np.ceil((begin.max() + side_um) / spacing), low + 1, n))
        parts.append(slice(low, high))
        lengths.append(
            overlaps(begin / spacing, side_um / spacing, high - low, stride=1.0, first=low + 0.5)
        )
    pixels = item.contrast[parts[0], parts[1]].astype(np.float64)
    contrast: Floats = (lengths[0] @ pixels @ lengths[1].T).ravel() * (spacing / side_um) ** 2
    if contrast.any():
        return contrast
    extent = item.image.box_um.size
    rows, columns = ((b + side_um > 0) & (b < e) for b, e in zip(begin_um, extent, strict=True))
    return np.outer(rows, columns).ravel().astype(np.float64)


def corners(begin: tuple[Floats, Floats]) -> Floats:
    """Return the corners ``(cells, 2)`` of a grid's cells in reading order.

    Args:
        begin: where cells begin on either axis.
    """
    return np.stack(np.meshgrid(*begin, indexing="ij"), -1).reshape(-1, 2)
