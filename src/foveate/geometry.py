"""Boxes, frames and the converters between them, the same code for 2D and 3D.

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

Converters are named target-from-source and live only here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from foveate.errors import BoxError

Vector = tuple[float, ...]


class Frame(Enum):
    """The coordinate system of a `Box`."""

    PX0 = "px0"
    PX = "px"
    UM = "um"


@dataclass(frozen=True)
class Box:
    """An axis-aligned region: where it starts, how large it is, and in which frame.

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
            raise BoxError(f"frame {self.frame.value} with level {self.level}: only PX has a level")

    @property
    def ndim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.origin)

    @property
    def end(self) -> Vector:
        """The far corner, exclusive."""
        return tuple(o + s for o, s in zip(self.origin, self.size, strict=True))

    @property
    def centre(self) -> Vector:
        """The middle of the box."""
        return tuple(o + s / 2 for o, s in zip(self.origin, self.size, strict=True))


@dataclass(frozen=True)
class Lattice:
    """A regular grid of attention cells laid over an image, in micrometres.

    Attributes:
        origin_um: corner of cell ``(0, 0)``.
        cell_um: size of one cell, per axis.
        shape: number of cells, per axis.
    """

    origin_um: Vector
    cell_um: Vector
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return math.prod(self.shape)


def _expect(box: Box, frame: Frame, ndim: int) -> None:
    if box.frame is not frame:
        raise BoxError(f"expected a box in frame {frame.value}, got {box.frame.value}")
    if box.ndim != ndim:
        raise BoxError(f"expected a box with {ndim} axes, got {box.ndim}")


def _scaled(box: Box, factor: Sequence[float], frame: Frame, level: int | None = None) -> Box:
    return Box(
        tuple(v * f for v, f in zip(box.origin, factor, strict=True)),
        tuple(v * f for v, f in zip(box.size, factor, strict=True)),
        frame,
        level,
    )


def um_from_px0(box: Box, spacing_um: Sequence[float]) -> Box:
    """Micrometres from level-0 pixels; `spacing_um` is the image's, per axis."""
    _expect(box, Frame.PX0, len(spacing_um))
    return _scaled(box, spacing_um, Frame.UM)


def px0_from_um(box: Box, spacing_um: Sequence[float]) -> Box:
    """Level-0 pixels from micrometres."""
    _expect(box, Frame.UM, len(spacing_um))
    return _scaled(box, [1 / s for s in spacing_um], Frame.PX0)


def px_from_px0(box: Box, downsample: Sequence[float], level: int) -> Box:
    """Pixels of a level from level-0 pixels; `downsample` is that level's, per axis, a float."""
    _expect(box, Frame.PX0, len(downsample))
    return _scaled(box, [1 / d for d in downsample], Frame.PX, level)


def px_from_um(
    box: Box, spacing_um: Sequence[float], downsample: Sequence[float], level: int
) -> Box:
    """Pixels of a level from micrometres."""
    return px_from_px0(px0_from_um(box, spacing_um), downsample, level)
