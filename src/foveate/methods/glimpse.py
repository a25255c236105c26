"""Glimpse, locate, extract, relate: one encoder for the low-resolution image and the patches.

Source: the pipeline that the HPI group describes (glimpse → locate → extract → aggregate), with the
attention sampling of Katharopoulos & Fleuret, "Processing Megapixel Images with Deep
Attention-Sampling Models", ICML 2019, in its unbiased form (`foveate.nn.sampling`).

Differs: the glimpse itself is a token beside the patches; attention begins at a prior that follows
contrast and keeps some of it for exploration; an instance head gives every patch a gradient of its
own; patches carry physical positions and are related by self-attention before gated attention pools
them; how far attention may concentrate is controlled by the mass that the drawn patches hold.

Use when: parts decide, and a glimpse shows where they may be: the default.

Cost: reads a glimpse and a fixed number of patches per image, whatever its size; memory of one
chunk of patches, however many are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from foveate.batch import Batch, Patches, run_by_shape
from foveate.cache import ByteCache
from foveate.encoders.base import AbstractEncoder
from foveate.methods._bag import embed_patches, pad_rows, padding_mask
from foveate.methods._locate import (
    Field,
    Grid,
    MapScores,
    build_field,
    contrast_prior,
    map_lattice,
    stage_for,
)
from foveate.methods.base import AbstractMethod, Prediction
from foveate.nn.attention import GatedAttention, Relate, masked_softmax
from foveate.nn.heads import Head, InstanceHead, saliency
from foveate.nn.position import PositionCode
from foveate.nn.sampling import divergence, draw_without_replacement, expectation

_KEPT_PRIORS_BYTES = 1 << 26


class Glimpse(AbstractMethod):
    """Attention over the glimpse decides which patches are read at full resolution.

    Training draws patches without replacement and learns where to look through the unbiased
    estimator; evaluation takes the cells of highest attention.

    Args:
        patches: drawn per image in training.
        eval_patches: looked at per image in evaluation.
        layers: of self-attention between tokens.
        spread: weight of attention's divergence from its prior, which keeps it from collapsing.
        mass: share of attention that the drawn patches should hold at most; above it that weight
            grows up to a hundredfold. Attention that is concentrated on fewer cells than are drawn
            explores nothing and over-fits.
        smoothing: share of attention spread evenly over all cells.
        explore: share of attention, in training, that follows the prior whatever was learnt.
        background: prior probability of a cell without foreground, relative to one of the
            strongest contrast.
        contrast: power of the prior: a cell is as likely, before anything is learnt, as its
            difference from the background to this power. Cellular tissue is darker than stroma
            and glass; 0 leaves foreground and background only.
        glimpse_dropout: how often the glimpse token is hidden in training.
        dropout: on the pooled vector.
        instance: weight of the instance head's loss: patches answer the task on their own, pooled
            as the task allows, and each patch's score is added to its attention. It gives every
            patch a gradient of its own, which ends the plateau at chance. 0 leaves the head out.
        chunk: patches encoded at a time; above it, gradients come from two-pass replay.
        jitter: in training, a patch lies anywhere in its cell; else in the middle.
    """

    reads = frozenset({"glimpse", "crops"})
    summary = "attention over a glimpse draws patches; glimpse and patches related and pooled"
    meets = ("yes", "yes", "yes", "yes", "yes")

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        patches: int = 24,
        eval_patches: int = 64,
        layers: int = 1,
        spread: float = 1e-2,
        mass: float = 0.5,
        smoothing: float = 1e-3,
        explore: float = 0.0,
        background: float = 1e-3,
        contrast: float = 2.0,
        glimpse_dropout: float = 0.5,
        dropout: float = 0.1,
        instance: float = 1.0,
        chunk: int = 256,
        jitter: bool = True,
    ) -> None:
        super().__init__()
        dim, n_outputs = encoder.dim, sum(h.size for h in heads)
        self.encoder, self.task_heads = encoder, tuple(heads)
        self.patches, self.eval_patches, self.chunk = patches, eval_patches, chunk
        self.spread, self.mass, self.smoothing, self.explore = spread, mass, smoothing, explore
        self.background, self.contrast, self.jitter = background, contrast, jitter
        self.glimpse_dropout, self.instance = glimpse_dropout, instance
        self.locate = MapScores(encoder.map_dims)
        self.embed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.position = PositionCode(dim)
        self.kind = nn.Parameter(torch.zeros(2, dim))
        self.overview_scale = nn.Parameter(torch.zeros(dim))
        self.relate = nn.ModuleList(Relate(dim) for _ in range(layers))
        self.attention = GatedAttention(dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim, n_outputs)
        self.head_expected = nn.Linear(dim, n_outputs)
        self.head_instance = InstanceHead(dim, heads)
        self._priors: ByteCache[Grid] = ByteCache(_KEPT_PRIORS_BYTES)

    def forward(self, batch: Batch) -> Prediction:
        """Predict from the glimpse and the patches it points to."""
        maps = run_by_shape(self.encoder.maps, batch.glimpses())
        overview = self.embed(torch.cat([self.encoder.pool(m) for m in maps]).float())
        field = self._locate(batch, maps)
        index = self._choose(field)
        patches = field.patches(batch, index, jitter=self.training and self.jitter)
        valid = padding_mask(patches, index.device)
        f = pad_rows(
            self.embed(embed_patches(self.encoder, batch, patches, self.chunk).float()), valid
        )
        alone, single = self.head_instance(f, valid)
        bias = saliency(single, self.task_heads) if self.instance > 0 else f.new_zeros(f.shape[:2])
        pooled, weight = self._aggregate(batch, overview, f, patches, valid, bias)
        logits = self.head(self.dropout(pooled))
        if not self.training:
            return Prediction(logits, batch.evidence(patches, weight))
        a = field.log_a.gather(1, index[:, : f.shape[1]]).exp() * valid
        excess = (a.sum(1).mean().detach() - self.mass).clamp_min(0) / max(1 - self.mass, 1e-6)
        strength = self.spread * (1 + 99 * excess)
        losses = {"spread": strength * divergence(field.log_a, field.log_prior)}
        # The expectation over all cells teaches where to look; the prediction itself rests on the
        # patches that were seen, so that their attention is what decided.
        expected = self.head_expected(self.dropout(expectation(a, f, valid)))
        auxiliary = {"expected": (1.0, expected)}
        if self.instance > 0:
            auxiliary["instance"] = (self.instance, alone)
        return Prediction(logits, [], losses, auxiliary)

    # -- locate -------------------------------------------------------------------------------

    def _locate(self, batch: Batch, maps: list[list[Tensor]]) -> Field:
        stage = stage_for(self.encoder, batch.view.glimpse_spacing_um, batch.view.patch_um)
        scores = [self.locate(each, stage)[0] for each in maps]
        grids = [[self._grid(batch, i, stage, s)] for i, s in enumerate(scores)]
        return build_field(
            [[s.flatten()] for s in scores],
            grids,
            smoothing=self.smoothing,
            explore=self.explore if self.training else 0.0,
        )

    def _grid(self, batch: Batch, i: int, stage: int, score: Tensor) -> Grid:
        key = (batch.items[i].image_id, batch.view, tuple(score.shape))
        kept = self._priors.get(key)
        if kept is None:
            view = batch.view
            lattice = map_lattice(self.encoder, stage, score.shape, view.glimpse_spacing_um)
            prior = contrast_prior(
                batch.items[i], lattice, view, power=self.contrast, background=self.background
            )
            kept = Grid(lattice, 1.0, prior.to(score.device))
            self._priors.put(key, kept, prior.numel() * 4)
        return kept

    def _choose(self, field: Field) -> Tensor:
        """Indices of cells ``(b, n)``, those of padding last."""
        if self.training:
            return draw_without_replacement(field.log_a.detach(), self.patches)
        n = min(self.eval_patches, field.log_a.shape[1])
        return field.log_a.topk(n, dim=-1).indices

    # -- aggregate ----------------------------------------------------------------------------

    def _aggregate(
        self,
        batch: Batch,
        overview: Tensor,
        f: Tensor,
        patches: Sequence[Patches],
        valid: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The pooled vector ``(b, d)`` and the share of each patch in it ``(b, n)``."""
        b = len(f)
        position = self._positions(batch, patches, f.shape[1])
        shown = torch.ones(b, 1, dtype=torch.bool, device=f.device)
        if self.training:
            shown = torch.rand(b, 1, device=f.device) >= self.glimpse_dropout
        tokens = torch.cat([overview.unsqueeze(1) + self.kind[0], f + self.kind[1]], 1)
        known = torch.cat([shown, valid], 1)
        for layer in self.relate:
            tokens = layer(tokens, position, known)
        # The glimpse stands beside the patches, not among them, where one token would drown. Its
        # share begins at nothing: it is quick to memorise, and must not be what is learnt first.
        related = tokens[:, 1:]
        weight = masked_softmax(self.attention(related) + bias, valid)
        overview = self.overview_scale * shown * tokens[:, 0]
        return (weight.unsqueeze(-1) * related).sum(1) + overview, weight

    def _positions(self, batch: Batch, patches: Sequence[Patches], n: int) -> Tensor:
        """Codes of the glimpse and of the patches, ``(b, 1 + n, d)``."""
        centre, extent = batch.layout(patches, n)
        whole = [math.sqrt(np.prod(item.image.box_um.size)) for item in batch.items]
        own = torch.tensor(whole, device=extent.device, dtype=extent.dtype) / batch.view.patch_um
        centre = torch.cat([torch.zeros_like(centre[:, :1]), centre], 1)
        code: Tensor = self.position(centre, torch.cat([own[:, None], extent], 1))
        return code
