"""The strongest patch for each class: an image is positive if one of its patches is.

Source: the standard assumption of multiple instance learning; the max-pooling baseline of Ilse,
Tomczak & Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018, and the training
rule of Campanella et al., Nature Medicine 2019.

Differs: the encoder may be trained, by two-pass replay: only the chunks that hold a strongest patch
are encoded twice; in training the lattice moves; there is no dropout, which would change which
patch is the strongest.

Use when: a single patch decides and can be recognised by itself (a metastasis, a finding). It
learns slowly, from one patch per image and class a step; it cannot learn counts and proportions. It
does not see where patches lie.

Cost: reads every patch with foreground, those of the chunks that decide twice in training with a
trained encoder; memory of one chunk of patches, and one vector per patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveate.bags.embedding import compute_output_weights
from foveate.encoders.base import AbstractEncoder
from foveate.methods.base import AbstractBagMethod, BagAnswer
from foveate.nn.attention import masked_softmax
from foveate.nn.heads import Head


class MilMax(AbstractBagMethod):
    """All patches with tissue, a linear head on each, the largest answer per output.

    Evidence is the softmax over patches of their answers for the predicted classes: the decisive
    patch has most of it, and those that came close are visible.

    Args:
        train_encoder: learn the encoder too, by two-pass replay; off, it stays as it began and
            each image is embedded once.
        chunk: number of patches encoded at a time.
        jitter: in training, shift the lattice at random (with a trained encoder only).
    """

    summary = "all patches, the strongest answer per class"
    meets = ("no", "partly", "yes", "yes", "no")

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        train_encoder: bool = True,
        chunk: int = 64,
        jitter: bool = True,
    ) -> None:
        super().__init__(encoder, heads, train_encoder=train_encoder, chunk=chunk, jitter=jitter)
        self.norm = nn.LayerNorm(encoder.dim)
        self.head = nn.Linear(encoder.dim, sum(h.size for h in heads))

    def answer_bag(
        self,
        f: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
        place: Callable[[], Float[Tensor, "b n ndim"]],
    ) -> BagAnswer:
        """Take the strongest patch for each output."""
        logits, single = self.aggregate(self.norm(f), valid)

        def weigh_patches() -> Tensor:
            shares = masked_softmax(single.transpose(1, 2), valid.unsqueeze(1))
            return (compute_output_weights(logits, self.task_heads).unsqueeze(-1) * shares).sum(1)

        return BagAnswer(logits, weigh_patches)

    def aggregate(
        self, h: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b n k"]]:
        """Compute the logits of images ``(b, k)`` and of patches ``(b, n, k)``.

        Args:
            h: normalised features ``(b, n, d)``.
            valid: ``(b, n)`` bool, False on padding.
        """
        single = self.head(h)
        return single.masked_fill(~valid.unsqueeze(-1), -torch.inf).amax(1), single
