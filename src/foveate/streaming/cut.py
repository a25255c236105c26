"""Parts of maps, as views, and a gradient for them that is laid out as the map is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from foveate.streaming.base import Region


def cut(x: Tensor, region: Region) -> Tensor:
    """The region of ``(b, c, *space)``, a view."""
    return _view(x, dict(enumerate(region, 2)))


def narrowed(x: Tensor, spans: Mapping[int, tuple[int, int]]) -> Tensor:
    """First cell and end along each dimension that is named: a view, whose gradient is a map's."""
    if torch.is_grad_enabled() and x.requires_grad:
        part: Tensor = _Part.apply(x, spans)
        return part
    return _view(x, spans)


class _Part(torch.autograd.Function):
    """A part of a map. Its gradient is laid out as the map is.

    PyTorch's own would be made anew for each axis, and with channels first, whatever the map: all
    that follows then copies it into the other order, for a third of a tile's time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, spans: Mapping[int, tuple[int, int]]) -> Tensor:
        ctx.spans, ctx.like = spans, torch.empty_like(x, device="meta")
        return _view(x, spans)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        like = ctx.like
        whole = torch.empty_strided(
            like.shape, like.stride(), dtype=gradient.dtype, device=gradient.device
        )
        for dim, (low, high) in ctx.spans.items():
            whole.narrow(dim, 0, low).zero_()
            whole.narrow(dim, high, whole.shape[dim] - high).zero_()
        _view(whole, ctx.spans).copy_(gradient)
        return whole, None


def _view(x: Tensor, spans: Mapping[int, tuple[int, int]]) -> Tensor:
    for dim, (low, high) in spans.items():
        x = x.narrow(dim, low, high - low)
    return x
