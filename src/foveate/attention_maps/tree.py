"""The tree that hard attention descends: which crops were chosen, and what was seen in them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from foveate.attention_maps.tree_cells import Cut, cell_contrast, cell_features, corners
from foveate.bags.embedding import padding_mask
from foveate.batch import Batch, LoadedImage, Patches
from foveate.encoders.base import AbstractEncoder
from foveate.images.evidence import Floats
from foveate.nn.generators import hidden_share
from foveate.nn.position import PositionCode
from foveate.nn.reinforce import draw_log_prob
from foveate.nn.sampling import draw_without_replacement, select_strongest

Index = NDArray[np.int64]

_LEAST_PRIOR = 1e-3


@dataclass(frozen=True)
class Grids:
    """The grids of one image at one level: of the whole image, or one per crop chosen above.

    Attributes:
        cells: grid after grid, each in reading order, ``(m c,)``.
        contrast: of each, ``(m, c)``; those of 0 are never chosen.
        features: what the map of the region above shows in each, ``(m c, d)``, no gradient.
        tree: which of the image's trees each grid belongs to, ``(m,)``.
    """

    cells: Patches
    contrast: Floats
    features: Tensor
    tree: Index


@dataclass(frozen=True)
class Chosen:
    """The cells of one image that were chosen at one level.

    Attributes:
        patches: ``(n,)``.
        tree: which of the image's trees each belongs to, ``(n,)``.
        grid: which of the image's grids each lies in, ``(n,)``: that of its n-th crop above.
        log_prob: of each choice, ``(n,)``.
    """

    patches: Patches
    tree: Index
    grid: Index
    log_prob: Tensor


class Location(nn.Module):
    """Scores of cells from the maps of the region above and from where the cells lie.

    A 1 x 1 convolution over all maps of the encoder, a position code with scale, leaky relu, one
    output. Maps come without gradient: what is learnt about where to look never changes them.

    Args:
        map_dims: channels of the encoder's maps.
        hidden: width.
    """

    def __init__(self, map_dims: Sequence[int], *, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(sum(map_dims))
        self.project = nn.Linear(sum(map_dims), hidden)
        self.position = PositionCode(hidden)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, features: Tensor, centre: Tensor, extent: Tensor) -> Tensor:
        """Scores ``(n,)`` of cells with features ``(n, d)``, in float32."""
        with torch.autocast(features.device.type, enabled=False):
            mixed = self.project(self.norm(features.detach())) + self.position(centre, extent)
            score: Tensor = self.score(functional.leaky_relu(mixed))[:, 0]
        return score


# -- grids -----------------------------------------------------------------------------------------


def image_grids(
    batch: Batch,
    i: int,
    maps: Sequence[Tensor],
    encoder: AbstractEncoder,
    cut: Cut,
    *,
    scale: float,
    trees: int,
    jitter: bool,
) -> Grids:
    """The grid over image i, less its closed cells, once for each of its trees.

    Args:
        batch: holds the image.
        i: which image.
        maps: of its glimpse.
        encoder: that made them.
        cut: how regions are cut.
        scale: side of a cell, in sides of the finest patch.
        trees: of the image.
        jitter: shift the grid at random.
    """
    item, view = batch.items[i], batch.view
    side = view.patch_um * scale
    shift = torch.rand(2, generator=batch.generators[i]).tolist() if jitter else (None, None)
    rows, columns = (
        cut.over(extent, side, by) for extent, by in zip(item.image.box_um.size, shift, strict=True)
    )
    contrast = cell_contrast(item, view, (rows, columns), side)
    open_ = np.flatnonzero(contrast)

    def shown() -> Tensor:
        glimpse_px = (rows / view.glimpse_spacing_um, columns / view.glimpse_spacing_um)
        every = cell_features(encoder, maps, glimpse_px, side / view.glimpse_spacing_um)
        return every[0, torch.from_numpy(open_).to(every.device)]

    # They stay the same while the encoder is frozen, and averaging takes longer than all the rest.
    kind = f"cells {cut} {scale}"
    features = shown() if batch.kept is None else batch.kept.map(i, shown, kind=kind)
    centre = corners((rows, columns))[open_] + side / 2
    return Grids(
        batch.place(i, np.tile(centre, (trees, 1)), scale=scale),
        np.tile(contrast[open_], (trees, 1)),
        features.repeat(trees, 1),
        np.arange(trees),
    )


def crop_grids(
    batch: Batch, i: int, chosen: Chosen, features: Tensor, cut: Cut, *, scale: float
) -> Grids:
    """The grids over the crops that were chosen in image i.

    Args:
        batch: holds the image.
        i: which image.
        chosen: its crops.
        features: of their cells, ``(n, cells, d)``.
        cut: how crops are cut.
        scale: side of a cell, in sides of the finest patch.
    """
    item, view = batch.items[i], batch.view
    side = view.patch_um * scale
    centres, contrast = np.zeros((0, 2)), np.zeros((0, cut.cells**2))
    for origin, parent in zip(chosen.patches.origin_um, chosen.patches.side_um, strict=True):
        begin = cut.inside(float(parent))
        axes = (origin[0] + begin, origin[1] + begin)
        centres = np.concatenate([centres, corners(axes) + side / 2])
        contrast = np.concatenate([contrast, cell_contrast(item, view, axes, side)[None]])
    return Grids(
        batch.place(i, centres, scale=scale), contrast, features.flatten(0, 1), chosen.tree
    )


def no_grids(features: Tensor, cut: Cut) -> Grids:
    """Of an image whose finest level has been reached."""
    nothing = Patches(np.zeros((0, 2)), np.zeros(0))
    contrast = np.zeros((0, cut.cells**2))
    return Grids(nothing, contrast, features[:0], np.zeros(0, dtype=np.int64))


# -- choosing --------------------------------------------------------------------------------------


Way = Literal["drawn", "strongest", "settled", "surveyed"]
"""How cells are chosen: drawn without replacement; those that score highest; drawn with noise that
is always the same in the same place; likewise, as likely as before anything was learnt."""


def choose(
    batch: Batch,
    grids: Sequence[Grids],
    locate: Location,
    n: int,
    *,
    power: float,
    normalised: bool,
    way: Way,
) -> list[Chosen]:
    """Choose at most n cells of every grid.

    Log-probabilities are those of each choice given the ones before it, where cells are drawn. Of
    cells that were surveyed they are those of a choice among them; as the survey itself follows the
    prior, learnt scores alone count.

    Args:
        batch: of the images.
        grids: per image.
        locate: scores the cells.
        n: cells per grid.
        power: of contrast, in what is likely before anything is learnt; 0 leaves it out.
        normalised: bring the scores of a grid to a Euclidean length of 1.
        way: how they are chosen.
    """
    scores = _logits(batch, grids, locate)
    if normalised:
        scores = _unit_length(scores)
    prior = _log_prior(grids, power, scores)
    logits = scores + prior
    log_p = logits.log_softmax(-1)
    known = log_p.detach()
    owner = [i for i, part in enumerate(grids) for _ in part.contrast]
    if way == "drawn":
        index = draw_without_replacement(known, n, [batch.generators[i] for i in owner])
    elif way == "strongest":
        index = select_strongest(known, n)[0]
    else:
        wanted = known if way == "settled" else prior.masked_fill(scores.isneginf(), -torch.inf)
        index = select_strongest(wanted + _settled_noise(batch, grids, wanted), n)[0]
    valid = known.gather(1, index) > -torch.inf
    if way == "surveyed":  # some are hidden, so that no image is known by its crops
        valid = hidden_share(valid, [batch.generators[i] for i in owner])
    if way == "drawn":
        log_prob = draw_log_prob(logits, index, valid)
    elif way == "surveyed":
        among = scores.gather(1, index).masked_fill(~valid, -torch.inf)
        log_prob = among.log_softmax(-1).masked_fill(~valid, 0.0)
    else:
        log_prob = log_p.gather(1, index).masked_fill(~valid, 0.0)
    return _chosen(grids, index, valid, log_prob)


def _chosen(grids: Sequence[Grids], index: Tensor, valid: Tensor, log_prob: Tensor) -> list[Chosen]:
    """Per image, the cells with these indices ``(all grids, n)``; those not valid left out."""
    found, at = [], 0
    for part in grids:
        m, c = part.contrast.shape
        kept = valid[at : at + m].cpu().numpy()
        cell = index[at : at + m].cpu().numpy() + c * np.arange(m)[:, None]
        grid = np.broadcast_to(np.arange(m)[:, None], kept.shape)[kept]
        own = log_prob[at : at + m][valid[at : at + m]]
        found.append(Chosen(part.cells[cell[kept]], part.tree[grid], grid, own))
        at += m
    return found


def _settled_noise(batch: Batch, grids: Sequence[Grids], like: Tensor) -> Tensor:
    """Gumbel noise that hangs on an image and on a cell's place and side alone."""
    rows = []
    for part, item in zip(grids, batch.items, strict=True):
        place = np.concatenate([part.cells.origin_um, part.cells.side_um[:, None]], 1)
        noise = _gumbel(np.round(16 * place).astype(np.int64), zlib.crc32(item.glimpse.tobytes()))
        m, c = part.contrast.shape
        rows.append(np.pad(noise.reshape(m, c), ((0, 0), (0, like.shape[1] - c))))
    return torch.from_numpy(np.concatenate(rows)).to(like)


