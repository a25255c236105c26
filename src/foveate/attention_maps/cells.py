"""Attention over the cells of glimpses: the code that all sampling methods share.

A *field* holds, for every image of a batch, one probability per cell. An image's cells may belong
to several lattices, one per magnification, that follow each other.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from foveate.batch import Batch, LoadedImage, Patches, View
from foveate.cache import ByteCache
from foveate.geometry.lattice import Lattice, points_um_from_cell
from foveate.images.evidence import Floats
from foveate.images.tiling import MIN_FOREGROUND, cell_means
from foveate.nn.attention import masked_softmax
from foveate.nn.sampling import (
    expectation,
    kl_divergences,
    select_strongest,
    smoothed_log_softmax,
)

Inference = Literal["top", "expectation"]

_PRIOR_CACHE_BYTES = 1 << 26
_FAINTEST_PRIOR = 1e-3
"""Least prior of a cell that holds some foreground; a cell of the strongest contrast has 1."""


@dataclass(frozen=True)
class Grid:
    """The cells of one image at one magnification.

    Attributes:
        lattice: places of the cells.
        scale: side of the patch that a cell stands for, in sides of the finest patch.
        log_prior: log of the prior ``(cells,)``, not normalised; ``-inf`` on cells that take no
            part.
    """

    lattice: Lattice
    scale: float
    log_prior: Float[Tensor, " cells"]


@dataclass(frozen=True)
class Field:
    """Attention over all cells of each image of a batch.

    Attributes:
        grids: grids of each image, in the order of the cells.
        log_a: log attention ``(b, k)``, ``-inf`` where not `real`.
        log_prior: log prior ``(b, k)``, normalised, ``-inf`` where not `real`.
        real: attention mask ``(b, k)``: False on padding, on cells without foreground that are
            left out, and on cells of grids that are left out.
    """

    grids: list[list[Grid]]
    log_a: Float[Tensor, "b k"]
    log_prior: Float[Tensor, "b k"]
    real: Bool[Tensor, "b k"]

    def patches(
        self,
        batch: Batch,
        index: Int[Tensor, "b n"],
        *,
        jitter: bool,
        used: Bool[Tensor, "b n"] | None = None,
        owner: Sequence[int] | None = None,
    ) -> list[Patches]:
        """Place a patch on each cell; cells of padding are left out.

        Args:
            batch: the images that patches are cut from.
            index: indices of cells ``(b, n)``.
            jitter: patches lie anywhere in their cells, else in the middle.
            used: ``(b, n)``, False leaves a cell out too.
            owner: index of the image of each row, where rows are parts of images; by default row
                i is image i.

        Returns:
            the patches of each row.
        """
        valid = self.real.gather(1, index)
        valid = (valid if used is None else valid & used).cpu()
        moved = jitter and not batch.frozen
        chosen = index.cpu()
        return [
            _place(batch, i if owner is None else owner[i], grids, row[real].numpy(), moved)
            for i, (grids, row, real) in enumerate(zip(self.grids, chosen, valid, strict=True))
        ]

    def level(self, index: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
        """Return the number, from 0, of the grid that each cell ``(b, n)`` belongs to."""
        ends = [np.cumsum([len(g.log_prior) for g in grids]) for grids in self.grids]
        rows = [
            torch.bucketize(row, torch.from_numpy(end).to(row.device), right=True)
            for row, end in zip(index, ends, strict=True)
        ]
        return torch.stack(rows).clamp_max(len(self.grids[0]) - 1)

    def shares(self) -> Float[Tensor, "b grids"]:
        """Sum up the attention in each grid: ``(b, grids)``; rows sum to 1."""
        rows = []
        for row, grids in zip(self.log_a.exp(), self.grids, strict=True):
            sizes = [len(g.log_prior) for g in grids]
            parts = row[: sum(sizes)].split(sizes)
            rows.append(torch.stack([part.sum() for part in parts]))
        return torch.stack(rows)


def build_field(
    scores: Sequence[Sequence[Float[Tensor, " _cells"]]],
    grids: list[list[Grid]],
    *,
    smoothing: float,
    explore: float = 0.0,
    active: Sequence[bool] | None = None,
) -> Field:
    """Build the attention of a batch from learnt scores that are added to the prior.

    Args:
        scores: scores ``(cells,)`` of each image and grid.
        grids: grids of the same images.
        smoothing: share of attention spread evenly over all cells.
        explore: share of attention that follows the prior whatever was learnt.
        active: whether each grid takes part; cells of the others count as padding. All by default.
    """
    priors = [torch.cat([g.log_prior for g in row]) for row in grids]
    logits = [torch.cat(list(s)).float() + p for s, p in zip(scores, priors, strict=True)]
    k = max(len(row) for row in logits)
    stacked, prior = (
        torch.stack([functional.pad(row, (0, k - len(row))) for row in rows])
        for rows in (logits, priors)
    )
    real = torch.stack([_mask_cells(row, active, k) for row in grids]).to(stacked.device)
    log_a = smoothed_log_softmax(stacked, real, smoothing=smoothing)
    log_prior = smoothed_log_softmax(prior, real, smoothing=smoothing)
    if explore > 0:
        share = torch.tensor(explore, dtype=log_a.dtype)
        learnt = log_a.masked_fill(~real, 0.0) + torch.log1p(-share)
        known = log_prior.masked_fill(~real, 0.0) + share.log()
        log_a = torch.logaddexp(learnt, known).masked_fill(~real, -torch.inf)
    return Field(grids, log_a, log_prior, real)


def compute_contrast_prior(
    item: LoadedImage, lattice: Lattice, view: View, *, power: float, background: float
) -> Float[Tensor, " cells"]:
    """Compute the log prior of cells: the logarithm of a power of their contrast.

    Args:
        item: the image.
        lattice: places of the cells.
        view: geometry in which the glimpse was read.
        power: exponent of the contrast; 0 tells only foreground from background.
        background: prior of a cell without foreground, relative to a cell of the strongest
            contrast; 0 leaves such cells out, unless the image has no others.

    Returns:
        log prior ``(cells,)``, ``-inf`` on cells left out; at least one is finite.
    """
    spacing_um = view.glimpse_spacing_um
    share = cell_means((item.contrast > 0).astype(np.float64), lattice, spacing_um=spacing_um)
    means = share
    if power > 0:
        means = cell_means(item.contrast.astype(np.float64), lattice, spacing_um=spacing_um)
    shape = np.clip(means / max(means.max(), 1e-9), 0, 1) ** (power or 1.0)
    prior = np.maximum(shape, max(background, _FAINTEST_PRIOR))
    is_foreground = share >= MIN_FOREGROUND
    if is_foreground.any():
        prior[~is_foreground] = background
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(prior)).float().flatten()


class PriorCache:
    """Grids with the contrast prior, stored from one step to the next.

    Args:
        power: exponent of the contrast, as in `compute_contrast_prior`.
        background: prior of the background, as in `compute_contrast_prior`.
    """

    def __init__(self, *, power: float, background: float) -> None:
        self._power, self._background = power, background
        self._grids: ByteCache[Grid] = ByteCache(_PRIOR_CACHE_BYTES)

    def grid(self, batch: Batch, i: int, lattice: Lattice, scale: float = 1.0) -> Grid:
        """Return the grid of image i on a lattice whose cells stand for patches of a scale.

        Args:
            batch: the images.
            i: index of the image.
            lattice: places of the cells.
            scale: side of the patches that cells stand for, relative to the view's.
        """
        item, view = batch.items[i], batch.view
        key = (item.image.path, view, lattice, scale, batch.device)
        grid = self._grids.get(key)
        if grid is None:
            prior = compute_contrast_prior(
                item, lattice, view, power=self._power, background=self._background
            )
            grid = Grid(lattice, scale, prior.to(batch.device))
            self._grids.put(key, grid, prior.numel() * 4)
        return grid


class Spread(nn.Module):
    """A penalty on attention's divergence from its prior, which keeps it from collapsing.

    An image's weight grows with the attention that its drawn patches hold. Attention that is
    concentrated on fewer cells than are drawn explores nothing and over-fits.

    Args:
        weight: factor of the divergence. Adding the penalty to the loss spreads attention.
        mass: share of attention that the drawn patches should hold at most; above it the weight
            grows, up to a hundredfold.
    """

    held: Tensor

    def __init__(self, *, weight: float, mass: float) -> None:
        super().__init__()
        self.weight, self.mass = weight, mass
        self.register_buffer("held", torch.zeros(()))

    def forward(self, field: Field, a: Float[Tensor, "b n"]) -> Float[Tensor, ""]:
        """Compute the penalty, a scalar.

        Args:
            field: attention over all cells.
            a: attention ``(b, n)`` of the cells that were drawn.
        """
        drawn_mass = a.detach().sum(1)
        excess = (drawn_mass - self.mass).clamp_min(0) / max(1 - self.mass, 1e-6)
        self.held = drawn_mass.mean()
        divergence = kl_divergences(field.log_a, field.log_prior)
        return self.weight * ((1 + 99 * excess) * divergence).mean()


def draw_reproducibly(
    batch: Batch, field: Field, n: int, *, by_prior: bool = False
) -> Int[Tensor, "b m"]:
    """Draw n different cells of each image, always the same cells of the same image.

    Gumbel noise comes from a generator that is seeded by a checksum of the image's glimpse, so
    that it depends neither on the global generator nor on the rest of the batch.

    Args:
        batch: the images.
        field: attention over the cells.
        n: number of cells of each image.
        by_prior: draw with the probabilities of the prior instead of those of attention.

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


