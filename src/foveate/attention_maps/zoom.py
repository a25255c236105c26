"""Levels between the glimpse and the finest patches: attention inside tiles.

A *row* of a field is one distribution: over an image at the first level, over a tile below it. Rows
lie in the order of their images and children in the order of their rows, so that the children of
any level, row after row, are sorted by image.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveate.attention_maps.cells import Field, Grid, Spread, build_field
from foveate.attention_maps.map_scores import MapScores, choose_stage, lay_map_lattice
from foveate.attention_maps.tiles import (
    clip_to_image,
    compute_tile_prior,
    join_patches,
    suppress_duplicates,
)
from foveate.bags.embedding import pad_rows
from foveate.batch import Batch, Patches
from foveate.encoders.base import AbstractEncoder
from foveate.errors import OptionError
from foveate.nn.sampling import draw_without_replacement, expectation

CROWD = 4
"""Candidates per chosen patch, as some of them may show the same place."""


@dataclass(frozen=True)
class Draw:
    """Children drawn from each row of a field.

    Attributes:
        field: attention inside the rows.
        a: attention ``(r, n)`` of the children in the order of drawing, 0 where none was drawn.
        drawn: ``(r, n)``, True where a child was drawn; these come first in each row.
    """

    field: Field
    a: Float[Tensor, "r n"]
    drawn: Bool[Tensor, "r n"]


@dataclass(frozen=True)
class Descent:
    """The tiles and patches chosen on the way down.

    Attributes:
        patches: finest patches of each image.
        tiles: tiles of each intermediate level and image.
        vectors: vectors ``(r, dim)`` of the tiles of each level.
        draws: in training the draw from each field, coarse to fine; empty in evaluation.
    """

    patches: list[Patches]
    tiles: list[list[Patches]]
    vectors: list[Float[Tensor, "_r dim"]]
    draws: list[Draw]


class TileLevel(nn.Module):
    """One intermediate level: the network that scores the cells of its tiles.

    Args:
        encoder: the encoder whose maps are scored; it does not become a submodule.
        scale: side of the tiles, in sides of the finest patch.
        child: side of the regions chosen in them, in sides of the finest patch.
        spread: weight of attention's divergence from its prior.
        mass: share of attention that the drawn children should hold at most.
    """

    def __init__(
        self, encoder: AbstractEncoder, *, scale: float, child: float, spread: float, mass: float
    ) -> None:
        super().__init__()
        self.scale, self.child = scale, child
        self.locate = MapScores(encoder.map_dims, axes=encoder.axes)
        self.kind = nn.Parameter(torch.zeros(encoder.dim))
        self.spread = Spread(weight=spread, mass=mass)


class Zoom(nn.Module):
    """Chooses tiles, then smaller tiles inside them, and so on down to the finest patches.

    Args:
        encoder: the encoder of the tiles; it does not become a submodule.
        scales: sides of the tiles, coarse to fine, in sides of the finest patch.
        looks: tiles per image at each level.
        spread: weight of attention's divergence from its prior inside tiles.
        mass: share of attention that the drawn children should hold at most.
        smoothing: share of attention spread evenly over all cells of a tile.
        background: prior of a cell without foreground.
        contrast: exponent of the contrast in the prior.

    Raises:
        OptionError: scales do not fall, or reach 1; or `looks` is less than 1.
    """

    def __init__(
        self,
        encoder: AbstractEncoder,
        *,
        scales: Sequence[float],
        looks: int,
        spread: float,
        mass: float,
        smoothing: float,
        background: float,
        contrast: float,
    ) -> None:
        super().__init__()
        sides = [*scales, 1.0]
        if len(sides) < 2 or any(a <= b for a, b in itertools.pairwise(sides)):
            raise OptionError(f"zoom: got {tuple(scales)}, expected falling numbers above 1")
        if looks < 1:
            raise OptionError(f"looks: got {looks}, expected at least 1")
        self.scale, self.looks = sides[0], looks
        self.smoothing = smoothing
        self.background, self.contrast = background, contrast
        self.levels = nn.ModuleList(
            TileLevel(encoder, scale=scale, child=child, spread=spread, mass=mass)
            for scale, child in itertools.pairwise(sides)
        )

    def descend(
        self, encoder: AbstractEncoder, batch: Batch, field: Field, n: int, *, jitter: bool
    ) -> Descent:
        """Choose tiles and regions inside them, until the finest patches are reached.

        Training draws without replacement within each row, equally many children from every tile of
        an image; evaluation takes the best children over all tiles of an image, by the product of
        attention on the way to them.

        Args:
            encoder: the encoder of the tiles.
            batch: the images.
            field: attention over tiles of the first level, a row per image.
            n: finest patches per image.
            jitter: in training, children lie anywhere in their cells.
        """
        owner = list(range(len(batch)))
        path = field.log_a.new_zeros(len(batch))
        down = Descent([], [], [], [])
        for level in self._typed_levels():
            tiles, path = self._choose(batch, field, owner, path, self.looks, jitter, down.draws)
            vectors, field, owner = self._look_into(encoder, level, batch, tiles)
            down.tiles.append(tiles)
            down.vectors.append(vectors)
        patches, _ = self._choose(batch, field, owner, path, n, jitter, down.draws)
        return dataclasses.replace(down, patches=patches)

    def losses(self, draws: Sequence[Draw]) -> dict[str, Float[Tensor, ""]]:
        """Compute the penalties that keep attention inside tiles from collapsing, by level."""
        return {
            f"spread_{level.scale:g}": level.spread(draw.field, draw.a)
            for level, draw in zip(self._typed_levels(), draws[1:], strict=True)
        }

    def kinds(self) -> list[Float[Tensor, " d"]]:
        """Return the learnt vector ``(d,)`` of each level that marks its tiles' tokens."""
        return [level.kind for level in self._typed_levels()]

    def _typed_levels(self) -> list[TileLevel]:
        return [level for level in self.levels if isinstance(level, TileLevel)]

    def _choose(
        self,
        batch: Batch,
        field: Field,
        owner: Sequence[int],
        path: Float[Tensor, " r"],
        n: int,
        jitter: bool,
        draws: list[Draw],
    ) -> tuple[list[Patches], Float[Tensor, " children"]]:
        """Choose about n children per image; return them and the log attention on the way."""
        if not self.training:
            return choose_best_children(batch, field, owner, path, n)
        draw, children = draw_children(batch, field, owner, n, jitter=jitter)
        draws.append(draw)
        return children, path

    def _look_into(
        self, encoder: AbstractEncoder, level: TileLevel, batch: Batch, tiles: Sequence[Patches]
    ) -> tuple[Float[Tensor, "r d"], Field, list[int]]:
        """Encode tiles; return their vectors, the attention inside them, and each tile's image."""
        # Tiles are read without augmentation: the map of a turned tile would be turned, too.
        maps = encoder.maps(batch.read_patches(tiles, augment=False))
        spacing_um = batch.view.spacing_um * level.scale
        stage = choose_stage(encoder, spacing_um, batch.view.patch_um * level.child)
        scores = level.locate(maps, stage)
        tile_lattice = lay_map_lattice(encoder, stage, scores.shape[1:], spacing_um)
        owner = [i for i, of_image in enumerate(tiles) for _ in range(len(of_image))]
        inside, grids = [], []
        for score, i, corner in zip(
            scores, owner, np.concatenate([of_image.origin_um for of_image in tiles]), strict=True
        ):
            item = batch.items[i]
            cells, lattice = clip_to_image(tile_lattice, corner, item.image.box_um.size)
            prior = compute_tile_prior(
                item, lattice, batch.view, power=self.contrast, background=self.background
            )
            inside.append([score[cells].flatten()])
            grids.append([Grid(lattice, level.child, prior.to(batch.device))])
        field = build_field(
            inside,
            grids,
            smoothing=self.smoothing,
        )
        return encoder.pool(maps).float(), field, owner


