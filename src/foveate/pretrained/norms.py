"""Replace or freeze batch norm, which breaks tiling, replay and batches of one."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

from foveate.nn.channel_norm import ChannelNorm

Replacement = Literal["group", "channel"]


def replace_batch_norm(module: nn.Module, kind: Replacement) -> None:
    """Replace all batch norms of a network, in place.

    Args:
        module: the network.
        kind: ``group`` for a group norm over the patch, ``channel`` for a norm over the channels
            of each cell.
    """
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d | nn.BatchNorm3d):
            replace_batch_norm(child, kind)
            continue
        features = child.num_features
        groups = math.gcd(features, 32)
        activation = getattr(child, "act", None)
        norm: nn.Module = nn.GroupNorm(groups, features)
        if kind == "channel":
            norm = ChannelNorm(features, n_axes=3 if isinstance(child, nn.BatchNorm3d) else 2)
        if activation is not None and not isinstance(activation, nn.Identity):
            norm = nn.Sequential(norm, activation)
        setattr(module, name, norm)


def freeze_batch_norm(module: nn.Module) -> None:
    """Let all batch norms of a network use their stored statistics, also in training mode."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eval()
