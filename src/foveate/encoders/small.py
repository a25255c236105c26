"""A small convolutional encoder, trained from scratch in minutes on a CPU."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, cat, nn

from foveate.encoders.base import AbstractEncoder
from foveate.nn.channel_norm import ChannelNorm
from foveate.nn.standard_conv import StandardConv2d

Norm = Literal["group", "local", "weights"]


class SmallEncoder(AbstractEncoder):
    """Four stages of 4 x 4 convolutions of stride 2 with group norm; mean and maximum are pooled.

    Even kernels with a padding of 1 keep the cells of every map exactly in register with the
    pixels: cell ``i`` of stride ``s`` is centred at ``s * (i + 0.5)``. Group norm serves tiling and
    replay, which batch norm breaks.

    Args:
        width: channels of the first stage; they double until the third.
        dim: length of the vector.
        norm: ``group``, over the whole patch; ``local``, over the channels of each cell; or
            ``weights``, of the kernels instead of what they give (`foveate.nn.standard_conv`).
            Streaming needs one of the last two. A cell's own norm takes its contrast away: small
            parts on a plain ground were learnt sooner with ``weights``, tissue with ``local``.
    """

    def __init__(self, *, width: int = 16, dim: int = 128, norm: Norm = "group") -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 4 * width)
        self.dim = dim
        self.strides = (2, 4, 8, 16)
        self.map_dims = widths
        self.map_centres = tuple(s / 2 for s in self.strides)
        self.stages = nn.ModuleList(
            _stage(before, after, norm)
            for before, after in zip((3, *widths[:-1]), widths, strict=True)
        )
        self.project = nn.Linear(2 * widths[-1], dim)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Four maps, strides 2, 4, 8 and 16."""
        # An odd side would lose its last pixel to a stride of 2: repeat it instead.
        found = []
        for stage in self.stages:
            x = stage(nn.functional.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2), "replicate"))
            found.append(x)
        return found

    def pool(self, maps: list[Tensor]) -> Tensor:
        """Mean and maximum of the last map, projected."""
        last = maps[-1]
        vector: Tensor = self.project(cat([last.mean((-2, -1)), last.amax((-2, -1))], -1))
        return vector


def _stage(before: int, after: int, norm: Norm) -> nn.Sequential:
    if norm == "weights":
        standard = StandardConv2d(before, after, 4, stride=2, padding=1)
        return nn.Sequential(standard, nn.ReLU(inplace=True))
    plain = nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False)
    own = ChannelNorm(after) if norm == "local" else nn.GroupNorm(max(1, after // 8), after)
    return nn.Sequential(plain, own, nn.ReLU(inplace=True))
