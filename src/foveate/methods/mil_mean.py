"""The mean over all patches: the simplest multiple instance learning.

Source: none; the mean-pooling baseline of Ilse, Tomczak & Welling, "Attention-based Deep Multiple
Instance Learning", ICML 2018, and of every paper since.

Differs: the encoder may be trained, by two-pass replay, whose memory does not grow with the number
of patches; in training the lattice moves; features are normalised before they are averaged.

Use when: the decisive sign is all over the tissue (a stain, a texture, a subtype); and always,
as the baseline that attention must beat. One decisive patch among thousands is lost in the mean. It
does not see where patches lie.

Cost: reads every patch with foreground, twice in training with a trained encoder unless they fit a
small cache; memory of one chunk of patches, and one vector per patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveate.bags.embedding import compute_patch_shares
from foveate.encoders.base import AbstractEncoder
from foveate.methods.base import AbstractBagMethod, BagAnswer
from foveate.nn.heads import Head


class MilMean(AbstractBagMethod):
    """All patches with tissue, their mean, a linear head.

    The head is linear, so its answer to the mean of the patches is the mean of its answers to each.
    Evidence is each patch's share of the predicted logit, as far as it speaks for the prediction.

    Args:
        train_encoder: learn the encoder too, by two-pass replay; off, it stays as it began and
            each image is embedded once.
        chunk: number of patches encoded at a time.
        dropout: rate of dropout on the mean.
        instance: weight of the instance head's loss: patches answer the task on their own, pooled
            as the task allows. 0, the plain mean, leaves it out: here every patch has a gradient
            of its own already.
        jitter: in training, shift the lattice at random (with a trained encoder only).
    """

    summary = "all patches, the mean of their answers; the baseline of attention"
    meets = ("no", "partly", "yes", "yes", "no")

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        train_encoder: bool = True,
        chunk: int = 64,
        dropout: float = 0.1,
        instance: float = 0.0,
        jitter: bool = True,
    ) -> None:
        super().__init__(
            encoder,
            heads,
            train_encoder=train_encoder,
            chunk=chunk,
            jitter=jitter,
            instance=instance,
            dim_instance=encoder.dim,
        )
        self.norm = nn.LayerNorm(encoder.dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder.dim, sum(h.size for h in heads))

    def answer_bag(
        self,
        f: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
        place: Callable[[], Float[Tensor, "b n ndim"]],
    ) -> BagAnswer:
        """Average the features of the patches and answer from the mean."""
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
