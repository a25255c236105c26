"""Looks between the glimpse and the finest patches: attention inside tiles, level after level.

A *row* is what a field has one distribution for: an image at the first level, a tile below it. Rows
lie in the order of their images and children in the order of their rows, so that the list of any
level, put end to end, is sorted by image.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foveate.attention_maps.cells import (
    Field,
    Grid,
    MapScores,
    Spread,
    build_field,
    contrast_prior,
    map_lattice,
    stage_for,
)
from foveate.bags.embedding import pad_rows
from foveate.batch import Batch, LoadedImage, Patches, View
from foveate.encoders.base import AbstractEncoder
from foveate.errors import OptionError
from foveate.geometry import Lattice
from foveate.images.evidence import Floats
from foveate.nn.sampling import draw_without_replacement, expectation

CROWD = 4
"""Candidates per patch that is kept, where some may show the same."""


@dataclass(frozen=True)
class Draw:
    """Children drawn from each row of a field.

    Attributes:
        field: over the rows.
        a: ``(r, n)`` attention of the children in the order of drawing, 0 where none was drawn.
        drawn: ``(r, n)``, False last.
    """

    field: Field
    a: Tensor
    drawn: Tensor


@dataclass(frozen=True)
class Descent:
    """What was looked at on the way down.

    Attributes:
        patches: the finest, per image.
        tiles: per intermediate level, per image.
        vectors: of the tiles of each level, ``(r, dim)``.
        draws: in training one per field, coarse to fine; else none.
    """

    patches: list[Patches]
    tiles: list[list[Patches]]
    vectors: list[Tensor]
    draws: list[Draw]


class Look(nn.Module):
    """One intermediate level: scores for what its tiles hold.

    Args:
        encoder: whose maps are scored; it is not kept.
        scale: side of the tiles, in sides of the finest patch.
        child: side of what is chosen in them, likewise.
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
    """Chooses tiles, looks into them, and so on down to the finest patches.

    Args:
        encoder: of the tiles; it is not kept.
        scales: of the tiles, coarse to fine, in sides of the finest patch.
        looks: tiles per image at each level.
        spread, mass, smoothing, background, contrast: of attention inside tiles, as over
            the glimpse.

    Raises:
        OptionError: scales do not fall, or reach 1; or no look is allowed.
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
            Look(encoder, scale=scale, child=child, spread=spread, mass=mass)
            for scale, child in itertools.pairwise(sides)
        )

    def descend(
        self, encoder: AbstractEncoder, batch: Batch, field: Field, n: int, *, jitter: bool
    ) -> Descent:
        """Look at tiles and choose what they hold, until the finest patches are reached.

        Training draws without replacement within each row, equally many children from every tile of
        an image; evaluation takes the best over all tiles of an image, by the product of attention
        on the way to them.

        Args:
            encoder: of the tiles.
            batch: of the images.
            field: over tiles of the first level, a row per image.
            n: finest patches per image.
            jitter: in training, children lie anywhere in their cells.
        """
        owner = list(range(len(batch)))
        path = field.log_a.new_zeros(len(batch))
        down = Descent([], [], [], [])
        for level in self._typed_levels():
            found, path = self._choose(batch, field, owner, path, self.looks, jitter, down.draws)
            vectors, field, owner = self._look_into(encoder, level, batch, found)
            down.tiles.append(found)
            down.vectors.append(vectors)
        found, _ = self._choose(batch, field, owner, path, n, jitter, down.draws)
        return dataclasses.replace(down, patches=found)

    def losses(self, draws: Sequence[Draw]) -> dict[str, Tensor]:
        """What keeps attention inside tiles from collapsing, by level."""
        return {
            f"spread_{level.scale:g}": level.spread(draw.field, draw.a)
            for level, draw in zip(self._typed_levels(), draws[1:], strict=True)
        }

    def kinds(self) -> list[Tensor]:
        """What marks the tokens of tiles, ``(d,)`` for each level."""
        return [level.kind for level in self._typed_levels()]

    def _typed_levels(self) -> list[Look]:
        return [level for level in self.levels if isinstance(level, Look)]

    def _choose(
        self,
        batch: Batch,
        field: Field,
        owner: Sequence[int],
        path: Tensor,
        n: int,
        jitter: bool,
        draws: list[Draw],
    ) -> tuple[list[Patches], Tensor]:
        """About n children per image, and the log attention on the way to them."""
        if not self.training:
            return best_children(batch, field, owner, path, n)
        draw, found = draw_children(batch, field, owner, n, jitter=jitter)
        draws.append(draw)
        return found, path

    def _look_into(
        self, encoder: AbstractEncoder, level: Look, batch: Batch, tiles: Sequence[Patches]
    ) -> tuple[Tensor, Field, list[int]]:
        """Vectors of tiles, the field of what they hold, and whose they are."""
        # A turned crop would have its map turned too: tiles are read as they lie.
        maps = encoder.maps(batch.crops(tiles, augment=False))
        spacing = batch.view.spacing_um * level.scale
        stage = stage_for(encoder, spacing, batch.view.patch_um * level.child)
        scores = level.locate(maps, stage)
        whole = map_lattice(encoder, stage, scores.shape[1:], spacing)
        owner = [i for i, part in enumerate(tiles) for _ in range(len(part))]
        kept, grids = [], []
        for score, i, corner in zip(
            scores, owner, np.concatenate([part.origin_um for part in tiles]), strict=True
        ):
            item = batch.items[i]
            cells, lattice = cells_inside(whole, corner, item.image.box_um.size)
            prior = tile_prior(
                item, lattice, batch.view, power=self.contrast, background=self.background
            )
            kept.append([score[cells].flatten()])
            grids.append([Grid(lattice, level.child, prior.to(batch.device))])
        field = build_field(
            kept,
            grids,
            smoothing=self.smoothing,
        )
        return encoder.pool(maps).float(), field, owner


def draw_children(
    batch: Batch, field: Field, owner: Sequence[int], n: int, *, jitter: bool
) -> tuple[Draw, list[Patches]]:
    """Draw n children of each image, equally many from each of its rows, and at least one.

    Returns:
        the draw, and the children per image.
    """
    rows = np.bincount(np.asarray(owner, np.int64), minlength=len(batch))
    quota = torch.tensor([max(1, n // int(rows[i])) for i in owner], device=field.log_a.device)
    generators = [batch.generators[i] for i in owner]
    index = draw_without_replacement(field.log_a.detach(), int(quota.max()), generators)
    rank = torch.arange(index.shape[1], device=index.device)
    drawn = field.real.gather(1, index) & (rank < quota.unsqueeze(1))
    found = field.patches(batch, index, jitter=jitter, used=drawn, owner=owner)
    a = field.log_a.gather(1, index).exp() * drawn
    per_image = [
        joined([part for part, j in zip(found, owner, strict=True) if j == i])
        for i in range(len(batch))
    ]
    return Draw(field, a, drawn), per_image


def best_children(
    batch: Batch, field: Field, owner: Sequence[int], path: Tensor, n: int
) -> tuple[list[Patches], Tensor]:
    """The n best children of each image over all its rows, those that show the same left out.

    Args:
        batch: of the images.
        field: over the rows.
        owner: image of each row.
        path: ``(r,)`` log attention on the way to each row.
        n: children per image.

    Returns:
        children per image, best first, and ``(sum of children,)`` log attention on the way to them.
    """
    found, scores = [], []
    of_row, k = torch.tensor(owner, device=path.device), field.log_a.shape[1]
    for i in range(len(batch)):
        own = (of_row == i).nonzero()[:, 0]
        score = (path[own].unsqueeze(1) + field.log_a[own]).flatten()
        order = score.sort(descending=True, stable=True).indices[: n * CROWD]
        order = order[field.real[own].flatten()[order]]
        row, cell = own[order // k], (order % k).unsqueeze(1)
        single = dataclasses.replace(
            field, grids=[field.grids[r] for r in row.tolist()], real=field.real[row]
        )
        every = joined(single.patches(batch, cell, jitter=False, owner=[i] * len(order)))
        kept = apart(every)[0][:n]
        found.append(every[kept])
        scores.append(score[order][torch.from_numpy(kept).to(order)])
    return found, torch.cat(scores)


def nested_expectation(draws: Sequence[Draw], tiles: Sequence[Tensor], f: Tensor) -> Tensor:
    """Estimate ``sum_i a_i (t_i + sum_j b_ij f_ij)``, and so on down, from what was drawn.

    Without bias in value and gradients: given the rows, each level's estimate is unbiased, and the
    level above is linear in it.

    Args:
        draws: one per level, coarse to fine.
        tiles: ``(r, d)`` of each intermediate level, in the order of their rows.
        f: ``(m, d)`` of the finest patches.

    Returns:
        ``(b, d)``.
    """
    for draw, own in zip(reversed(draws), [*reversed(tiles), None], strict=True):
        f = expectation(draw.a, pad_rows(f, draw.drawn), draw.drawn)
        f = f if own is None else own + f
    return f


def cells_inside(
    lattice: Lattice, corner_um: Floats, extent_um: Sequence[float]
) -> tuple[tuple[slice, ...], Lattice]:
    """The cells of a tile whose centres lie inside the image; the nearest where there are none.

    Args:
        lattice: of the cells, from the tile's corner.
        corner_um: of the tile.
        extent_um: of the image.

    Returns:
        the part of the tile's map, and its lattice from the image's corner.
    """
    parts, origin = [], []
    for at, cell, count, corner, extent in zip(
        lattice.origin_um, lattice.cell_um, lattice.shape, corner_um, extent_um, strict=True
    ):
        begin = float(corner) + at
        first = min(max(math.ceil(-begin / cell - 0.5), 0), count - 1)
        last = min(max(math.ceil((extent - begin) / cell - 0.5), first + 1), count)
        parts.append(slice(first, last))
        origin.append(begin + first * cell)
    shape = tuple(part.stop - part.start for part in parts)
    return tuple(parts), Lattice(tuple(origin), lattice.cell_um, shape)


def tile_prior(
    item: LoadedImage, lattice: Lattice, view: View, *, power: float, background: float
) -> Tensor:
    """`contrast_prior` from the glimpse below the tile alone, which may be a thousandth of it."""
    spacing = view.glimpse_spacing_um
    origin = np.asarray(lattice.origin_um)
    end = origin + np.asarray(lattice.shape) * np.asarray(lattice.cell_um)
    low = np.clip(np.floor(origin / spacing), 0, np.asarray(item.contrast.shape) - 1)
    high = np.maximum(np.ceil(end / spacing), low + 1)
    window = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    part = dataclasses.replace(item, contrast=item.contrast[window])
    moved = dataclasses.replace(lattice, origin_um=tuple(origin - low * spacing))
    return contrast_prior(part, moved, view, power=power, background=background)


def apart(patches: Patches) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Patches that show different things.

    Returns:
        those, in order, whose centre lies a quarter side or more from all kept before them; and for
        every patch which of the kept shows the same.
    """
    kept: list[int] = []
    shows = np.zeros(len(patches), np.int64)
    centre, near = patches.centre_um, patches.side_um[:1].sum() / 4
    for j in range(len(patches)):
        away = np.abs(centre[kept] - centre[j]).max(-1)
        if len(kept) == 0 or away.min() >= near:
            shows[j] = len(kept)
            kept.append(j)
        else:
            shows[j] = int(away.argmin())
    return np.asarray(kept, np.int64), shows


def joined(parts: Sequence[Patches]) -> Patches:
    """Patches of one image, end to end; at least one part."""
    return Patches(
        np.concatenate([part.origin_um for part in parts]),
        np.concatenate([part.side_um for part in parts]),
    )
