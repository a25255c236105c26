"""Attention over bags of tokens, with masks for padding everywhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from foveate.nn.base import QUICK, masked_softmax

__all__ = ["Relate", "masked_softmax"]

_ROWS = 1024
# Patches that something must lie to a side before it counts as being there, more or less.
_SOFT = 0.25


class Relate(nn.Module):
    """A pre-norm transformer layer between parts, whose branches start at nearly zero.

    Tokens keep their own content at initialisation, so that attention over them can be read as
    evidence; relations are learnt on top. Each head sees as far as its reach: its logits fall by
    one for every reach of distance, which is learnt and starts between `near` and `far` patches. A
    token attends to the others, not to itself, or to nothing (a key and value of 0). What it gets
    is then what its neighbourhood holds, from the first step on; beside itself, at distance 0, a
    neighbourhood drowns, and a layout is not learnt for thousands of steps.

    A head may also lean to a side: its logits rise for what lies above or below, and so for every
    axis, by an amount that is learnt and starts at 0. "Is there another one above me?" decides
    which of several parts is the topmost; one score for each part cannot, as it would have to
    weigh what a part is against how high it lies.

    Args:
        dim: length of a token.
        heads: of attention; divides `dim`.
        initial_scale: of both branches.
        near: reach of the first head at the start, in patches.
        far: that of the last; those between are spaced geometrically.
        ndim: axes of an image.
        pairs: of tokens compared at once; where there are more, they are compared tile by tile,
            and computed again for their gradients, so that memory grows with n alone: by about a
            dozen vectors for each token.

    Source: the distance term is that of Press, Smith & Lewis, "Train Short, Test Long", ICLR 2022
    (ALiBi). Where we differ: distances are Euclidean, how fast they count is learnt, and sides
    count too.
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
        tokens: Tensor,
        position: Tensor,
        valid: Tensor,
        centre: Tensor,
        everywhere: Tensor | None = None,
    ) -> Tensor:
        """Relate tokens.

        Args:
            tokens: ``(b, n, d)``.
            position: ``(b, n, d)``, added where tokens are compared, not to what they carry.
            valid: ``(b, n)`` bool.
            centre: ``(b, n, ndim)`` in patches, where tokens lie; only how they lie to each other
                counts, and gets no gradient.
            everywhere: ``(b, n)`` bool, tokens of the image as a whole: at no distance from any
                other, on no side of it. None by default.

        Returns:
            ``(b, n, d)``.
        """
        n = tokens.shape[1]
        where = _Places(self.heads, valid, centre.detach(), everywhere)
        weight = torch.cat([-1 / self.log_reach.exp()[:, None], QUICK * self.lean], 1)
        if n * n <= self.pairs:
            mixed = where.attend(self._projected(tokens, position), weight)
            return self._joined(tokens, mixed)
        tile = max(1, math.isqrt(self.pairs) // 2)
        qkv = _by_rows(self._projected, tokens, position)
        mixed = _TiledAttention.apply(qkv, weight, where, tile)
        return _by_rows(self._joined, tokens, mixed)

    def _projected(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Queries, keys and values side by side, ``(b, n, 3 d)``."""
        normed, d = self.norm(tokens), tokens.shape[-1]
        query_key = functional.linear(normed + position, self.query_key_value.weight[: 2 * d])
        value = functional.linear(normed, self.query_key_value.weight[2 * d :])
        return torch.cat([query_key, value], -1)

    def _joined(self, tokens: Tensor, mixed: Tensor) -> Tensor:
        """Both branches added to the tokens, ``(b, n, d)``."""
        tokens = tokens + self.scale[0] * self.out(mixed)
        out: Tensor = tokens + self.scale[1] * self.mlp(tokens)
        return out


def _by_rows(function: Callable[..., Tensor], *tokens: Tensor) -> Tensor:
    """A function of each token, computed again for its gradients: kept is what it is given."""
    blocks = zip(*(torch.split(t, _ROWS, 1) for t in tokens), strict=True)
    return torch.cat([checkpoint(function, *block, use_reentrant=False) for block in blocks], 1)


@dataclass(frozen=True)
class _Places:
    """Who may attend to whom, and how they lie to each other; arguments as of `Relate`."""

    heads: int
    valid: Tensor
    centre: Tensor
    everywhere: Tensor | None = None

    def attend(self, qkv: Tensor, weight: Tensor) -> Tensor:
        """All tokens at once, ``(b, n, d)``; one more key and value of 0 are nothing.

        Args:
            qkv: ``(b, n, 3 d)``.
            weight: ``(h, 1 + ndim)`` of what `between` gives, in the logits of each head.
        """
        q, k, v = (self.split(x) for x in qkv.chunk(3, -1))
        k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
        every = slice(0, self.valid.shape[1])
        bias = torch.einsum("bmcx,hx->bhmc", self.between(every, every, weight.dtype), weight)
        bias = functional.pad(bias.masked_fill(self.hidden(every, every), -torch.inf), (0, 1))
        return self.join(functional.scaled_dot_product_attention(q, k, v, bias.to(q.dtype)))

    def hidden(self, rows: slice, columns: slice) -> Tensor:
        """From whom what is hidden ``(b, 1, m, c)``: padding and, from itself, a token."""
        own = torch.arange(self.valid.shape[1], device=self.valid.device)
        return ~(self.valid[:, None, None, columns] & (own[rows, None] != own[columns]))

    def between(self, rows: slice, columns: slice, dtype: torch.dtype) -> Tensor:
        """Distance in patches, then on which side the other lies, -1 to 1 for each axis.

        Returns:
            ``(b, m, c, 1 + ndim)``.
        """
        exact = self.centre.to(dtype)
        step = exact[:, None, columns] - exact[:, rows, None]
        if self.everywhere is not None:
            whole = self.everywhere[:, None, columns] | self.everywhere[:, rows, None]
            step = step.masked_fill(whole.unsqueeze(-1), 0.0)
        return torch.cat([step.norm(dim=-1, keepdim=True), (step / _SOFT).tanh()], -1)

    def split(self, x: Tensor) -> Tensor:
        """``(b, n, d)`` as ``(b, h, n, d / h)``."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def join(self, x: Tensor) -> Tensor:
        """The way back."""
        return x.transpose(1, 2).flatten(-2)


class _TiledAttention(torch.autograd.Function):
    """What `_Places.attend` does, tile by tile: memory grows with n alone, forth and back.

    Source: Dao et al., "FlashAttention", NeurIPS 2022. Where we differ: logits are computed from
    places as well, and nothing can be attended to, which is where the running sums begin.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, weight: Tensor, where: _Places, tile: int) -> Tensor:
        n, d = qkv.shape[1], qkv.shape[2] // 3
        ctx.where, ctx.tiles = where, [slice(i, min(i + tile, n)) for i in range(0, n, tile)]
        exact = torch.promote_types(qkv.dtype, torch.float32)
        out = qkv.new_empty(*qkv.shape[:2], d)
        total = qkv.new_empty(qkv.shape[0], where.heads, n, 1, dtype=exact)
        with torch.autocast(qkv.device.type, enabled=False):
            for rows in ctx.tiles:
                q = where.split(qkv[:, rows, :d].to(exact))
                top, mass = torch.zeros_like(q[..., :1]), torch.ones_like(q[..., :1])
                sums = torch.zeros_like(q)
                for columns in ctx.tiles:
                    k, v = (where.split(x.to(exact)) for x in qkv[:, columns, d:].chunk(2, -1))
                    logits, _ = _logits(q, k, weight, where, rows, columns)
                    higher = torch.maximum(top, logits.amax(-1, keepdim=True))
                    shrink, p = (top - higher).exp(), logits.sub_(higher).exp_()
                    top, mass = higher, mass * shrink + p.sum(-1, keepdim=True)
                    sums = sums * shrink + p @ v
                out[:, rows] = where.join(sums / mass).to(out.dtype)
                total[:, :, rows] = top + mass.log()
        ctx.save_for_backward(qkv, weight, out, total)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        qkv, weight, out, total = ctx.saved_tensors
        where, d, exact = ctx.where, out.shape[-1], total.dtype
        of_qkv = torch.zeros_like(qkv, dtype=exact)
        of_weight = torch.zeros_like(weight)
        with torch.autocast(qkv.device.type, enabled=False):
            for rows in ctx.tiles:
                q = where.split(qkv[:, rows, :d].to(exact))
                g = where.split(gradient[:, rows].to(exact))
                pulled = (g * where.split(out[:, rows].to(exact))).sum(-1, keepdim=True)
                for columns in ctx.tiles:
                    k, v = (where.split(x.to(exact)) for x in qkv[:, columns, d:].chunk(2, -1))
                    logits, between = _logits(q, k, weight, where, rows, columns)
                    p = logits.sub_(total[:, :, rows]).exp_()
                    of_logits = (g @ v.mT).sub_(pulled).mul_(p)
                    of_weight += torch.einsum("bhmc,bmcx->hx", of_logits, between)
                    of_qkv[:, columns, 2 * d :] += where.join(p.mT @ g)
                    of_logits /= math.sqrt(q.shape[-1])
                    of_qkv[:, rows, :d] += where.join(of_logits @ k)
                    of_qkv[:, columns, d : 2 * d] += where.join(of_logits.mT @ q)
        return of_qkv.to(qkv.dtype), of_weight, None, None


def _logits(
    q: Tensor, k: Tensor, weight: Tensor, where: _Places, rows: slice, columns: slice
) -> tuple[Tensor, Tensor]:
    """Of one tile, ``(b, h, m, c)``, and what `_Places.between` gave for it."""
    between = where.between(rows, columns, weight.dtype)
    logits = (q @ k.mT).div_(math.sqrt(q.shape[-1]))
    logits += torch.einsum("bmcx,hx->bhmc", between, weight)
    return logits.masked_fill_(where.hidden(rows, columns), -torch.inf), between
