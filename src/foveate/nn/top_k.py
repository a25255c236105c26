"""Perturbed top-k: a differentiable choice of k cells, in the memory of the cells it chooses.

The choice is smoothed by noise on the scores: the weights of the cells are the mean over noise
samples of k one-hot rows. Rows are sorted by the position of their cells, not by score, so that a
row stays with its cell while scores change.

Source: Cordonnier et al., "Differentiable Patch Selection for Image Recognition", CVPR 2021, after
Berthet et al., "Learning with Differentiable Perturbed Optimizers", NeurIPS 2020. Where we differ:
published backward passes use only the diagonal of the Jacobian, or multiply it by k; here all of it
is used, without bias (``tests/reference/test_top_k.py``). The noise of a cell is replaced by its
mean given the chosen set. This lowers the variance several times, gives no gradient to cells out of
reach, and needs no noise to be stored. The one-hot rows cover only cells that some sample chose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from foveate.errors import OptionError
from foveate.nn.generators import Generators

_AT_ONCE = 2**20
"""Cells times samples computed at a time: 4 MiB in float32, or one sample if that is more."""

_REACH = 8.0
"""Standard deviations that noise is assumed not to exceed: the probability is 1e-15."""


@dataclass(frozen=True)
class TopK:
    """The cells that a perturbed top-n chooses, and how often it chooses each.

    Args:
        index: cells that at least one noise sample chose, ``(b, u)``, by position; 0 for padding.
        used: False for padding, ``(b, u)`` bool.
        weight: share of the samples in which the i-th chosen cell by position is this cell,
            ``(b, n, u)``. Rows sum to 1, to less where `keep` dropped cells, and to 0 beyond the
            number of an image's valid cells.
    """

    index: Int[Tensor, "b u"]
    used: Bool[Tensor, "b u"]
    weight: Float[Tensor, "b n u"]


def perturbed_top_k(
    scores: Float[Tensor, "b k"],
    n: int,
    *,
    sigma: float,
    samples: int = 500,
    valid: Bool[Tensor, "b k"] | None = None,
    keep: int | None = None,
    generators: Generators | None = None,
) -> TopK:
    """Choose the cells of the n highest scores, smoothed by noise so that scores get a gradient.

    With noise ``z``, one-hot rows ``Y(scores + sigma z)`` and ``s = <dL/dweight, Y>``, the gradient
    of the smoothed choice is the covariance of ``s`` and ``z``, divided by sigma. ``s`` depends on
    ``z`` through the chosen set alone. So ``z_i`` is replaced by its mean given the chosen set and
    the noise of all cells on the other side of the border. A cell i that is not chosen lies below
    the lowest chosen value ``t``, so its mean noise is ``-phi(x) / Phi(x)`` at ``x = (t - scores_i)
    / sigma``. A chosen cell lies above the highest value ``t`` that is not chosen, so its mean
    noise is ``phi(x) / Phi(x)`` at ``x = (scores_i - t) / sigma``.

    Aggregate features by ``weight @ features``, which needs those of the cells in `index` alone.

    Args:
        scores: scores of the cells, ``(b, k)``, on a scale that `sigma` refers to (DPS normalises
            them to 0…1).
        n: number of cells to choose, at most k.
        sigma: standard deviation of the noise. 0 gives the hard top-n of inference, without
            gradient, and ties by position.
        samples: number of noise samples, at least 2.
        valid: False for padding, which is never chosen, ``(b, k)`` bool; None for all valid.
        keep: largest number of cells in `index`: those that are chosen most often. The weight of
            the others is dropped from the rows of `weight`: it is ``1 - weight.sum(-1)``. The
            gradient is that of the remaining weights. None drops none.
        generators: sources of the noise, one per row; None for torch's global one.

    Returns:
        The cells and their weights. For the gradient, the scores and ``b * samples * n`` positions
        are stored.

    Raises:
        OptionError: `sigma` is negative, or `samples` is less than 2.
    """
    if sigma < 0 or (sigma > 0 and samples < 2):
        raise OptionError(f"sigma {sigma}, samples {samples}: need sigma >= 0 and samples >= 2")
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    valid = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid
    n = min(n, scores.shape[1])
    with torch.no_grad():
        masked = scores.masked_fill(~valid, -torch.inf)
        if sigma == 0:
            chosen, border = _choose_hard(masked, n)
        else:
            chosen, border = _choose(masked, n, sigma, samples, generators)
        index, used, column = _union(chosen, scores.shape[1], keep)
    if sigma == 0 or not scores.requires_grad:
        return TopK(index, used, _frequency(column, index.shape[1], scores.dtype))
    weight: Tensor = _Perturbed.apply(
        scores, valid, chosen.int(), border, column, index.shape[1], sigma
    )
    return TopK(index, used, weight)


def _choose_hard(
    masked: Float[Tensor, "b k"], n: int
) -> tuple[Int[Tensor, "b 1 n"], Float[Tensor, "b 1 2"]]:
    """Choose the top n of scores ``(b, k)``, ties by position, as the one sample of `_choose`."""
    top = masked.sort(dim=-1, descending=True, stable=True)
    chosen = _sort_by_position(top.indices[:, None, :n], masked)
    return chosen, masked.new_zeros(len(masked), 1, 2)


def _choose(
    masked: Float[Tensor, "b k"], n: int, sigma: float, samples: int, generators: Generators | None
) -> tuple[Int[Tensor, "b samples n"], Float[Tensor, "b samples 2"]]:
    """Choose the top n of noisy scores in each noise sample.

    Args:
        masked: scores, ``(b, k)``; ``-inf`` for padding.
        n: number of cells to choose.
        sigma: standard deviation of the noise.
        samples: number of noise samples.
        generators: sources of the noise, one per row; None for torch's global one.

    Returns:
        The chosen cells by position, ``(b, samples, n)``, k in place of padding; and the borders of
        the choices ``(b, samples, 2)``: the lowest chosen value and the highest value that is not
        chosen, ``-inf`` where there is none.
    """
    b, k = masked.shape
    border = masked.new_full((b, samples, 2), -torch.inf)
    chosen = torch.empty(b, samples, n, dtype=torch.int64, device=masked.device)
    part = max(1, _AT_ONCE // max(1, masked.numel()))
    for start in range(0, samples, part):
        rows = slice(start, min(start + part, samples))
        noise = _noise(masked, rows.stop - start, generators)
        top = noise.mul_(sigma).add_(masked[:, None]).topk(min(n + 1, k), dim=-1)
        border[:, rows, : top.values.shape[-1] - n + 1] = top.values[..., n - 1 :]
        chosen[:, rows] = _sort_by_position(top.indices[..., :n], masked)
    return chosen, border


def _noise(
    masked: Float[Tensor, "b k"], samples: int, generators: Generators | None
) -> Float[Tensor, "b samples k"]:
    """Draw standard normal numbers ``(b, samples, k)``; a row's depend on its own cells alone."""
    b, k = masked.shape
    if generators is None:
        return torch.randn(b, samples, k, dtype=masked.dtype, device=masked.device)
    numbers = torch.zeros(b, samples, k, dtype=masked.dtype)
    cells = (masked > -torch.inf).int().cumsum(1).argmax(1).cpu() + 1
    for row, n, generator in zip(numbers, cells.tolist(), generators, strict=True):
        for sample in row:  # by samples: how many are drawn at once depends on other rows
            sample[:n] = torch.randn(n, dtype=masked.dtype, generator=generator)
    return numbers.to(masked.device)


