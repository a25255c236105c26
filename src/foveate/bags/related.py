"""Relate tokens that have places to each other, then pool them to answer all questions."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveate.encoders.base import AbstractEncoder
from foveate.nn.attention import RelationLayer
from foveate.nn.heads import Head
from foveate.nn.pooling import CrossPool
from foveate.nn.position import PositionCode
from foveate.nn.selection import attention_logits


class RelatedPool(nn.Module):
    """Self-attention between tokens, then cross-attention with a query for each question.

    Args:
        encoder: the encoder whose features are the tokens; it does not become a submodule.
        heads: the questions of the task.
        layers: number of self-attention layers; 0 for none.
        attention_heads: attention heads of the cross-attention; divides the encoder's `dim`.
        dropout: dropout in the cross-attention.

    Raises:
        OptionError: `attention_heads` does not divide the encoder's `dim`.
    """

    def __init__(
        self,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        *,
        layers: int,
        attention_heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        dim, ndim = encoder.dim, encoder.axes
        self.position = PositionCode(dim, ndim=ndim)
        self.relate = nn.ModuleList(RelationLayer(dim, ndim=ndim) for _ in range(layers))
        self.pool = CrossPool(dim, heads, attention_heads=attention_heads, dropout=dropout)

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
        centre_patch: Float[Tensor, "b n ndim"],
        extent_patch: Float[Tensor, "b n"],
        *,
        pooled: Bool[Tensor, "b n"] | None = None,
        everywhere: Bool[Tensor, "b n"] | None = None,
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b n"]]:
        """Answer from all tokens of an image.

        Args:
            tokens: vectors ``(b, n, d)``.
            valid: attention mask ``(b, n)`` bool, False on padding.
            centre_patch: centres of the tokens' regions ``(b, n, ndim)``, in patches.
            extent_patch: sides of the tokens' regions ``(b, n)``, in patches.
            pooled: ``(b, n)`` bool, True on tokens that are pooled; the others are only related to
                them. All by default.
            everywhere: ``(b, n)`` bool, True on tokens of the image as a whole, at no distance from
                others. No token by default.

        Returns:
            logits ``(b, k)`` and attention ``(b, n)``, averaged over queries and attention heads.
        """
        position = self.position(centre_patch, extent_patch)
        for layer in self.relate:
            tokens = layer(tokens, position, valid, centre_patch, everywhere)
        answer: tuple[Tensor, Tensor] = self.pool(
            tokens + position, valid if pooled is None else pooled
        )
        return answer

    def scores(
        self,
        tokens: Float[Tensor, "n d"],
        centre_patch: Float[Tensor, "n ndim"],
        extent_patch: Float[Tensor, " n"],
    ) -> Float[Tensor, "n t h"]:
        """Compute attention logits ``(n, t, h)``, in float64, of tokens that are not related yet.

        Args:
            tokens: vectors ``(n, d)``.
            centre_patch: centres of their regions ``(n, ndim)``, in patches.
            extent_patch: sides of their regions ``(n,)``, in patches.
        """
        keys = self.pool.keys(tokens + self.position(centre_patch, extent_patch))
        return attention_logits(self.pool.query(), keys)
