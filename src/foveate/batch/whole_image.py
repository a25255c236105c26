"""Read a whole image region by region, ahead of the device."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from foveate.batch.augment import Turn
from foveate.batch.types import LoadedImage, View, reading_pixels
from foveate.geometry import Box, Frame, downsample_from_spacing_um, size_um_from_shape
from foveate.images.image import glimpse_shape
from foveate.images.resample import Pixels
from foveate.streaming.base import AbstractSource, Flags, Region, Span

_AHEAD = 2
_BAND_PX = 1 << 19


class WholeImage(AbstractSource):
    """All pixels of an image at the spacing of patches; normalised, and turned in training.

    Args:
        item: the image with its glimpse.
        view: the geometry of reading.
        normalise: converts pixels ``(1, *size, c)`` to ``(1, 3, *size)`` on the device.
        device: device of the pixels.
        pool: threads that read.
        turn: how the image is mirrored and turned.
        skip_background: whether regions without foreground may be skipped; `blank` finds them.
        waited: called with the seconds that the device waited for pixels.
    """

    def __init__(
        self,
        item: LoadedImage,
        view: View,
        *,
        normalise: Callable[[Pixels], Float[Tensor, "1 3 *size"]],
        device: torch.device,
        pool: ThreadPoolExecutor,
        turn: Turn,
        skip_background: bool,
        waited: Callable[[float], None],
    ) -> None:
        self.item, self.view, self.device = item, view, device
        self._normalise, self._pool, self._waited = normalise, pool, waited
        self.turn = turn
        self._space = glimpse_shape(item.image, view.spacing_um)
        self.shape = (3, *turn.shape(self._space))
        self.has_blank = skip_background and bool((item.contrast == 0).any())

    def crops(self, regions: Sequence[Region]) -> Iterator[Float[Tensor, "1 3 *size"]]:
        """Yield the pixels of regions in order, and read the next two regions ahead.

        Args:
            regions: begin and end of each region along each axis, in pixels of the turned image.

        Yields:
            pixels ``(1, 3, *size)``.

        Raises:
            ReadingFailed: the image could not be read.
        """
        waiting: deque[list[Future[Pixels]]] = deque()
        try:
            for k in range(len(regions) + _AHEAD):
                if k < len(regions):
                    waiting.append(self._start(self.turn.origin(regions[k], self._space)))
                if k >= _AHEAD:
                    yield self._finished(waiting.popleft())
        finally:
            for job in (job for jobs in waiting for job in jobs):
                job.cancel()

    def blank(self, spans: Sequence[Span]) -> Flags:
        """Find the regions that show only background, with a margin of one pixel of the glimpse.

        Args:
            spans: begins and ends of regions along each axis, in pixels of the turned image.

        Returns:
            flags with one axis for each axis of the image, True on regions of background.
        """
        view = self.view
        glimpse_per_px = downsample_from_spacing_um(view.spacing_um, view.glimpse_spacing_um)
        n_marked = self._n_marked
        for axis, (low, high) in enumerate(self.turn.origin(spans, self._space)):
            n = n_marked.shape[axis] - 1
            first = np.clip(np.floor(low * glimpse_per_px).astype(np.int64) - 1, 0, n)
            end = np.clip(np.ceil(high * glimpse_per_px).astype(np.int64) + 1, 0, n)
            n_marked = n_marked.take(end, axis) - n_marked.take(first, axis)
        unmarked: Flags = (n_marked.swapaxes(-1, -2) if self.turn.bits & 4 else n_marked) == 0
        return unmarked

    def background(self) -> Float[Tensor, " 3"]:
        """Return the normalised colour of the background, ``(3,)``."""
        colour = self.item.image.background
        pixel = colour.reshape(1, *(1,) * len(self._space), -1)
        return self._normalise(pixel).flatten()

    @functools.cached_property
    def _n_marked(self) -> Int64[np.ndarray, "*corners"]:
        """Integral image of the glimpse's foreground: the pixels before each corner of a pixel."""
        counts = np.pad((self.item.contrast != 0).astype(np.int64), ((1, 0),))
        for axis in range(counts.ndim):
            counts = counts.cumsum(axis)
        return counts

    def _start(self, spans: Region) -> list[Future[Pixels]]:
        """Start reading a region in bands of rows, so that several threads decode it."""
        low, high = spans[0]
        row = int(np.prod([b - a for a, b in spans[1:]]))
        step = max(1, _BAND_PX // max(row, 1))
        return [
            self._pool.submit(self._read, ((at, min(at + step, high)), *spans[1:]))
            for at in range(low, high, step)
        ]

    def _finished(self, jobs: list[Future[Pixels]]) -> Float[Tensor, "1 3 *size"]:
        begun = time.perf_counter()
        bands = [job.result() for job in jobs]
        self._waited(time.perf_counter() - begun)
        pixels = np.concatenate(bands) if len(bands) > 1 else bands[0]
        return self.turn.apply(self._normalise(pixels[None]))

    def _read(self, spans: Region) -> Pixels:
        spacing_um = (self.view.spacing_um,) * len(spans)
        origin_um = size_um_from_shape([low for low, _ in spans], spacing_um)
        shape = tuple(high - low for low, high in spans)
        box = Box(origin_um, size_um_from_shape(shape, spacing_um), Frame.UM)
        with reading_pixels(self.item):
            return self.item.image.read_at(box, shape)
