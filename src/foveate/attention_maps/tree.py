"""The tree that hard attention descends: grids of cells, and the patches chosen in them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from foveate.attention_maps.tree_cells import (
    Cut,
    compute_cell_contrast,
    compute_cell_features,
    corners,
)
from foveate.bags.embedding import padding_mask
from foveate.batch import Batch, Patches
from foveate.encoders.base import AbstractEncoder
from foveate.geometry import length_px_from_um
from foveate.images.evidence import Floats
from foveate.nn.generators import hidden_share
from foveate.nn.position import PositionCode
from foveate.nn.reinforce import draw_log_prob
from foveate.nn.sampling import draw_without_replacement, select_strongest

Index = NDArray[np.int64]

_MIN_PRIOR = 1e-3


@dataclass(frozen=True)
class Grids:
    """The grids of one image at one level: over the whole image, or over each patch chosen above.

    Attributes:
        cells: cells ``(m c,)`` of m grids, grid after grid, each in reading order.
        contrast: mean contrast ``(m, c)`` of the cells; cells of contrast 0 are never chosen.
        features: mean of the map of the region above in each cell, ``(m c, d)``, without gradient.
        tree: number of the image's tree that each grid belongs to, ``(m,)``.
    """

    cells: Patches
    contrast: Floats
    features: Float[Tensor, "cells d"]
    tree: Index


@dataclass(frozen=True)
class ChosenPatches:
    """The patches of one image that were chosen at one level.

    Attributes:
        patches: places of the n patches.
        tree: number of the image's tree that each patch belongs to, ``(n,)``.
        grid: number of the image's grid that each patch lies in, ``(n,)``, which is the number of
            the patch above.
        log_prob: log-probability of each choice, ``(n,)``.
    """

    patches: Patches
    tree: Index
    grid: Index
    log_prob: Float[Tensor, " n"]


class Location(nn.Module):
    """A network that scores cells by the maps of the region above and by the cells' places.

    It has a 1 x 1 convolution over all maps of the encoder, a position code with scale, leaky relu
    and one output. Maps come without gradient, so learning where to look never changes them.

    Args:
        map_dims: channels of the encoder's maps.
        hidden: width of the network.
    """

    def __init__(self, map_dims: Sequence[int], *, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(sum(map_dims))
        self.project = nn.Linear(sum(map_dims), hidden)
        self.position = PositionCode(hidden)
        self.score = nn.Linear(hidden, 1, bias=False)

    def forward(
        self,
        features: Float[Tensor, "n d"],
        centre_patch: Float[Tensor, "n 2"],
        extent_patch: Float[Tensor, " n"],
    ) -> Float[Tensor, " n"]:
        """Score cells: ``(n,)`` in float32.

        Args:
            features: mean of the maps in each cell, ``(n, d)``.
            centre_patch: centres of the cells ``(n, 2)``, in patches.
            extent_patch: sides of the cells ``(n,)``, in patches.
        """
        with torch.autocast(features.device.type, enabled=False):
            mixed = self.project(self.norm(features.detach())) + self.position(
                centre_patch, extent_patch
            )
            score: Tensor = self.score(functional.leaky_relu(mixed))[:, 0]
        return score


# -- grids -----------------------------------------------------------------------------------------


def lay_image_grids(
    batch: Batch,
    i: int,
    maps: Sequence[Float[Tensor, "1 _c _h _w"]],
    encoder: AbstractEncoder,
    cut: Cut,
    *,
    scale: float,
    trees: int,
    jitter: bool,
) -> Grids:
    """Lay a grid over image i, without its closed cells, once for each of its trees.

    Args:
        batch: the batch that holds the image.
        i: index of the image.
        maps: maps ``(1, c, h, w)`` of its glimpse, from fine to coarse.
        encoder: the encoder that made the maps.
        cut: rule by which regions are cut into cells.
        scale: side of a cell, in sides of the finest patch.
        trees: number of trees of the image.
        jitter: shift the grid at random.
    """
    item, view = batch.items[i], batch.view
    side_um = view.patch_um * scale
    shift = torch.rand(2, generator=batch.generators[i]).tolist() if jitter else (None, None)
    rows, columns = (
        cut.over(extent, side_um, by)
        for extent, by in zip(item.image.box_um.size, shift, strict=True)
    )
    contrast = compute_cell_contrast(item, view, (rows, columns), side_um)
    open_ = np.flatnonzero(contrast)

    def shown() -> Float[Tensor, "cells c"]:
        spacing_um = view.glimpse_spacing_um
        begin_px = (length_px_from_um(rows, spacing_um), length_px_from_um(columns, spacing_um))
        side_px = length_px_from_um(side_um, spacing_um)
        features = compute_cell_features(encoder, maps, begin_px, side_px)
        return features[0, torch.from_numpy(open_).to(features.device)]

    # Stored while the encoder is frozen: averaging maps takes longer than all the rest of a step.
    kind = f"cells {cut} {scale}"
    features = (
        shown() if batch.frozen_features is None else batch.frozen_features.map(i, shown, kind=kind)
    )
    centre = corners((rows, columns))[open_] + side_um / 2
    return Grids(
        batch.place(i, np.tile(centre, (trees, 1)), scale=scale),
        np.tile(contrast[open_], (trees, 1)),
        features.repeat(trees, 1),
        np.arange(trees),
    )


def lay_patch_grids(
    batch: Batch,
    i: int,
    chosen: ChosenPatches,
    features: Float[Tensor, "n cells d"],
    cut: Cut,
    *,
    scale: float,
) -> Grids:
    """Lay a grid over each patch that was chosen in image i.

    Args:
        batch: the batch that holds the image.
        i: index of the image.
        chosen: its patches.
        features: features of the cells of its patches, ``(n, cells, d)``.
        cut: rule by which patches are cut into cells.
        scale: side of a cell, in sides of the finest patch.
    """
    item, view = batch.items[i], batch.view
    side_um = view.patch_um * scale
    centres, contrast = np.zeros((0, 2)), np.zeros((0, cut.cells**2))
    for origin, parent in zip(chosen.patches.origin_um, chosen.patches.side_um, strict=True):
        begin = cut.inside(float(parent))
        axes = (origin[0] + begin, origin[1] + begin)
        centres = np.concatenate([centres, corners(axes) + side_um / 2])
        contrast = np.concatenate(
            [contrast, compute_cell_contrast(item, view, axes, side_um)[None]]
        )
    return Grids(
        batch.place(i, centres, scale=scale), contrast, features.flatten(0, 1), chosen.tree
    )


def make_empty_grids(features: Float[Tensor, "n d"], cut: Cut) -> Grids:
    """Return no grids, for an image whose finest level has been reached.

    Args:
        features: features of cells ``(n, d)``, for their length and device.
        cut: rule by which patches would be cut.
    """
    no_cells = Patches(np.zeros((0, 2)), np.zeros(0))
    contrast = np.zeros((0, cut.cells**2))
    return Grids(no_cells, contrast, features[:0], np.zeros(0, dtype=np.int64))


# -- choosing --------------------------------------------------------------------------------------


ChoiceRule = Literal["drawn", "strongest", "repeatable", "surveyed"]
"""How cells are chosen. ``drawn``: without replacement; ``strongest``: the highest scores;
``repeatable``: drawn with noise that is always the same at the same place; ``surveyed``: drawn with
such noise and the probabilities of the prior."""


def choose_cells(
    batch: Batch,
    grids: Sequence[Grids],
    locate: Location,
    n: int,
    *,
    power: float,
    normalised: bool,
    rule: ChoiceRule,
) -> list[ChosenPatches]:
    """Choose at most n cells of every grid.

    Where cells are drawn, the log-probability of a choice is that given the choices before it. For
    surveyed cells it is that of a choice among them; as the survey itself follows the prior, only
    learnt scores count in it.

    Args:
        batch: the images.
        grids: grids of each image.
        locate: the network that scores cells.
        n: cells per grid.
        power: exponent of the contrast in the prior; 0 leaves the prior out.
        normalised: bring the scores of a grid to a Euclidean length of 1.
        rule: how cells are chosen.
    """
    scores = _logits(batch, grids, locate)
    if normalised:
        scores = _unit_length(scores)
    prior = _log_prior(grids, power, scores)
    logits = scores + prior
    log_p = logits.log_softmax(-1)
    known = log_p.detach()
    owner = [i for i, image_grids in enumerate(grids) for _ in image_grids.contrast]
    if rule == "drawn":
        index = draw_without_replacement(known, n, [batch.generators[i] for i in owner])
    elif rule == "strongest":
        index = select_strongest(known, n)[0]
    else:
        wanted = known if rule == "repeatable" else prior.masked_fill(scores.isneginf(), -torch.inf)
        index = select_strongest(wanted + _repeatable_noise(batch, grids, wanted), n)[0]
    valid = known.gather(1, index) > -torch.inf
    if rule == "surveyed":  # some are hidden, so that no image is known by its patches
        valid = hidden_share(valid, [batch.generators[i] for i in owner])
    if rule == "drawn":
        log_prob = draw_log_prob(logits, index, valid)
    elif rule == "surveyed":
        among = scores.gather(1, index).masked_fill(~valid, -torch.inf)
        log_prob = among.log_softmax(-1).masked_fill(~valid, 0.0)
    else:
        log_prob = log_p.gather(1, index).masked_fill(~valid, 0.0)
    return _chosen(grids, index, valid, log_prob)


def _chosen(
    grids: Sequence[Grids],
    index: Int[Tensor, "grids n"],
    valid: Bool[Tensor, "grids n"],
    log_prob: Float[Tensor, "grids n"],
) -> list[ChosenPatches]:
    """Collect the chosen patches of each image.

    Args:
        grids: grids of each image.
        index: indices of chosen cells ``(all grids, n)``.
        valid: ``(all grids, n)``, False leaves a cell out.
        log_prob: log-probabilities ``(all grids, n)`` of the choices.
    """
    patches, at = [], 0
    for image_grids in grids:
        m, c = image_grids.contrast.shape
        real = valid[at : at + m].cpu().numpy()
        cell = index[at : at + m].cpu().numpy() + c * np.arange(m)[:, None]
        grid = np.broadcast_to(np.arange(m)[:, None], real.shape)[real]
        part_log_prob = log_prob[at : at + m][valid[at : at + m]]
        patches.append(
            ChosenPatches(
                image_grids.cells[cell[real]], image_grids.tree[grid], grid, part_log_prob
            )
        )
        at += m
    return patches


def _repeatable_noise(
    batch: Batch, grids: Sequence[Grids], like: Float[Tensor, "grids c"]
) -> Float[Tensor, "grids c"]:
    """Return Gumbel noise ``(all grids, c)`` that depends only on the image, the place and side.

    Args:
        batch: the images.
        grids: grids of each image.
        like: tensor of the shape, type and device of the result.
    """
    rows = []
    for image_grids, item in zip(grids, batch.items, strict=True):
        place = np.concatenate([image_grids.cells.origin_um, image_grids.cells.side_um[:, None]], 1)
        noise = _gumbel(np.round(16 * place).astype(np.int64), zlib.crc32(item.glimpse.tobytes()))
        m, c = image_grids.contrast.shape
        rows.append(np.pad(noise.reshape(m, c), ((0, 0), (0, like.shape[1] - c))))
    return torch.from_numpy(np.concatenate(rows)).to(like)


def _gumbel(keys: NDArray[np.int64], seed: int) -> Floats:
    """Hash rows of whole numbers ``(n, d)`` to standard Gumbel numbers ``(n,)``."""
    mixed = np.full(len(keys), seed, np.uint64)
    for column in keys.T.astype(np.uint64):
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
        mixed = mixed * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(32)
    uniform = ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) / 2.0**53
    return np.asarray(-np.log(-np.log(uniform)), np.float64)


def _logits(batch: Batch, grids: Sequence[Grids], locate: Location) -> Float[Tensor, "grids c"]:
    """Score all cells: ``(all grids, c)``, ``-inf`` on closed cells and on padding."""
    places = [image_grids.cells for image_grids in grids]
    real = padding_mask([len(p) for p in places], batch.device)
    centre, extent = batch.layout(places, real.shape[1])
    features = torch.cat([image_grids.features for image_grids in grids])
    scores = locate(features, centre[real], extent[real])
    widest = max(image_grids.contrast.shape[1] for image_grids in grids)
    rows, at = [], 0
    for image_grids in grids:
        m, c = image_grids.contrast.shape
        part_scores = scores[at : at + m * c].view(m, c)
        closed = torch.from_numpy(image_grids.contrast == 0).to(part_scores.device)
        part_scores = part_scores.masked_fill(closed, -torch.inf)
        rows.append(functional.pad(part_scores, (0, widest - c), value=-torch.inf))
        at += m * c
    return torch.cat(rows)


def _log_prior(
    grids: Sequence[Grids], power: float, like: Float[Tensor, "grids c"]
) -> Float[Tensor, "grids c"]:
    """Compute the log of a power of contrast, relative to the grid's maximum; 0 on closed cells."""
    rows = []
    for image_grids in grids:
        top = image_grids.contrast.max(1, keepdims=True) if len(image_grids.contrast) else 1.0
        share = np.maximum((image_grids.contrast / top) ** power, _MIN_PRIOR)
        row = np.where(image_grids.contrast > 0, np.log(share), 0.0)
        rows.append(np.pad(row, ((0, 0), (0, like.shape[1] - row.shape[1]))))
    return torch.from_numpy(np.concatenate(rows)).to(like)


def _unit_length(logits: Float[Tensor, "grids c"]) -> Float[Tensor, "grids c"]:
    """Divide rows by their Euclidean length; ``-inf`` stays."""
    closed = logits.isneginf()
    unit = functional.normalize(logits.masked_fill(closed, 0.0), dim=-1)
    return unit.masked_fill(closed, -torch.inf)
