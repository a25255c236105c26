"""The small encoder in two or three dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from torch import Tensor, cat, nn

from foveate.encoders.base import AbstractEncoder


class AbstractSmall(AbstractEncoder):
    """Four stages that halve every axis; mean and maximum of the last map are projected.

    Args:
        stage: makes one from the channels before and after it.
        width: channels of the first stage; they double until the third.
        dim: length of the vector.
    """

    def __init__(self, stage: Callable[[int, int], nn.Module], *, width: int, dim: int) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.dim = dim
        self.strides = (2, 4, 8, 16)
        self.map_dims = widths
        self.map_centres = tuple(s / 2 for s in self.strides)
        self.stages = nn.ModuleList(map(stage, (3, *widths[:-1]), widths))
        self.mix = nn.Linear(2 * widths[-1], dim)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Four maps, strides 2, 4, 8 and 16."""
        # An odd side would lose its last pixel to a stride of 2: repeat it instead.
        found = []
        for stage in self.stages:
            odd = ((0, x.shape[-axis] % 2) for axis in range(1, self.axes + 1))
            x = stage(nn.functional.pad(x, tuple(itertools.chain(*odd)), "replicate"))
            found.append(x)
        return found

    def pool(self, maps: list[Tensor]) -> Tensor:
        """Mean and maximum of the last map, projected."""
        last, space = maps[-1], tuple(range(2, maps[-1].ndim))
        vector: Tensor = self.mix(cat([last.mean(space), last.amax(space)], -1))
        return vector
