"""Run parts of a frozen network with their batch norms merged into the convolutions before them."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class FoldedParts:
    """Copies of parts of a network without batch norms, made when they are first used.

    Merged, a batch norm costs nothing, and the results are equal up to rounding. A copy is made
    again when the weights of its part have changed. Copies of this object, also on disk, begin
    without them.
    """

    def __init__(self) -> None:
        self._folded: dict[int, tuple[tuple[tuple[int, int], ...], nn.Module]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> FoldedParts:
        return FoldedParts()

    def __reduce__(self) -> tuple[type[FoldedParts], tuple[()]]:
        return FoldedParts, ()

    def run(
        self, index: int, part: nn.Module, x: Float[Tensor, "b _c _y _x"]
    ) -> Float[Tensor, "b _c _y _x"]:
        """Compute the output of a part, in float32 and without a gradient.

        Args:
            index: number of the part in its network.
            part: the part, whose batch norms are frozen.
            x: its input, ``(b, c, y, x)``.
        """
        tensors = (*part.parameters(), *part.buffers())
        state = tuple((t.data_ptr(), t._version) for t in tensors)
        known, folded = self._folded.get(index, (None, part))
        if known != state:
            folded = fold_norms(part)
            self._folded[index] = state, folded
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            # Convolutions take twice as long where the channels of a pixel lie apart.
            result: Tensor = folded(x.float().contiguous(memory_format=torch.channels_last))
            return result


def fold_norms(part: nn.Module) -> nn.Module:
    """Return a copy of a network with its frozen batch norms merged into its convolutions.

    A batch norm is merged if the convolution is the module just before it; the activation that
    timm's norms end with stays. Other norms are left as they are.

    Args:
        part: the network.
    """
    folded = copy.deepcopy(part).requires_grad_(False)
    for module in list(folded.modules()):
        children = list(module.named_children())
        for (name, conv), (norm_name, norm) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv.eval(), norm.eval()))
                setattr(module, norm_name, getattr(norm, "act", nn.Identity()))
    return folded
