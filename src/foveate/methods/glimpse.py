"""Glimpse, locate, extract, relate: one encoder for the low-resolution image and the patches.

Source: the pipeline that the HPI group describes (glimpse → locate → extract → aggregate), with the
attention sampling of Katharopoulos & Fleuret, "Processing Megapixel Images with Deep
Attention-Sampling Models", ICML 2019, in its unbiased form (`foveate.nn.sampling`).

Differs: the glimpse is a token among the patches, related to them by attention in both directions;
what it says on its own, fitted by linear answers to pretrained features, is what patches add to;
attention begins at a prior that follows contrast, learns first from attention over very many
patches of a frozen encoder, and keeps some of the prior for exploration; an instance
head gives every patch a gradient of its own, and where the task counts or asks for several
findings, half the prediction is what patches say; patches carry physical positions, are related by
self-attention, which knows distances and sides, and read by cross-attention, with a query for each
question, as in `ips`; how far attention may concentrate is controlled by the mass that the drawn
patches hold. With `zoom`, attention over the glimpse chooses tiles, attention over a tile what lies
in it, and so on down to the finest patches; the estimator is nested, and as unbiased at any depth.

Use when: parts decide, and a glimpse shows where they may be: the default. With `zoom` where the
glimpse of a huge image shows no more than which regions to look into.

Cost: reads a glimpse and a fixed number of patches per image, whatever its size; memory of one
chunk of patches, however many are drawn. Each level of `zoom` adds `looks` tiles, as many pixels as
patches each; where they lie is learnt through their maps, so in training all tiles of a batch are
in memory with their activations.
"""

from __future__ import annotations

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
from foveate.attention_maps.choice import Choice, Chosen
from foveate.attention_maps.zoom import Descent, Zoom, joined, nested_expectation
from foveate.bags.embedding import embed_patches, pad_rows, padding_mask
from foveate.bags.related import RelatedPool
from foveate.batch import N_COLOURS, Batch, Patches
from foveate.encoders.base import AbstractEncoder
from foveate.errors import OptionError
from foveate.methods.base import AbstractMethod, Auxiliary, FurtherLoss, Penalty, Prediction
from foveate.nn.generators import uniform
from foveate.nn.heads import Head, InstanceHead, Voted
from foveate.nn.overview import OverviewHead
from foveate.nn.pooling import CrossPool
from foveate.nn.sampling import expectation

_SMALL = 0.05


@dataclass(frozen=True)
class _Tokens:
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
    regions: list[Patches]


