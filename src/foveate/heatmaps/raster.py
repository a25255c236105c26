"""Evidence as a raster, in rank order, and the colours it is shown in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from foveate.images.evidence import Evidence, Floats

if TYPE_CHECKING:
    from scipy import sparse

COLOURS = "inferno"
"""Perceptually even, readable without colour vision, from dark (little) to bright (much)."""

_FULL_COLOUR = 4.0
"""The least multiple of an even share that is shown in full colour."""

_INDIFFERENT = 1.25
"""Where no region has so many times an even share, the map prefers nothing."""


@dataclass(frozen=True)
class Scale:
    """What weights are shown as: by how far they are above an even share.

    Attributes:
        even: the weight of each region if all counted alike.
        top: the weight that is shown in full colour.
        heaviest: the largest weight.
        regions: how many there are.
    """

    even: float
    top: float
    heaviest: float
    regions: int

    @property
    def indifferent(self) -> bool:
        """Whether the regions hardly differ, so that the colours would tell of noise."""
        return self.regions > 1 and self.heaviest < _INDIFFERENT * self.even

    def strength(self, weight: Floats) -> Floats:
        """From 0 at an even share, and below it, to 1 in full colour."""
        if self.top <= 0:
            return np.zeros_like(weight)
        if self.top <= self.even:
            return np.ones_like(weight)  # a lone region
        return np.asarray(np.clip((weight - self.even) / (self.top - self.even), 0, 1))

    def times_even(self, weight: Floats) -> Floats:
        """Weights as multiples of an even share."""
        return weight / self.even if self.even > 0 else np.zeros_like(weight)


def scale_of(evidence: Evidence) -> Scale:
    """The scale of all regions of an image.

    Full colour is the largest weight, but at least four even shares, or all there is where the
    regions are fewer: of weights that are all but alike, none is bright.
    """
    n = len(evidence)
    if not n:
        return Scale(0.0, 0.0, 0.0, 0)
    even, heaviest = float(evidence.weight.mean()), float(evidence.weight.max())
    return Scale(even, max(heaviest, min(_FULL_COLOUR, n) * even), heaviest, n)


def splat(
    evidence: Evidence,
    origin_um: tuple[float, float],
    extent_um: tuple[float, float],
    shape: tuple[int, int],
) -> tuple[Floats, Floats]:
    """Sums over boxes of weight times covered area, and of covered area, in map pixels.

    The overlap of two rectangles is the product of the overlaps along the axes, so the sum over
    boxes is a product of two sparse matrices.
    """
    low = evidence.origin_um[:, -2:] - np.asarray(origin_um)
    high = low + evidence.size_um[:, -2:]
    rows, columns = (
        _overlaps(low[:, a] / extent_um[a] * n, high[:, a] / extent_um[a] * n, n)
        for a, n in enumerate(shape)
    )
    total = (rows.multiply(evidence.weight[:, None])).T @ columns
    return np.asarray(total.todense()), np.asarray((rows.T @ columns).todense())


def ranked(evidence: Evidence) -> NDArray[np.intp]:
    """Numbers of the boxes, the heaviest first; ties in the order given."""
    return np.argsort(-evidence.weight, kind="stable")


def at_slice(evidence: Evidence, z_um: float) -> Evidence:
    """The boxes of a volume that cross a plane; 2D evidence unchanged."""
    if evidence.origin_um.shape[1] == 2:
        return evidence
    begin = evidence.origin_um[:, 0]
    kept = (begin <= z_um) & (z_um < begin + evidence.size_um[:, 0])
    return Evidence(evidence.origin_um[kept], evidence.size_um[kept], evidence.weight[kept])


def nice_length(limit: float) -> float:
    """The largest of 1, 2, 5, 10, 20 … (and 0.5, 0.2 …) that is at most `limit`."""
    power = 10.0 ** math.floor(math.log10(limit))
    return max(step * power for step in (1, 2, 5) if step * power <= limit * (1 + 1e-9))


def _overlaps(low: Floats, high: Floats, n: int) -> sparse.csr_array:
    """Length of each interval in each of n unit cells, ``(len(low), n)``."""
    from scipy import sparse

    low, high = np.clip(low, 0, n), np.clip(high, 0, n)
    first = np.minimum(np.floor(low).astype(np.int64), n - 1)
    count = np.maximum(np.ceil(high).astype(np.int64) - first, 0)
    box = np.repeat(np.arange(len(low)), count)
    cell = np.arange(len(box)) - np.repeat(np.cumsum(count) - count, count) + first[box]
    length = np.minimum(high[box], cell + 1) - np.maximum(low[box], cell)
    kept = length > 0
    return sparse.csr_array((length[kept], (box[kept], cell[kept])), shape=(len(low), n))
