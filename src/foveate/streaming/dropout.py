"""Layers that draw: for a whole image at once, or for every element by its place.

What is drawn hangs on the generator's state at the beginning of a step and on the network, never on
tiles, budget or stored maps. So parts that overlap drop the same elements, and the result is that
of the plain stack with these elements dropped.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.streaming.base import Call
from foveate.streaming.pointwise import Pointwise
from foveate.streaming.site import Built, Refused, Site, channels_first, first_argument

_BLOCK = {1: 1024, 2: 32, 3: 12}
"""Least side of what is drawn together, in cells, by axes: a part draws all of a block it meets."""
_MOST_BLOCKS = {1: 4096, 2: 64, 3: 24}
"""Along an axis, by axes: each costs a few calls, whatever its size."""
_SELU = 1.7580993408473766
"""What a unit of SELU falls to: scale times alpha (Klambauer et al., NeurIPS 2017)."""


class PerImage(Pointwise):
    """Drops a branch, or channels, of a whole image: the draw is one for all its parts.

    Args:
        rate: gives the probability of being dropped; schedules change it between steps.
        scale: whether what is kept is divided by its probability.
        channels: drop single channels (dropout of feature maps) rather than all.
        mutates: it overwrites its argument.
    """

    def __init__(
        self, *, rate: Callable[[], float], scale: bool, channels: bool, mutates: bool
    ) -> None:
        super().__init__(fresh=True, mutates=mutates)
        self.rate, self.scale, self.channels = rate, scale, channels

    def draw(self, channels: int, like: Tensor) -> Tensor | None:
        """0 where dropped, else 1: ``(1, 1 or c)``."""
        if self.rate() == 0:
            return None
        shape = (1, channels if self.channels else 1)
        return like.new_empty(shape).bernoulli_(1 - self.rate())

    def run(self, call: Call) -> Tensor:
        """The input times the draw, over the probability of being kept."""
        x: Tensor = call.args[0]
        if call.drawn is None:
            return x.clone()
        keep = 1 - self.rate()
        # Divided in the map's own type, as the layers do.
        drawn = call.drawn.to(x) / (keep if self.scale and keep > 0 else 1)
        return x * drawn.view(1, -1, *(1,) * (x.ndim - 2))


class PerElement(Pointwise):
    """Drops single elements, by a number drawn for the image and by their places.

    Args:
        rate: gives the probability of being dropped.
        extent: cells of the map per axis.
        alpha: alpha dropout, which keeps mean and variance of what SELU gives, instead of zeros.
        mutates: it overwrites its argument.
    """

    regular = False

    def __init__(
        self, *, rate: Callable[[], float], extent: Sequence[int], alpha: bool, mutates: bool
    ) -> None:
        super().__init__(fresh=True, mutates=mutates, held=1.0)
        self.rate, self.extent, self.alpha = rate, tuple(extent), alpha
        d = len(self.extent)
        self.sides = [max(_BLOCK[d], -(-n // _MOST_BLOCKS[d])) for n in self.extent]

    def draw(self, channels: int, like: Tensor) -> Tensor | None:
        """The number that the image's draws come from."""
        return torch.randint(1 << 62, (1,)) if self.rate() > 0 else None

    def run(self, call: Call) -> Tensor:
        """What is kept, scaled so that the mean stays; alpha dropout, the variance too."""
        x: Tensor = call.args[0]
        if call.drawn is None:
            return x.clone()
        p = self.rate()
        kept = self.kept(int(call.drawn), x, call)
        if not self.alpha or p == 1:
            return (x * kept).mul_(1 / (1 - p) if p < 1 else 1.0)
        a = 1 / math.sqrt((1 - p) * (1 + p * _SELU**2))
        floor = kept.logical_not().to(x.dtype).mul_(-_SELU * a).add_(_SELU * a * p)
        return (x * kept).mul_(a).add_(floor)

    def kept(self, seed: int, like: Tensor, call: Call) -> Tensor:
        """Which elements of a part are kept: bool, of its shape.

        Drawn block by block, each with a generator of its own.
        """
        found = torch.empty(like.shape, dtype=torch.bool, device=like.device)
        rows = [
            range(low // side, -(-high // side))
            for side, (low, high) in zip(self.sides, call.wanted, strict=True)
        ]
        for place in itertools.product(*rows):
            shape, block, part = list(like.shape), found, []
            for dim, i, side, n, (low, high) in zip(
                call.dims, place, self.sides, self.extent, call.wanted, strict=True
            ):
                first, last = i * side, min((i + 1) * side, n)
                shape[dim] = last - first
                a, b = max(first, low), min(last, high)
                block = block.narrow(dim, a - low, b - a)
                part.append((dim, a - first, b - a))
            own = torch.Generator(like.device).manual_seed(_mixed(seed, place))
            drawn = torch.empty(shape, dtype=torch.bool, device=like.device)
            drawn.bernoulli_(1 - self.rate(), generator=own)
            for each in part:
                drawn = drawn.narrow(*each)
            block.copy_(drawn)
        return found


def _mixed(seed: int, place: Sequence[int]) -> int:
    """A number for a generator, unlike that of any other block or image."""
    words = ",".join(map(str, (seed, *place))).encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest()) >> 1


# -- rules ----------------------------------------------------------------------------------------


def per_image(site: Site, module: Any) -> Built:
    """Stochastic depth, and dropout of whole channels, as a layer."""
    if not module.training:
        return Built(Pointwise(), idle=True)
    feature = isinstance(module, nn.Dropout1d | nn.Dropout2d | nn.Dropout3d)
    if feature:
        channels_first(site)
    if getattr(module, "mode", "row") == "batch":
        raise Refused("stochastic depth in mode 'batch' drops all images at once; use 'row'")
    name = "drop_prob" if hasattr(module, "drop_prob") else "p"
    draws = PerImage(
        rate=lambda: float(getattr(module, name) or 0.0),
        scale=bool(getattr(module, "scale_by_keep", True)),
        channels=feature,
        mutates=bool(getattr(module, "inplace", False)),
    )
    return Built(draws, (first_argument(site),))


def dropout(site: Site, module: Any) -> Built:
    """Dropout of single elements, as a layer."""
    if idle(module):
        return Built(Pointwise(), idle=True)
    draws = PerElement(
        rate=lambda: float(module.p),
        extent=site.extent,
        alpha=isinstance(module, nn.AlphaDropout),
        mutates=module.inplace,
    )
    return Built(draws, (first_argument(site),))


def dropout_call(site: Site, target: Any) -> Built:
    """Dropout of single elements or of whole channels, as a function."""
    names = ("input", "p", "training", "inplace")
    given: dict[str, Any] = {"p": 0.5, "training": target is not functional.alpha_dropout}
    given |= dict(zip(names, site.shown, strict=False)) | site.named
    p, mutates = float(given["p"]), bool(given.get("inplace"))
    if not given["training"] or p == 0:
        return Built(Pointwise(), idle=True)
    draws: Pointwise
    if target in (functional.dropout, functional.alpha_dropout):
        alpha = target is functional.alpha_dropout
        draws = PerElement(rate=lambda: p, extent=site.extent, alpha=alpha, mutates=mutates)
    else:
        channels_first(site)
        draws = PerImage(rate=lambda: p, scale=True, channels=True, mutates=mutates)
    return Built(draws, (first_argument(site),))


def idle(module: Any) -> bool:
    """Whether it is dropout that drops nothing."""
    dropout = isinstance(module, nn.modules.dropout._DropoutNd)
    return dropout and (not module.training or module.p == 0)
