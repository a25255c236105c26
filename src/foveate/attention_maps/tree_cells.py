"""Grids of overlapping square cells: over an image, and over every patch that was chosen in it.

With g cells per axis that overlap by a share o, a patch's grid spans ``f = 1 + (g - 1) (1 - o)``
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
from foveate.geometry import downsample_from_spacing_um, length_patch_from_um, length_px_from_um
from foveate.geometry.lattice import points_cell_from_px, points_px_from_cell
from foveate.images.evidence import Floats

_NEAREST = 1e-9


@dataclass(frozen=True)
class Cut:
    """The rule by which a region is cut into cells.

    Attributes:
        cells: number of cells along each axis of a patch.
        overlap: share of a cell's side that it has in common with its neighbour.

    Raises:
        OptionError: cells would not be smaller than the patch.
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
        """Return the side of a patch in sides of its cells."""
        return 1 + (self.cells - 1) * (1 - self.overlap)

    def inside(self, side: float) -> Floats:
        """Return where the cells of a patch begin on either axis from its corner, in `side`'s unit.

        Args:
            side: side of the patch, in micrometres or in pixels.
        """
        number = np.arange(self.cells, dtype=np.float64)
        begin: Floats = number * (1 - self.overlap) * side / self.zoom
        return begin

    def over(self, extent_um: float, side_um: float, shift: float | None) -> Floats:
        """Return where cells begin on one axis of an image, so that they cover it.

        Args:
            extent_um: extent of the image on that axis.
            side_um: side of a cell.
            shift: None centres the cells on the image; they may reach beyond its edges. A number
                from 0 to 1 moves them back by that share of their step; one more cell fills the
                gap.
        """
        step_um = (1 - self.overlap) * side_um
        n = max(1, math.ceil((extent_um - side_um) / step_um - 1e-9) + 1)
        start_um = (extent_um - side_um - (n - 1) * step_um) / 2
        first_um, n = (start_um, n) if shift is None else (start_um - step_um * shift, n + 1)
        begin_um: Floats = first_um + step_um * np.arange(n, dtype=np.float64)
        return begin_um

    def levels(self, extent_um: Sequence[float], view: View, max_levels: int | None) -> int:
        """Count the levels that lead from the glimpse down to the view's spacing; at least 1.

        There is a level for each zoom between the spacings of glimpse and patches, so that the
        first level already shows more than the glimpse; but no cell is larger than the image.

        Args:
            extent_um: extent of the image along each axis.
            view: spacings of patches and glimpse.
            max_levels: largest number of levels; None for no bound. With fewer levels than needed
                the first grid has more cells.
        """
        span = _count_zooms(length_patch_from_um(max(extent_um), view.patch_um), self.zoom)
        ratio = downsample_from_spacing_um(view.glimpse_spacing_um, view.spacing_um)
        needed = _count_zooms(ratio, self.zoom)
        return max(1, min(span, needed) if max_levels is None else min(span, needed, max_levels))


def _count_zooms(ratio: float, factor: float) -> int:
    return math.ceil(math.log(max(ratio, 1.0)) / math.log(factor) - 1e-9)


# -- what lies in a cell ---------------------------------------------------------------------------


def overlaps(
    begin_px: Floats, side_px: float, n: int, *, stride_px: float, centre_px: float
) -> Floats:
    """Compute the length that each window has in common with each of n cells, ``(windows, n)``.

    Args:
        begin_px: where windows begin, ``(windows,)``.
        side_px: side of a window.
        n: number of cells, which lie side by side.
        stride_px: side of a cell.
        centre_px: centre of cell 0.
    """
    edges_cell: Floats = np.arange(n + 1, dtype=np.float64) - 0.5
    edges_px = points_px_from_cell(edges_cell, stride_px=stride_px, centre_px=centre_px)
    low = np.maximum(begin_px[:, None], edges_px[:-1])
    high = np.minimum(begin_px[:, None] + side_px, edges_px[1:])
    common: Floats = np.maximum(high - low, 0.0)
    return common


def compute_window_weights(
    begin_px: Floats, side_px: float, n: int, *, stride_px: float, centre_px: float
) -> Floats:
    """Compute the weight of each cell of a map in the mean over each window: ``(windows, n)``.

    Rows sum to 1. A window beyond the map takes the nearest cell.

    Args:
        begin_px: where windows begin, ``(windows,)``.
        side_px: side of a window.
        n: number of cells of the map on this axis.
        stride_px: side of a cell.
        centre_px: centre of cell 0.
    """
    length = overlaps(begin_px, side_px, n, stride_px=stride_px, centre_px=centre_px)
    middle_px = begin_px + side_px / 2
    middle_cell = points_cell_from_px(middle_px, stride_px=stride_px, centre_px=centre_px)
    nearest = np.clip(np.rint(middle_cell), 0, n - 1).astype(np.int64)
    length[np.arange(len(begin_px)), nearest] += _NEAREST * side_px
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
    for map_, stride, centre in zip(maps, encoder.strides, encoder.map_centres_px, strict=True):
        rows, columns = (
            torch.from_numpy(
                compute_window_weights(b, side_px, n, stride_px=stride, centre_px=centre)
            ).to(map_.device, torch.float32)
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
    side_px = length_px_from_um(side_um, view.glimpse_spacing_um)
    parts, lengths = [], []
    for along_um, n in zip(begin_um, item.contrast.shape, strict=True):
        begin_px = length_px_from_um(along_um, view.glimpse_spacing_um)
        low = int(np.clip(np.floor(begin_px.min()), 0, n - 1))
        high = int(np.clip(np.ceil(begin_px.max() + side_px), low + 1, n))
        parts.append(slice(low, high))
        lengths.append(overlaps(begin_px, side_px, high - low, stride_px=1.0, centre_px=low + 0.5))
    pixels = item.contrast[parts[0], parts[1]].astype(np.float64)
    contrast: Floats = (lengths[0] @ pixels @ lengths[1].T).ravel() / side_px**2
    if contrast.any():
        return contrast
    extent_um = item.image.box_um.size
    rows, columns = ((b + side_um > 0) & (b < e) for b, e in zip(begin_um, extent_um, strict=True))
    return np.outer(rows, columns).ravel().astype(np.float64)


def corners(begin_um: tuple[Floats, Floats]) -> Floats:
    """Return the corners ``(cells, 2)`` of a grid's cells in reading order.

    Args:
        begin_um: where cells begin on either axis.
    """
    return np.stack(np.meshgrid(*begin_um, indexing="ij"), -1).reshape(-1, 2)
