"""The strongest patch for each class: an image is positive if one of its patches is.

Source: the standard assumption of multiple instance learning; the max-pooling baseline of Ilse,
Tomczak & Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018, and the training
rule of Campanella et al., Nature Medicine 2019.

Differs: the encoder may be trained, by two-pass replay: only the chunks that hold a strongest patch
are encoded twice; in training the lattice is shifted at random; there is no dropout, which would
change which patch is the strongest.

Use when: a single patch decides and can be recognised by itself (a metastasis, a finding). It
learns slowly, from one patch per image, class and step, and cannot learn counts and proportions. It
ignores the positions of patches.

Cost: reads every patch with foreground; in training with a trained encoder, the decisive chunks are
read twice; needs memory for one chunk of patches and one vector per patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveate.bags.embedding import compute_output_weights
from foveate.encoders.base import AbstractEncoder
from foveate.methods.base import AbstractBagMethod, BagAnswer, BagOptions, Requirements
from foveate.nn.attention import masked_softmax
from foveate.nn.heads import Head


class MilMax(AbstractBagMethod):
    """Apply a linear head to all patches with foreground, and take the largest answer per output.

    Evidence is the softmax over patches of their answers for the predicted classes: the decisive
    patch has the largest weight, and patches with a similar answer are visible.
    """

    summary = "all patches, the strongest answer per class"
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
        **bag: Unpack[BagOptions],
    ) -> None:
        super().__init__(encoder, heads, None, **bag)
        self.norm = nn.LayerNorm(encoder.dim)
        self.head = nn.Linear(encoder.dim, sum(h.size for h in heads))

    def answer_bag(
        self,
        f: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
        place: Callable[[], Float[Tensor, "b n ndim"]],
    ) -> BagAnswer:
        """Take the strongest patch for each output.

        Args:
            f: features of the patches ``(b, n, d)``, zeros on padding.
            valid: ``(b, n)`` bool, False on padding.
            place: not used, because the method ignores places.
        """
        logits, single = self.aggregate(self.norm(f), valid)

        def weigh_patches() -> Float[Tensor, "b n"]:
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
