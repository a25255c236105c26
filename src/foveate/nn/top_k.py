"""Perturbed top-k: a choice of k cells with a gradient, in the memory of the cells it touches.

The choice is smoothed by noise on the scores; the mean over noise samples of the k one-hot rows
weighs the cells. Rows are sorted by position, not by score, so that a row keeps its cell while
scores move.

Source: Cordonnier et al., "Differentiable Patch Selection for Image Recognition", CVPR 2021, after
Berthet et al., "Learning with Differentiable Perturbed Optimizers", NeurIPS 2020. Where we differ:
published backward passes keep only the diagonal of the Jacobian, or multiply it by k; here it is
the whole of it, without bias (``tests/reference/test_top_k.py``). The noise of a cell enters as its
mean given what was chosen, which lowers the variance several times, leaves cells out of reach
without gradient, and needs no noise to be kept. The indicator covers only cells that some sample
chose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from foveate.errors import OptionError
from foveate.nn.generators import Generators

_AT_ONCE = 2**20
"""Cells times samples worked on at a time: 4 MiB in float32, or one sample if that is more."""

_REACH = 8.0
"""Standard deviations that noise is taken not to exceed: its chance to is 1e-15."""


@dataclass(frozen=True)
class TopK:
    """The cells that a perturbed top-n may choose, and how often it does.

    Args:
        index: ``(b, u)`` cells that at least one noise sample chose, by position; 0 where not used.
        used: ``(b, u)`` bool; False marks padding.
        weight: ``(b, n, u)`` how often row i, the i-th chosen cell by position, is this cell. Rows
            sum to 1; to less where `keep` dropped cells, and to 0 beyond an image's valid cells.
    """

    index: Tensor
    used: Tensor
    weight: Tensor


def perturbed_top_k(
    scores: Tensor,
    n: int,
    *,
    sigma: float,
    samples: int = 500,
    valid: Tensor | None = None,
    keep: int | None = None,
    generators: Generators | None = None,
) -> TopK:
    """Choose the n highest scores, smoothed by noise so that scores receive a gradient.

    With noise ``z``, one-hot rows ``Y(scores + sigma z)`` and ``s = <dL/dweight, Y>``, the gradient
    of the smoothed choice is the covariance of ``s`` and ``z``, divided by sigma. ``s`` depends on
    ``z`` through the set chosen alone. So ``z_i`` is replaced by its mean given the set and the
    noise of all cells on the other side of the border: given that cell i, not chosen, lies below
    the lowest chosen value ``t``, that is ``-phi(x) / Phi(x)`` at ``x = (t - scores_i) / sigma``;
    for a chosen cell likewise with the highest value not chosen.

    Aggregate with ``weight @ features``, which needs the features of `index` alone.

    Args:
        scores: ``(b, k)``, of a scale that `sigma` refers to (DPS normalises them to 0…1).
        n: cells to choose, at most k.
        sigma: standard deviation of the noise; 0 is the hard top-n of inference, ties by position,
            without gradient.
        samples: of the noise, at least 2.
        valid: ``(b, k)`` bool; padding is never chosen. Rows beyond a row's valid cells are 0.
        keep: at most this many cells stay in `index`, those chosen most often. What the others
            weighed is missing from the rows of `weight`: ``1 - weight.sum(-1)`` is what was
            dropped. The gradient is that of the weights kept.
        generators: of the noise, one per row; None for torch's global one.

    Returns:
        Cells and weights. Kept for the gradient: the scores and ``b * samples * n`` places.

    Raises:
        OptionError: sigma is negative, or the samples are fewer than 2.
    """
    if sigma < 0 or (sigma > 0 and samples < 2):
        raise OptionError(f"sigma {sigma}, samples {samples}: need sigma >= 0 and samples >= 2")
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    valid = torch.ones_like(scores, dtype=torch.bool) if valid is None else valid
    n = min(n, scores.shape[1])
    with torch.no_grad():
        masked = scores.masked_fill(~valid, -torch.inf)
        if sigma == 0:
            chosen, border = _hard(masked, n)
        else:
            chosen, border = _choose(masked, n, sigma, samples, generators)
        index, used, column = _union(chosen, scores.shape[1], keep)
    if sigma == 0 or not scores.requires_grad:
        return TopK(index, used, _frequency(column, index.shape[1], scores.dtype))
    weight: Tensor = _Perturbed.apply(
        scores, valid, chosen.int(), border, column, index.shape[1], sigma
    )
    return TopK(index, used, weight)


def _hard(masked: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The top n as the one sample of `_choose`, ties by position."""
    top = masked.sort(dim=-1, descending=True, stable=True)
    chosen = _by_position(top.indices[:, None, :n], masked)
    return chosen, masked.new_zeros(len(masked), 1, 2)


def _choose(
    masked: Tensor, n: int, sigma: float, samples: int, generators: Generators | None
) -> tuple[Tensor, Tensor]:
    """What each sample chooses, and the border of its choice.

    Args:
        masked: scores ``(b, k)``, ``-inf`` for padding.
        n: cells to choose.
        sigma: standard deviation of the noise.
        samples: of the noise.
        generators: one per row; None for torch's global one.

    Returns:
        ``(b, samples, n)`` cells by position, k in place of padding; and ``(b, samples, 2)`` the
        lowest value chosen and the highest not chosen, ``-inf`` where there is none.
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
        chosen[:, rows] = _by_position(top.indices[..., :n], masked)
    return chosen, border


def _noise(masked: Tensor, samples: int, generators: Generators | None) -> Tensor:
    """Standard normal numbers ``(b, samples, k)``; a row's hang on its own cells alone."""
    b, k = masked.shape
    if generators is None:
        return torch.randn(b, samples, k, dtype=masked.dtype, device=masked.device)
    numbers = torch.zeros(b, samples, k, dtype=masked.dtype)
    cells = (masked > -torch.inf).int().cumsum(1).argmax(1).cpu() + 1
    for row, n, generator in zip(numbers, cells.tolist(), generators, strict=True):
        for sample in row:  # by samples: how many are drawn at once hangs on the other rows
            sample[:n] = torch.randn(n, dtype=masked.dtype, generator=generator)
    return numbers.to(masked.device)