def choose_for_evaluation(
    batch: Batch, field: Field, n: int, inference: Inference
) -> Int[Tensor, "b m"]:
    """Choose n cells of each image in evaluation: indices ``(b, n)``, padding last.

    Args:
        batch: the images.
        field: attention over the cells.
        n: cells per image.
        inference: ``top`` for the strongest cells; otherwise cells are drawn, always the same ones.
    """
    if inference == "top":
        return select_strongest(field.log_a, n)[0]
    return draw_reproducibly(batch, field, n)


def weigh_for_evaluation(
    log_a: Float[Tensor, "b n"], valid: Bool[Tensor, "b n"], inference: Inference
) -> Float[Tensor, "b n"]:
    """Compute the weight of each chosen cell in the estimate, ``(b, n)``; rows sum to 1.

    Args:
        log_a: log attention ``(b, n)`` of the cells, in the order in which they were chosen.
        valid: ``(b, n)``, False on padding.
        inference: rule by which the cells were chosen.
    """
    if inference == "top":
        return masked_softmax(log_a, valid)
    one_hot = torch.eye(log_a.shape[1], dtype=log_a.dtype, device=log_a.device)
    return expectation(log_a.exp() * valid, one_hot.expand(len(log_a), -1, -1), valid)


def scale_to_equal_length(f: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    """Scale vectors ``(…, d)`` to the length ``sqrt(d)``, so that components are of the order 1.

    With features of equal length, drawing cells with the probabilities of attention has the least
    variance. The paper takes the length 1; a linear layer behind it then begins with logits near 0
    and learns more slowly.
    """
    scaled: Tensor = functional.normalize(f, dim=-1) * f.shape[-1] ** 0.5
    return scaled


def _mask_cells(grids: Sequence[Grid], active: Sequence[bool] | None, k: int) -> Bool[Tensor, " k"]:
    """Return ``(k,)``, True on cells that take part, of the grids that are active."""
    row = torch.zeros(k, dtype=torch.bool)
    begin = 0
    for j, grid in enumerate(grids):
        end = begin + len(grid.log_prior)
        if active is None or active[j]:
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
    """Place patches on cells of one image, in the order of `index`."""
    ndim = batch.items[i].image.ndim
    origin_um, side_um = np.zeros((len(index), ndim)), np.ones(len(index))
    begin = 0
    for grid in grids:
        end = begin + len(grid.log_prior)
        inside = (index >= begin) & (index < end)
        generator = batch.generators[i] if jitter else None
        centre = _place_centres(grid.lattice, index[inside] - begin, generator)
        placed = batch.place(i, centre, scale=grid.scale)
        origin_um[inside], side_um[inside] = placed.origin_um, placed.side_um
        begin = end
    return Patches(origin_um, side_um)


def _place_centres(
    lattice: Lattice,
    index: np.ndarray[tuple[int], np.dtype[np.int64]],
    generator: torch.Generator | None,
) -> Floats:
    """Draw a place ``(n, d)`` in each cell; without a generator, take its middle."""
    cells = np.stack(np.unravel_index(index, lattice.shape), -1)
    inside = np.full(cells.shape, 0.5)
    if generator is not None:
        inside = torch.rand(cells.shape, generator=generator).numpy().astype(np.float64)
    return points_um_from_cell(cells + inside, lattice)
