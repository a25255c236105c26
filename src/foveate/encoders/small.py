"""A small convolutional encoder, trained from scratch in minutes on a CPU."""

from __future__ import annotations

import functools
import math
from typing import Literal

from torch import nn

from foveate.encoders._small import AbstractSmall
from foveate.nn.channel_norm import ChannelNorm
from foveate.parts.options import Width

Norm = Literal["group", "local", "weights"]


class SmallEncoder(AbstractSmall):
    """Four stages of 4 x 4 convolutions of stride 2 with group norm; mean and maximum are pooled.

    Even kernels with a padding of 1 align the cells of all maps exactly with the pixels: cell ``i``
    of stride ``s`` is centred at ``s * (i + 0.5)``. Tiling and replay are exact with group norm,
    but not with batch norm.

    Args:
        width: channels of the first stage; they double until the third.
        dim: length of the vector.
        norm: ``group``, over the whole patch; ``local``, over the channels of each cell; or
            ``weights``, which standardises kernels instead of activations, so that an even
            background gives 0. Streaming needs one of the last two. ``local`` removes the contrast
            of a cell: small parts on a plain background were learnt sooner with ``weights``,
            tissue with ``local``.
    """

    def __init__(self, *, width: Width = 16, dim: Width = 128, norm: Norm = "group") -> None:
        super().__init__(functools.partial(_stage, norm=norm), width=width, dim=dim)


def _stage(before: int, after: int, *, norm: Norm) -> nn.Sequential:
    """Build a stage from its numbers of input and output channels."""
    if norm == "weights":
        from timm.layers.std_conv import ScaledStdConv2d

        # The gain of He et al. for ReLU preserves the scale of activations from layer to layer.
        standard = ScaledStdConv2d(before, after, 4, stride=2, padding=1, gamma=math.sqrt(2))
        assert standard.bias is not None
        nn.init.zeros_(standard.bias)
        return nn.Sequential(standard, nn.ReLU(inplace=True))
    convolution = nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False)
    norm_layer = ChannelNorm(after) if norm == "local" else nn.GroupNorm(max(1, after // 8), after)
    return nn.Sequential(convolution, norm_layer, nn.ReLU(inplace=True))