def _sort_by_position(
    top: Int[Tensor, "b samples n"], masked: Float[Tensor, "b k"]
) -> Int[Tensor, "b samples n"]:
    """Sort cells ``(b, samples, n)`` by position, with k in place of those of score ``-inf``."""
    padding = masked.gather(1, top.flatten(1)).isneginf().view_as(top)
    return top.masked_fill(padding, masked.shape[1]).sort(dim=-1).values


class _Union(NamedTuple):
    """The cells that any sample chose.

    Attributes:
        cells: the cells, ``(b, u)``; 0 for padding.
        used: False for padding, ``(b, u)``.
        column: column of each choice in `cells`, ``(b, samples, n)`` int32; u for none.
    """

    cells: Int[Tensor, "b u"]
    used: Bool[Tensor, "b u"]
    column: Int[Tensor, "b samples n"]


class _Marked(NamedTuple):
    """The marked cells of each of b rows of k cells.

    Attributes:
        cells: the cells, ``(b, u)``; 0 for padding.
        used: False for padding, ``(b, u)``.
        rank: position of each cell in `cells`, ``(b, k + 1)``; u for unmarked cells and for cell k.
    """

    cells: Int[Tensor, "b u"]
    used: Bool[Tensor, "b u"]
    rank: Int[Tensor, "b _k"]


def _union(chosen: Int[Tensor, "b samples n"], k: int, keep: int | None) -> _Union:
    """List the cells that any sample chose, and the column of each choice in that list.

    Args:
        chosen: chosen cells, ``(b, samples, n)``; k for padding.
        k: number of cells.
        keep: largest number of cells in the list, those chosen most often; None for all.
    """
    flat = chosen.flatten(1)
    times = torch.zeros(len(flat), k + 1, dtype=torch.int32, device=flat.device)
    times.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.int32))
    times = times[:, :k]
    if keep is not None and keep < k:
        dropped = times.sort(dim=-1, descending=True, stable=True).indices[:, keep:]
        times = times.scatter(1, dropped, 0)
    index, used, rank = _list_marked(times > 0)
    return _Union(index, used, rank.gather(1, flat).view_as(chosen).int())


