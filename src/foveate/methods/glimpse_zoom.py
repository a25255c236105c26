"""From coarse to fine: attention over a glimpse chooses tiles, attention over tiles the patches.

Source: as `glimpse`; the idea that each level decides where to look closer is from Papadopoulos,
Korus & Memon, "Hard-Attention for Scalable Image Classification", NeurIPS 2021, and from Zhang et
al., "Joint Spatial and Magnification Based Attention Framework", CVPR Workshops 2021.

Differs: attention over the glimpse chooses tiles, and attention over a tile chooses the smaller
tiles or patches in it, down to the finest patches. The estimator is nested, and unbiased at any
depth like that of `glimpse`. Tiles are tokens too, related to the patches and to the glimpse.
Everything else is as in `glimpse`.

Use when: parts of the image decide, and the glimpse of a huge image shows only the regions in which
they may be.

Cost: reads a glimpse and a fixed number of tiles and patches per image of any size; needs memory
for one chunk of patches, for any number of patches. Each level adds `looks` tiles, each with as
many pixels as a patch. Attention is learnt through the maps of the tiles, so in training all tiles
of a batch are in memory with their activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from foveate.attention_maps.glimpse_and_patches import (
    BACKGROUND,
    CONTRAST,
    MASS,
    SMOOTHING,
    GlimpseAndPatches,
    GlimpseOptions,
    Tokens,
)
from foveate.attention_maps.patch_numbers import LIMITS
from foveate.attention_maps.tiles import join_patches
from foveate.attention_maps.zoom import Descent, Zoom, nested_expectation
from foveate.bags.embedding import pad_rows, padding_mask
from foveate.batch import Batch
from foveate.encoders.base import AbstractEncoder
from foveate.methods.base import (
    AbstractMethod,
    Auxiliary,
    FurtherLoss,
    Penalty,
    Prediction,
    Requirements,
)
from foveate.nn.heads import Head
from foveate.parts.options import Within


class GlimpseZoom(GlimpseAndPatches, AbstractMethod):
    """Attention over the glimpse chooses tiles, attention over tiles the patches in them.

    Training draws without replacement, equally many patches from each tile, and learns where to
    look through the unbiased estimator; evaluation takes the patches of highest attention over all
    tiles.

    Args:
        patches: number of patches drawn per image in training; 0 lets the images decide.
        eval_patches: number of patches per image in evaluation; 0 lets the images decide.
        zoom: sides of the tiles of the intermediate levels, coarse to fine, in sides of the finest
            patch: ``8`` or ``32,8``.
        looks: number of tiles per image at each of these levels. In training the same number of
            patches is drawn in each tile: ``patches / looks`` rounded down, at least one.

    Raises:
        OptionError: `zoom` is empty or does not fall; `looks` is less than 1.
    """

    reads = frozenset({"glimpse", "crops"})
    summary = "attention over a glimpse chooses tiles, attention over tiles the patches in them"
    meets = Requirements(
        relevant_parts="yes",
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
        patches: int = 0,
        eval_patches: int = 0,
        zoom: tuple[float, ...] = (8.0,),
        looks: Annotated[int, Within(1, 1000)] = 8,
        **shared: Unpack[GlimpseOptions],
    ) -> None:
        super().__init__(encoder, heads, **shared)
        self.patches = patches or LIMITS["patches"].largest
        self.eval_patches = eval_patches or LIMITS["eval_patches"].largest
        self.zoom = Zoom(
            encoder,
            scales=zoom,
            looks=looks,
            spread=self.spread.weight,
            mass=MASS,
            smoothing=SMOOTHING,
            background=BACKGROUND,
            contrast=CONTRAST,
        )

    def forward(self, batch: Batch) -> Prediction:
        """Predict from the glimpse, the tiles chosen in it, and the patches chosen in them."""
        looks = batch.look(self.encoder)
        field = self.attend(batch, [look.maps for look in looks], scale=self.zoom.scale)
        n = self.patches if self.training else self.eval_patches
        seen = self.zoom.descend(self.encoder, batch, field, n, jitter=self.jitter)
        f, valid = self.read(batch, seen.patches)
        tiles = [self.embed(vectors) for vectors in seen.vectors]
        answer = self.answer_together(batch, looks, f, self._tokens(f, valid, tiles, seen))
        if not self.training:
            evidence = batch.evidence(seen.patches, answer.weight, remainder=answer.remainder)
            return Prediction(answer.logits, evidence)
        further: dict[str, FurtherLoss] = {k: Auxiliary(*v) for k, v in answer.auxiliary.items()}
        if batch.frozen:
            return Prediction(answer.logits, further=further)
        # The expectation teaches the encoder only where answers are sums over patches.
        if not self.adds_up:
            f, tiles = f.detach(), [tile.detach() for tile in tiles]
        estimate, first = nested_expectation(seen.draws, tiles, f[valid]), seen.draws[0]
        losses = {"spread": self.spread(first.field, first.a)} | self.zoom.losses(seen.draws)
        further |= {name: Penalty(self.locating * loss) for name, loss in losses.items()}
        further["expected"] = Auxiliary(self.expected(estimate), self.locating)
        return Prediction(answer.logits, further=further)

    def _tokens(
        self,
        f: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
        tiles: Sequence[Float[Tensor, "_r d"]],
        seen: Descent,
    ) -> Tokens:
        """Collect the tokens of the patches, then those of the tiles that led to them.

        Args:
            f: vectors of the patches ``(b, n, d)``.
            valid: ``(b, n)``, False on padding.
            tiles: vectors of the tiles of each level ``(r, d)``.
            seen: places of patches and tiles.
        """
        shown = [row[real] for row, real in zip(f, valid, strict=True)]
        regions = [[part] for part in seen.patches]
        for level, vectors, kind in zip(seen.tiles, tiles, self.zoom.kinds(), strict=True):
            parts = torch.split(vectors + kind, [len(part) for part in level])
            shown = [torch.cat(pair) for pair in zip(shown, parts, strict=True)]
            regions = [[*r, part] for r, part in zip(regions, level, strict=True)]
        joined = [join_patches(parts) for parts in regions]
        known = padding_mask([len(p) for p in joined], f.device)
        patches = functional.pad(valid, (0, known.shape[1] - valid.shape[1]))
        return Tokens(pad_rows(torch.cat(shown), known), known, patches, joined)