def _gumbel(keys: NDArray[np.int64], seed: int) -> Floats:
    """Standard Gumbel numbers ``(n,)``, the same for the same row of whole numbers ``(n, d)``."""
    mixed = np.full(len(keys), seed, np.uint64)
    for column in keys.T.astype(np.uint64):
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        mixed = mixed * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(32)
    uniform = ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    return np.asarray(-np.log(-np.log(uniform)), np.float64)


def _logits(batch: Batch, grids: Sequence[Grids], locate: Location) -> Tensor:
    """Scores ``(all grids, c)``, ``-inf`` on cells that may not be chosen and on padding."""
    places = [part.cells for part in grids]
    real = padding_mask([len(p) for p in places], batch.device)
    centre, extent = batch.layout(places, real.shape[1])
    features = torch.cat([part.features for part in grids])
    scores = locate(features, centre[real], extent[real])
    widest = max(part.contrast.shape[1] for part in grids)
    rows, at = [], 0
    for part in grids:
        m, c = part.contrast.shape
        own = scores[at : at + m * c].view(m, c)
        closed = torch.from_numpy(part.contrast == 0).to(own.device)
        own = own.masked_fill(closed, -torch.inf)
        rows.append(functional.pad(own, (0, widest - c), value=-torch.inf))
        at += m * c
    return torch.cat(rows)


