"""Turn pictures upright, as their tag Orientation says.

Part of the readers `tiff` and `picture`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from foveate.images.resample import Pixels

Number = TypeVar("Number", int, float)
Pair = tuple[int, int]


@dataclass(frozen=True)
class Orientation:
    """How stored pixels lie in the upright picture: the tag Orientation of TIFF and EXIF, 1 to 8.

    Attributes:
        transposed: whether rows and columns change places.
        flips: whether rows and columns of the upright picture then run the other way.
    """

    transposed: bool
    flips: tuple[bool, bool]

    @staticmethod
    def from_tag(orientation: int) -> Orientation:
        """Build the orientation of a tag's number, 1 to 8 (see TIFF 6.0, Orientation)."""
        down, right = ((False, False), (False, True), (True, True), (True, False))[
            (orientation - 1) % 4
        ]
        return Orientation(orientation > 4, (down, right))

    @property
    def is_upright(self) -> bool:
        """Whether stored pixels lie as in the upright picture."""
        return not self.transposed and not any(self.flips)

    def swap_axes(self, values: Sequence[Number]) -> tuple[Number, Number]:
        """Convert a pair ``(y, x)`` of the stored to the upright picture, or the other way."""
        return (values[1], values[0]) if self.transposed else (values[0], values[1])

    def stored_region(self, shape: Pair, origin_px: Pair, size_px: Pair) -> tuple[Pair, Pair]:
        """Convert a region of the upright picture to origin and size in the stored one.

        Args:
            shape: pixels of the upright picture.
            origin_px: first pixel of the region in it.
            size_px: pixels of the region in it.
        """
        at = [
            n - o - s if flip else o
            for n, o, s, flip in zip(shape, origin_px, size_px, self.flips, strict=True)
        ]
        return self.swap_axes((at[0], at[1])), self.swap_axes(size_px)

    def turn_upright(self, region: Pixels) -> Pixels:
        """Turn the pixels ``(y, x, c)`` of a stored region as they lie in the upright picture."""
        if self.transposed:
            region = region.transpose(1, 0, 2)
        way = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return np.ascontiguousarray(region[way])
