"""A glimpse and the patches that it points to, related and pooled: what methods with one share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.attention_maps.cells import (
    Field,
    MapScores,
    Priors,
    Spread,
    build_field,
    map_lattice,
    stage_for,
)
from foveate.bags.embedding import embed_patches, pad_rows, padding_mask
from foveate.bags.related import RelatedPool
from foveate.batch import N_COLOURS, Batch, Look, Patches
from foveate.encoders.base import AbstractEncoder
from foveate.nn.generators import uniform
from foveate.nn.heads import Head, InstanceHead
from foveate.nn.overview import OverviewHead
from foveate.nn.pooling import CrossPool

SMOOTHING = 1e-3
"""Share of attention spread evenly over all cells: enough that none is ever lost for good."""
CONTRAST, BACKGROUND = 2.0, 0.0
"""Of the prior: cellular tissue is darker than stroma and glass, so a cell is as likely, before
anything is learnt, as its difference from the background squared; glass is left out."""
MASS = 0.5
"""Share of attention that the drawn patches should hold at most; above it the weight of the spread
grows up to a hundredfold. Attention on fewer cells than are drawn explores nothing, over-fits."""
_GLIMPSE_DROPOUT = 0.5
"""How often the token of the glimpse is hidden in training, so that patches answer without it."""
_LAYERS, _ATTENTION_HEADS = 1, 8
"""Of self-attention, and of the cross-attention where the vector's length is a multiple of it."""
_SMALL = 0.05


@dataclass(frozen=True)
class Tokens:
    """What is related, per image the patches first.

    Attributes:
        tokens: ``(b, n, d)``.
        known: ``(b, n)``, False on padding.
        patches: ``(b, n)``, True on the finest patches.
        regions: per image.
    """

    tokens: Tensor
    known: Tensor
    patches: Tensor
    regions: Sequence[Patches]


@dataclass(frozen=True)
class Together:
    """What a glimpse and its patches answer.

    Attributes:
        logits: ``(b, k)``.
        weight: ``(b, n)``, the share of each patch in what patches have.
        beyond: ``(b,)``, the share of the glimpse, which lies in no patch.
        taught: in training, further answers ``(b, k)`` with the weight of their loss, by name.
    """

    logits: Tensor
    weight: Tensor
    beyond: Tensor
    taught: dict[str, tuple[Tensor, float]]


