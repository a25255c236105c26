"""Attention between the tokens of an image, by their content and their positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from foveate.nn.base import FAST_RATE, masked_softmax

__all__ = ["RelationLayer", "masked_softmax"]

_ROWS = 1024
"""Tokens that are projected at a time where there are too many to compare all pairs at once."""

_SIDE_SCALE = 0.25
"""Offset in patches at which a token counts as lying to a side, by ``tanh(offset / scale)``."""


class RelationLayer(nn.Module):
    """A pre-norm transformer layer between tokens, whose branches start at nearly zero.

    Tokens keep their own content at initialisation, so that attention over them can be read as
    evidence; relations between tokens are learnt on top. Each attention head has a reach: its
    logits fall by one for every reach of distance between two tokens. The reach is learnt and
    starts between `near` and `far` patches. A token attends to all others and to a key and value
    of 0, but not to itself. So its output describes its neighbourhood from the first step on. If it
    attended to itself, at distance 0, it would outweigh its neighbourhood, and a layout would not
    be learnt for thousands of steps.

    An attention head may also prefer a side: along every axis its logits rise for tokens that lie
    above, or below, by an amount that is learnt and starts at 0. "Is there another one above me?"
    decides which of several parts is the topmost. A score of each part alone cannot decide this, as
    it would have to weigh what the part is against how high it lies.

    Args:
        dim: length of a token.
        heads: number of attention heads; divides `dim`.
        initial_scale: initial factor of both branches.
        near: initial reach of the first attention head, in patches.
        far: initial reach of the last one; those between are spaced geometrically.
        ndim: number of axes of an image.
        pairs: number of pairs of tokens that are compared at once. More pairs are compared tile by
            tile and computed again for their gradients, so that memory grows with n alone: by about
            a dozen vectors per token.

    Source: the distance term is that of Press, Smith & Lewis, "Train Short, Test Long", ICLR 2022
    (ALiBi). Where we differ: distances are Euclidean, their slope is learnt, and sides count too.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        initial_scale: float = 0.1,
        near: float = 1.0,
        far: float = 64.0,
        ndim: int = 2,
        pairs: int = 1 << 18,
    ) -> None:
        super().__init__()
        self.heads, self.pairs = heads, pairs
        self.norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )
        self.scale = nn.Parameter(torch.full((2, dim), initial_scale))
        self.log_reach = nn.Parameter(torch.linspace(math.log(near), math.log(far), heads))
        self.lean = nn.Parameter(torch.zeros(heads, ndim))

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        position_code: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
        centre_patch: Float[Tensor, "b n ndim"],
        everywhere: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Add to each token its relations to the others and the output of the MLP.

        Args:
            tokens: tokens, ``(b, n, d)``.
            position_code: position codes, ``(b, n, d)``; added to queries and keys, not to values.
            valid: False for padding, ``(b, n)`` bool.
            centre_patch: centres of tokens in patches, ``(b, n, ndim)``. Only differences between
                tokens count; it gets no gradient.
            everywhere: True for tokens of the whole image, such as the glimpse, ``(b, n)`` bool.
                They have distance 0 from every other token and lie on no side of it. None marks no
                token.

        Returns:
            The new tokens, ``(b, n, d)``.
        """
        n = tokens.shape[1]
        places = _Places(self.heads, valid, centre_patch.detach(), everywhere)
        weight = torch.cat([-1 / self.log_reach.exp()[:, None], FAST_RATE * self.lean], 1)
        if n * n <= self.pairs:
            mixed = places.attend(self._project(tokens, position_code), weight)
            return self._add_branches(tokens, mixed)
        tile = max(1, math.isqrt(self.pairs) // 2)
        qkv = _apply_by_rows(self._project, tokens, position_code)
        mixed = _TiledAttention.apply(qkv, weight, places, tile)
        return _apply_by_rows(self._add_branches, tokens, mixed)

    def _project(
        self, tokens: Float[Tensor, "b n d"], position_code: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b n qkv"]:
        """Return queries, keys and values of tokens ``(b, n, d)`` side by side, ``(b, n, 3 d)``."""
        normed, d = self.norm(tokens), tokens.shape[-1]
        query_key = functional.linear(normed + position_code, self.query_key_value.weight[: 2 * d])
        value = functional.linear(normed, self.query_key_value.weight[2 * d :])
        return torch.cat([query_key, value], -1)

    def _add_branches(
        self, tokens: Float[Tensor, "b n d"], mixed: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b n d"]:
        """Add attended values ``(b, n, d)`` and the MLP's output to tokens ``(b, n, d)``."""
        tokens = tokens + self.scale[0] * self.out(mixed)
        out: Tensor = tokens + self.scale[1] * self.mlp(tokens)
        return out


