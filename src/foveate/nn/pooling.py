"""Poolings of a set of tokens to one answer or vector, which any method may use.

Every pooling takes ``tokens (b, n, d)`` and ``valid (b, n)``, False for padding. It returns the
result and the share of each patch in it ``(b, n)``: not negative, 0 for padding, rows sum to 1, or
to 0 for an image without patches. `CrossPool` and `AdditivePool` return the logits of a task;
`GatedPool`, `MeanPool` and `MaxPool` return a vector. Position codes, where they count, are added
to the tokens before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from foveate.errors import OptionError
from foveate.nn.additive import AdditiveHead
from foveate.nn.base import GatedAttention, Head, masked_softmax


class AdditivePool(nn.Module):
    """Pooling by a gated sum of the patches' answers, so that its summands are the evidence.

    Args:
        dim: length of a token.
        heads: questions of the task; each has a gate of its own.
        k_min: number of patches from which an answer is certain.

    Source: EMIL (MIDL 2022); see `AdditiveHead` for where we differ.
    """

    def __init__(self, dim: int, heads: Sequence[Head], *, k_min: float = 1.0) -> None:
        super().__init__()
        self.parts = nn.ModuleList(AdditiveHead(dim, head, k_min=k_min) for head in heads)

    def forward(
        self, tokens: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b n"]]:
        """Sum the answers of patches.

        Args:
            tokens: tokens, ``(b, n, d)``.
            valid: False for padding, ``(b, n)`` bool.

        Returns:
            Logits ``(b, k)``, and shares ``(b, n)`` of the sum for the predicted class, or for
            "yes" of all outputs; averaged over heads, without gradient.
        """
        answers, weights = [], []
        for part in self.parts:
            logits, log_share = part(tokens, valid)
            answers.append(logits)
            log_share = log_share.detach()
            if part.exclusive:
                predicted = logits.argmax(-1)[:, None, None].expand(-1, valid.shape[1], 1)
                log_share = log_share.gather(-1, predicted)
            weights.append(masked_softmax(log_share.logsumexp(-1), valid))
        return torch.cat(answers, -1), torch.stack(weights).mean(0)


class CrossPool(nn.Module):
    """Pooling by cross-attention: one learnt query for each question of the task.

    It is a post-norm transformer block (``LN(Q + attention)``, ``LN(z + MLP(z))``), then a linear
    layer for each query.

    Args:
        dim: length of a token.
        heads: questions of the task.
        attention_heads: number of attention heads; divides `dim`.
        inner: width of the MLP; by default ``4 * dim``.
        dropout: dropout rate of the outputs of attention and MLP; never of attention itself, so
            that scores are the same in training and evaluation.

    Raises:
        OptionError: `attention_heads` does not divide `dim`.

    Source: Bergner, Lippert & Mahendran, "Iterative Patch Selection for High-Resolution Image
    Recognition", ICLR 2023. Where we differ: padding is masked; heads give logits, of any size; a
    patch is scored before the softmax.
    """

    def __init__(
        self,
        dim: int,
        heads: Sequence[Head],
        *,
        attention_heads: int = 8,
        inner: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if attention_heads < 1 or dim % attention_heads:
            raise OptionError(
                f"attention_heads {attention_heads} does not divide the {dim} of dim: take 1, or "
                "another number that does"
            )
        self.attention_heads = attention_heads
        bound = (dim // attention_heads) ** -0.5
        self.questions = nn.Parameter(torch.empty(len(heads), dim).uniform_(-bound, bound))
        self.to_query = nn.Linear(dim, dim, bias=False)
        self.to_key = nn.Linear(dim, dim, bias=False)
        self.to_value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        inner = inner or 4 * dim
        self.mlp = nn.Sequential(nn.Linear(dim, inner), nn.ReLU(), nn.Linear(inner, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleList(nn.Linear(dim, head.size) for head in heads)

    def forward(
        self, tokens: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b n"]]:
        """Answer all questions.

        Args:
            tokens: tokens, ``(b, n, d)``.
            valid: False for padding, ``(b, n)`` bool.

        Returns:
            Logits ``(b, k)``, and attention averaged over queries and attention heads, ``(b, n)``.
        """
        # Keys and values are linear in the tokens. So the key matrix is applied to the queries, and
        # the value matrix to the mean of the tokens: no key or value of a token is stored.
        to_key, to_value = (
            layer.weight.view(self.attention_heads, -1, layer.weight.shape[1])
            for layer in (self.to_key, self.to_value)
        )
        query = torch.einsum("thk,hkd->thd", self.query(), to_key)
        logits = torch.einsum("thd,bnd->bthn", query, tokens)
        weight = masked_softmax(logits / math.sqrt(to_key.shape[1]), valid[:, None, None])
        mean = torch.einsum("bthn,bnd->bthd", weight.to(tokens.dtype), tokens)
        mixed = torch.einsum("bthd,hkd->bthk", mean, to_value).flatten(-2)
        z = self.norms[0](self.questions + self.dropout(self.out(mixed)))
        z = self.norms[1](z + self.dropout(self.mlp(z)))
        answers = [head(z[:, t]) for t, head in enumerate(self.heads)]
        return torch.cat(answers, -1), weight.mean((1, 2))

    def query(self) -> Float[Tensor, "t h dk"]:
        """Return the queries ``(t, h, dk)``, by question and attention head."""
        return self._split(self.to_query(self.questions))

    def keys(self, tokens: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b n h dk"]:
        """Compute the keys ``(…, n, h, dk)`` of tokens ``(…, n, d)``."""
        return self._split(self.to_key(tokens))

    def _split(self, vectors: Float[Tensor, "*b d"]) -> Float[Tensor, "*b h dk"]:
        """Reshape vectors ``(…, d)`` to ``(…, h, dk)``."""
        return vectors.view(*vectors.shape[:-1], self.attention_heads, -1)


class GatedPool(nn.Module):
    """Pooling by the mean of the tokens, weighted by gated attention.

    Args:
        dim: length of a token.
        hidden: width of the attention network.

    Source: Ilse, Tomczak & Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018.
    """

    def __init__(self, dim: int, *, hidden: int = 128) -> None:
        super().__init__()
        self.attention = GatedAttention(dim, hidden=hidden)

    def forward(
        self, tokens: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n"]]:
        """Pool tokens.

        Args:
            tokens: tokens, ``(b, n, d)``.
            valid: False for padding, ``(b, n)`` bool.

        Returns:
            The mean ``(b, d)``, and attention ``(b, n)``.
        """
        weight = masked_softmax(self.attention(tokens), valid)
        return (weight.unsqueeze(1) @ tokens).squeeze(1), weight


class MeanPool(nn.Module):
    """Pooling by the mean of the tokens; every patch has the same share."""

    def forward(
        self, tokens: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n"]]:
        """Pool tokens.

        Args:
            tokens: tokens, ``(b, n, d)``.
            valid: False for padding, ``(b, n)`` bool.

        Returns:
            The mean ``(b, d)``, and shares ``(b, n)``.
        """
        weight = masked_softmax(torch.zeros_like(tokens[..., 0]), valid)
        return (weight.unsqueeze(-1) * tokens).sum(1), weight


class MaxPool(nn.Module):
    """Pooling by the maximum of each feature; a patch's share is that of the maxima it has."""

    def forward(
        self, tokens: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b n"]]:
        """Pool tokens.

        Args:
            tokens: tokens, ``(b, n, d)``.
            valid: False for padding, ``(b, n)`` bool.

        Returns:
            The maxima ``(b, d)``, 0 for an image without patches, and shares ``(b, n)``.
        """
        filled = tokens.masked_fill(~valid.unsqueeze(-1), -torch.inf)
        top, winner = filled.max(1)
        won = functional.one_hot(winner, tokens.shape[1]).sum(1) * valid
        pooled = torch.where(valid.any(1, keepdim=True), top, torch.zeros_like(top))
        return pooled, won / won.sum(1, keepdim=True).clamp_min(1)
