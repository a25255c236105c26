"""Find the white of 16-bit images that use fewer bits, as X-ray detectors and cameras write.

Values of 12 bits in a file of 16 are nearly black if 65535 is white. The file seldom states how
many bits count, and one dark image does not show it, so all images of a run decide together: white
is the largest value of the fewest bits that hold them all. The model stores the number of bits
(`View.bits`), so that a value means the same in every image, also when predicting.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from foveate.geometry import Box, Frame
from foveate.images.image import AbstractImage
from foveate.images.resample import Pixels
from foveate.messages.warn import warn_once

DEPTHS = (8, 10, 12, 14, 16)
"""Numbers of bits that detectors and cameras use."""

_TOP = 65535
_WHOLE_PX = 1 << 24
_WINDOW_PX, _WINDOWS = 256, 4


def has_depth(image: AbstractImage) -> bool:
    """Return whether an image has 16 bits of which it may use fewer: its reader does not scale."""
    return image.dtype == np.uint16 and not image.scaled


def used_bits(image: AbstractImage) -> int | None:
    """Find the fewest of `DEPTHS` that hold the values of an image; None if it has no `has_depth`.

    Reads the coarsest level completely if it has up to 16 million pixels, and windows of the
    finest. Pixels of 65535 do not count: readers fill what the file does not store with them.

    Raises:
        UnreadableImage: pixels cannot be decoded.
    """
    if not has_depth(image):
        return None
    most = 0
    coarsest = len(image.levels) - 1
    for level in {0, coarsest}:
        shape = image.levels[level].shape
        sides = shape
        if level != coarsest or image.levels[level].shape[0] * shape[1] > _WHOLE_PX:
            sides = tuple(min(_WINDOW_PX, n) for n in shape)
        starts = [
            sorted({(n - side) * i // (_WINDOWS - 1) for i in range(_WINDOWS)})
            for n, side in zip(shape, sides, strict=True)
        ]
        for origin in itertools.product(*starts):
            pixels = np.asarray(image.read(Box(origin, sides, Frame.PX, level)), np.uint16)
            seen = pixels[pixels < _TOP]
            most = max(most, int(seen.max()) if seen.size else 0)
    return next(bits for bits in DEPTHS if most < 1 << bits)


@final
class StretchedImage(AbstractImage):
    """A 16-bit image whose values of fewer bits are stretched to 16; larger values are clipped.

    Args:
        image: the image of 16 bits.
        bits: number of bits that the images of the run use.
    """

    def __init__(self, image: AbstractImage, bits: int) -> None:
        super().__init__()
        self._image, self.bits = image, bits
        self.path, self.kind, self.levels = image.path, image.kind, image.levels
        self.channels, self.dtype, self.reader = image.channels, image.dtype, image.reader
        self.bounds_px0, self.count = image.bounds_px0, image.count
        self.spacing_um, self.unit = image.spacing_um, image.unit
        self.scaled = True

    def _read_level(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> Pixels:
        pixels = np.asarray(self._image._read_level(level, origin_px, size_px), np.uint16)
        white = (1 << self.bits) - 1
        beyond = pixels > white
        if beyond.any() and bool((pixels[beyond] < _TOP).any()):
            warn_once(
                logging.WARNING,
                "bits",
                self.path,
                f"has values beyond {white}, the white of the training images ({self.bits} bits); "
                "they are shown as white",
            )
        return _stretch(pixels, white)

    def _stored_share(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> float:
        return self._image._stored_share(level, origin_px, size_px)

    def _stated_background(self) -> Sequence[float] | None:
        colour = _stretch(self._image.background, (1 << self.bits) - 1)
        return [float(v) for v in colour.tolist()]

    def close(self) -> None:
        """Close the wrapped image."""
        self._image.close()


def _stretch(pixels: Pixels, white: int) -> NDArray[np.uint16]:
    """Multiply values so that `white` becomes 65535, and clip those above it."""
    values = np.minimum(np.asarray(pixels, np.uint32), white)
    return ((values * _TOP + white // 2) // white).astype(np.uint16)
