"""A transformer over all patches, with landmarks for long bags and the true places of patches.

Source: Shao et al., "TransMIL: Transformer Based Correlated Multiple Instance Learning for Whole
Slide Image Classification", NeurIPS 2021.

Differs: the position layer. The published code arranges the patches, in the order of their file, in
an artificial square and repeats the first ones to fill it; landmarks and a convolution along the
sequence use this order too. Here the convolutions of the position layer run over the true lattice
of the patches, with zeros in empty cells; landmarks are means over compact neighbourhoods; and
there is no convolution along the sequence. So the result depends on the positions of patches and
not on their order. Attention is exact for at most twice as many patches as landmarks. It is also
exact for the class token in the last block, the only token used there, so that evidence is its
attention. The default width is smaller (128, published 512), because most cohorts are small. The
encoder may be trained, by two-pass replay.

Use when: the positions of parts relative to each other matter, and reading everything is
affordable.

Cost: reads every patch with foreground, twice in training with a trained encoder unless they fit a
small cache; needs memory for one chunk of patches and a few dozen vectors per patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveate.encoders.base import AbstractEncoder
from foveate.methods.base import AbstractBagMethod, BagAnswer, BagOptions, Requirements
from foveate.nn.heads import Head
from foveate.nn.nystrom import NystromAttention, PyramidPosition, lattice_cells, spatial_rank
from foveate.parts.options import Count, Depth, DropoutRate, Width


class Transmil(AbstractBagMethod):
    """Relate all patches with foreground by attention and positions; a class token answers.

    Evidence is the attention of the class token to the patches.

    Args:
        width: length of the tokens.
        attention_heads: number of heads of each attention.
        landmarks: number of landmarks of the first attention, per image.
        iterations: iterations of its pseudo-inverse.
        dropout: rate of dropout on the output of each attention.
    """

    summary = "all patches related by attention and by where they lie"
    meets = Requirements(
        relevant_parts="no",
        any_number="yes",
        any_size="yes",
        one_gpu="yes",
        dependencies="yes",
    )

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        width: Width = 128,
        attention_heads: Count = 8,
        landmarks: Width = 256,
        iterations: Depth = 6,
        dropout: DropoutRate = 0.1,
        instance: float = 1.0,
        **bag: Unpack[BagOptions],
    ) -> None:
        super().__init__(encoder, heads, width, instance=instance, **bag)
        self.embed = nn.Sequential(
            nn.LayerNorm(encoder.dim), nn.Linear(encoder.dim, width), nn.ReLU()
        )
        self.class_token = nn.Parameter(torch.randn(width) * 0.02)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.relate = NystromAttention(
            width,
            heads=attention_heads,
            landmarks=landmarks,
            iterations=iterations,
            dropout=dropout,
        )
        self.position = PyramidPosition(width, ndim=encoder.axes)
        self.answer = NystromAttention(width, heads=attention_heads, dropout=dropout)
        self.head = nn.Linear(width, sum(h.size for h in heads))

    def answer_bag(
        self,
        f: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
        place: Callable[[], Float[Tensor, "b n ndim"]],
    ) -> BagAnswer:
        """Relate the patches to each other by what they show and where they lie.

        Args:
            f: features of the patches ``(b, n, d)``, zeros on padding.
            valid: ``(b, n)`` bool, False on padding.
            place: returns the centres of the patches ``(b, n, ndim)``, in sides of a patch.
        """
        h = self.embed(f)
        logits, weight = self.aggregate(h, valid, place())
        return BagAnswer(logits, lambda: weight, instances=h)

    def aggregate(
        self,
        h: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
        centre_patch: Float[Tensor, "b n ndim"],
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b n"]]:
        """Relate patches, and return logits ``(b, k)`` and the class token's attention ``(b, n)``.

        Args:
            h: embedded patches ``(b, n, d)``.
            valid: ``(b, n)`` bool, False on padding; at least one patch per row.
            centre_patch: centres of the patches ``(b, n, ndim)``, in sides of a patch.
        """
        cells = lattice_cells(centre_patch, valid)
        rank = spatial_rank(cells, centre_patch, valid)
        tokens = torch.cat([self.class_token.expand(len(h), 1, -1), h], 1)
        known = nn.functional.pad(valid, (1, 0), value=True)
        first = nn.functional.pad(rank + 1, (1, 0))
        tokens = tokens + self.relate(self.norms[0](tokens), known, first)
        tokens = torch.cat([tokens[:, :1], self.position(tokens[:, 1:], cells, valid)], 1)
        added, attention = self.answer.attend_from_first(self.norms[1](tokens), known)
        logits = self.head(self.norms[2](tokens[:, 0] + added))
        weight = attention[:, 1:].detach()
        return logits, weight / weight.sum(1, keepdim=True).clamp_min(1e-30)
