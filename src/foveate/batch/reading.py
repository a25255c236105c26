"""Read patches of the images of a step with threads, and put them on the device."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from jaxtyping import Float
from torch import Tensor

from foveate.batch.changes import Changes
from foveate.batch.types import (
    LoadedImage,
    Patches,
    View,
    channels_last,
    join_same_kind,
    reading_pixels,
    to_rgb,
)
from foveate.geometry import Box, Frame
from foveate.images.resample import Pixels
from foveate.memory import count_cores

_LEAST_PER_JOB, _MOST_PER_JOB = 4, 64
"""Patches that are read together: fewer share no tiles, more keep the device waiting."""


class PatchReader:
    """Reads, tints and normalises pixels of the images of a step.

    Args:
        items: the images.
        view: the geometry of reading.
        normalise: ``(mean, std)`` of the encoder, for RGB in [0, 1].
        device: device of all tensors.
        pool: threads that read.
        changes: the augmentation of the images.

    Attributes:
        mean: mean of the encoder, ``(1, 3, *ones)``.
        std: standard deviation of the encoder, ``(1, 3, *ones)``.
        seconds_waited: seconds that the device has waited for pixels.
    """

    def __init__(
        self,
        items: Sequence[LoadedImage],
        view: View,
        *,
        normalise: tuple[Sequence[float], Sequence[float]],
        device: torch.device,
        pool: ThreadPoolExecutor,
        changes: Changes,
    ) -> None:
        self.items, self.view, self.device = items, view, device
        self.pool, self.changes = pool, changes
        flat = (1, -1, *(1,) * view.axes)
        self.mean, self.std = (torch.tensor(x, device=device).view(flat) for x in normalise)
        self.seconds_waited = 0.0

    def start(self, patches: Sequence[Patches]) -> list[Future[Pixels]]:
        """Start to read patches of all images: neighbours in one job, a job or more a thread."""
        share = math.ceil(sum(map(len, patches)) / count_cores())
        n = min(max(share, _LEAST_PER_JOB), _MOST_PER_JOB)
        return [
            self.pool.submit(self._read_some, i, part[slice(at, at + n)])
            for i, part in enumerate(patches)
            for at in range(0, len(part), n)
        ]

    def wait(self, jobs: list[Future[Pixels]]) -> list[Pixels]:
        """Wait for jobs that `start` returned; return their pixels ``(m, *patch, c)`` in order.

        Raises:
            ReadingFailed: an image could not be read; the other jobs are cancelled.
        """
        begun = time.perf_counter()
        try:
            return join_same_kind([job.result() for job in jobs])
        finally:
            for job in jobs:
                job.cancel()
            self.add_waited(time.perf_counter() - begun)

    def add_waited(self, seconds: float) -> None:
        """Count seconds that the device waited for pixels."""
        self.seconds_waited += seconds

    def put_on_device(
        self,
        pixels: Sequence[Pixels],
        patches: Sequence[Patches],
        draws: Float[Tensor, "m 4"] | None,
        *,
        augment: bool,
    ) -> Float[Tensor, "m 3 *patch"]:
        """Convert the pixels of patches to tensors ``(m, 3, *patch)`` on the device.

        Args:
            pixels: pixels from `wait`.
            patches: the patches of each image that the pixels show.
            draws: numbers ``(m, 4)`` that change single patches; None for no such change.
            augment: whether colours are tinted as the images are.
        """
        parts = [to_rgb(part, self.device) for part in pixels]
        if not parts:
            parts = [torch.empty(0, 3, *self._patch_shape, device=self.device)]
        rgb = torch.cat(parts) if len(parts) > 1 else parts[0]
        if not augment:
            return self.normalise(rgb)
        owner = [i for i, part in enumerate(patches) for _ in range(len(part))]
        tinted = self.tint(rgb, owner)
        return tinted if draws is None else self.changes.move_patches(tinted, owner, draws)

    def tint(
        self, rgb: Float[Tensor, "m 3 *space"], owner: Sequence[int]
    ) -> Float[Tensor, "m 3 *space"]:
        """Tint colours ``(m, 3, *space)`` as this step has it, and normalise them.

        Args:
            rgb: colours in [0, 1].
            owner: index of the image of each row.
        """
        if self.changes.tints is not None:
            rgb = self.changes.tints.apply(rgb, owner)
        return self.normalise(rgb)

    def normalise(self, rgb: Float[Tensor, "m 3 *space"]) -> Float[Tensor, "m 3 *space"]:
        """Normalise colours ``(m, 3, *space)`` in [0, 1] as the encoder expects them."""
        return channels_last((rgb - self.mean) / self.std)

    def _read_some(self, i: int, patches: Patches) -> Pixels:
        item = self.items[i]
        boxes = [
            Box(tuple(origin), (float(side),) * len(origin), Frame.UM)
            for origin, side in zip(patches.origin_um, patches.side_um, strict=True)
        ]
        with reading_pixels(item):
            return item.image.read_many(boxes, self._patch_shape)

    @property
    def _patch_shape(self) -> tuple[int, ...]:
        return (self.view.patch_px,) * self.view.axes
