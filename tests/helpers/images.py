"""Images in memory that behave like slides, pictures or volumes, and reading of whole images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveate.geometry import Box, Frame
from foveate.images.image import AbstractImage
from foveate.images.level import Kind, Level
from foveate.images.resample import resample


class PyramidImage(AbstractImage):
    """An image whose levels are arrays ``(*space, channels)`` in memory.

    Args:
        pyramid: the levels, the finest first.
        spacing_um: micrometres per pixel of the finest level, per axis; None if unknown.
        kind: the kind of image that methods see.
        path: the path that errors name.
        background: the stated background per channel; None if nothing is stated.
        on_read: called with the origin of each region before it is read.

    Attributes:
        reads: origins of all regions that were read.
        levels_read: levels that were read.
        largest_read_px: pixels of the largest region that was read.
    """

    def __init__(
        self,
        *pyramid: NDArray[Any],
        spacing_um: tuple[float, ...] | None = (1.0, 1.0),
        kind: Kind = "slide",
        path: Path = Path("memory"),
        background: Sequence[float] | None = None,
        on_read: Callable[[tuple[int, ...]], None] | None = None,
    ) -> None:
        super().__init__()
        self.path, self.kind, self.reader = path, kind, "memory"
        full = pyramid[0].shape[:-1]
        self.levels = tuple(
            Level(p.shape[:-1], tuple(n / m for n, m in zip(full, p.shape[:-1], strict=True)))
            for p in pyramid
        )
        self.spacing_um = spacing_um
        self.channels, self.dtype = pyramid[0].shape[-1], pyramid[0].dtype
        self.pyramid, self._stated, self._on_read = pyramid, background, on_read
        self.reads: list[tuple[int, ...]] = []
        self.levels_read: set[int] = set()
        self.largest_read_px = 0

    @property
    def pixels(self) -> NDArray[Any]:
        """The finest level, ``(*space, channels)``."""
        return self.pyramid[0]

    def _read_level(self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]) -> Any:
        n_pixels = math.prod(size_px)
        space = self.levels[level].shape
        assert all(o >= 0 and o + s <= n for o, s, n in zip(origin_px, size_px, space, strict=True))
        self.reads.append(origin_px)
        self.levels_read.add(level)
        self.largest_read_px = max(self.largest_read_px, n_pixels)
        self.count.add(decoded_px=n_pixels)
        if self._on_read is not None:
            self._on_read(origin_px)
        region = tuple(slice(o, o + s) for o, s in zip(origin_px, size_px, strict=True))
        return self.pyramid[level][region]

    def _stated_background(self) -> Sequence[float] | None:
        return self._stated

    def close(self) -> None:
        """Do nothing: there is no file to close."""


def build_pyramid(pixels: NDArray[Any], downsamples: Sequence[float]) -> list[NDArray[Any]]:
    """Resample an array ``(*space, channels)`` to one level per factor; sizes are rounded down."""
    full = pixels.shape[:-1]
    levels = []
    for factor in downsamples:
        shape = tuple(max(1, int(n / factor)) for n in full)
        steps = tuple(n / m for n, m in zip(full, shape, strict=True))
        levels.append(resample(pixels, (0.0,) * len(full), steps, shape))
    return levels


def read_whole(image: AbstractImage, level: int = 0) -> NDArray[Any]:
    """Read all pixels of one level, ``(*space, channels)``."""
    shape = image.levels[level].shape
    pixels: NDArray[Any] = np.asarray(image.read(Box((0,) * len(shape), shape, Frame.PX, level)))
    return pixels
