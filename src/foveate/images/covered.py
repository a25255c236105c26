"""Images of which boxes are covered with the colour of the background."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from numpy.typing import NDArray

from foveate.geometry import points_px_from_um, points_um_from_px, spacing_um_from_downsample
from foveate.images.composed import ComposedImage
from foveate.images.evidence import Floats
from foveate.images.image import AbstractImage
from foveate.images.resample import Pixels
from foveate.images.stored import StoredPatches, Vectors


@dataclass(frozen=True)
class Cover:
    """Boxes that are covered.

    Attributes:
        origin_um: corners of the boxes, ``(n, d)``, micrometres, axes ``(z,) y, x``.
        size_um: sizes of the boxes, ``(n, d)``.
    """

    origin_um: Floats
    size_um: Floats

    def apply(
        self,
        pixels: Pixels,
        background: Pixels,
        spacing_um: Sequence[float],
        first_px: Sequence[int],
    ) -> Pixels:
        """Return pixels with the covered ones in the colour of the background.

        A pixel belongs to a box if its centre does.

        Args:
            pixels: ``(*space, c)``.
            background: colour ``(c,)``.
            spacing_um: spacing of the pixels, per axis.
            first_px: index of the first pixel, per axis, from the corner of the image.
        """
        covered, corner = np.array(pixels), (0.0,) * len(spacing_um)
        low = points_px_from_um(self.origin_um, spacing_um, corner) - np.asarray(first_px)
        high = points_px_from_um(self.origin_um + self.size_um, spacing_um, corner)
        low, high = np.ceil(low - 0.5), np.ceil(high - np.asarray(first_px) - 0.5)
        low, high = np.maximum(low, 0), np.minimum(high, pixels.shape[:-1])
        for a, b in zip(low.astype(int), high.astype(int), strict=True):
            if (a < b).all():
                covered[tuple(map(slice, a, b))] = background
        return covered


def cover_image(image: AbstractImage, cover: Cover) -> AbstractImage:
    """Return an image in which boxes are covered; of several images on a canvas, all of them.

    Args:
        image: the image, which stays open.
        cover: the boxes, on the canvas where there is one.
    """
    if not isinstance(image, ComposedImage):
        return CoveredImage(image, cover)
    return image.with_images(
        lambda slot: CoveredImage(
            slot.image, replace(cover, origin_um=cover.origin_um - np.asarray(slot.origin_um))
        )
    )


@final
class CoveredImage(AbstractImage):
    """An image in which boxes are covered.

    Patches that a file stores as vectors have no pixels: those whose corners are corners of the
    boxes get the mean vector of the image.

    Args:
        image: the image, which stays open.
        cover: the boxes.
    """

    def __init__(self, image: AbstractImage, cover: Cover) -> None:
        super().__init__()
        self._image, self._cover = image, cover
        self.path, self.kind, self.levels = image.path, image.kind, image.levels
        self.channels, self.dtype, self.reader = image.channels, image.dtype, image.reader
        self.scaled = image.scaled
        self.bounds_px0, self.count = image.bounds_px0, image.count
        self.spacing_um, self.unit = image.spacing_um, image.unit
        self.stored = None if image.stored is None else self._cover_stored(image.stored)

    def _cover_stored(self, stored: StoredPatches) -> StoredPatches:
        """Return stored patches of which those in boxes have the mean vector of the image."""
        spacing_um, corner = self.known_spacing_um, (0.0,) * self.ndim
        origin_um = points_um_from_px(stored.corner_px0, spacing_um, corner)
        places = {tuple(place) for place in np.round(self._cover.origin_um, 2).tolist()}
        covered = np.array([tuple(at) in places for at in np.round(origin_um, 2).tolist()], bool)
        mean = stored.read(np.arange(len(stored))).mean(0)

        def read(rows: NDArray[np.int64]) -> Vectors:
            return np.where(covered[rows, None], mean, stored.read(rows)).astype(np.float32)

        return replace(stored, read=read)

    def _read_level(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> Pixels:
        pixels = self._image._read_level(level, origin_px, size_px)
        downsample = self.levels[level].downsample
        spacing_um = spacing_um_from_downsample(self.known_spacing_um, downsample)
        return self._cover.apply(pixels, self.background, spacing_um, origin_px)

    def _stored_share(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> float:
        return self._image._stored_share(level, origin_px, size_px)

    def _stated_background(self) -> Sequence[float] | None:
        return [float(v) for v in self._image.background.tolist()]

    def close(self) -> None:
        """Leave the image open; who opened it closes it."""