def _list_marked(mask: Bool[Tensor, "b k"]) -> _Marked:
    """List the marked cells of each row.

    Args:
        mask: True for marked cells, ``(b, k)`` bool.
    """
    count = mask.sum(1)
    u = int(count.max())
    used = torch.arange(u, device=mask.device) < count[:, None]
    index = torch.zeros_like(used, dtype=torch.int64)
    index[used] = mask.nonzero()[:, 1]
    rank = torch.where(mask, mask.cumsum(1) - 1, u)
    return _Marked(index, used, functional.pad(rank, (0, 1), value=u))


def _frequency(
    column: Int[Tensor, "b samples n"], u: int, dtype: torch.dtype
) -> Float[Tensor, "b n u"]:
    """Compute the share of the samples in which each row is in each column, ``(b, n, u)``.

    Counts are whole numbers, so that their sum is exact in any order.

    Args:
        column: column of each choice, ``(b, samples, n)``; u for none.
        u: number of columns.
        dtype: dtype of the result.
    """
    b, samples, n = column.shape
    times = torch.zeros(b, n, u + 1, dtype=dtype, device=column.device)
    places = column.transpose(1, 2).long()
    times.scatter_add_(2, places, torch.ones_like(places, dtype=dtype))
    return times[:, :, :u] / samples


class _Perturbed(torch.autograd.Function):
    """Compute the weights of chosen cells, with the gradient of the smoothed choice."""

    @staticmethod
    def forward(
        ctx: Any,
        scores: Float[Tensor, "b k"],
        valid: Bool[Tensor, "b k"],
        chosen: Int[Tensor, "b samples n"],
        border: Float[Tensor, "b samples 2"],
        column: Int[Tensor, "b samples n"],
        u: int,
        sigma: float,
    ) -> Float[Tensor, "b n u"]:
        ctx.save_for_backward(scores, valid, chosen, border, column)
        ctx.sigma = sigma
        return _frequency(column, u, scores.dtype)

    @staticmethod
    def backward(ctx: Any, g: Float[Tensor, "b n u"]) -> tuple[Shaped[Tensor, " ..."] | None, ...]:
        scores, valid, chosen, border, column = ctx.saved_tensors
        # A choice whose cell was dropped has no gradient.
        padded = functional.pad(g, (0, 1)).to(scores.dtype)
        s = padded.gather(2, column.transpose(1, 2).long()).sum(1)
        # Over samples - 1: the mean contains the sample itself, and would shrink the gradient.
        s = (s - s.mean(1, keepdim=True)) / (column.shape[1] - 1)
        reached = valid & (scores > border[..., :1].amin(1) - _REACH * ctx.sigma)
        index, _, rank = _list_marked(reached)
        inside = rank.gather(1, chosen.long().flatten(1)).view_as(chosen)
        covariance = _covariance(scores.gather(1, index), inside, border, s, ctx.sigma)
        gradient = functional.pad(covariance, (0, 1)).gather(1, rank[:, :-1]) / ctx.sigma
        return gradient, None, None, None, None, None, None


def _covariance(
    scores: Float[Tensor, "b r"],
    inside: Int[Tensor, "b samples n"],
    border: Float[Tensor, "b samples 2"],
    s: Float[Tensor, "b samples"],
    sigma: float,
) -> Float[Tensor, "b r"]:
    """Sum, over samples, ``s`` times the mean noise of each cell given the chosen set.

    Args:
        scores: scores of the r cells that noise may bring to the border, ``(b, r)``.
        inside: which of these cells are chosen, ``(b, samples, n)``; r for none of them.
        border: borders of the choices, ``(b, samples, 2)``, from `_choose`.
        s: centred products of gradient and choice, ``(b, samples)``.
        sigma: standard deviation of the noise.

    Returns:
        The covariances ``(b, r)``.
    """
    b, r = scores.shape
    total = torch.zeros_like(scores)
    part = max(1, _AT_ONCE // max(1, b * r))
    for start in range(0, s.shape[1], part):
        rows = slice(start, start + part)
        cells = inside[:, rows]
        chosen = torch.zeros(b, cells.shape[1], r + 1, dtype=torch.bool, device=s.device)
        chosen = chosen.scatter_(2, cells, True)[..., :r]
        x = (border[:, rows].unsqueeze(-1) - scores[:, None, None]) / sigma
        x = torch.where(chosen, -x[:, :, 1], x[:, :, 0])
        # phi / Phi, stable where both vanish.
        mean_noise = math.sqrt(2 / math.pi) / torch.special.erfcx(-x * math.sqrt(0.5))
        with torch.autocast(s.device.type, enabled=False):
            part_sum = s[:, None, rows] @ torch.where(chosen, mean_noise, -mean_noise)
        total += part_sum.squeeze(1)
    return total
