"""Relate tokens by self-attention that knows their places, then pool them by cross-attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from foveate.aggregators.base import AbstractAggregator
from foveate.bags.related import RelatedPool
from foveate.encoders.base import AbstractEncoder
from foveate.nn.heads import Head
from foveate.nn.pooling import CrossPool

_LAYERS, _ATTENTION_HEADS = 1, 8
"""Layers of self-attention; heads of the cross-attention, where they divide the vector's length."""
_INITIAL_SCALE = 0.05
"""Factor of the initial weights of pooled answers."""


class RelatedAggregator(RelatedPool, AbstractAggregator):
    """One layer of self-attention, then cross-attention with a query for each question.

    Args:
        encoder: the encoder whose features are the tokens; it does not become a submodule.
        heads: the questions of the task.
        dropout: rate of dropout in the cross-attention.
    """

    def __init__(self, *, encoder: AbstractEncoder, heads: Sequence[Head], dropout: float) -> None:
        attention_heads = math.gcd(_ATTENTION_HEADS, encoder.dim)
        super().__init__(
            encoder, heads, layers=_LAYERS, attention_heads=attention_heads, dropout=dropout
        )
        _shrink_initial_answers(self.pool, heads)


@torch.no_grad()
def _shrink_initial_answers(pool: CrossPool, heads: Sequence[Head]) -> None:
    """Shrink the initial weights of each answer that is not a sum over patches, in place.

    Until it is learnt which patches count, a pooled answer is noise. In a sum all patches count.
    """
    for head, last in zip(heads, pool.heads, strict=True):
        if head.pooling != "sum":
            for p in last.parameters():
                p.mul_(_INITIAL_SCALE)
