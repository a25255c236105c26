"""Attention over bags of tokens, with masks for padding everywhere.

Source: Ilse, Tomczak & Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018
(gated attention, their eq. 9).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def masked_softmax(scores: Tensor, valid: Tensor) -> Tensor:
    """Softmax over the last axis where `valid`; exactly 0 elsewhere, and 0 for an empty row."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    filled = scores.masked_fill(~valid, -torch.inf)
    top = filled.amax(-1, keepdim=True)
    exp = torch.exp(filled - top.masked_fill(top.isneginf(), 0.0))
    return exp / exp.sum(-1, keepdim=True).clamp_min(torch.finfo(exp.dtype).tiny)


class GatedAttention(nn.Module):
    """Scores ``w . (tanh(V h) * sigmoid(U h))``, one per token, before the softmax."""

    def __init__(self, dim: int, *, hidden: int = 128) -> None:
        super().__init__()
        self.value = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(…, d)`` to ``(…)``."""
        mixed = torch.tanh(self.value(tokens)) * torch.sigmoid(self.gate(tokens))
        scores: Tensor = self.score(mixed).squeeze(-1)
        return scores


class Relate(nn.Module):
    """A pre-norm transformer layer whose branches start at nearly zero.

    Tokens keep their own content at initialisation, so that attention over them can be read as
    evidence; relations are learnt on top.
    """

    def __init__(self, dim: int, *, heads: int = 4, initial_scale: float = 0.1) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )
        self.scale = nn.Parameter(torch.full((2, dim), initial_scale))

    def forward(self, tokens: Tensor, position: Tensor, valid: Tensor) -> Tensor:
        """Relate tokens.

        Args:
            tokens: ``(b, n, d)``.
            position: ``(b, n, d)``, added where tokens are compared, not to what they carry.
            valid: ``(b, n)`` bool; at least one per row.

        Returns:
            ``(b, n, d)``.
        """
        normed = self.norm(tokens)
        b, n, d = tokens.shape
        query_key = functional.linear(normed + position, self.query_key_value.weight[: 2 * d])
        value = functional.linear(normed, self.query_key_value.weight[2 * d :])
        q, k = query_key.view(b, n, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        v = value.view(b, n, self.heads, -1).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None, :])
        tokens = tokens + self.scale[0] * self.out(mixed.transpose(1, 2).reshape(b, n, d))
        out: Tensor = tokens + self.scale[1] * self.mlp(tokens)
        return out
