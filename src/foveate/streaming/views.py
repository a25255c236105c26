"""Views of parts of maps, whose gradients have the memory layout of the map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from foveate.streaming.base import Region


def crop_region(x: Shaped[Tensor, "b c *space"], region: Region) -> Shaped[Tensor, "b c *size"]:
    """Return a view of a region of a map ``(b, c, *space)``.

    Args:
        x: the map.
        region: first cell and end on each axis of space.
    """
    return _view(x, dict(enumerate(region, 2)))


def narrow_dims(
    x: Shaped[Tensor, " ..."], spans: Mapping[int, tuple[int, int]]
) -> Shaped[Tensor, " ..."]:
    """Return a view of a tensor that is narrowed along some of its dimensions.

    Args:
        x: tensor of any shape.
        spans: first cell and end by dimension.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        part: Tensor = _Narrow.apply(x, spans)
        return part
    return _view(x, spans)


class _Narrow(torch.autograd.Function):
    """A view of a part of a map, whose gradient has the memory layout of the map.

    PyTorch would make a new gradient for each axis, contiguous whatever the layout of the map. The
    layers before would then copy it into the other layout, in a third of a tile's time.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Shaped[Tensor, " ..."], spans: Mapping[int, tuple[int, int]]
    ) -> Shaped[Tensor, " ..."]:
        ctx.spans, ctx.like = spans, torch.empty_like(x, device="meta")
        return _view(x, spans)

    @staticmethod
    def backward(ctx: Any, gradient: Shaped[Tensor, " ..."]) -> tuple[Shaped[Tensor, " ..."], None]:
        like = ctx.like
        full = torch.empty_strided(
            like.shape, like.stride(), dtype=gradient.dtype, device=gradient.device
        )
        for dim, (low, high) in ctx.spans.items():
            full.narrow(dim, 0, low).zero_()
            full.narrow(dim, high, full.shape[dim] - high).zero_()
        _view(full, ctx.spans).copy_(gradient)
        return full, None


def _view(
    x: Shaped[Tensor, " ..."], spans: Mapping[int, tuple[int, int]]
) -> Shaped[Tensor, " ..."]:
    """Narrow a tensor of any shape along the dimensions of `spans`."""
    for dim, (low, high) in spans.items():
        x = x.narrow(dim, low, high - low)
    return x