def _log_prior(grids: Sequence[Grids], power: float, like: Tensor) -> Tensor:
    """Log of contrast, relative to each grid's strongest, to a power; 0 on closed cells."""
    rows = []
    for part in grids:
        top = part.contrast.max(1, keepdims=True) if len(part.contrast) else 1.0
        share = np.maximum((part.contrast / top) ** power, _LEAST_PRIOR)
        row = np.where(part.contrast > 0, np.log(share), 0.0)
        rows.append(np.pad(row, ((0, 0), (0, like.shape[1] - row.shape[1]))))
    return torch.from_numpy(np.concatenate(rows)).to(like)


def _unit_length(logits: Tensor) -> Tensor:
    """Rows divided by their Euclidean length; ``-inf`` stays."""
    closed = logits.isneginf()
    unit = functional.normalize(logits.masked_fill(closed, 0.0), dim=-1)
    return unit.masked_fill(closed, -torch.inf)


# -- the finished tree -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Forest:
    """All nodes of all trees of a batch, tree after tree, each beginning with its image as a whole.

    Attributes:
        trees: per image.
        patches: per image, the nodes of its trees; the whole is a square of the image's area.
        features: ``(nodes, d)``.
        log_prob: ``(nodes,)``, 0 of the whole.
        parent: ``(nodes,)``, which node of its tree each was cut from; the whole is its own.
        level: ``(nodes,)``, 0 of the whole.
        lengths: nodes of each tree.
    """

    trees: int
    patches: list[Patches]
    features: Tensor
    log_prob: Tensor
    parent: Tensor
    level: Tensor
    lengths: list[int]


def gather_forest(
    batch: Batch, overview: Tensor, levels: Sequence[tuple[Sequence[Chosen], Tensor]], trees: int
) -> Forest:
    """Put together what was found level by level.

    Args:
        batch: of the images.
        overview: features ``(b, d)`` of the images as a whole.
        levels: per level what was chosen, per image, and its features ``(n, d)``.
        trees: per image.
    """
    b = len(batch)
    owner: list[Index] = [np.arange(b * trees)]
    parent: list[Index] = [np.arange(b * trees)]
    level: list[Index] = [np.zeros(b * trees, np.int64)]
    origin, side = (list(each) for each in zip(*map(_whole, batch.items), strict=True))
    places = [np.repeat(np.stack(origin), trees, 0)]
    sides = [np.repeat(np.stack(side), trees)]
    features = [overview.repeat_interleave(trees, 0)]
    log_prob = [overview.new_zeros(b * trees)]
    above, n = trees * np.arange(b), b * trees
    for depth, (chosen, f) in enumerate(levels, 1):
        owner += [i * trees + part.tree for i, part in enumerate(chosen)]
        parent += [begin + part.grid for begin, part in zip(above, chosen, strict=True)]
        places += [part.patches.origin_um for part in chosen]
        sides += [part.patches.side_um for part in chosen]
        log_prob += [part.log_prob for part in chosen]
        features.append(f)
        counts = [len(part.grid) for part in chosen]
        level.append(np.full(sum(counts), depth))
        above, n = n + np.cumsum([0, *counts[:-1]]), n + sum(counts)
    order = np.argsort(np.concatenate(owner), kind="stable")
    lengths = np.bincount(np.concatenate(owner), minlength=b * trees)
    place, sizes = np.concatenate(places)[order], np.concatenate(sides)[order]
    ends = lengths.reshape(b, trees).sum(1).cumsum()[:-1]
    within = np.empty(n, np.int64)
    within[order] = np.concatenate([np.arange(length) for length in lengths])
    rows, up, down = (
        torch.from_numpy(each).to(overview.device)
        for each in (order, within[np.concatenate(parent)[order]], np.concatenate(level)[order])
    )
    return Forest(
        trees,
        [Patches(p, s) for p, s in zip(np.split(place, ends), np.split(sizes, ends), strict=True)],
        torch.cat(features)[rows],
        torch.cat(log_prob)[rows],
        up,
        down,
        lengths.tolist(),
    )


def _whole(item: LoadedImage) -> tuple[Floats, float]:
    """Corner and side of the square of an image's area around its middle."""
    size = np.asarray(item.image.box_um.size)
    side = float(np.sqrt(size.prod()))
    return (size - side) / 2, side
