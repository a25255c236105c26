"""Attention over the cells of glimpses: what all methods that sample share.

A *field* holds, for every image of a batch, one probability per cell. An image's cells may belong
to several lattices, one per magnification, that follow each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.batch import Batch, LoadedImage, Patches, View
from foveate.encoders.base import AbstractEncoder
from foveate.evidence import Floats
from foveate.geometry import Lattice
from foveate.nn.sampling import smoothed_log_softmax
from foveate.tiling import cell_means


@dataclass(frozen=True)
class Grid:
    """The cells of one image at one magnification.

    Attributes:
        lattice: where they lie.
        scale: side of the patch that a cell stands for, in sides of the finest.
        log_prior: ``(cells,)``, not normalised: what is known before anything is learnt.
    """

    lattice: Lattice
    scale: float
    log_prior: Tensor


@dataclass(frozen=True)
class Field:
    """Attention over all cells of each image of a batch.

    Attributes:
        grids: per image, its lattices in the order of the cells.
        log_a: ``(b, k)``, ``-inf`` on padding.
        log_prior: ``(b, k)`` likewise, normalised.
        real: ``(b, k)``, False on padding.
    """

    grids: list[list[Grid]]
    log_a: Tensor
    log_prior: Tensor
    real: Tensor

    def patches(self, batch: Batch, index: Tensor, *, jitter: bool) -> list[Patches]:
        """Patches at cells ``(b, n)``, those of padding left out.

        Args:
            batch: whose images they are cut from.
            index: of cells.
            jitter: centres lie anywhere in their cells, else in the middle.
        """
        valid = self.real.gather(1, index).cpu()
        chosen = index.cpu()
        return [
            _place(batch, i, grids, chosen[i][valid[i]].numpy(), jitter)
            for i, grids in enumerate(self.grids)
        ]

    def level(self, index: Tensor) -> Tensor:
        """Which of the grids each cell ``(b, n)`` belongs to, counted from 0."""
        ends = [np.cumsum([len(g.log_prior) for g in grids]) for grids in self.grids]
        rows = [
            torch.bucketize(row, torch.from_numpy(end).to(row.device), right=True)
            for row, end in zip(index, ends, strict=True)
        ]
        return torch.stack(rows).clamp_max(len(self.grids[0]) - 1)


def build_field(
    scores: Sequence[Sequence[Tensor]],
    grids: list[list[Grid]],
    *,
    smoothing: float,
    explore: float = 0.0,
) -> Field:
    """The field of learnt scores added to the prior.

    Args:
        scores: per image and grid, ``(cells,)``.
        grids: of the same images.
        smoothing: share of attention spread evenly over all cells.
        explore: share of attention that follows the prior whatever was learnt.
    """
    priors = [torch.cat([g.log_prior for g in each]) for each in grids]
    logits = [torch.cat(list(s)).float() + p for s, p in zip(scores, priors, strict=True)]
    k = max(len(row) for row in logits)
    stacked, prior = (
        torch.stack([functional.pad(row, (0, k - len(row))) for row in each])
        for each in (logits, priors)
    )
    lengths = torch.tensor([len(row) for row in logits], device=stacked.device)
    real = torch.arange(k, device=stacked.device) < lengths[:, None]
    log_a = smoothed_log_softmax(stacked, real, smoothing=smoothing)
    log_prior = smoothed_log_softmax(prior, real, smoothing=smoothing)
    if explore > 0:
        share = torch.tensor(explore, dtype=log_a.dtype)
        learnt = log_a.masked_fill(~real, 0.0) + torch.log1p(-share)
        known = log_prior.masked_fill(~real, 0.0) + share.log()
        log_a = torch.logaddexp(learnt, known).masked_fill(~real, -torch.inf)
    return Field(grids, log_a, log_prior, real)


def contrast_prior(
    item: LoadedImage, lattice: Lattice, view: View, *, power: float, background: float
) -> Tensor:
    """How likely cells are before anything is learnt: as their contrast to this power; the log.

    Args:
        item: the image.
        lattice: of cells.
        view: of the glimpse.
        power: 0 leaves foreground and background only.
        background: least probability, relative to a cell of the strongest contrast.

    Returns:
        ``(cells,)``.
    """
    seen = item.contrast if power > 0 else item.contrast > 0
    means = cell_means(seen.astype(np.float64), lattice, spacing_um=view.glimpse_spacing_um)
    shape = np.clip(means / max(means.max(), 1e-9), 0, 1) ** (power or 1.0)
    return torch.from_numpy(np.log(np.maximum(shape, background))).float().flatten()


def map_lattice(
    encoder: AbstractEncoder, stage: int, shape: Sequence[int], spacing_um: float
) -> Lattice:
    """Where the cells of an encoder's map of an image of this spacing lie, from its corner."""
    cell = encoder.strides[stage] * spacing_um
    corner = encoder.map_centres[stage] * spacing_um - cell / 2
    return Lattice((corner,) * len(shape), (cell,) * len(shape), tuple(shape))


def stage_for(encoder: AbstractEncoder, spacing_um: float, side_um: float) -> int:
    """The coarsest map whose cells are no larger than this side; else the finest."""
    fitting = [i for i, s in enumerate(encoder.strides) if s * spacing_um <= side_um * (1 + 1e-6)]
    return fitting[-1] if fitting else 0


class MapScores(nn.Module):
    """One score per cell from the encoder's maps: the chosen one and all coarser ones.

    All scores are 0 at the beginning, so that attention begins at its prior.
    """

    def __init__(self, dims: Sequence[int], *, hidden: int = 32, levels: int = 1) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(d, hidden, 1) for d in dims)
        self.score = nn.ModuleList(nn.Conv2d(hidden, 1, 1) for _ in range(levels))
        for parameter in self.score.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: list[Tensor], stage: int, level: int = 0) -> Tensor:
        """Scores ``(b, h, w)`` on the map of a stage, from maps ``(b, c, h, w)``."""
        mixed = self.project[stage](maps[stage])
        for i in range(stage + 1, len(maps)):
            coarse = self.project[i](maps[i])
            mixed = mixed + functional.interpolate(coarse, mixed.shape[-2:], mode="nearest")
        score: Tensor = self.score[level](functional.relu(mixed))[:, 0]
        return score.float()


def _place(
    batch: Batch,
    i: int,
    grids: Sequence[Grid],
    index: np.ndarray[tuple[int], np.dtype[np.int64]],
    jitter: bool,
) -> Patches:
    """Patches at cells of one image, in the order of `index`."""
    ndim = batch.items[i].image.ndim
    origin, side = np.zeros((len(index), ndim)), np.ones(len(index))
    begin = 0
    for grid in grids:
        end = begin + len(grid.log_prior)
        own = (index >= begin) & (index < end)
        centre = _centres(grid.lattice, index[own] - begin, jitter)
        placed = batch.place(i, centre, scale=grid.scale)
        origin[own], side[own] = placed.origin_um, placed.side_um
        begin = end
    return Patches(origin, side)


def _centres(
    lattice: Lattice, index: np.ndarray[tuple[int], np.dtype[np.int64]], jitter: bool
) -> Floats:
    cells = np.stack(np.unravel_index(index, lattice.shape), -1)
    inside = torch.rand(cells.shape).numpy() if jitter else np.full(cells.shape, 0.5)
    place = (cells + inside).astype(np.float64) * np.asarray(lattice.cell_um)
    centres: Floats = np.asarray(lattice.origin_um) + place
    return centres
