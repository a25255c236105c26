"""A transformer over all patches, with landmarks for long bags and the true places of patches.

Source: Shao et al., "TransMIL: Transformer Based Correlated Multiple Instance Learning for Whole
Slide Image Classification", NeurIPS 2021.

Differs: position. The published code lays the patches, in the order of their file, on an invented
square and repeats the first ones to fill it; landmarks and a convolution along the sequence follow
that order too. Here the convolutions of the position layer run over the lattice on which patches
lie, empty cells being zero; landmarks are means over compact neighbourhoods; the convolution along
the sequence is gone: the order of patches changes nothing, their places do. Attention is exact over
at most twice as many patches as landmarks, and for the class token of the last block, which is all
of it that is used; so evidence is its attention. Narrower by default (128, published 512), as most
cohorts are small. The encoder may be trained, by two-pass replay.

Use when: the places of parts relative to each other count, and reading everything is affordable.

Cost: reads every patch with foreground, twice in training with a trained encoder unless they fit a
small cache; memory of one chunk of patches, and a few dozen vectors per patch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveate.encoders.base import AbstractEncoder
from foveate.methods.base import AbstractBagMethod, BagAnswer
from foveate.nn.heads import Head
from foveate.nn.nystrom import NystromAttention, PyramidPosition, lattice_cells, spatial_rank


class Transmil(AbstractBagMethod):
    """All patches with tissue, attention, position, attention; a class token answers.

    Evidence is the attention of the class token to the patches.

    Args:
        train_encoder: learn the encoder too, by two-pass replay; off, it stays as it began and
            each image is embedded once.
        chunk: number of patches encoded at a time.
        width: length of the tokens.
        attention_heads: number of heads of each attention.
        landmarks: number of landmarks of the first attention, per image.
        iterations: iterations of its pseudo-inverse.
        dropout: rate of dropout on the output of each attention.
        instance: weight of the instance head's loss: patches answer the task on their own, pooled
            as the task allows. 0 leaves it out, as published.
        jitter: in training, shift the lattice at random (with a trained encoder only).
    """

    summary = "all patches related by attention and by where they lie"
    meets = ("no", "yes", "yes", "yes", "yes")

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        train_encoder: bool = True,
        chunk: int = 64,
        width: int = 128,
        attention_heads: int = 8,
        landmarks: int = 256,
        iterations: int = 6,
        dropout: float = 0.1,
        instance: float = 1.0,
        jitter: bool = True,
    ) -> None:
        super().__init__(
            encoder,
            heads,
            train_encoder=train_encoder,
            chunk=chunk,
            jitter=jitter,
            instance=instance,
            dim_instance=width,
        )
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
        """Relate the patches to each other by what they show and where they lie."""
        h = self.embed(f)
        logits, weight = self.aggregate(h, valid, place())
        return BagAnswer(logits, lambda: weight, instances=h)

    def aggregate(
        self,
        h: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
        centre: Float[Tensor, "b n ndim"],
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b n"]]:
        """Relate patches, and return logits ``(b, k)`` and the class token's attention ``(b, n)``.

        Args:
            h: embedded patches ``(b, n, d)``.
            valid: ``(b, n)`` bool, False on padding; at least one patch per row.
            centre: centres of the patches ``(b, n, ndim)``, in sides of a patch.
        """
        cells = lattice_cells(centre, valid)
        rank = spatial_rank(cells, centre, valid)
        tokens = torch.cat([self.class_token.expand(len(h), 1, -1), h], 1)
        known = nn.functional.pad(valid, (1, 0), value=True)
        first = nn.functional.pad(rank + 1, (1, 0))
        tokens = tokens + self.relate(self.norms[0](tokens), known, first)
        tokens = torch.cat([tokens[:, :1], self.position(tokens[:, 1:], cells, valid)], 1)
        added, attention = self.answer.attend_from_first(self.norms[1](tokens), known)
        logits = self.head(self.norms[2](tokens[:, 0] + added))
        weight = attention[:, 1:].detach()
        return logits, weight / weight.sum(1, keepdim=True).clamp_min(1e-30)
