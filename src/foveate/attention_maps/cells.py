"""Attention over the cells of glimpses: what all methods that sample share.

A *field* holds, for every image of a batch, one probability per cell. An image's cells may belong
to several lattices, one per magnification, that follow each other.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.batch import Batch, LoadedImage, Patches, View
from foveate.cache import ByteCache
from foveate.encoders.base import AbstractEncoder
from foveate.geometry import Lattice
from foveate.images.evidence import Floats
from foveate.images.tiling import LEAST_FOREGROUND, cell_means
from foveate.nn.attention import masked_softmax
from foveate.nn.sampling import (
    expectation,
    kl_divergences,
    select_strongest,
    smoothed_log_softmax,
)

Inference = Literal["top", "expectation"]

CONVOLUTIONS: Mapping[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
"""By the axes of an image."""

_KEPT_PRIORS_BYTES = 1 << 26
_FAINTEST_PRIOR = 1e-3
"""Of a cell that holds some foreground, relative to one of the strongest contrast."""


@dataclass(frozen=True)
class Grid:
    """The cells of one image at one magnification.

    Attributes:
        lattice: where they lie.
        scale: side of the patch that a cell stands for, in sides of the finest.
        log_prior: ``(cells,)``, not normalised: what is known before anything is learnt; ``-inf``
            on cells that take no part.
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
        real: ``(b, k)``, False on padding, on cells without foreground that are left out, and on
            those of grids that are.
    """

    grids: list[list[Grid]]
    log_a: Tensor
    log_prior: Tensor
    real: Tensor

    def patches(
        self,
        batch: Batch,
        index: Tensor,
        *,
        jitter: bool,
        used: Tensor | None = None,
        owner: Sequence[int] | None = None,
    ) -> list[Patches]:
        """Patches at cells ``(b, n)``, those of padding left out.

        Args:
            batch: whose images they are cut from.
            index: of cells.
            jitter: centres lie anywhere in their cells, else in the middle.
            used: ``(b, n)``, False leaves a cell out too.
            owner: which image each row of cells lies in, where rows are parts of images; else row
                i is image i.
        """
        valid = self.real.gather(1, index)
        valid = (valid if used is None else valid & used).cpu()
        moved = jitter and not batch.frozen
        chosen = index.cpu()
        return [
            _place(batch, i if owner is None else owner[i], grids, row[real].numpy(), moved)
            for i, (grids, row, real) in enumerate(zip(self.grids, chosen, valid, strict=True))
        ]

    def level(self, index: Tensor) -> Tensor:
        """Which of the grids each cell ``(b, n)`` belongs to, counted from 0."""
        ends = [np.cumsum([len(g.log_prior) for g in grids]) for grids in self.grids]
        rows = [
            torch.bucketize(row, torch.from_numpy(end).to(row.device), right=True)
            for row, end in zip(index, ends, strict=True)
        ]
        return torch.stack(rows).clamp_max(len(self.grids[0]) - 1)

    def shares(self) -> Tensor:
        """Attention that each grid holds, ``(b, grids)``; rows sum to 1."""
        rows = []
        for row, grids in zip(self.log_a.exp(), self.grids, strict=True):
            sizes = [len(g.log_prior) for g in grids]
            parts = row[: sum(sizes)].split(sizes)
            rows.append(torch.stack([part.sum() for part in parts]))
        return torch.stack(rows)


def build_field(
    scores: Sequence[Sequence[Tensor]],
    grids: list[list[Grid]],
    *,
    smoothing: float,
    explore: float = 0.0,
    kept: Sequence[bool] | None = None,
) -> Field:
    """The field of learnt scores added to the prior.

    Args:
        scores: per image and grid, ``(cells,)``.
        grids: of the same images.
        smoothing: share of attention spread evenly over all cells.
        explore: share of attention that follows the prior whatever was learnt.
        kept: which grids take part; cells of the others are as padding. All by default.
    """
    priors = [torch.cat([g.log_prior for g in each]) for each in grids]
    logits = [torch.cat(list(s)).float() + p for s, p in zip(scores, priors, strict=True)]
    k = max(len(row) for row in logits)
    stacked, prior = (
        torch.stack([functional.pad(row, (0, k - len(row))) for row in each])
        for each in (logits, priors)
    )
    real = torch.stack([_real(each, kept, k) for each in grids]).to(stacked.device)
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
        background: probability of a cell without foreground, relative to one of the strongest
            contrast; 0 leaves it out, unless the image has no others.

    Returns:
        ``(cells,)``, ``-inf`` on those left out; at least one is not.
    """
    spacing = view.glimpse_spacing_um
    share = cell_means((item.contrast > 0).astype(np.float64), lattice, spacing_um=spacing)
    means = share
    if power > 0:
        means = cell_means(item.contrast.astype(np.float64), lattice, spacing_um=spacing)
    shape = np.clip(means / max(means.max(), 1e-9), 0, 1) ** (power or 1.0)
    prior = np.maximum(shape, max(background, _FAINTEST_PRIOR))
    is_foreground = share >= LEAST_FOREGROUND
    if is_foreground.any():
        prior[~is_foreground] = background
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(prior)).float().flatten()


