"""Grids of overlapping square cells: over an image, and over every crop that was chosen in it.

With g cells an axis that overlap by a share o, a crop's grid spans ``f = 1 + (g - 1) (1 - o)``
sides of a cell, so that each level is finer than the one above by the factor f. Sides are counted
from the finest level up, whose patches have the view's spacing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foveate.batch import LoadedImage, View
from foveate.encoders.base import AbstractEncoder
from foveate.errors import OptionError
from foveate.images.evidence import Floats

_NEAREST = 1e-9


@dataclass(frozen=True)
class Cut:
    """How a region is cut into cells.

    Attributes:
        cells: per axis of a crop.
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
        """Side of a crop in sides of its cells."""
        return 1 + (self.cells - 1) * (1 - self.overlap)

    def inside(self, side: float) -> Floats:
        """Where the cells of a crop of this side begin, from its corner, on either axis."""
        whole = np.arange(self.cells, dtype=np.float64)
        begin: Floats = whole * (1 - self.overlap) * side / self.zoom
        return begin

    def over(self, extent: float, side: float, shift: float | None) -> Floats:
        """Where cells of this side begin on one axis of an image, so that they cover it.

        Args:
            extent: of the image on that axis.
            side: of a cell.
            shift: None centres the cells on the image, whatever they overhang it by. A number from
                0 to 1 moves them back by that share of their step; one more cell fills the gap.
        """
        step = (1 - self.overlap) * side
        n = max(1, math.ceil((extent - side) / step - 1e-9) + 1)
        start = (extent - side - (n - 1) * step) / 2
        first, n = (start, n) if shift is None else (start - step * shift, n + 1)
        begin: Floats = first + step * np.arange(n, dtype=np.float64)
        return begin

    def levels(self, extent_um: Sequence[float], view: View, most: int | None) -> int:
        """How many levels lead from the glimpse down to the view's spacing; at least 1.

        As many zooms as lie between the spacings of glimpse and view, so that the first level
        already shows more than the glimpse; never more than make the coarsest cell span the image.

        Args:
            extent_um: of the image.
            view: of the patches and the glimpse.
            most: or None. With fewer levels than needed the first grid has more cells.
        """
        span = _steps(max(extent_um) / view.patch_um, self.zoom)
        needed = _steps(view.glimpse_spacing_um / view.spacing_um, self.zoom)
        return max(1, min(span, needed) if most is None else min(span, needed, most))


def _steps(ratio: float, factor: float) -> int:
    return math.ceil(math.log(max(ratio, 1.0)) / math.log(factor) - 1e-9)


# -- what lies in a cell ---------------------------------------------------------------------------


def overlaps(begin: Floats, side: float, n: int, *, stride: float, first: float) -> Floats:
    """Length that each window has in common with each of n neighbouring cells, ``(windows, n)``.

    Args:
        begin: where windows begin.
        side: of a window.
        n: number of cells.
        stride: of the cells.
        first: centre of cell 0.
    """
    edges = first + stride * (np.arange(n + 1) - 0.5)
    low = np.maximum(begin[:, None], edges[:-1])
    high = np.minimum(begin[:, None] + side, edges[1:])
    common: Floats = np.maximum(high - low, 0.0)
    return common


def window_weights(begin: Floats, side: float, n: int, *, stride: float, first: float) -> Floats:
    """What each cell of a map counts in the mean over each window; rows sum to 1.

    A window beyond the map takes the cell that is nearest.
    """
    length = overlaps(begin, side, n, stride=stride, first=first)
    nearest = np.clip(np.rint((begin + side / 2 - first) / stride), 0, n - 1).astype(np.int64)
    length[np.arange(len(begin)), nearest] += _NEAREST * side
    weights: Floats = length / length.sum(1, keepdims=True)
    return weights


def cell_features(
    encoder: AbstractEncoder,
    maps: Sequence[Tensor],
    begin_px: tuple[Floats, Floats],
    side_px: float,
) -> Tensor:
    """Means of all maps over the cells of a grid, one after another, without gradient, in float32.

    Args:
        encoder: whose maps they are.
        maps: ``(m, c, h, w)``, fine to coarse.
        begin_px: where cells begin on either axis, in pixels of the encoder's input.
        side_px: of a cell.

    Returns:
        ``(m, cells, sum c)``, cells in reading order.
    """
    found = []
    for each, stride, first in zip(maps, encoder.strides, encoder.map_centres, strict=True):
        rows, columns = (
            torch.from_numpy(window_weights(b, side_px, n, stride=stride, first=first)).to(
                each.device, torch.float32
            )
            for b, n in zip(begin_px, each.shape[-2:], strict=True)
        )
        with torch.autocast(each.device.type, enabled=False):
            mean = torch.einsum("gh,mchw,kw->mgkc", rows, each.detach().float(), columns)
        found.append(mean.flatten(1, 2))
    return torch.cat(found, -1)


def cell_contrast(
    item: LoadedImage, view: View, begin_um: tuple[Floats, Floats], side_um: float
) -> Floats:
    """Mean contrast of the cells of a grid; 0 on cells without foreground, which stay closed.

    Where no cell has any foreground it is 1 on those that touch the image.

    Returns:
        ``(cells,)`` in reading order.
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
    seen = item.contrast[parts[0], parts[1]].astype(np.float64)
    found: Floats = (lengths[0] @ seen @ lengths[1].T).ravel() * (spacing / side_um) ** 2
    if found.any():
        return found
    extent = item.image.box_um.size
    rows, columns = ((b + side_um > 0) & (b < e) for b, e in zip(begin_um, extent, strict=True))
    return np.outer(rows, columns).ravel().astype(np.float64)


def corners(begin: tuple[Floats, Floats]) -> Floats:
    """Corners ``(cells, 2)`` of a grid in reading order."""
    return np.stack(np.meshgrid(*begin, indexing="ij"), -1).reshape(-1, 2)
