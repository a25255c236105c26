"""Attention-based multiple instance learning over all patches.

Source: Ilse, Tomczak & Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018
(gated attention).

Differs: the encoder may be trained: features come from two-pass replay, whose memory does not grow
with the number of patches; in training the lattice is shifted at random; an instance head gives
every patch its own gradient; the additive pooling is that of EMIL (Müller et al., MIDL 2022).

Use when: any part of the image may decide, and reading all of it is affordable. With a frozen
encoder it is the usual baseline of the field. It ignores the positions of patches.

Cost: reads every patch with foreground, twice in training with a trained encoder unless they fit a
small cache; needs memory for one chunk of patches and one vector per patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Unpack

from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveate.encoders.base import AbstractEncoder
from foveate.methods.base import AbstractBagMethod, BagAnswer, BagOptions, Requirements
from foveate.nn.heads import Head
from foveate.nn.pooling import AdditivePool, GatedPool
from foveate.parts.options import DropoutRate, Width


class Abmil(AbstractBagMethod):
    """Embed all patches with foreground, pool them by gated attention, and answer by a linear head.

    Args:
        pooling: ``attention`` pools the patches and answers once, as in the paper; ``additive``
            adds the gated answers of the patches, so that evidence is the contribution of each
            patch to the prediction.
        k_min: sum of the gates from which an answer can be certain (``additive`` only).
        hidden: width of the attention network (``attention`` only).
        dropout: rate of dropout on the pooled vector (``attention`` only).
    """

    summary = "all patches, gated attention; encoder frozen or trained by two-pass replay"
    meets = Requirements(
        relevant_parts="no",
        any_number="yes",
        any_size="yes",
        one_gpu="yes",
        dependencies="no",
    )

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        pooling: Literal["attention", "additive"] = "attention",
        k_min: float = 1.0,
        hidden: Width = 128,
        dropout: DropoutRate = 0.1,
        instance: float = 1.0,
        **bag: Unpack[BagOptions],
    ) -> None:
        super().__init__(encoder, heads, encoder.dim, instance=instance, **bag)
        self.norm = nn.LayerNorm(encoder.dim)
        self.pool: nn.Module
        if pooling == "additive":
            self.pool = AdditivePool(encoder.dim, heads, k_min=k_min)
        else:
            self.pool = _GatedAnswer(encoder.dim, heads, hidden, dropout)

    def answer_bag(
        self,
        f: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
        place: Callable[[], Float[Tensor, "b n ndim"]],
    ) -> BagAnswer:
        """Pool the patches by gated attention, or add up what they answer.

        Args:
            f: features of the patches ``(b, n, d)``, zeros on padding.
            valid: ``(b, n)`` bool, False on padding.
            place: not used, because the method ignores places.
        """
        h = self.norm(f)
        logits, weight = self.pool(h, valid)
        return BagAnswer(logits, lambda: weight, instances=h)


class _GatedAnswer(nn.Module):
    """Gated attention pooling, then dropout and a linear head."""

    def __init__(self, dim: int, heads: Sequence[Head], hidden: int, dropout: float) -> None:
        super().__init__()
        self.pool = GatedPool(dim, hidden=hidden)
        outputs = nn.Linear(dim, sum(h.size for h in heads))
        self.head = nn.Sequential(nn.Dropout(dropout), outputs)

    def forward(
        self, tokens: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b n"]]:
        """Return logits ``(b, k)`` and attention ``(b, n)`` of tokens ``(b, n, d)``."""
        vector, weight = self.pool(tokens, valid)
        return self.head(vector), weight
