"""Reader of sparse canvases, which are rendered on demand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, final

import numpy as np

from benchmarks.canvas import MAGIC, Canvas, read_canvas, render_coarse
from foveate.errors import ImageTooLarge, UnreadableImage
from foveate.images.level import Level
from foveate.images.resample import Pixels
from foveate.readers.base import AbstractReader

COARSEST_PX = 2048
"""Levels are added until the long side is no longer than this."""


@final
class SparseReader(AbstractReader):
    """A canvas with stamps on it: one grey channel of 8 bits, no physical size.

    Coarser levels halve the resolution each. They are not stored but computed: every pixel is the
    mean of its block of level-0 pixels, beyond the edge of which the ground goes on. Nothing is
    kept, as rendering anew costs no more than looking up; `count` holds the pixels rendered of
    the level that was asked for, as if the levels were stored.
    """

    priority: ClassVar[int] = 30

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._canvas: Canvas | None = read_canvas(path)
        self._ground = self._canvas.background
        self.kind = "picture"
        self.levels = _levels(self._canvas.shape)
        self.spacing_um = None
        self.channels, self.dtype = 1, np.dtype(np.uint8)
        self.reader = "foveate sparse canvas 1"

    @classmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        """Tell whether the file starts with the mark of sparse canvases."""
        del path
        return head.startswith(MAGIC)

    def _read_level(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> Pixels:
        canvas = self._canvas
        if canvas is None:
            raise UnreadableImage(f"{self.path}: the image is closed")
        try:
            region = render_coarse(
                canvas, 1 << level, (origin_px[0], origin_px[1]), (size_px[0], size_px[1])
            )
        except MemoryError as error:
            raise ImageTooLarge(
                f"{self.path}: a region of {size_px} does not fit memory; read it at a coarser "
                "spacing"
            ) from error
        self.count.add(decoded_px=size_px[0] * size_px[1])
        return region

    def _stated_background(self) -> Sequence[float] | None:
        return [float(self._ground)]

    def close(self) -> None:
        """Release the canvas; a second call does nothing."""
        self._canvas = None


def _levels(shape: tuple[int, int]) -> tuple[Level, ...]:
    """Return levels of halved resolution; pixels partly on the canvas are kept."""
    steps = [1]
    while max(shape) > COARSEST_PX * steps[-1]:
        steps.append(2 * steps[-1])
    return tuple(
        Level((-(-shape[0] // step), -(-shape[1] // step)), (float(step), float(step)))
        for step in steps
    )
