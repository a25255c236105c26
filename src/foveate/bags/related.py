"""Parts that know where they lie, are related to each other, and then answer all questions."""

from __future__ import annotations

from collections.abc import Sequence

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
        encoder: whose features are the tokens; it is not kept.
        heads: what the task asks.
        layers: of self-attention; 0 for none.
        attention_heads: of the cross-attention; divides the encoder's `dim`.
        dropout: in the cross-attention.

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
        tokens: Tensor,
        valid: Tensor,
        centre: Tensor,
        extent: Tensor,
        *,
        pooled: Tensor | None = None,
        everywhere: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Answer from all tokens of an image.

        Args:
            tokens: ``(b, n, d)``.
            valid: ``(b, n)`` bool, False on padding.
            centre: ``(b, n, ndim)`` in patches.
            extent: ``(b, n)`` sizes of what tokens show, in patches.
            pooled: ``(b, n)`` bool, which tokens answer; the others are related to them only. All
                by default.
            everywhere: ``(b, n)`` bool, tokens of the image as a whole, at no distance from others.
                None by default.

        Returns:
            Logits ``(b, k)`` and attention, averaged over queries and heads, ``(b, n)``.
        """
        position = self.position(centre, extent)
        for layer in self.relate:
            tokens = layer(tokens, position, valid, centre, everywhere)
        found: tuple[Tensor, Tensor] = self.pool(
            tokens + position, valid if pooled is None else pooled
        )
        return found

    def scores(self, tokens: Tensor, centre: Tensor, extent: Tensor) -> Tensor:
        """Logits of attention ``(n, t, h)``, float64, for tokens ``(n, d)`` not related yet."""
        keys = self.pool.keys(tokens + self.position(centre, extent))
        return attention_logits(self.pool.query(), keys)