def draw_children(
    batch: Batch, field: Field, owner: Sequence[int], n: int, *, jitter: bool
) -> tuple[Draw, list[Patches]]:
    """Draw n children of each image, equally many from each of its rows, and at least one.

    Args:
        batch: the images.
        field: attention inside the rows.
        owner: index of the image of each row.
        n: children per image.
        jitter: children lie anywhere in their cells, else in the middle.

    Returns:
        the draw, and the children of each image.
    """
    rows = np.bincount(np.asarray(owner, np.int64), minlength=len(batch))
    quota = torch.tensor([max(1, n // int(rows[i])) for i in owner], device=field.log_a.device)
    generators = [batch.generators[i] for i in owner]
    index = draw_without_replacement(field.log_a.detach(), int(quota.max()), generators)
    rank = torch.arange(index.shape[1], device=index.device)
    drawn = field.real.gather(1, index) & (rank < quota.unsqueeze(1))
    children = field.patches(batch, index, jitter=jitter, used=drawn, owner=owner)
    a = field.log_a.gather(1, index).exp() * drawn
    per_image = [
        join_patches([row for row, j in zip(children, owner, strict=True) if j == i])
        for i in range(len(batch))
    ]
    return Draw(field, a, drawn), per_image


def choose_best_children(
    batch: Batch, field: Field, owner: Sequence[int], path: Float[Tensor, " r"], n: int
) -> tuple[list[Patches], Float[Tensor, " children"]]:
    """Choose the n best children of each image over all its rows, without duplicates.

    Args:
        batch: the images.
        field: attention inside the rows.
        owner: index of the image of each row.
        path: log attention ``(r,)`` on the way to each row.
        n: children per image.

    Returns:
        children of each image, best first, and the log attention ``(sum of children,)`` on the way
        to them.
    """
    children, scores = [], []
    of_row, k = torch.tensor(owner, device=path.device), field.log_a.shape[1]
    for i in range(len(batch)):
        rows = (of_row == i).nonzero()[:, 0]
        score = (path[rows].unsqueeze(1) + field.log_a[rows]).flatten()
        order = score.sort(descending=True, stable=True).indices[: n * CROWD]
        order = order[field.real[rows].flatten()[order]]
        row, cell = rows[order // k], (order % k).unsqueeze(1)
        single = dataclasses.replace(
            field,
            grids=[field.grids[r] for r in row.tolist()],
            log_a=field.log_a[row],
            log_prior=field.log_prior[row],
            real=field.real[row],
        )
        candidates = join_patches(single.patches(batch, cell, jitter=False, owner=[i] * len(order)))
        best = suppress_duplicates(candidates)[0][:n]
        children.append(candidates[best])
        scores.append(score[order][torch.from_numpy(best).to(order)])
    return children, torch.cat(scores)


def nested_expectation(
    draws: Sequence[Draw], tiles: Sequence[Float[Tensor, "_r d"]], f: Float[Tensor, "m d"]
) -> Float[Tensor, "b d"]:
    """Estimate ``sum_i a_i (t_i + sum_j b_ij f_ij)``, nested over all levels, from the draws.

    Value and gradients are unbiased: given the rows, each level's estimate is unbiased, and the
    level above is linear in it.

    Args:
        draws: the draw of each level, coarse to fine.
        tiles: vectors ``(r, d)`` of the tiles of each intermediate level, in the order of the rows.
        f: vectors ``(m, d)`` of the finest patches.

    Returns:
        the expectation ``(b, d)``.
    """
    for draw, tile in zip(reversed(draws), [*reversed(tiles), None], strict=True):
        f = expectation(draw.a, pad_rows(f, draw.drawn), draw.drawn)
        f = f if tile is None else tile + f
    return f
