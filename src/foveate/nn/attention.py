"""Attention over bags of tokens, with masks for padding everywhere."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from foveate.nn.base import GatedAttention, masked_softmax

__all__ = ["GatedAttention", "Relate", "masked_softmax"]


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
        pairs: of tokens compared at a time; above it, they are compared in blocks, which are
            computed again for their gradients, so that memory does not grow with the square of n.

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
        pairs: int = 1 << 20,
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
            centre: ``(b, n, ndim)`` in patches, where tokens lie; only distances count. None
                leaves distance out.
            placed: ``(b, n)`` bool, which tokens lie somewhere; others, such as the glimpse, are
                at no distance from any. None for all.

        Returns:
            ``(b, n, d)``.
        """
        normed = self.norm(tokens)
        b, n, d = tokens.shape
        query_key = functional.linear(normed + position, self.query_key_value.weight[: 2 * d])
        value = functional.linear(normed, self.query_key_value.weight[2 * d :])
        q, k = query_key.view(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        v = value.view(b, n, self.heads, -1).transpose(1, 2)
        nothing = (0, 0, 0, 1)
        k, v = functional.pad(k, nothing), functional.pad(v, nothing)

        block = max(1, self.pairs // n)

        def mix(first: int) -> Tensor:
            part = slice(first, min(first + block, n))
            bias = functional.pad(self._bias(part, valid, centre, placed), (0, 1)).to(q.dtype)
            return functional.scaled_dot_product_attention(q[:, :, part], k, v, bias)

        if n <= block:
            mixed = mix(0)
        else:
            rows = [checkpoint(mix, i, use_reentrant=False) for i in range(0, n, block)]
            mixed = torch.cat(rows, 2)
        tokens = tokens + self.scale[0] * self.out(mixed.transpose(1, 2).reshape(b, n, d))
        out: Tensor = tokens + self.scale[1] * self.mlp(tokens)
        return out

    def _bias(
        self, part: slice, valid: Tensor, centre: Tensor | None, placed: Tensor | None
    ) -> Tensor:
        """Minus distance in reaches of some tokens from all, ``(b, h, m, n)``.

        ``-inf`` for padding and for a token itself.
        """
        n = valid.shape[1]
        own = torch.arange(n, device=valid.device)
        others = valid[:, None, None, :] & (own[part, None] != own)
        reach = self.log_reach.exp()
        if centre is None:
            return torch.zeros_like(others, dtype=reach.dtype).masked_fill(~others, -torch.inf)
        exact = centre.to(reach.dtype)
        distance = torch.cdist(exact[:, part], exact, compute_mode="donot_use_mm_for_euclid_dist")
        if placed is not None:
            apart = placed[:, part].unsqueeze(2) & placed.unsqueeze(1)
            distance = distance.masked_fill(~apart, 0.0)
        scaled = distance.unsqueeze(1) / reach[:, None, None]
        return (-scaled).masked_fill(~others, -torch.inf)
