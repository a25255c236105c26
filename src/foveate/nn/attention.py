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

from foveate.nn.base import GatedAttention, masked_softmax

__all__ = ["GatedAttention", "Relate", "masked_softmax"]

_ROWS = 1024


class Relate(nn.Module):
    """A pre-norm transformer layer between parts, whose branches start at nearly zero.

    Tokens keep their own content at initialisation, so that attention over them can be read as
    evidence; relations are learnt on top. Each head sees as far as its reach: its logits fall by
    one for every reach of distance, which is learnt and starts between `near` and `far` patches. A
    token attends to the others, not to itself, or to nothing (a key and value of 0). What it gets
    is then what its neighbourhood holds, from the first step on; beside itself, at distance 0, a
    neighbourhood drowns, and a layout is not learnt for thousands of steps.

    Args:
        dim: length of a token.
        heads: of attention; divides `dim`.
        initial_scale: of both branches.
        near: reach of the first head at the start, in patches.
        far: that of the last; those between are spaced geometrically.
        pairs: of tokens compared at once; where there are more, they are compared tile by tile,
            and computed again for their gradients, so that memory grows with n alone: by about a
            dozen vectors for each token.

    Source: the distance term is that of Press, Smith & Lewis, "Train Short, Test Long", ICLR 2022
    (ALiBi). Where we differ: distances are Euclidean, and how fast they count is learnt.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int = 4,
        initial_scale: float = 0.1,
        near: float = 1.0,
        far: float = 64.0,
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

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        valid: Tensor,
        centre: Tensor | None = None,
        placed: Tensor | None = None,
    ) -> Tensor:
        """Relate tokens.

        Args:
            tokens: ``(b, n, d)``.
            position: ``(b, n, d)``, added where tokens are compared, not to what they carry.
            valid: ``(b, n)`` bool.
            centre: ``(b, n, ndim)`` in patches, where tokens lie; only distances count, and get
                no gradient. None leaves distance out.
            placed: ``(b, n)`` bool, which tokens lie somewhere; others, such as the glimpse, are
                at no distance from any. None for all.

        Returns:
            ``(b, n, d)``.
        """
        n = tokens.shape[1]
        where = _Places(self.heads, valid, None if centre is None else centre.detach(), placed)
        if n * n <= self.pairs:
            mixed = where.attend(self._projected(tokens, position), self.log_reach)
            return self._joined(tokens, mixed)
        tile = max(1, math.isqrt(self.pairs) // 2)
        qkv = _by_rows(self._projected, tokens, position)
        mixed = _TiledAttention.apply(qkv, self.log_reach, where, tile)
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
    """Who may attend to whom, and how far apart they are; arguments as of `Relate`."""

    heads: int
    valid: Tensor
    centre: Tensor | None
    placed: Tensor | None

    def attend(self, qkv: Tensor, log_reach: Tensor) -> Tensor:
        """All tokens at once, ``(b, n, d)``; one more key and value of 0 are nothing."""
        q, k, v = (self.split(x) for x in qkv.chunk(3, -1))
        k, v = functional.pad(k, (0, 0, 0, 1)), functional.pad(v, (0, 0, 0, 1))
        every = slice(0, self.valid.shape[1])
        nearness, hidden = self.between(every, every, log_reach)
        bias = functional.pad(nearness.masked_fill(hidden, -torch.inf), (0, 1)).to(q.dtype)
        return self.join(functional.scaled_dot_product_attention(q, k, v, bias))

    def between(self, rows: slice, columns: slice, log_reach: Tensor) -> tuple[Tensor, Tensor]:
        """Minus distance in reaches ``(b, h, m, c)``, and who is hidden ``(b, 1, m, c)``.

        Hidden are padding and, from itself, a token.
        """
        own = torch.arange(self.valid.shape[1], device=self.valid.device)
        others = self.valid[:, None, None, columns] & (own[rows, None] != own[columns])
        if self.centre is None:
            nearness = torch.zeros_like(others, dtype=log_reach.dtype)
            return nearness.expand(-1, self.heads, -1, -1), ~others
        exact = self.centre.to(log_reach.dtype)
        distance = torch.cdist(
            exact[:, rows], exact[:, columns], compute_mode="donot_use_mm_for_euclid_dist"
        )
        if self.placed is not None:
            apart = self.placed[:, rows].unsqueeze(2) & self.placed[:, columns].unsqueeze(1)
            distance = distance.masked_fill(~apart, 0.0)
        return -distance.unsqueeze(1) / log_reach.exp()[:, None, None], ~others

    def split(self, x: Tensor) -> Tensor:
        """``(b, n, d)`` as ``(b, h, n, d / h)``."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def join(self, x: Tensor) -> Tensor:
        """The way back."""
        return x.transpose(1, 2).flatten(-2)


class _TiledAttention(torch.autograd.Function):
    """What `_Places.attend` does, tile by tile: memory grows with n alone, forth and back.

    Source: Dao et al., "FlashAttention", NeurIPS 2022. Where we differ: logits are computed from
    distances as well, and nothing can be attended to, which is where the running sums begin.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, log_reach: Tensor, where: _Places, tile: int) -> Tensor:
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
                    logits, _ = _logits(q, k, log_reach, where, rows, columns)
                    higher = torch.maximum(top, logits.amax(-1, keepdim=True))
                    shrink, p = (top - higher).exp(), logits.sub_(higher).exp_()
                    top, mass = higher, mass * shrink + p.sum(-1, keepdim=True)
                    sums = sums * shrink + p @ v
                out[:, rows] = where.join(sums / mass).to(out.dtype)
                total[:, :, rows] = top + mass.log()
        ctx.save_for_backward(qkv, log_reach, out, total)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        qkv, log_reach, out, total = ctx.saved_tensors
        where, d, exact = ctx.where, out.shape[-1], total.dtype
        of_qkv = torch.zeros_like(qkv, dtype=exact)
        of_reach = torch.zeros_like(log_reach)
        with torch.autocast(qkv.device.type, enabled=False):
            for rows in ctx.tiles:
                q = where.split(qkv[:, rows, :d].to(exact))
                g = where.split(gradient[:, rows].to(exact))
                pulled = (g * where.split(out[:, rows].to(exact))).sum(-1, keepdim=True)
                for columns in ctx.tiles:
                    k, v = (where.split(x.to(exact)) for x in qkv[:, columns, d:].chunk(2, -1))
                    logits, nearness = _logits(q, k, log_reach, where, rows, columns)
                    p = logits.sub_(total[:, :, rows]).exp_()
                    of_logits = (g @ v.mT).sub_(pulled).mul_(p)
                    of_reach -= (of_logits * nearness).sum((0, 2, 3))
                    of_qkv[:, columns, 2 * d :] += where.join(p.mT @ g)
                    of_logits /= math.sqrt(q.shape[-1])
                    of_qkv[:, rows, :d] += where.join(of_logits @ k)
                    of_qkv[:, columns, d : 2 * d] += where.join(of_logits.mT @ q)
        return of_qkv.to(qkv.dtype), of_reach, None, None


def _logits(
    q: Tensor, k: Tensor, log_reach: Tensor, where: _Places, rows: slice, columns: slice
) -> tuple[Tensor, Tensor]:
    """Of one tile, ``(b, h, m, c)``, with the part in it that is distance."""
    nearness, hidden = where.between(rows, columns, log_reach)
    logits = (q @ k.mT).div_(math.sqrt(q.shape[-1])).add_(nearness)
    return logits.masked_fill_(hidden, -torch.inf), nearness
