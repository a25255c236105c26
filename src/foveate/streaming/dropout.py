"""Random layers: dropout of whole maps or channels per image, and of elements by their positions.

Draws depend on the network and on the state of the generator at the beginning of a step, never on
tiles, budget or stored maps. So tiles that overlap drop the same elements, and the result is that
of the plain stack with these elements dropped.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional

from foveate.streaming.base import Call
from foveate.streaming.pointwise import Pointwise
from foveate.streaming.site import (
    CallSite,
    Refused,
    RuleResult,
    first_argument,
    require_channels_first,
)

_BLOCK = {1: 1024, 2: 32, 3: 12}
"""Smallest side, in cells, of a block of elements that are drawn together, by number of axes. A
tile draws the full blocks that it overlaps."""
_MAX_BLOCKS = {1: 4096, 2: 64, 3: 24}
"""Largest number of blocks along an axis, by number of axes: each takes a few calls."""
_SELU = 1.7580993408473766
"""Minus the lower limit of SELU: scale times alpha (Klambauer et al., NeurIPS 2017)."""


class ImageDropout(Pointwise):
    """Dropout of a branch, or of channels, with one draw for all tiles of an image.

    Args:
        rate: function that returns the probability of dropping; schedules change it between steps.
        scale: whether the rest is divided by the probability of not being dropped.
        channels: whether single channels are dropped (dropout of feature maps), or all at once.
        mutates: whether the layer overwrites its argument.
    """

    def __init__(
        self, *, rate: Callable[[], float], scale: bool, channels: bool, mutates: bool
    ) -> None:
        super().__init__(fresh=True, mutates=mutates)
        self.rate, self.scale, self.channels = rate, scale, channels

    def draw(
        self, channels: int, like: Shaped[Tensor, " ..."]
    ) -> Float[Tensor, "1 channels"] | None:
        """Draw 0 where the image is dropped, else 1: ``(1, 1 or c)``.

        Args:
            channels: number of channels of the output.
            like: a tensor of any shape, of the device and dtype of the result.
        """
        if self.rate() == 0:
            return None
        shape = (1, channels if self.channels else 1)
        return like.new_empty(shape).bernoulli_(1 - self.rate())

    def run(self, call: Call) -> Float[Tensor, "1 c *size"]:
        """Multiply the map by the draw, over the probability of not being dropped."""
        x: Tensor = call.args[0]
        if call.drawn is None:
            return x.clone()
        p_keep = 1 - self.rate()
        # Divided in the dtype of the map, as the layers do.
        drawn = call.drawn.to(x) / (p_keep if self.scale and p_keep > 0 else 1)
        return x * drawn.view(1, -1, *(1,) * (x.ndim - 2))


class ElementDropout(Pointwise):
    """Dropout of single elements, drawn from a seed of the image and the elements' positions.

    Args:
        rate: function that returns the probability of dropping.
        extent_cell: cells of the map per axis.
        alpha: whether it is alpha dropout, which preserves mean and variance of SELU's outputs.
        mutates: whether the layer overwrites its argument.
    """

    regular = False

    def __init__(
        self, *, rate: Callable[[], float], extent_cell: Sequence[int], alpha: bool, mutates: bool
    ) -> None:
        super().__init__(fresh=True, mutates=mutates, saved_bytes=1.0)
        self.rate, self.extent_cell, self.alpha = rate, tuple(extent_cell), alpha
        d = len(self.extent_cell)
        self.sides_cell = [max(_BLOCK[d], -(-n // _MAX_BLOCKS[d])) for n in self.extent_cell]

    def draw(self, channels: int, like: Shaped[Tensor, " ..."]) -> Int[Tensor, " 1"] | None:
        """Draw the seed of the image, ``(1,)`` int64.

        Args:
            channels: number of channels of the output; not used.
            like: a tensor of any shape; not used.
        """
        return torch.randint(1 << 62, (1,)) if self.rate() > 0 else None

    def run(self, call: Call) -> Float[Tensor, "1 c *size"]:
        """Drop elements and scale the rest so that the mean stays, and for alpha the variance."""
        x: Tensor = call.args[0]
        if call.drawn is None:
            return x.clone()
        p = self.rate()
        mask = self.draw_mask(int(call.drawn), x, call)
        if not self.alpha or p == 1:
            return (x * mask).mul_(1 / (1 - p) if p < 1 else 1.0)
        a = 1 / math.sqrt((1 - p) * (1 + p * _SELU**2))
        floor = mask.logical_not().to(x.dtype).mul_(-_SELU * a).add_(_SELU * a * p)
        return (x * mask).mul_(a).add_(floor)

    def draw_mask(
        self, seed: int, like: Float[Tensor, "1 c *size"], call: Call
    ) -> Bool[Tensor, "1 c *size"]:
        """Draw which elements of a part are not dropped, block by block.

        Args:
            seed: seed of the image.
            like: the part, ``(1, c, *size)``.
            call: the call, with the region of the part.

        Returns:
            True for elements that are not dropped, ``(1, c, *size)`` bool.
        """
        mask = torch.empty(like.shape, dtype=torch.bool, device=like.device)
        rows = [
            range(low // side, -(-high // side))
            for side, (low, high) in zip(self.sides_cell, call.output_region, strict=True)
        ]
        for index in itertools.product(*rows):
            shape, block, part = list(like.shape), mask, []
            for dim, i, side, n, (low, high) in zip(
                call.dims, index, self.sides_cell, self.extent_cell, call.output_region, strict=True
            ):
                first, last = i * side, min((i + 1) * side, n)
                shape[dim] = last - first
                a, b = max(first, low), min(last, high)
                block = block.narrow(dim, a - low, b - a)
                part.append((dim, a - first, b - a))
            generator = torch.Generator(like.device).manual_seed(_block_seed(seed, index))
            drawn = torch.empty(shape, dtype=torch.bool, device=like.device)
            drawn.bernoulli_(1 - self.rate(), generator=generator)
            for dim_begin_length in part:
                drawn = drawn.narrow(*dim_begin_length)
            block.copy_(drawn)
        return mask


def _block_seed(seed: int, index: Sequence[int]) -> int:
    """Hash the seed of an image and the index of a block to the seed of a generator."""
    words = ",".join(map(str, (seed, *index))).encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest()) >> 1


# -- rules ----------------------------------------------------------------------------------------


def image_dropout(site: CallSite, module: Any) -> RuleResult:
    """Translate a layer of stochastic depth, or of dropout of whole channels.

    Args:
        site: the call site.
        module: the layer.

    Raises:
        Refused: the layer drops all images of a batch at once, or channels that do not lie in
            dimension 1.
    """
    if not module.training:
        return RuleResult(Pointwise(), identity=True)
    drops_channels = isinstance(module, nn.Dropout1d | nn.Dropout2d | nn.Dropout3d)
    if drops_channels:
        require_channels_first(site)
    if getattr(module, "mode", "row") == "batch":
        raise Refused("stochastic depth in mode 'batch' drops all images at once; use 'row'")
    name = "drop_prob" if hasattr(module, "drop_prob") else "p"
    op = ImageDropout(
        rate=lambda: float(getattr(module, name) or 0.0),
        scale=bool(getattr(module, "scale_by_keep", True)),
        channels=drops_channels,
        mutates=bool(getattr(module, "inplace", False)),
    )
    return RuleResult(op, (first_argument(site),))


def dropout(site: CallSite, module: Any) -> RuleResult:
    """Translate a layer of dropout of single elements.

    Args:
        site: the call site.
        module: the layer.
    """
    if drops_nothing(module):
        return RuleResult(Pointwise(), identity=True)
    op = ElementDropout(
        rate=lambda: float(module.p),
        extent_cell=site.extent_cell,
        alpha=isinstance(module, nn.AlphaDropout),
        mutates=module.inplace,
    )
    return RuleResult(op, (first_argument(site),))


def dropout_call(site: CallSite, target: Any) -> RuleResult:
    """Translate a function of dropout of single elements or of whole channels.

    Args:
        site: the call site.
        target: the function that is called.
    """
    names = ("input", "p", "training", "inplace")
    options: dict[str, Any] = {"p": 0.5, "training": target is not functional.alpha_dropout}
    options |= site.bind(names)
    p, mutates = float(options["p"]), bool(options.get("inplace"))
    if not options["training"] or p == 0:
        return RuleResult(Pointwise(), identity=True)
    op: Pointwise
    if target in (functional.dropout, functional.alpha_dropout):
        alpha = target is functional.alpha_dropout
        op = ElementDropout(
            rate=lambda: p, extent_cell=site.extent_cell, alpha=alpha, mutates=mutates
        )
    else:
        require_channels_first(site)
        op = ImageDropout(rate=lambda: p, scale=True, channels=True, mutates=mutates)
    return RuleResult(op, (first_argument(site),))


def drops_nothing(module: Any) -> bool:
    """Return whether a module is dropout that drops nothing in its present mode."""
    dropout = isinstance(module, nn.modules.dropout._DropoutNd)
    return dropout and (not module.training or module.p == 0)
