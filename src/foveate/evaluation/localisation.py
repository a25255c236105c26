"""Localisation: how well the evidence of an answer agrees with a mask of what decides the label."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate.errors import TableError
from foveate.geometry import Box, Frame, points_px_from_um, spacing_um_from_shape
from foveate.images.evidence import Evidence, Floats
from foveate.readers import open_image

_MIN_SIDE_PX = 1024
"""Long side of the level of a mask that suffices."""
_MAX_PIXELS = 1 << 27
_MAX_STRETCH = 1.05

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Agreement:
    """The agreement of the evidence of one image with its mask; all numbers from 0 to 1.

    Attributes:
        peak_in_mask: 1 where the middle of the peak of the evidence lies in the mask, else 0.
        heaviest_in_mask: share of the area of the heaviest box that lies in the mask.
        weight_in_mask: share of the weight that lies in the mask.
        average_precision: average precision of the weights over the area; at chance it is
            `mask_share`.
        mask_share: share of the image's area that the mask covers.
    """

    peak_in_mask: float
    heaviest_in_mask: float
    weight_in_mask: float
    average_precision: float
    mask_share: float


def read_mask(path: Path) -> Mask:
    """Read a mask, ``(*space)``: True where any channel of the image is not 0.

    The mask covers the whole image, at any resolution; of a pyramid, a coarse level is read.

    Raises:
        TableError: the mask is too large.
        FoveateError: the file cannot be read.
    """
    with open_image(path) as image:
        fine = [i for i, level in enumerate(image.levels) if max(level.shape) >= _MIN_SIDE_PX]
        level = fine[-1] if fine else 0
        shape = image.levels[level].shape
        if np.prod(shape, dtype=float) > _MAX_PIXELS:
            raise TableError(
                f"{path}: the mask has {' x '.join(map(str, shape))} pixels, more than "
                f"{_MAX_PIXELS:,}: write it smaller, it may have any resolution"
            )
        pixels = image.read(Box((0,) * len(shape), shape, Frame.PX, level))
    return np.asarray((pixels != 0).any(-1))


def measure_agreement(evidence: Evidence, mask: Mask, path: Path) -> Agreement | None:
    """Measure how well evidence agrees with a mask; None where there is nothing to measure.

    Args:
        evidence: evidence with the extent of its image.
        mask: ``(*space)``, True on what decides; it covers the whole image.
        path: file of the mask, for messages.

    Raises:
        TableError: the mask has other axes or another shape than the image.
    """
    if evidence.extent_um is None or not len(evidence) or not mask.any():
        return None
    if not evidence.weight.sum() > 0:
        return None
    spacing_um = _spacing_of_mask(evidence.extent_um, mask, path)
    areas, shares = measure_overlap(evidence, mask, spacing_um)
    peak = evidence.peak_um()
    at = points_px_from_um(np.asarray(peak.centre), spacing_um, (0.0,) * mask.ndim)
    place = tuple(min(int(c), n - 1) for c, n in zip(at, mask.shape, strict=True))
    weight = evidence.weight / evidence.weight.sum()
    return Agreement(
        peak_in_mask=float(mask[place]),
        heaviest_in_mask=float(shares[int(np.argmax(weight))]),
        weight_in_mask=float((weight * shares).sum()),
        average_precision=_average_precision(evidence.weight, areas, shares, mask),
        mask_share=float(mask.mean()),
    )


def _spacing_of_mask(extent_um: Floats, mask: Mask, path: Path) -> tuple[float, ...]:
    """Return the sides of the mask's pixels in the unit of the image.

    Raises:
        TableError: the mask has other axes or another shape than the image.
    """
    if mask.ndim != len(extent_um):
        raise TableError(
            f"{path}: the mask has {mask.ndim} axes, expected {len(extent_um)}; give the mask of "
            "this image"
        )
    spacing_um = spacing_um_from_shape(tuple(extent_um), mask.shape)
    if max(spacing_um) > _MAX_STRETCH * min(spacing_um) and mask.ndim == 2:
        shape, extent = (" x ".join(f"{n:g}" for n in side) for side in (mask.shape, extent_um))
        raise TableError(
            f"{path}: the mask has {shape} pixels, which do not fit an image of {extent}: write a "
            "mask of the whole image"
        )
    return spacing_um


def measure_overlap(
    evidence: Evidence, mask: Mask, spacing_um: tuple[float, ...]
) -> tuple[Floats, Floats]:
    """Measure each box on a mask by whole pixels, at least one a side.

    Args:
        evidence: the boxes.
        mask: ``(*space)``.
        spacing_um: sides of the mask's pixels.

    Returns:
        The areas of the boxes in pixels ``(n,)``, and the share of each that lies in the mask.
    """
    corner, shape = (0.0,) * mask.ndim, np.asarray(mask.shape)
    low = points_px_from_um(evidence.origin_um, spacing_um, corner)
    high = points_px_from_um(evidence.origin_um + evidence.size_um, spacing_um, corner)
    low = np.clip(np.round(low), 0, shape - 1).astype(int)
    high = np.clip(np.round(high), low + 1, shape).astype(int)
    total = np.pad(mask.astype(np.float64), [(1, 0)] * mask.ndim)
    for axis in range(mask.ndim):
        total = total.cumsum(axis)
    inside = np.zeros(len(evidence))
    for ends in itertools.product((0, 1), repeat=mask.ndim):
        index = np.where(np.asarray(ends) == 1, high, low)
        sign = (-1) ** (mask.ndim - sum(ends))
        inside += sign * total[tuple(index.T)]
    areas = np.prod(high - low, 1).astype(np.float64)
    return areas, inside / areas


def _average_precision(weight: Floats, areas: Floats, shares: Floats, mask: Mask) -> float:
    """Compute the average precision of weights over the area; what no box covers comes last."""
    from sklearn.metrics import average_precision_score

    inside, outside = areas * shares, areas * (1 - shares)
    rest_inside = max(float(mask.sum()) - inside.sum(), 0.0)
    rest_outside = max(float((~mask).sum()) - outside.sum(), 0.0)
    truth = np.r_[np.ones(len(weight) + 1), np.zeros(len(weight) + 1)]
    score = np.r_[weight, -1.0, weight, -1.0]
    area = np.r_[inside, rest_inside, outside, rest_outside]
    known = area > 0
    return float(average_precision_score(truth[known], score[known], sample_weight=area[known]))