class GlimpseAndPatches(nn.Module):
    """Attention over a glimpse, patches read, both related, and what they answer together.

    Args:
        encoder: of glimpse and patches.
        heads: what the task asks.
        spread: weight of attention's divergence from its prior.
        locating: weight of the losses that teach where to look.
        instance: weight of the instance head's loss.
        dropout: in the cross-attention, and on the expectation over cells.
        chunk: patches encoded at a time.
    """

    encoder: AbstractEncoder

    def __init__(
        self,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        *,
        spread: float,
        locating: float,
        instance: float,
        dropout: float,
        chunk: int,
    ) -> None:
        super().__init__()
        dim, k = encoder.dim, sum(head.size for head in heads)
        self.encoder, self.chunk = encoder, chunk
        self.locating, self.instance = locating, instance
        self.glimpse_dropout = _GLIMPSE_DROPOUT
        self.locate = MapScores(encoder.map_dims, axes=encoder.axes)
        self.embed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.whole = nn.Parameter(torch.zeros(dim))
        groups = encoder.feature_groups or (encoder.n_features,)
        self.overview = OverviewHead((*groups, N_COLOURS), k)
        attention_heads = math.gcd(_ATTENTION_HEADS, dim)
        self.related = RelatedPool(
            encoder, heads, layers=_LAYERS, attention_heads=attention_heads, dropout=dropout
        )
        _begin_small(self.related.pool, heads)
        self.dropout = nn.Dropout(dropout)
        self.head_expected = nn.Linear(dim, k)
        self.head_instance = InstanceHead(dim, heads)
        self.adds_up = any(head.pooling == "sum" for head in heads)
        self.spread = Spread(weight=spread, mass=MASS)
        self._priors = Priors(power=CONTRAST, background=BACKGROUND)

    def attend(
        self, batch: Batch, maps: Sequence[list[Tensor]], *, scale: float = 1.0, explore: float = 0
    ) -> Field:
        """Attend to the cells of each glimpse.

        Args:
            batch: of the images.
            maps: of their glimpses.
            scale: side of what cells stand for, in sides of the finest patch.
            explore: share of attention that follows the prior whatever was learnt.
        """
        spacing = batch.view.glimpse_spacing_um
        stage = stage_for(self.encoder, spacing, batch.view.patch_um * scale)
        scores = [self.locate(each, stage)[0] for each in maps]
        lattices = [map_lattice(self.encoder, stage, s.shape, spacing) for s in scores]
        grids = [[self._priors.grid(batch, i, each, scale)] for i, each in enumerate(lattices)]
        flat = [[s.flatten()] for s in scores]
        return build_field(flat, grids, smoothing=SMOOTHING, explore=explore)

    def read(self, batch: Batch, patches: Sequence[Patches]) -> tuple[Tensor, Tensor]:
        """Read and embed patches: ``(b, n, d)``, and where they are valid, ``(b, n)``."""
        valid = padding_mask([len(p) for p in patches], batch.device)
        vectors = embed_patches(self.encoder, batch, patches, self.chunk)
        return pad_rows(self.embed(vectors.float()), valid), valid

    def answer(self, alone: Tensor, pooled: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the answer ``(b, k)``, and further ones that training gives a loss of their own.

        A subclass may let patches vote.

        Args:
            alone: ``(b, k)`` what patches say on their own.
            pooled: ``(b, k)`` what is said of them together.
        """
        return pooled, {}

    def answer_together(
        self, batch: Batch, looks: Sequence[Look], f: Tensor, parts: Tokens
    ) -> Together:
        """Answer from the glimpse, the patches, and both together.

        Args:
            batch: of the images.
            looks: at their glimpses.
            f: patches ``(b, n, d)``.
            parts: of the images, patches first.
        """
        features = torch.cat([look.features for look in looks])
        whole = self.embed(self.encoder.project(features).float()) + self.whole
        alone = self.head_instance(f, parts.patches[:, : f.shape[1]])
        logits, weight, beyond = self.relate(batch, whole, parts)
        logits, further = self.answer(alone, logits)
        overview = self.overview(torch.cat([look.overview for look in looks]), batch.part)
        if not self.training:
            return Together(overview + logits, weight, beyond, {})
        # Patches add to what the glimpse says. What it has learnt by heart would leave them nothing
        # to explain, hence answers that have not seen the image.
        taught: dict[str, tuple[Tensor, float]] = {}
        if self.instance > 0:
            taught["instance"] = (alone, self.instance)
        taught |= {k: (overview.detach() + beside, 1.0) for k, beside in further.items()}
        if self.overview.settled and not batch.frozen:
            taught["overview"] = (overview, 1.0)
        return Together(overview.detach() + logits, weight, beyond, taught)

    def expected(self, estimate: Tensor) -> Tensor:
        """Answer from the expectation ``(b, d)`` over all cells: ``(b, k)``, to teach attention."""
        logits: Tensor = self.head_expected(self.dropout(estimate))
        return logits

    def relate(self, batch: Batch, whole: Tensor, parts: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """Relate parts to each other and to the glimpse, and pool it and patches.

        Args:
            batch: of the images.
            whole: ``(b, d)`` token of the glimpse.
            parts: of the images.

        Returns:
            Answers to all questions ``(b, k)``; of what patches have, the share of each
            ``(b, n)``; the share of the glimpse ``(b,)``.
        """
        shown = torch.ones(len(whole), 1, dtype=torch.bool, device=whole.device)
        if self.training:
            numbers = uniform((len(whole), 1), batch.generators, device=whole.device)
            shown = numbers >= self.glimpse_dropout
        n = parts.known.shape[1]
        centre, extent = batch.layout(parts.regions, n)
        pooled: tuple[Tensor, Tensor] = self.related(
            torch.cat([parts.tokens, whole.unsqueeze(1)], 1),
            torch.cat([parts.known, shown], 1),
            functional.pad(centre, (0, 0, 0, 1)),
            functional.pad(extent, (0, 1), value=1.0),
            pooled=torch.cat([parts.patches, shown], 1),
            everywhere=torch.cat([torch.zeros_like(parts.known), torch.ones_like(shown)], 1),
        )
        logits, weight = pooled
        own, beyond = weight[:, :n], weight[:, n]
        return logits, own / own.sum(1, keepdim=True).clamp_min(1e-12), beyond


@torch.no_grad()
def _begin_small(pool: CrossPool, heads: Sequence[Head]) -> None:
    """What is pooled of many patches is noise until it is known which ones count.

    Not so for sums, where all of them do.
    """
    for head, last in zip(heads, pool.heads, strict=True):
        if head.pooling != "sum":
            for p in last.parameters():
                p.mul_(_SMALL)
