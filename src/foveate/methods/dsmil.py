"""Two streams: the strongest patch per class, and attention to the patches that resemble it.

Source: Li, Li & Eliceiri, "Dual-stream Multiple Instance Learning Network for Whole Slide Image
Classification with Self-supervised Contrastive Learning", CVPR 2021, section 3.2.

Differs: queries and values are linear, as in the paper (its code puts a small network in front);
the prediction is that of the bag stream, as in the code, and the patch stream is an additional loss
in training; the encoder may be trained, by two-pass replay, instead of self-supervised beforehand;
one magnification; padding is masked, so images of unequal size share a batch.

Use when: a single patch can be recognised as decisive, and similar patches should count too. It
ignores the positions of patches.

Cost: reads every patch with foreground, twice in training with a trained encoder unless they fit a
small cache; needs memory for one chunk of patches and one vector per patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveate.bags.embedding import compute_output_weights
from foveate.encoders.base import AbstractEncoder
from foveate.methods.base import AbstractBagMethod, Auxiliary, BagAnswer, BagOptions, Requirements
from foveate.nn.attention import masked_softmax
from foveate.nn.heads import Head
from foveate.parts.options import DropoutRate, Width


class TwoStreams(NamedTuple):
    """The results of both streams, for b images with n patches and k outputs.

    Attributes:
        logits: logits of the bag stream, ``(b, k)``.
        alone: logits of the patch stream, ``(b, k)``.
        attention: attention of the bag stream, ``(b, k, n)``.
    """

    logits: Float[Tensor, "b k"]
    alone: Float[Tensor, "b k"]
    attention: Float[Tensor, "b k n"]


class Dsmil(AbstractBagMethod):
    """Embed all patches with foreground, and pool them by one attention per class.

    Each class attends to the patches that resemble its critical patch. Evidence is the attention of
    the predicted classes.

    Args:
        hidden: length of the queries that are compared.
        dropout: rate of dropout on the values that are pooled.
        instance: weight of the patch stream's loss relative to the bag stream's; 1 as in the paper.
    """

    summary = "all patches; the critical patch per class, and attention to those like it"
    meets = Requirements(
        relevant_parts="no",
        any_number="yes",
        any_size="yes",
        one_gpu="yes",
        dependencies="partly",
    )

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        hidden: Width = 128,
        dropout: DropoutRate = 0.0,
        instance: float = 1.0,
        **bag: Unpack[BagOptions],
    ) -> None:
        super().__init__(encoder, heads, None, instance=instance, **bag)
        dim, n_outputs = encoder.dim, sum(h.size for h in heads)
        self.norm = nn.LayerNorm(dim)
        self.single = nn.Linear(dim, n_outputs)
        self.query = nn.Linear(dim, hidden)
        self.value = nn.Sequential(nn.Dropout(dropout), nn.Linear(dim, dim))
        # A one-dimensional convolution whose kernel spans all features of all classes.
        self.head = nn.Linear(n_outputs * dim, n_outputs)

    def answer_bag(
        self,
        f: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
        place: Callable[[], Float[Tensor, "b n ndim"]],
    ) -> BagAnswer:
        """Attend, for each class, to the patches that resemble its critical patch.

        Args:
            f: features of the patches ``(b, n, d)``, zeros on padding.
            valid: ``(b, n)`` bool, False on padding.
            place: not used, because the method ignores places.
        """
        logits, alone, attention = self.aggregate(self.norm(f), valid)

        def attended() -> Float[Tensor, "b n"]:
            shares = compute_output_weights(logits, self.task_heads)
            return (shares.unsqueeze(-1) * attention).sum(1)

        further = {"instance": Auxiliary(alone, self.instance)} if self.instance > 0 else {}
        return BagAnswer(logits, attended, further=further, by_output=attention)

    def aggregate(self, h: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]) -> TwoStreams:
        """Compute both streams from normalised features.

        Args:
            h: normalised features ``(b, n, d)``.
            valid: ``(b, n)`` bool, False on padding.
        """
        single = self.single(h).masked_fill(~valid.unsqueeze(-1), -torch.inf)
        alone, critical = single.max(1)
        query = self.query(h)
        critical_query = query.gather(1, critical.unsqueeze(-1).expand(-1, -1, query.shape[-1]))
        scores = critical_query @ query.transpose(1, 2) / math.sqrt(query.shape[-1])
        attention = masked_softmax(scores, valid.unsqueeze(1))
        bags = attention @ self.value(h)
        return TwoStreams(self.head(bags.flatten(1)), alone, attention)
