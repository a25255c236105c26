"""Give an image another spacing than its file states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray

from foveate.geometry import spacing_um_from_shape
from foveate.images.image import AbstractImage
from foveate.images.resample import Corners, Pixels


@final
class RespacedImage(AbstractImage):
    """An image with another spacing than its file states.

    It has three uses: a table's ``mpp`` overrides the file's spacing; a picture without spacing
    is measured in pixels (spacing 1, unit ``px``); pictures of all sizes are brought to one
    (`fit_to_shape`).

    Attributes:
        stated_um: the spacing that the file states, or None.
    """

    def __init__(
        self, image: AbstractImage, spacing_um: Sequence[float], *, unit: Literal["um", "px"]
    ) -> None:
        super().__init__()
        self._image = image
        self.path, self.kind, self.levels = image.path, image.kind, image.levels
        self.channels, self.dtype, self.reader = image.channels, image.dtype, image.reader
        self.scaled = image.scaled
        self.bounds_px0, self.count, self.stored = image.bounds_px0, image.count, image.stored
        self.spacing_um = tuple(float(s) for s in spacing_um)
        self.unit = unit
        self.stated_um = image.spacing_um

    def _read_level(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> Pixels:
        return self._image._read_level(level, origin_px, size_px)

    def _read_regions(self, level: int, origin_px: Corners, regions: Pixels) -> None:
        self._image._read_regions(level, origin_px, regions)

    def _stored_share(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> float:
        return self._image._stored_share(level, origin_px, size_px)

    def _stated_background(self) -> Sequence[float] | None:
        background: NDArray[np.generic] = self._image.background
        return [float(v) for v in background]

    def close(self) -> None:
        """Close the wrapped image."""
        self._image.close()


def fit_to_shape(image: AbstractImage, shape: Sequence[int]) -> RespacedImage:
    """Respace an image as if it had `shape` pixels, each axis by its own ratio.

    For pictures whose size or shape would give the class away.

    Args:
        image: the image.
        shape: pixels per axis.
    """
    return RespacedImage(image, spacing_um_from_shape(shape, image.shape), unit="px")