class Priors:
    """Grids with the contrast prior, kept from one step to the next.

    Args:
        power: as in `contrast_prior`.
        background: likewise.
    """

    def __init__(self, *, power: float, background: float) -> None:
        self._power, self._background = power, background
        self._kept: ByteCache[Grid] = ByteCache(_KEPT_PRIORS_BYTES)

    def grid(self, batch: Batch, i: int, lattice: Lattice, scale: float = 1.0) -> Grid:
        """The cells of image i on this lattice, each for a patch of this scale."""
        item, view = batch.items[i], batch.view
        key = (item.image.path, view, lattice, scale, batch.device)
        found = self._kept.get(key)
        if found is None:
            prior = contrast_prior(
                item, lattice, view, power=self._power, background=self._background
            )
            found = Grid(lattice, scale, prior.to(batch.device))
            self._kept.put(key, found, prior.numel() * 4)
        return found


class Spread(nn.Module):
    """Keeps attention from collapsing: a weight on its divergence from the prior.

    An image's weight grows with the mass that its drawn patches hold. Attention that is
    concentrated on fewer cells than are drawn explores nothing and over-fits.

    Args:
        weight: of the divergence. Its sign is such that adding the loss spreads attention.
        mass: share of attention that the drawn patches should hold at most; above it the weight
            grows, up to a hundredfold.
    """

    held: Tensor

    def __init__(self, *, weight: float, mass: float) -> None:
        super().__init__()
        self.weight, self.mass = weight, mass
        self.register_buffer("held", torch.zeros(()))

    def forward(self, field: Field, a: Tensor) -> Tensor:
        """The loss, from the attention ``(b, n)`` of the cells that were drawn."""
        held = a.detach().sum(1)
        excess = (held - self.mass).clamp_min(0) / max(1 - self.mass, 1e-6)
        self.held = held.mean()
        divergence = kl_divergences(field.log_a, field.log_prior)
        return self.weight * ((1 + 99 * excess) * divergence).mean()


def draw_settled(batch: Batch, field: Field, n: int, *, by_prior: bool = False) -> Tensor:
    """Draw n different cells of each image, always the same ones of the same image.

    Gumbel noise comes from a generator of the image's own, begun at a checksum of its glimpse, so
    that neither the global generator nor the rest of the batch has a say.

    Args:
        batch: of the images.
        field: of the cells.
        n: how many of each image.
        by_prior: as likely as before anything was learnt, not as attention weighs them.

    Returns:
        ``(b, min(n, k))`` indices in the order of drawing, padding last.
    """
    log_p = field.log_prior if by_prior else field.log_a
    noise = torch.zeros(log_p.shape, dtype=torch.float64)
    for row, item, grids in zip(noise, batch.items, field.grids, strict=True):
        generator = torch.Generator().manual_seed(zlib.crc32(item.glimpse.tobytes()))
        cells = sum(len(g.log_prior) for g in grids)
        uniform = torch.rand(cells, dtype=torch.float64, generator=generator)
        row[:cells] = -torch.log(-torch.log(uniform.clamp(1e-300, 1 - 1e-16)))
    perturbed = log_p.detach().double() + noise.to(log_p.device)
    return perturbed.topk(min(n, perturbed.shape[1]), dim=-1).indices