class Glimpse(AbstractMethod):
    """Attention over the glimpse decides which patches are read at full resolution.

    Training draws patches without replacement and learns where to look through the unbiased
    estimator; evaluation takes the cells of highest attention.

    Args:
        patches: drawn per image in training; 0 follows the images.
        strongest: looked at in training beside those drawn, as in evaluation. A draw misses parts
            now and then; where every one of them counts, labels then seem to be wrong. Not with
            `zoom`.
        eval_patches: looked at per image in evaluation; 0 follows the images.
        survey: patches of an image that are looked at while the encoder is frozen; attention over
            them teaches where to look. 0 follows the images.
        layers: of self-attention between tokens.
        attention_heads: of the cross-attention; each question of the task has its own query.
        spread: weight of attention's divergence from its prior, which keeps it from collapsing.
        mass: share of attention that the drawn patches should hold at most; above it that weight
            grows up to a hundredfold. Attention that is concentrated on fewer cells than are drawn
            explores nothing and over-fits.
        locating: weight of the losses that teach where to look. Their gradient is the noise of a
            few drawn cells, and weighed as much as the answer it would drown in the encoder what
            patches teach. The layers that score cells are taught by nothing else, so the optimiser
            makes up for the weight there. Sums and counts add up over patches as the expectation
            does; there it teaches what patches show as well, and 1 is worth a try.
        smoothing: share of attention spread evenly over all cells.
        explore: share of attention, in training, that follows the prior whatever was learnt.
        background: prior probability of a cell without foreground, relative to one of the
            strongest contrast; 0 leaves such cells out, unless an image has no others.
        contrast: power of the prior: a cell is as likely, before anything is learnt, as its
            difference from the background to this power. Cellular tissue is darker than stroma
            and glass; 0 leaves foreground and background only.
        glimpse_dropout: how often the token of the glimpse is hidden in training.
        dropout: in the cross-attention, and on the expectation over cells.
        instance: weight of the instance head's loss: patches answer the task on their own, pooled
            as the task allows; counts and several findings are answered by them and by what is
            pooled, half each. It gives every patch a gradient of its own, which ends the plateau at
            chance, sooner the more it weighs beside the answer that is not learnt yet. 0 leaves the
            head out.
        chunk: patches encoded at a time; above it, gradients come from two-pass replay.
        jitter: in training, a patch lies anywhere in its cell; else in the middle.
        centring: steps by which a patch moves to the centre of mass of what stands out from the
            background around it; for objects on a plain ground, which cells would cut. Patches
            that come to lie on one another are looked at once. Not with `zoom`.
        zoom: sides of the tiles of intermediate looks, coarse to fine, in sides of the finest
            patch: ``8`` or ``32,8``. None by default.
        looks: tiles per image at each of them. In training each tile gives an equal number of
            patches, ``patches / looks`` rounded down and at least one.

    Raises:
        OptionError: `zoom` does not fall, or is set beside `centring` or `strongest`; no look is
            allowed.
    """

    reads = frozenset({"glimpse", "crops"})
    summary = "attention over a glimpse draws patches; glimpse and patches related and pooled"
    meets = ("yes", "yes", "yes", "yes", "yes")

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        patches: int = 0,
        strongest: int = 0,
        eval_patches: int = 0,
        survey: int = 0,
        layers: int = 1,
        attention_heads: int = 8,
        spread: float = 1e-2,
        mass: float = 0.5,
        locating: float = 0.1,
        smoothing: float = 1e-3,
        explore: float = 0.0,
        background: float = 0.0,
        contrast: float = 2.0,
        glimpse_dropout: float = 0.5,
        dropout: float = 0.1,
        instance: float = 4.0,
        chunk: int = 256,
        jitter: bool = True,
        centring: int = 0,
        zoom: tuple[float, ...] = (),
        looks: int = 8,
    ) -> None:
        super().__init__()
        dim = encoder.dim
        self.encoder, self.chunk = encoder, chunk
        self.choice = Choice(
            patches or 24, eval_patches or 64, survey or 256, strongest, jitter, centring
        )
        self.smoothing, self.explore = smoothing, explore
        self.locating, self.instance, self.glimpse_dropout = locating, instance, glimpse_dropout
        self.locate = MapScores(encoder.map_dims, axes=encoder.axes)
        self.embed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.whole = nn.Parameter(torch.zeros(dim))
        k = sum(head.size for head in heads)
        self.overview = OverviewHead(
            (*(encoder.feature_groups or (encoder.n_features,)), N_COLOURS), k
        )
        self.related = RelatedPool(
            encoder, heads, layers=layers, attention_heads=attention_heads, dropout=dropout
        )
        _begin_small(self.related.pool, heads)
        self.dropout = nn.Dropout(dropout)
        self.head_expected = nn.Linear(dim, k)
        self.head_instance, self.voted = InstanceHead(dim, heads), Voted(heads)
        self.adds_up = any(head.pooling in ("sum", "count") for head in heads)
        self.spread = Spread(weight=spread, mass=mass)
        self._priors = Priors(power=contrast, background=background)
        self.zoom: Zoom | None = None
        if zoom:
            _refuse_beside_zoom(centring=centring, strongest=strongest)
            inside = {"spread": spread, "mass": mass, "smoothing": smoothing, "explore": explore}
            inside |= {"background": background, "contrast": contrast}
            self.zoom = Zoom(encoder, scales=zoom, looks=looks, **inside)

    def forward(self, batch: Batch) -> Prediction:
        """Predict from the glimpse and the patches it points to."""
        looks = batch.look(self.encoder)
        features = torch.cat([look.features for look in looks])
        seen = self._look(batch, self._locate(batch, [look.maps for look in looks]))
        patches = seen.patches
        valid = padding_mask([len(p) for p in patches], features.device)
        vectors = embed_patches(self.encoder, batch, patches, self.chunk)
        f = pad_rows(self.embed(vectors.float()), valid)
        tiles = [self.embed(v) for v in seen.vectors] if isinstance(seen, Descent) else []
        alone = self.head_instance(f, valid)
        whole = self.embed(self.encoder.project(features).float()) + self.whole
        logits, weight = self._aggregate(batch, whole, self._tokens(f, valid, tiles, seen))
        beside = None
        if self.instance > 0:
            logits, beside = self.voted(alone, logits)
        overview = self.overview(torch.cat([look.overview for look in looks]), batch.part)
        if not self.training:
            return Prediction(overview + logits, batch.evidence(patches, weight))
        # Patches add to what the glimpse says. What it has learnt by heart would leave them nothing
        # to explain, hence answers that have not seen the image.
        logits, further = overview.detach() + logits, dict[str, FurtherLoss]()
        if self.instance > 0:
            further["instance"] = Auxiliary(alone, self.instance)
        if beside is not None:
            further["pooled"] = Auxiliary(overview.detach() + beside)
        if batch.frozen:
            if not isinstance(seen, Descent):
                further["place"] = Penalty(seen.taught_by(weight))
            return Prediction(logits, further=further)
        if self.overview.settled:
            further["overview"] = Auxiliary(overview)
        # The expectation over all cells teaches where to look. What patches show it teaches only
        # where they add up, as it does: else a mean of few cells is noise to the encoder. The
        # prediction itself rests on the patches that were seen, so that their attention is what
        # decided.
        if not self.adds_up:
            f, tiles = f.detach(), [tile.detach() for tile in tiles]
        estimate, losses = self._estimate(seen, f, valid, tiles)
        further |= {name: Penalty(self.locating * loss) for name, loss in losses.items()}
        expected = self.head_expected(self.dropout(estimate))
        further["expected"] = Auxiliary(expected, self.locating)
        return Prediction(logits, further=further)

    def _estimate(
        self, seen: Chosen | Descent, f: Tensor, valid: Tensor, tiles: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The expectation ``(b, d)`` over all cells, and the losses on how attention spreads."""
        if isinstance(seen, Descent):
            assert self.zoom is not None
            first = seen.draws[0]
            losses = {"spread": self.spread(first.field, first.a)} | self.zoom.losses(seen.draws)
            return nested_expectation(seen.draws, tiles, f[valid]), losses
        field = seen.field
        drawn = seen.drawn
        a = field.log_a.gather(1, seen.index).exp() * drawn
        shown = f.gather(1, seen.shows.unsqueeze(-1).expand(-1, -1, f.shape[-1]))
        return expectation(a, shown, drawn), {"spread": self.spread(field, a)}

    # -- locate -------------------------------------------------------------------------------

    def _locate(self, batch: Batch, maps: list[list[Tensor]]) -> Field:
        spacing = batch.view.glimpse_spacing_um
        scale = 1.0 if self.zoom is None else self.zoom.scale
        stage = stage_for(self.encoder, spacing, batch.view.patch_um * scale)
        scores = [self.locate(each, stage)[0] for each in maps]
        lattices = [map_lattice(self.encoder, stage, s.shape, spacing) for s in scores]
        grids = [[self._priors.grid(batch, i, each, scale)] for i, each in enumerate(lattices)]
        return build_field(
            [[s.flatten()] for s in scores],
            grids,
            smoothing=self.smoothing,
            explore=self.explore if self.training else 0.0,
        )

    def _look(self, batch: Batch, field: Field) -> Chosen | Descent:
        if self.zoom is None:
            return self.choice(batch, field, training=self.training)
        n = self.choice.patches if self.training else self.choice.eval_patches
        return self.zoom.descend(self.encoder, batch, field, n, jitter=self.choice.jitter)

    # -- aggregate ----------------------------------------------------------------------------

    def _tokens(
        self, f: Tensor, valid: Tensor, tiles: Sequence[Tensor], seen: Chosen | Descent
    ) -> _Tokens:
        """The patches, then the tiles that led to them."""
        if not isinstance(seen, Descent):
            return _Tokens(f, valid, valid, seen.patches)
        assert self.zoom is not None
        shown = [row[real] for row, real in zip(f, valid, strict=True)]
        regions = [[part] for part in seen.patches]
        for level, own, kind in zip(seen.tiles, tiles, self.zoom.kinds(), strict=True):
            parts = torch.split(own + kind, [len(part) for part in level])
            shown = [torch.cat(both) for both in zip(shown, parts, strict=True)]
            regions = [[*r, part] for r, part in zip(regions, level, strict=True)]
        every = [joined(parts) for parts in regions]
        known = padding_mask([len(p) for p in every], f.device)
        patches = functional.pad(valid, (0, known.shape[1] - valid.shape[1]))
        return _Tokens(pad_rows(torch.cat(shown), known), known, patches, every)

    def _aggregate(self, batch: Batch, whole: Tensor, parts: _Tokens) -> tuple[Tensor, Tensor]:
        """Answers to all questions ``(b, k)``; the share of each patch ``(b, n)``.

        Args:
            batch: of the images.
            whole: ``(b, d)`` token of the glimpse.
            parts: to be related to it and to each other; it and patches are pooled.
        """
        shown = torch.ones(len(whole), 1, dtype=torch.bool, device=whole.device)
        if self.training:
            numbers = uniform((len(whole), 1), batch.generators, device=whole.device)
            shown = numbers >= self.glimpse_dropout
        n = parts.known.shape[1]
        centre, extent = batch.layout(parts.regions, n)
        found: tuple[Tensor, Tensor] = self.related(
            torch.cat([parts.tokens, whole.unsqueeze(1)], 1),
            torch.cat([parts.known, shown], 1),
            functional.pad(centre, (0, 0, 0, 1)),
            functional.pad(extent, (0, 1), value=1.0),
            pooled=torch.cat([parts.patches, shown], 1),
            everywhere=torch.cat([torch.zeros_like(parts.known), torch.ones_like(shown)], 1),
        )
        logits, weight = found
        weight = weight[:, :n]
        return logits, weight / weight.sum(1, keepdim=True).clamp_min(1e-12)


@torch.no_grad()
def _begin_small(pool: CrossPool, heads: Sequence[Head]) -> None:
    """What is pooled of many patches is noise until it is known which ones count.

    Not so for sums and counts, where all of them do.
    """
    for head, last in zip(heads, pool.heads, strict=True):
        if head.pooling not in ("sum", "count"):
            for p in last.parameters():
                p.mul_(_SMALL)


def _refuse_beside_zoom(**options: int) -> None:
    for name, value in options.items():
        if value:
            raise OptionError(f"{name}: goes by the glimpse, and cannot be set beside zoom")
