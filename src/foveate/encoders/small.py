"""A small convolutional encoder, trained from scratch in minutes on a CPU."""

from __future__ import annotations

import functools
import math
from typing import Literal

from torch import nn

from foveate.encoders._small import AbstractSmall
from foveate.nn.channel_norm import ChannelNorm

Norm = Literal["group", "local", "weights"]


class SmallEncoder(AbstractSmall):
    """Four stages of 4 x 4 convolutions of stride 2 with group norm; mean and maximum are pooled.

    Even kernels with a padding of 1 keep the cells of every map exactly in register with the
    pixels: cell ``i`` of stride ``s`` is centred at ``s * (i + 0.5)``. Group norm serves tiling and
    replay, which batch norm breaks.

    Args:
        width: channels of the first stage; they double until the third.
        dim: length of the vector.
        norm: ``group``, over the whole patch; ``local``, over the channels of each cell; or
            ``weights``, of the kernels instead of what they give, so that even ground gives
            nothing. Streaming needs one of the last two. A cell's own norm takes its contrast away:
            small parts on a plain ground were learnt sooner with ``weights``, tissue with
            ``local``.
    """

    def __init__(self, *, width: int = 16, dim: int = 128, norm: Norm = "group") -> None:
        super().__init__(functools.partial(_stage, norm=norm), width=width, dim=dim)


def _stage(before: int, after: int, *, norm: Norm) -> nn.Sequential:
    if norm == "weights":
        from timm.layers.std_conv import ScaledStdConv2d

        # The gain of He et al. for ReLU, which keeps the scale of what passes through.
        standard = ScaledStdConv2d(before, after, 4, stride=2, padding=1, gamma=math.sqrt(2))
        assert standard.bias is not None
        nn.init.zeros_(standard.bias)
        return nn.Sequential(standard, nn.ReLU(inplace=True))
    plain = nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False)
    own = ChannelNorm(after) if norm == "local" else nn.GroupNorm(max(1, after // 8), after)
    return nn.Sequential(plain, own, nn.ReLU(inplace=True))
