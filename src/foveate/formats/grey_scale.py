"""From the values of a volume to greys of 16 bits, the same for every format.

CT in Hounsfield units has one scale for all files, so that a value means the same everywhere. Other
volumes, such as MR, have no unit: black and white follow from each volume.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, UInt16

from foveate.errors import OptionError

_TOP = 65535
_AIR_HU, _DENSEST_HU = -1024.0, 3071.0
"""The range of scanners that store 12 bits: air with a margin, and dense bone or metal."""
_SOFT_TISSUE_HU = (-160.0, 240.0)
"""The usual window of soft tissue, level 40 and width 400; it gets half of all greys."""
_PADDING_HU = -1100.0
"""Lower values pad round fields of view."""
_LUNG_HU = -500.0
"""Air and lung are not above."""
_MUSCLE_HU = 150.0
"""Water, fat, muscle and blood lie within this distance of 0."""
_PERCENTILES = (0.5, 99.5)
_MAX_DISTINCT_VALUES = 32
_SAMPLED = 1 << 20


def sampling_step(shape: Sequence[int]) -> int:
    """Compute the step along every axis with which about a million of an image's pixels are taken.

    Args:
        shape: pixels along each axis of a picture, or voxels along those of a volume.
    """
    return max(1, math.ceil(math.pow(math.prod(shape) / _SAMPLED, 1 / len(shape))))


def kind_of_values(values: Float64[np.ndarray, " n"]) -> str:
    """Recognise the kind of a volume's values, one of `images.read_count.VALUES`.

    Args:
        values: finite values ``(n,)``, at least one.
    """
    if is_in_hounsfield_units(values):
        return "hounsfield"
    return "mask" if is_mask(values) else "other"


@dataclass(frozen=True)
class GreyScale:
    """A piecewise linear scale.

    Attributes:
        values: rising values.
        greys: the grey of each, from 0 for black to 1 for white.
    """

    values: tuple[float, ...]
    greys: tuple[float, ...]

    def convert(self, values: Float64[np.ndarray, "*shape"]) -> UInt16[np.ndarray, "*shape"]:
        """Convert finite values to greys; those beyond the scale become black or white."""
        # Divided by four, differences of the largest doubles are finite; nothing is rounded.
        share = np.interp(values / 4, np.asarray(self.values) / 4, self.greys)
        return np.asarray(np.rint(share * _TOP).astype(np.uint16))


HOUNSFIELD = GreyScale((_AIR_HU, *_SOFT_TISSUE_HU, _DENSEST_HU), (0.0, 0.25, 0.75, 1.0))
"""The scale of CT."""


def choose_scale(values: Float64[np.ndarray, " n"]) -> GreyScale:
    """Choose the scale of a volume from a sample of its values.

    CT is recognised by its values, `is_in_hounsfield_units`. Masks and label maps, of at most 32
    different values, are black at the smallest and white at the largest. All others are black at
    the 0.5th and white at the 99.5th percentile.

    Args:
        values: finite values ``(n,)``, at least one.
    """
    return HOUNSFIELD if is_in_hounsfield_units(values) else scale_without_unit(values)


def scale_without_unit(values: Float64[np.ndarray, " n"]) -> GreyScale:
    """Choose the scale of a volume that has no unit, such as MR, as `choose_scale` does.

    Args:
        values: finite values ``(n,)``, at least one.
    """
    return _scale_between(*_find_black_and_white(values))


def scale_by_range(values: Float64[np.ndarray, " n"]) -> GreyScale:
    """Return the scale that is black at the smallest value and white at the largest.

    Args:
        values: finite values ``(n,)``, at least one.
    """
    return _scale_between(float(values.min()), float(values.max()))


def parse_limits(text: str, option: str) -> GreyScale:
    """Return the scale between two values that a user states.

    Args:
        text: the values of black and white, such as ``0,1``.
        option: name of the option, for messages.

    Raises:
        OptionError: the text is no two rising numbers.
    """
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise OptionError(
            f"{option}: got '{text}', expected the values of black and white, such as 0,1"
        )
    return GreyScale((low, high), (0.0, 1.0))


def _scale_between(low: float, high: float) -> GreyScale:
    """Return the scale between two values; where they are the same, they are black."""
    return GreyScale((low, high if high > low else low + max(1.0, abs(low)) * 1e-6), (0, 1))


def is_in_hounsfield_units(values: Float64[np.ndarray, " n"]) -> bool:
    """Return whether values ``(n,)`` are air or lung, soft tissue, and little else.

    Values below that of air are not counted: they pad round fields of view.
    """
    inside = values[values >= _PADDING_HU]
    airy, soft = (inside <= _LUNG_HU).sum(), (np.abs(inside) <= _MUSCLE_HU).sum()
    return bool(min(airy, soft) >= 0.01 * values.size and airy + soft >= 0.6 * inside.size)


def is_mask(values: Float64[np.ndarray, " n"]) -> bool:
    """Return whether values ``(n,)`` are those of a mask or label map: few different ones."""
    return len(np.unique(values)) <= _MAX_DISTINCT_VALUES


def _find_black_and_white(values: Float64[np.ndarray, " n"]) -> tuple[float, float]:
    """Choose the values of black and white for an image without a unit, from values ``(n,)``.

    A value that fills half of the volume or more is background: percentiles are those of the other
    values, and the scale is widened to include the background.
    """
    if is_mask(values):
        return float(values.min()), float(values.max())
    ground = np.median(values)
    rest = values[values != ground]
    if 2 * rest.size > values.size:
        low, high = np.percentile(values, _PERCENTILES)
    else:
        low, high = np.percentile(rest, _PERCENTILES)
        low, high = min(low, ground), max(high, ground)
    return float(low), float(high)
