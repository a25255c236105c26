"""Rasterise evidence, rank its boxes, and scale weights to colours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foveate.geometry import points_px_from_um, spacing_um_from_shape
from foveate.images.evidence import Evidence, Floats

if TYPE_CHECKING:
    from scipy import sparse

_COLOURS = "inferno"
"""The colour map, from dark (little weight) to bright (much).

It is perceptually uniform and readable with colour blindness.
"""

_FULL_COLOUR = 4.0
"""The least multiple of an even share that is shown in full colour."""

_INDIFFERENT = 1.25
"""A map whose heaviest region has less than this multiple of an even share prefers no region."""


@dataclass(frozen=True)
class Scale:
    """The scale by which weights are shown: by how far they are above an even share.

    Attributes:
        even: the even share: the weight that all regions would have if they counted equally.
        top: the weight that is shown in full colour.
        heaviest: the largest weight.
        regions: number of regions.
    """

    even: float
    top: float
    heaviest: float
    regions: int

    @property
    def indifferent(self) -> bool:
        """Whether the weights of regions hardly differ, so that colours would show noise."""
        return self.regions > 1 and self.heaviest < _INDIFFERENT * self.even

    def strength(self, weight: Floats) -> Floats:
        """Convert weights ``(n,)`` to strengths: 0 up to an even share, to 1 for full colour."""
        if self.top <= 0:
            return np.zeros_like(weight)
        if self.top <= self.even:
            return np.ones_like(weight)  # there is one region only
        return np.asarray(np.clip((weight - self.even) / (self.top - self.even), 0, 1))

    def times_even(self, weight: Floats) -> Floats:
        """Convert weights ``(n,)`` to multiples of an even share."""
        return weight / self.even if self.even > 0 else np.zeros_like(weight)


def scale_of(evidence: Evidence) -> Scale:
    """Compute the scale of the weights of an image.

    Full colour is the largest weight, but at least four even shares (or the total weight of fewer
    regions), so that none of nearly equal weights is bright.
    """
    n = len(evidence)
    if not n:
        return Scale(0.0, 0.0, 0.0, 0)
    even = float(evidence.weight.mean()) if evidence.even is None else evidence.even
    heaviest = float(evidence.weight.max())
    return Scale(even, max(heaviest, min(_FULL_COLOUR, n) * even), heaviest, n)


def splat(
    evidence: Evidence,
    origin_um: tuple[float, float],
    extent_um: tuple[float, float],
    shape: tuple[int, int],
) -> tuple[Floats, Floats]:
    """Sum weight times covered area over boxes, and covered area, for the pixels of a grid.

    The overlap of two rectangles is the product of the overlaps along the axes, so the sum over
    boxes is a product of two sparse matrices.

    Args:
        evidence: the boxes.
        origin_um: corner of the grid, ``(y, x)``.
        extent_um: height and width of the grid.
        shape: rows and columns of the grid.

    Returns:
        both sums, of shape `shape`, areas in pixels of the grid.
    """
    spacing_um, begin_um = spacing_um_from_shape(extent_um, shape), evidence.origin_um[:, -2:]
    low_px = points_px_from_um(begin_um, spacing_um, origin_um)
    high_px = points_px_from_um(begin_um + evidence.size_um[:, -2:], spacing_um, origin_um)
    rows, columns = (_overlaps(low_px[:, a], high_px[:, a], n) for a, n in enumerate(shape))
    total = (rows.multiply(evidence.weight[:, None])).T @ columns
    return np.asarray(total.todense()), np.asarray((rows.T @ columns).todense())


def ranked(evidence: Evidence) -> NDArray[np.intp]:
    """Return the indices of the boxes, ``(n,)``, the heaviest first; ties in their order."""
    return np.argsort(-evidence.weight, kind="stable")


def at_slice(evidence: Evidence, z_um: float) -> Evidence:
    """Select the boxes of a volume that cross the plane at `z_um`; return 2D evidence unchanged.

    Args:
        evidence: boxes of an image of two or three axes.
        z_um: place of the slice on the first axis.
    """
    if evidence.origin_um.shape[1] == 2:
        return evidence
    begin = evidence.origin_um[:, 0]
    crosses = (begin <= z_um) & (z_um < begin + evidence.size_um[:, 0])
    return evidence.pick(crosses)


def weight_colours(strength: Floats) -> Floats:
    """Convert strengths from 0 to 1, ``(…)``, to colours ``(…, 4)``.

    The ends of the colour map are left out, so that all colours differ from black and white.
    """
    import matplotlib

    return np.asarray(matplotlib.colormaps[_COLOURS](0.15 + 0.8 * np.asarray(strength)))


def nice_length(limit_um: float) -> float:
    """Return the largest of 1, 2, 5, 10, 20 … (and 0.5, 0.2 …) that is at most `limit_um`."""
    power = 10.0 ** math.floor(math.log10(limit_um))
    return max(step * power for step in (1, 2, 5) if step * power <= limit_um * (1 + 1e-9))


def _overlaps(low: Floats, high: Floats, n: int) -> sparse.csr_array:
    """Compute overlaps ``(m, n)`` of intervals from `low` to `high` ``(m,)`` with n unit cells."""
    from scipy import sparse

    low, high = np.clip(low, 0, n), np.clip(high, 0, n)
    first = np.minimum(np.floor(low).astype(np.int64), n - 1)
    count = np.maximum(np.ceil(high).astype(np.int64) - first, 0)
    box = np.repeat(np.arange(len(low)), count)
    cell = np.arange(len(box)) - np.repeat(np.cumsum(count) - count, count) + first[box]
    length = np.minimum(high[box], cell + 1) - np.maximum(low[box], cell)
    positive = length > 0
    return sparse.csr_array(
        (length[positive], (box[positive], cell[positive])), shape=(len(low), n)
    )
