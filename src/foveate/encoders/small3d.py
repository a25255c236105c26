"""A small convolutional encoder for volumes, trained from scratch in minutes on a CPU."""

from __future__ import annotations

import functools
from typing import ClassVar, Literal

from torch import nn

from foveate.encoders._small import AbstractSmall
from foveate.nn.channel_norm import ChannelNorm
from foveate.parts.options import Width

Norm = Literal["group", "local"]


class Small3dEncoder(AbstractSmall):
    """Four stages of 4 x 4 x 4 convolutions of stride 2; mean and maximum are pooled.

    Args:
        width: channels of the first stage; they double until the third.
        dim: length of the vector.
        norm: ``group``, over the whole patch, or ``local``, over the channels of each cell, which
            streaming needs.
    """

    axes: ClassVar[int] = 3

    def __init__(self, *, width: Width = 8, dim: Width = 128, norm: Norm = "group") -> None:
        super().__init__(functools.partial(_stage, norm=norm), width=width, dim=dim)


def _stage(before: int, after: int, *, norm: Norm) -> nn.Sequential:
    """Build a stage from its numbers of input and output channels."""
    convolution = nn.Conv3d(before, after, 4, stride=2, padding=1, bias=False)
    groups = nn.GroupNorm(max(1, after // 8), after)
    norm_layer = ChannelNorm(after, n_axes=3) if norm == "local" else groups
    return nn.Sequential(convolution, norm_layer, nn.ReLU(inplace=True))