def choose_settled(batch: Batch, field: Field, n: int, inference: Inference) -> Tensor:
    """The cells ``(b, n)`` that are looked at in evaluation, padding last."""
    if inference == "top":
        return select_strongest(field.log_a, n)[0]
    return draw_settled(batch, field, n)


def weigh_settled(log_a: Tensor, valid: Tensor, inference: Inference) -> Tensor:
    """What each of them weighs in the estimate, ``(b, n)``; rows sum to 1.

    Args:
        log_a: ``(b, n)`` attention of the cells, in their order.
        valid: ``(b, n)``.
        inference: how they were chosen.
    """
    if inference == "top":
        return masked_softmax(log_a, valid)
    each = torch.eye(log_a.shape[1], dtype=log_a.dtype, device=log_a.device)
    return expectation(log_a.exp() * valid, each.expand(len(log_a), -1, -1), valid)


def of_equal_length(f: Tensor) -> Tensor:
    """Vectors ``(…, d)`` scaled to the length ``sqrt(d)``, so that components are of the order 1.

    With features of equal length, drawing cells as attention weighs them is the draw of least
    variance. The paper takes the length 1; a linear layer behind it then begins with logits near 0
    and learns more slowly.
    """
    scaled: Tensor = functional.normalize(f, dim=-1) * f.shape[-1] ** 0.5
    return scaled


def pixel_lattice(shape: Sequence[int], spacing_um: float) -> Lattice:
    """One cell per pixel of an image of this spacing, from its corner."""
    n = len(shape)
    return Lattice((0.0,) * n, (spacing_um,) * n, tuple(shape))


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

    def __init__(
        self, dims: Sequence[int], *, axes: int = 2, hidden: int = 32, levels: int = 1
    ) -> None:
        super().__init__()
        conv = CONVOLUTIONS[axes]
        self.project = nn.ModuleList(conv(d, hidden, 1) for d in dims)
        self.score = nn.ModuleList(conv(hidden, 1, 1) for _ in range(levels))
        for parameter in self.score.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: list[Tensor], stage: int, level: int = 0) -> Tensor:
        """Scores ``(b, *space)`` on the map of a stage, from maps ``(b, c, *space)``."""
        mixed = self.project[stage](maps[stage])
        for i in range(stage + 1, len(maps)):
            coarse = self.project[i](maps[i])
            mixed = mixed + functional.interpolate(coarse, mixed.shape[2:], mode="nearest")
        score: Tensor = self.score[level](functional.relu(mixed))[:, 0]
        return score.float()


def _real(grids: Sequence[Grid], kept: Sequence[bool] | None, k: int) -> Tensor:
    """``(k,)``, True on cells of the grids that take part."""
    row = torch.zeros(k, dtype=torch.bool)
    begin = 0
    for j, grid in enumerate(grids):
        end = begin + len(grid.log_prior)
        if kept is None or kept[j]:
            row[begin:end] = ~grid.log_prior.isneginf().cpu()
        begin = end
    return row


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
        centre = _centres(grid.lattice, index[own] - begin, batch.generators[i] if jitter else None)
        placed = batch.place(i, centre, scale=grid.scale)
        origin[own], side[own] = placed.origin_um, placed.side_um
        begin = end
    return Patches(origin, side)


def _centres(
    lattice: Lattice,
    index: np.ndarray[tuple[int], np.dtype[np.int64]],
    generator: torch.Generator | None,
) -> Floats:
    """Places ``(n, d)`` in cells, drawn from a generator; without one, in the middle."""
    cells = np.stack(np.unravel_index(index, lattice.shape), -1)
    inside = np.full(cells.shape, 0.5)
    if generator is not None:
        inside = torch.rand(cells.shape, generator=generator).numpy().astype(np.float64)
    place = (cells + inside).astype(np.float64) * np.asarray(lattice.cell_um)
    centres: Floats = np.asarray(lattice.origin_um) + place
    return centres
