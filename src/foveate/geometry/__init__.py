"""Boxes, frames and the converters between frames, with the same code for 2D and 3D.

Axes are always ``(z,) y, x``. Coordinates are continuous and measured from the outer corner of the
first level-0 pixel, so a pixel ``i`` covers ``[i, i + 1)`` and its centre lies at ``i + 0.5``.

Frames, and the suffix that a variable in that frame carries:

===========  =======  ==========================================================
``Frame``    suffix   unit
===========  =======  ==========================================================
``PX0``      _px0     pixels of level 0, the full resolution
``PX``       _px      pixels of the box's own pyramid level
``UM``       _um      micrometres (for pictures without spacing: level-0 pixels)
===========  =======  ==========================================================

Two more units have no boxes, only points and lengths: ``_cell`` counts cells of a lattice or of an
encoder's map, ``_patch`` counts sides of a patch.

Converters are named target-from-source and live only here (`tests/architecture/test_units.py`).
Those that begin with ``length_`` scale numbers or arrays, those that begin with ``points_`` also
move them by an origin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from foveate.errors import BoxError

Vector = tuple[float, ...]
_Pair = tuple[int, int]
_Floats = NDArray[np.float64]
_Length = TypeVar("_Length", float, _Floats)

_ROUNDING = 1e-6
"""A millionth of a pixel: what rounding may add to a size or a place, and nothing is read for."""


class Frame(Enum):
    """The coordinate system of a `Box`."""

    PX0 = "px0"
    PX = "px"
    UM = "um"


@dataclass(frozen=True)
class Box:
    """An axis-aligned region of an image.

    Attributes:
        origin: the corner with the smallest coordinates, ``(z,) y, x``.
        size: its size along the same axes.
        frame: the frame of both.
        level: index of the pyramid level in frame ``PX``, else None.

    Raises:
        BoxError: axes disagree, a size is not positive, a number is not finite, or a level is
            given for a frame that has none (and the other way round).
    """

    origin: Vector
    size: Vector
    frame: Frame
    level: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", tuple(float(v) for v in self.origin))
        object.__setattr__(self, "size", tuple(float(v) for v in self.size))
        if len(self.origin) != len(self.size) or not self.origin:
            raise BoxError(f"origin {self.origin} and size {self.size} need the same axes")
        if not all(math.isfinite(v) for v in self.origin + self.size):
            raise BoxError(f"a box needs finite numbers, got {self.origin}, {self.size}")
        if not all(v > 0 for v in self.size):
            raise BoxError(f"a box needs a positive size on every axis, got {self.size}")
        if (self.frame is Frame.PX) != (self.level is not None):
            raise BoxError(
                f"frame {self.frame.value} with level {self.level}: give a level with PX, and "
                "with no other frame"
            )

    @property
    def ndim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.origin)

    @property
    def end(self) -> Vector:
        """The corner with the largest coordinates, exclusive."""
        return tuple(o + s for o, s in zip(self.origin, self.size, strict=True))

    @property
    def centre(self) -> Vector:
        """The point in the middle of the box."""
        return tuple(o + s / 2 for o, s in zip(self.origin, self.size, strict=True))


def mean_spacing(spacing_um: Sequence[float]) -> float:
    """Compute the geometric mean of a spacing's axes: the side of a pixel of the same size.

    Args:
        spacing_um: length of a pixel per axis, in micrometres, or in pixels of a picture without a
            physical size; the result is in the same unit.
    """
    return float(math.prod(spacing_um) ** (1 / len(spacing_um)))


def anisotropy(spacing_um: Sequence[float]) -> float:
    """Compute the ratio of a pixel's or voxel's longest to its shortest side.

    Args:
        spacing_um: length of a pixel per axis.
    """
    return max(spacing_um) / min(spacing_um)


def long_side(shape: Sequence[int], spacing_um: Sequence[float]) -> float:
    """Compute the longest extent of an image, in the unit of its spacing.

    Args:
        shape: pixels per axis.
        spacing_um: length of a pixel per axis.
    """
    return max(size_um_from_shape(shape, spacing_um))


def _expect(box: Box, frame: Frame, ndim: int) -> None:
    """Raise `BoxError` unless a box has a frame and a number of axes."""
    if box.frame is not frame:
        raise BoxError(f"expected a box in frame {frame.value}, got {box.frame.value}")
    if box.ndim != ndim:
        raise BoxError(f"expected a box with {ndim} axes, got {box.ndim}")


def _scale(box: Box, factor: Sequence[float], frame: Frame, level: int | None = None) -> Box:
    """Multiply a box by a factor per axis, which gives a box of another frame."""
    return Box(
        tuple(v * f for v, f in zip(box.origin, factor, strict=True)),
        tuple(v * f for v, f in zip(box.size, factor, strict=True)),
        frame,
        level,
    )


def um_from_px0(box: Box, spacing_um: Sequence[float]) -> Box:
    """Convert a box from level-0 pixels to micrometres.

    Args:
        box: the box.
        spacing_um: side of a level-0 pixel of the image, per axis.
    """
    _expect(box, Frame.PX0, len(spacing_um))
    return _scale(box, spacing_um, Frame.UM)


def px0_from_um(box: Box, spacing_um: Sequence[float]) -> Box:
    """Convert a box from micrometres to level-0 pixels.

    Args:
        box: the box.
        spacing_um: side of a level-0 pixel of the image, per axis.
    """
    _expect(box, Frame.UM, len(spacing_um))
    return _scale(box, [1 / s for s in spacing_um], Frame.PX0)


# -- sizes and spacings ----------------------------------------------------------------------------


def size_um_from_shape(shape: Sequence[int], spacing_um: Sequence[float]) -> Vector:
    """Compute the size of pixels of a spacing, per axis, in micrometres.

    Args:
        shape: pixels per axis.
        spacing_um: side of a pixel, per axis.
    """
    return tuple(n * s for n, s in zip(shape, spacing_um, strict=True))


def shape_from_size_um(size_um: Sequence[float], spacing_um: float) -> tuple[int, ...]:
    """Count the pixels of a spacing that cover a size, per axis; at least one each.

    Args:
        size_um: the size, per axis.
        spacing_um: side of a pixel, the same on all axes.
    """
    return tuple(max(1, math.ceil(s / spacing_um - _ROUNDING)) for s in size_um)


def spacing_um_from_shape(size_um: Sequence[float], shape: Sequence[float]) -> Vector:
    """Compute the spacing, per axis, at which a number of pixels covers a size exactly.

    Args:
        size_um: the size, per axis.
        shape: pixels per axis; need not be whole.
    """
    return tuple(s / n for s, n in zip(size_um, shape, strict=True))


def spacing_um_from_downsample(spacing_um: Sequence[float], downsample: Sequence[float]) -> Vector:
    """Compute the spacing of a pyramid level, per axis.

    Args:
        spacing_um: spacing of level 0, per axis.
        downsample: level-0 pixels per pixel of the level, per axis.
    """
    return tuple(s * d for s, d in zip(spacing_um, downsample, strict=True))


def downsample_from_spacing_um(coarse_um: float, fine_um: float) -> float:
    """Compute how many pixels of one spacing lie along a pixel of another.

    Args:
        coarse_um: spacing of the pixel that is measured. It may be the finer one; the result is
            then less than 1.
        fine_um: spacing of the pixels that are counted.
    """
    return coarse_um / fine_um


# -- levels of a pyramid ---------------------------------------------------------------------------


def fine_px_from_coarse_px(length_px: float, downsample: float) -> float:
    """Convert a length, or a coordinate on an axis, to pixels of a finer level.

    Args:
        length_px: in pixels of the coarser level.
        downsample: pixels of the finer level per pixel of the coarser one.
    """
    return length_px * downsample


def region_coarse_from_fine(
    shape: _Pair, origin_px: _Pair, size_px: _Pair, downsample: Sequence[float]
) -> tuple[_Pair, _Pair]:
    """Map a region of a finer level to whole pixels of a coarser one, as origin and size.

    Args:
        shape: pixels of the coarser level per axis; the region is cut where the level ends.
        origin_px: first pixel of the region in the finer level.
        size_px: pixels of the region in the finer level.
        downsample: pixels of the finer level per pixel of the coarser one, per axis.
    """
    at = [min(round(o / s), n - 1) for o, s, n in zip(origin_px, downsample, shape, strict=True)]
    to = [
        max(1, min(round(e / s), n - o))
        for e, s, n, o in zip(size_px, downsample, shape, at, strict=True)
    ]
    return (at[0], at[1]), (to[0], to[1])


def region_fine_from_coarse(
    shape: _Pair, origin_px: _Pair, size_px: _Pair, downsample: Sequence[float]
) -> tuple[_Pair, _Pair]:
    """Map a region of a coarser level to the pixels of a finer one that it covers.

    Args:
        shape: pixels of the finer level per axis; the region is cut where the level ends.
        origin_px: first pixel of the region in the coarser level.
        size_px: pixels of the region in the coarser level.
        downsample: pixels of the finer level per pixel of the coarser one, per axis.

    Returns:
        origin and size.
    """
    low = [min(int(o * s), n - 1) for o, s, n in zip(origin_px, downsample, shape, strict=True)]
    high = [
        max(a + 1, min(math.ceil((o + e) * s), n))
        for a, o, e, s, n in zip(low, origin_px, size_px, downsample, shape, strict=True)
    ]
    return (low[0], low[1]), (high[0] - low[0], high[1] - low[1])


# -- points and lengths ----------------------------------------------------------------------------


def length_px_from_um(length_um: _Length, spacing_um: float) -> _Length:
    """Convert a length, or coordinates from a common corner, from micrometres to pixels.

    Args:
        length_um: a number or an array of any shape.
        spacing_um: side of a pixel.
    """
    return length_um / spacing_um


def length_um_from_px(length_px: _Length, spacing_um: float) -> _Length:
    """Convert a length, or coordinates from a common corner, from pixels to micrometres.

    Args:
        length_px: a number or an array of any shape.
        spacing_um: side of a pixel.
    """
    return length_px * spacing_um


def points_px_from_um(
    points_um: _Floats, spacing_um: float | Sequence[float], origin_um: Sequence[float]
) -> _Floats:
    """Convert points ``(…, d)`` from micrometres to pixels that count from an origin.

    Args:
        points_um: the points.
        spacing_um: spacing of the pixels, per axis or one for all.
        origin_um: outer corner of the first pixel.
    """
    points_px: _Floats = (points_um - np.asarray(origin_um)) / np.asarray(spacing_um)
    return points_px


def points_um_from_px(
    points_px: _Floats, spacing_um: float | Sequence[float], origin_um: Sequence[float]
) -> _Floats:
    """Convert points ``(…, d)`` from pixels that count from an origin to micrometres.

    Args:
        points_px: the points.
        spacing_um: spacing of the pixels, per axis or one for all.
        origin_um: outer corner of the first pixel.
    """
    points_um: _Floats = np.asarray(origin_um) + points_px * np.asarray(spacing_um)
    return points_um


def index_px_from_um(place_um: float, spacing_um: float) -> int:
    """Return the index of the pixel that holds a place on an axis.

    Args:
        place_um: distance of the place from the outer corner of pixel 0.
        spacing_um: side of a pixel.
    """
    return math.floor(place_um / spacing_um + _ROUNDING)


def length_patch_from_um(length_um: _Length, patch_um: float) -> _Length:
    """Convert a length, or coordinates from a common origin, to sides of a patch.

    Args:
        length_um: a number or an array of any shape.
        patch_um: side of the patch.
    """
    return length_um / patch_um


def length_um_from_patch(length_patch: _Length, patch_um: float) -> _Length:
    """Convert a length, or coordinates from a common origin, from sides of a patch.

    Args:
        length_patch: a number or an array of any shape.
        patch_um: side of the patch.
    """
    return length_patch * patch_um


def length_mm_from_um(length_um: float) -> float:
    """Convert a length from micrometres to millimetres, for texts."""
    return length_um / 1000
