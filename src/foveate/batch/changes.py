"""The augmentation of the images of a training step, drawn when first needed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from foveate.batch.augment import (
    AUGMENT_RANGES,
    Motion,
    Tints,
    draw_motions,
    draw_tints,
    move_patches,
)
from foveate.batch.types import Augment, channels_last
from foveate.nn.generators import Generators, spawned
from foveate.nn.warp import warp

_DRAWS = 4
"""Random numbers per patch, for the changes of single patches."""


class Changes:
    """The changes of the images of a step, the same for glimpse, patches and layout of an image.

    Args:
        augment: the kind of change.
        foreground: returns the foreground ``(*space)`` of each glimpse.
        generators: returns the random generator of each image.
        device: device of the pixels.
    """

    def __init__(
        self,
        augment: Augment,
        foreground: Callable[[], list[NDArray[np.bool_]]],
        generators: Callable[[], Generators],
        device: torch.device,
    ) -> None:
        self.augment, self.device = augment, device
        self._foreground, self._generators = foreground, generators

    @functools.cached_property
    def motions(self) -> list[Motion] | None:
        """Draw how each image is turned and moved; None where images lie as in their files."""
        if self.augment not in AUGMENT_RANGES:
            return None
        generators = spawned(self._generators())
        return draw_motions(AUGMENT_RANGES[self.augment], self._foreground(), generators)

    @functools.cached_property
    def tints(self) -> Tints | None:
        """Draw how the colours of each image are changed; None where they are not."""
        if self.augment == "none":
            return None
        return draw_tints(self.augment, spawned(self._generators()), self.device)

    @functools.cached_property
    def _patch_generators(self) -> list[torch.Generator]:
        return spawned(self._generators())

    def draw_patches(self, n_patches: Sequence[int]) -> Float[Tensor, "n 4"] | None:
        """Draw the numbers that change single patches, ``(sum of n_patches, 4)`` from -1 to 1.

        Args:
            n_patches: number of patches of each image.
        """
        if self.augment == "none":
            return None
        rows = [
            torch.rand(n, _DRAWS, dtype=torch.float64, generator=generator)
            for n, generator in zip(n_patches, self._patch_generators, strict=True)
        ]
        return 2 * torch.cat(rows) - 1 if rows else torch.empty(0, _DRAWS)

    def move_patches(
        self, pixels: Float[Tensor, "m c *patch"], owner: Sequence[int], draws: Float[Tensor, "m 4"]
    ) -> Float[Tensor, "m c *patch"]:
        """Turn each patch like its image, then a little by itself.

        Args:
            pixels: pixels of the patches ``(m, c, *patch)``.
            owner: index of the image of each patch.
            draws: numbers ``(m, 4)`` from `draw_patches`.
        """
        if self.augment == "warp":
            return channels_last(warp(pixels, draws))
        if self.motions is None:
            return pixels
        motions = [self.motions[i] for i in owner]
        ranges = AUGMENT_RANGES[self.augment]
        return channels_last(move_patches(pixels, ranges, motions, draws[:, :2]))
