"""The mean over all patches: the simplest multiple instance learning.

Source: no single paper; the mean-pooling baseline of Ilse, Tomczak & Welling, "Attention-based Deep
Multiple Instance Learning", ICML 2018, and of every paper since.

Differs: the encoder may be trained, by two-pass replay, whose memory does not grow with the number
of patches; in training the lattice is shifted at random; features are normalised before they are
averaged.

Use when: the whole tissue shows the decisive feature (a stain, a texture, a subtype); and always as
the baseline that attention must beat. One decisive patch among thousands is lost in the mean. It
ignores the positions of patches.

Cost: reads every patch with foreground, twice in training with a trained encoder unless they fit a
small cache; needs memory for one chunk of patches and one vector per patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Unpack

from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveate.bags.embedding import compute_patch_shares
from foveate.encoders.base import AbstractEncoder
from foveate.methods.base import AbstractBagMethod, BagAnswer, BagOptions, Requirements
from foveate.nn.heads import Head
from foveate.parts.options import DropoutRate


class MilMean(AbstractBagMethod):
    """Average all patches with foreground, and answer by a linear head.

    The head is linear, so its answer to the mean of the patches is the mean of its answers to each.
    Evidence is each patch's share of the predicted logit, as far as it supports the prediction.

    Args:
        dropout: rate of dropout on the mean.
        instance: weight of the loss of the instance head, which answers the task from single
            patches and pools these answers as the task allows. 0, the plain mean, for no such head,
            because every patch already has its own gradient here.
    """

    summary = "all patches, the mean of their answers; the baseline of attention"
    meets = Requirements(
        relevant_parts="no",
        any_number="partly",
        any_size="yes",
        one_gpu="yes",
        dependencies="no",
    )

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        dropout: DropoutRate = 0.1,
        instance: float = 0.0,
        **bag: Unpack[BagOptions],
    ) -> None:
        super().__init__(encoder, heads, encoder.dim, instance=instance, **bag)
        self.norm = nn.LayerNorm(encoder.dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.dim, sum(h.size for h in heads))

    def answer_bag(
        self,
        f: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
        place: Callable[[], Float[Tensor, "b n ndim"]],
    ) -> BagAnswer:
        """Average the features of the patches and answer from the mean.

        Args:
            f: features of the patches ``(b, n, d)``, zeros on padding.
            valid: ``(b, n)`` bool, False on padding.
            place: not used, because the method ignores places.
        """
        h = self.norm(f)
        logits = self.aggregate(h, valid)
        shares = partial(compute_patch_shares, self.head(h), logits, self.task_heads, valid)
        return BagAnswer(logits, shares, instances=h)

    def aggregate(
        self, h: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b k"]:
        """Compute logits ``(b, k)``.

        Args:
            h: normalised features ``(b, n, d)``.
            valid: ``(b, n)`` bool, False on padding.
        """
        mean = (h * valid.unsqueeze(-1)).sum(1) / valid.sum(1, keepdim=True).clamp_min(1)
        logits: Tensor = self.head(self.dropout(mean))
        return logits