def _apply_by_rows(
    function: Callable[..., Float[Tensor, "b _rows _d"]], *tokens: Float[Tensor, "b n _d"]
) -> Float[Tensor, "b n _d"]:
    """Apply a function to blocks of tokens, and again in the backward pass.

    So only the arguments, each ``(b, n, …)``, are stored for the gradient.
    """
    blocks = zip(*(torch.split(t, _ROWS, 1) for t in tokens), strict=True)
    return torch.cat([checkpoint(function, *block, use_reentrant=False) for block in blocks], 1)


@dataclass(frozen=True)
class _Places:
    """The attention mask of tokens, and their positions relative to each other.

    Attributes:
        heads: number of attention heads.
        valid: False for padding, ``(b, n)`` bool.
        centre_patch: centres of tokens in patches, ``(b, n, ndim)``.
        everywhere: True for tokens of the whole image, ``(b, n)`` bool; None for no token.
    """

    heads: int
    valid: Bool[Tensor, "b n"]
    centre_patch: Float[Tensor, "b n ndim"]
    everywhere: Bool[Tensor, "b n"] | None = None

    def attend(
        self, qkv: Float[Tensor, "b n qkv"], weight: Float[Tensor, "h factors"]
    ) -> Float[Tensor, "b n d"]:
        """Return the values that each token attends to, ``(b, n, d)``, all tokens at once.

        Args:
            qkv: queries, keys and values side by side, ``(b, n, 3 d)``.
            weight: factors of `offsets` in the logits of each attention head, ``(h, 1 + ndim)``.
        """
        q, k, v = (self.split_heads(x) for x in qkv.chunk(3, -1))
        # One more key and value of 0, so that a token may attend to nothing.
        k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
        tokens = slice(0, self.valid.shape[1])
        bias = torch.einsum("bmcx,hx->bhmc", self.offsets(tokens, tokens, weight.dtype), weight)
        bias = functional.pad(bias.masked_fill(self.hidden(tokens, tokens), -torch.inf), (0, 1))
        return self.join_heads(functional.scaled_dot_product_attention(q, k, v, bias.to(q.dtype)))

    def hidden(self, rows: slice, columns: slice) -> Bool[Tensor, "b 1 m c"]:
        """Return where rows must not attend to columns, ``(b, 1, m, c)``: to padding or itself."""
        index = torch.arange(self.valid.shape[1], device=self.valid.device)
        return ~(self.valid[:, None, None, columns] & (index[rows, None] != index[columns]))

    def offsets(
        self, rows: slice, columns: slice, dtype: torch.dtype
    ) -> Float[Tensor, "b m c factors"]:
        """Return how the tokens of `columns` lie to those of `rows`, ``(b, m, c, 1 + ndim)``.

        That is their distance in patches, then for each axis the side they lie on, from -1 to 1.
        """
        centre = self.centre_patch.to(dtype)
        step = centre[:, None, columns] - centre[:, rows, None]
        if self.everywhere is not None:
            placeless = self.everywhere[:, None, columns] | self.everywhere[:, rows, None]
            step = step.masked_fill(placeless.unsqueeze(-1), 0.0)
        return torch.cat([step.norm(dim=-1, keepdim=True), (step / _SIDE_SCALE).tanh()], -1)

    def split_heads(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b h n dk"]:
        """Reshape ``(b, n, d)`` to ``(b, h, n, d / h)``."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def join_heads(self, x: Float[Tensor, "b h n dk"]) -> Float[Tensor, "b n d"]:
        """Reshape ``(b, h, n, d / h)`` to ``(b, n, d)``."""
        return x.transpose(1, 2).flatten(-2)


class _TiledAttention(torch.autograd.Function):
    """Compute `_Places.attend` tile by tile: memory grows with n alone, forward and backward.

    Source: Dao et al., "FlashAttention", NeurIPS 2022. Where we differ: logits depend on positions
    as well, and the running sums begin with a key and value of 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Float[Tensor, "b n qkv"],
        weight: Float[Tensor, "h offsets"],
        places: _Places,
        tile: int,
    ) -> Float[Tensor, "b n d"]:
        n, d = qkv.shape[1], qkv.shape[2] // 3
        ctx.places, ctx.tiles = places, [slice(i, min(i + tile, n)) for i in range(0, n, tile)]
        dtype = torch.promote_types(qkv.dtype, torch.float32)
        out = qkv.new_empty(*qkv.shape[:2], d)
        log_sum = qkv.new_empty(qkv.shape[0], places.heads, n, 1, dtype=dtype)
        with torch.autocast(qkv.device.type, enabled=False):
            for rows in ctx.tiles:
                q = places.split_heads(qkv[:, rows, :d].to(dtype))
                top, mass = torch.zeros_like(q[..., :1]), torch.ones_like(q[..., :1])
                sums = torch.zeros_like(q)
                for columns in ctx.tiles:
                    k, v = (
                        places.split_heads(x.to(dtype)) for x in qkv[:, columns, d:].chunk(2, -1)
                    )
                    logits, _ = _tile_logits(q, k, weight, places, rows, columns)
                    higher = torch.maximum(top, logits.amax(-1, keepdim=True))
                    shrink, p = (top - higher).exp(), logits.sub_(higher).exp_()
                    top, mass = higher, mass * shrink + p.sum(-1, keepdim=True)
                    sums = sums * shrink + p @ v
                out[:, rows] = places.join_heads(sums / mass).to(out.dtype)
                log_sum[:, :, rows] = top + mass.log()
        ctx.save_for_backward(qkv, weight, out, log_sum)
        return out

    @staticmethod
    def backward(
        ctx: Any, gradient: Float[Tensor, "b n d"]
    ) -> tuple[Shaped[Tensor, " ..."] | None, ...]:
        qkv, weight, out, log_sum = ctx.saved_tensors
        places, d, dtype = ctx.places, out.shape[-1], log_sum.dtype
        grad_qkv = torch.zeros_like(qkv, dtype=dtype)
        grad_weight = torch.zeros_like(weight)
        with torch.autocast(qkv.device.type, enabled=False):
            for rows in ctx.tiles:
                q = places.split_heads(qkv[:, rows, :d].to(dtype))
                g = places.split_heads(gradient[:, rows].to(dtype))
                g_out = (g * places.split_heads(out[:, rows].to(dtype))).sum(-1, keepdim=True)
                for columns in ctx.tiles:
                    k, v = (
                        places.split_heads(x.to(dtype)) for x in qkv[:, columns, d:].chunk(2, -1)
                    )
                    logits, offsets = _tile_logits(q, k, weight, places, rows, columns)
                    p = logits.sub_(log_sum[:, :, rows]).exp_()
                    grad_logits = (g @ v.mT).sub_(g_out).mul_(p)
                    grad_weight += torch.einsum("bhmc,bmcx->hx", grad_logits, offsets)
                    grad_qkv[:, columns, 2 * d :] += places.join_heads(p.mT @ g)
                    grad_logits /= math.sqrt(q.shape[-1])
                    grad_qkv[:, rows, :d] += places.join_heads(grad_logits @ k)
                    grad_qkv[:, columns, d : 2 * d] += places.join_heads(grad_logits.mT @ q)
        return grad_qkv.to(qkv.dtype), grad_weight, None, None


def _tile_logits(
    q: Float[Tensor, "b h m dk"],
    k: Float[Tensor, "b h c dk"],
    weight: Float[Tensor, "h factors"],
    places: _Places,
    rows: slice,
    columns: slice,
) -> tuple[Float[Tensor, "b h m c"], Float[Tensor, "b m c factors"]]:
    """Compute the logits of one tile, ``(b, h, m, c)``.

    Args:
        q: queries of the rows, ``(b, h, m, d / h)``.
        k: keys of the columns, ``(b, h, c, d / h)``.
        weight: factors of the offsets, ``(h, 1 + ndim)``.
        places: masks and positions.
        rows: tokens that attend.
        columns: tokens that are attended to.

    Returns:
        The logits, and the offsets of the tile ``(b, m, c, 1 + ndim)``.
    """
    offsets = places.offsets(rows, columns, weight.dtype)
    logits = (q @ k.mT).div_(math.sqrt(q.shape[-1]))
    logits += torch.einsum("bmcx,hx->bhmc", offsets, weight)
    return logits.masked_fill_(places.hidden(rows, columns), -torch.inf), offsets
