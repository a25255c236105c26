"""The network that the encoders `small` and `small3d` share, in two or three dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, cat, nn

from foveate.encoders.base import AbstractEncoder


class AbstractSmall(AbstractEncoder):
    """Four stages that halve all axes; mean and maximum of the last map are projected.

    Args:
        stage: builds a stage from its numbers of input and output channels.
        width: channels of the first stage; they double until the third.
        dim: length of the vector.
    """

    def __init__(self, stage: Callable[[int, int], nn.Module], *, width: int, dim: int) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.dim = dim
        self.strides = (2, 4, 8, 16)
        self.map_dims = widths
        self.map_centres_px = tuple(s / 2 for s in self.strides)
        self.stages = nn.ModuleList(map(stage, (3, *widths[:-1]), widths))
        self.mix = nn.Linear(2 * widths[-1], dim)

    def maps(self, x: Float[Tensor, "b 3 *space"]) -> list[Float[Tensor, "b _c *_cells"]]:
        """Compute four maps ``(b, c, *cells)`` of ``(b, 3, *space)``, strides 2, 4, 8 and 16."""
        # With a stride of 2 an odd side would lose its last pixel: it is repeated.
        maps = []
        for stage in self.stages:
            odd = ((0, x.shape[-axis] % 2) for axis in range(1, self.axes + 1))
            x = stage(nn.functional.pad(x, tuple(itertools.chain(*odd)), "replicate"))
            maps.append(x)
        return maps

    def pool(self, maps: list[Float[Tensor, "b _c *_cells"]]) -> Float[Tensor, "b dim"]:
        """Project the mean and the maximum of the last map to the vector ``(b, dim)``."""
        last, space = maps[-1], tuple(range(2, maps[-1].ndim))
        vector: Tensor = self.mix(cat([last.mean(space), last.amax(space)], -1))
        return vector
