"""The kinds of images, and the levels of their pyramids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from foveate.geometry import Vector

Kind = Literal["slide", "picture", "volume", "features"]


@dataclass(frozen=True)
class Level:
    """One resolution of a pyramid.

    Attributes:
        shape: pixels per axis, ``(z,) y, x``.
        downsample: level-0 pixels per pixel of this level, per axis; need not be whole numbers.
        tile: pixels of a stored tile per axis, or None where the file stores no tiles.
    """

    shape: tuple[int, ...]
    downsample: Vector
    tile: tuple[int, ...] | None = None
