"""How the images of a training step are changed: drawn when first asked for, then settled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.batch.augment import KINDS, Motion, Tints, draw_motions, draw_tints, move_patches
from foveate.batch.types import Augment, channels_last
from foveate.nn.generators import Generators, spawned
from foveate.nn.warp import warp

_DRAWS = 4
"""Numbers that each patch has for changes of its own."""


class Changes:
    """What images of a step are changed by; it holds for glimpse, patches and layout alike.

    Args:
        augment: the kind of change.
        seen: gives the foreground ``(*space)`` of each glimpse.
        generators: gives one per image.
        device: where pixels are.
    """

    def __init__(
        self,
        augment: Augment,
        seen: Callable[[], list[NDArray[np.bool_]]],
        generators: Callable[[], Generators],
        device: torch.device,
    ) -> None:
        self.augment, self.device = augment, device
        self._seen, self._generators = seen, generators

    @functools.cached_property
    def motions(self) -> list[Motion] | None:
        """How each image lies; None where they lie as in their files."""
        if self.augment not in KINDS:
            return None
        return draw_motions(KINDS[self.augment], self._seen(), spawned(self._generators()))

    @functools.cached_property
    def tints(self) -> Tints | None:
        """How the colours of each image are changed; None where they are not."""
        if self.augment == "none":
            return None
        return draw_tints(self.augment, spawned(self._generators()), self.device)

    @functools.cached_property
    def _of_patches(self) -> list[torch.Generator]:
        return spawned(self._generators())

    def draw_patches(self, lengths: Sequence[int]) -> Tensor | None:
        """Draw what changes single patches, ``(sum of lengths, 4)`` from -1 to 1.

        Args:
            lengths: patches of each image.
        """
        if self.augment == "none":
            return None
        rows = [
            torch.rand(n, _DRAWS, dtype=torch.float64, generator=each)
            for n, each in zip(lengths, self._of_patches, strict=True)
        ]
        return 2 * torch.cat(rows) - 1 if rows else torch.empty(0, _DRAWS)

    def move_patches(self, pixels: Tensor, owner: Sequence[int], draws: Tensor) -> Tensor:
        """Turn each patch as its image, then a little by itself.

        Args:
            pixels: ``(m, c, *patch)``.
            owner: image of each patch.
            draws: ``(m, 4)`` of `draw_patches`.
        """
        if self.augment == "warp":
            return channels_last(warp(pixels, draws))
        if self.motions is None:
            return pixels
        motions = [self.motions[i] for i in owner]
        return channels_last(move_patches(pixels, KINDS[self.augment], motions, draws[:, :2]))