def _by_position(top: Tensor, masked: Tensor) -> Tensor:
    padding = masked.gather(1, top.flatten(1)).isneginf().view_as(top)
    return top.masked_fill(padding, masked.shape[1]).sort(dim=-1).values


def _union(chosen: Tensor, k: int, keep: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The cells chosen at all, and where among them each choice lies.

    Returns:
        Index and used ``(b, u)``, and column ``(b, samples, n)`` int32, u where not kept.
    """
    flat = chosen.flatten(1)
    times = torch.zeros(len(flat), k + 1, dtype=torch.int32, device=flat.device)
    times.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.int32))
    times = times[:, :k]
    if keep is not None and keep < k:
        dropped = times.sort(dim=-1, descending=True, stable=True).indices[:, keep:]
        times = times.scatter(1, dropped, 0)
    index, used, rank = _places(times > 0)
    return index, used, rank.gather(1, flat).view_as(chosen).int()


def _places(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The marked cells of each row, side by side.

    Args:
        mask: ``(b, k)`` bool.

    Returns:
        Cells ``(b, u)``, 0 beyond the last; which of these are one, ``(b, u)`` bool; and where
        among them each cell is, ``(b, k + 1)``, u for cells not marked and for cell k.
    """
    count = mask.sum(1)
    u = int(count.max())
    used = torch.arange(u, device=mask.device) < count[:, None]
    index = torch.zeros_like(used, dtype=torch.int64)
    index[used] = mask.nonzero()[:, 1]
    rank = torch.where(mask, mask.cumsum(1) - 1, u)
    return index, used, functional.pad(rank, (0, 1), value=u)


def _frequency(column: Tensor, u: int, dtype: torch.dtype) -> Tensor:
    """``(b, n, u)`` share of the samples in which a row is in a column.

    Counts are whole numbers, so that their sum is exact in any order.
    """
    b, samples, n = column.shape
    times = torch.zeros(b, n, u + 1, dtype=dtype, device=column.device)
    places = column.transpose(1, 2).long()
    times.scatter_add_(2, places, torch.ones_like(places, dtype=dtype))
    return times[:, :, :u] / samples


class _Perturbed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        valid: Tensor,
        chosen: Tensor,
        border: Tensor,
        column: Tensor,
        u: int,
        sigma: float,
    ) -> Tensor:
        ctx.save_for_backward(scores, valid, chosen, border, column)
        ctx.sigma = sigma
        return _frequency(column, u, scores.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        scores, valid, chosen, border, column = ctx.saved_tensors
        # A choice outside the kept columns counts nothing.
        padded = functional.pad(g, (0, 1)).to(scores.dtype)
        s = padded.gather(2, column.transpose(1, 2).long()).sum(1)
        # Over samples - 1: the mean contains the sample itself, and would shrink the gradient.
        s = (s - s.mean(1, keepdim=True)) / (column.shape[1] - 1)
        reached = valid & (scores > border[..., :1].amin(1) - _REACH * ctx.sigma)
        index, _, rank = _places(reached)
        inside = rank.gather(1, chosen.long().flatten(1)).view_as(chosen)
        found = _covariance(scores.gather(1, index), inside, border, s, ctx.sigma)
        gradient = functional.pad(found, (0, 1)).gather(1, rank[:, :-1]) / ctx.sigma
        return gradient, None, None, None, None, None, None


def _covariance(scores: Tensor, inside: Tensor, border: Tensor, s: Tensor, sigma: float) -> Tensor:
    """Sum over samples of ``s`` times the mean noise of each cell given the choice.

    Args:
        scores: ``(b, r)`` of the cells that noise may bring to the border.
        inside: ``(b, samples, n)`` which of these are chosen, r for none.
        border: ``(b, samples, 2)``.
        s: ``(b, samples)``, centred.
        sigma: standard deviation of the noise.

    Returns:
        ``(b, r)``.
    """
    b, r = scores.shape
    total = torch.zeros_like(scores)
    part = max(1, _AT_ONCE // max(1, b * r))
    for start in range(0, s.shape[1], part):
        rows = slice(start, start + part)
        where = inside[:, rows]
        chosen = torch.zeros(b, where.shape[1], r + 1, dtype=torch.bool, device=s.device)
        chosen = chosen.scatter_(2, where, True)[..., :r]
        x = (border[:, rows].unsqueeze(-1) - scores[:, None, None]) / sigma
        x = torch.where(chosen, -x[:, :, 1], x[:, :, 0])
        # phi / Phi, stable where both vanish.
        tail = math.sqrt(2 / math.pi) / torch.special.erfcx(-x * math.sqrt(0.5))
        with torch.autocast(s.device.type, enabled=False):
            found = s[:, None, rows] @ torch.where(chosen, tail, -tail)
        total += found.squeeze(1)
    return total
