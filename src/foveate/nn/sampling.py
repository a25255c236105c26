"""Sampling of cells, and unbiased estimates of an expectation over all cells from a sample.

Notation of the paper: ``a`` is the attention over K cells, ``f`` the features of the N drawn cells
in the order of drawing, ``F_i`` the i-th of the N terms whose mean is the estimate, and ``g`` the
gradient of the loss with respect to the estimate.

Source: Katharopoulos & Fleuret, "Processing Megapixel Images with Deep Attention-Sampling Models",
ICML 2019. Values and feature gradients are the paper's. The attention gradient without replacement
differs from the published code, which is biased (up to the wrong sign where attention
concentrates); the form here is exact in expectation, as enumeration of every ordered draw shows
(``tests/reference/test_sampling.py``). The baselines, `estimate_deviation` and `select_strongest`
are ours.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from foveate.nn.generators import Generators, uniform


def smoothed_log_softmax(
    logits: Float[Tensor, "b k"], valid: Bool[Tensor, "b k"], *, smoothing: float
) -> Float[Tensor, "b k"]:
    """Compute the log of ``(1 - smoothing) * softmax(logits) + smoothing * uniform``.

    Both distributions are over the valid cells.

    Args:
        logits: logits, ``(b, k)``.
        valid: False for padding, ``(b, k)`` bool.
        smoothing: probability that is spread evenly over the valid cells.

    Returns:
        Log-probabilities ``(b, k)`` in float32 or better; ``-inf`` for padding.
    """
    masked = logits.to(torch.promote_types(logits.dtype, torch.float32))
    masked = masked.masked_fill(~valid, -torch.inf)
    log_a = masked.log_softmax(-1)
    if smoothing == 0:
        return log_a
    count = valid.sum(-1, keepdim=True)
    log_uniform = torch.log(smoothing / count).to(log_a.dtype)
    scaled = log_a + torch.log1p(torch.tensor(-smoothing, dtype=log_a.dtype))
    scaled = scaled.masked_fill(~valid, 0.0)
    mixed = torch.logaddexp(scaled, log_uniform.expand_as(scaled))
    return mixed.masked_fill(~valid, -torch.inf)


def draw_without_replacement(
    log_a: Float[Tensor, "b k"], n: int, generators: Generators | None = None
) -> Int[Tensor, "b m"]:
    """Draw n different cells by Gumbel top-n.

    The order of the result is the order of drawing: the first is a draw from ``a``, the second a
    draw from ``a`` without the first, and so on.

    Args:
        log_a: log-probabilities of the cells, ``(b, k)``; ``-inf`` marks padding.
        n: number of draws; at most k are returned.
        generators: one per row; None for torch's global one.

    Returns:
        Indices ``(b, min(n, k))``. Where fewer than n cells are valid, padding comes last.
    """
    tiny, (b, k) = torch.finfo(log_a.dtype).tiny, log_a.shape
    numbers = uniform((b, k), generators, dtype=log_a.dtype, device=log_a.device)
    exponential = (-torch.log(numbers.clamp_min(tiny))).clamp_min(tiny)
    gumbel = -torch.log(exponential)
    return (log_a + gumbel).topk(min(n, log_a.shape[-1]), dim=-1, sorted=True).indices


def draw_with_replacement(
    log_a: Float[Tensor, "b k"], n: int, generators: Generators | None = None
) -> Int[Tensor, "b n"]:
    """Draw n cells independently of each other, so that a cell may be drawn several times.

    Args:
        log_a: log-probabilities of the cells, ``(b, k)``; ``-inf`` marks padding.
        n: number of draws.
        generators: one per row; None for torch's global one.

    Returns:
        Indices ``(b, n)``. Padding is drawn only in rows without valid cells.
    """
    cumulative = log_a.to(torch.float64).exp().cumsum(-1)
    total = cumulative[:, -1:]
    below = torch.nextafter(total, torch.zeros_like(total))
    u = uniform((len(log_a), n), generators, dtype=torch.float64, device=log_a.device)
    # Right of equal values: a cell without mass has an empty interval, and is never drawn.
    index = torch.searchsorted(cumulative, (u * total).minimum(below), right=True)
    return index.clamp_max(log_a.shape[-1] - 1)


def select_strongest(
    log_a: Float[Tensor, "b k"], n: int
) -> tuple[Int[Tensor, "b m"], Float[Tensor, "b m"]]:
    """Select the n cells of highest attention, for inference without sampling.

    An expectation over them is deterministic and biased towards the cells of highest attention.

    Args:
        log_a: log-probabilities of the cells, ``(b, k)``; ``-inf`` marks padding.
        n: number of cells; at most k are returned.

    Returns:
        Indices ``(b, min(n, k))``, strongest first and equal ones in the order of the cells; and
        their attention ``(b, min(n, k))``, normalised to a sum of 1, 0 for padding.
    """
    ordered, index = log_a.sort(dim=-1, descending=True, stable=True)
    ordered, index = ordered[:, :n], index[:, :n]
    empty = ordered[:, :1].isneginf()
    weight = ordered.masked_fill(empty, 0.0).softmax(-1)
    return index, weight.masked_fill(empty | ordered.isneginf(), 0.0)


def expectation(
    a: Float[Tensor, "b n"],
    f: Float[Tensor, "b n d"],
    valid: Bool[Tensor, "b n"] | None = None,
    *,
    baseline: bool = False,
) -> Float[Tensor, "b d"]:
    """Estimate ``sum_k a_k f_k`` over all cells from cells drawn without replacement.

    Over the draws, the estimate is unbiased in its value, in its gradient with respect to the
    features, and in its gradient with respect to the logits of the attention. With m_i the
    attention left before draw i, counted from 0::

        F_i     = sum_{j<i} a_j f_j + m_i f_i            value: mean of F_i
        dL/da_i = (m_i / a_i + N - 1 - i) (g.f_i) / N    dL/df_i = (m_i + (N - 1 - i) a_i) g / N

    Args:
        a: probabilities of the drawn cells among all cells, ``(b, n)``, in the order of drawing,
            not normalised to their sum.
        f: features of the drawn cells, ``(b, n, d)``.
        valid: False for draws of padding, which must come last, ``(b, n)`` bool. None means that
            all are valid.
        baseline: subtract ``b_i = g.sum_{j<i} F_j / (i + 1)`` from ``g.f`` in term i. It is known
            before draw i, so that the gradient stays unbiased. It assumes that attention sums to 1
            over the cells whatever its parameters. Where features have a common mean and attention
            is spread out, it halves the gradient's variance or better; where features have no
            common mean it raises it, by a seventh at most in the cases of
            ``benchmarks/estimators.py``.
            The plain mean, over i in place of i + 1, gains no more there and loses two to four
            times as much.

    Returns:
        The estimate ``(b, d)``.
    """
    a, f, valid = _masked(a, f, valid)
    count, remaining = _count(a, valid), _remaining(a)
    # The value of `scored` is the remaining mass; its derivative with respect to a_i is the score
    # of the draw, remaining / a_i.
    ratio = _bounded_ratio(remaining, a)
    scored = remaining + (a - a.detach()) * ratio
    later = (count - 1 - torch.arange(a.shape[1], device=a.device)).clamp_min(0)
    weight = ((scored + later * a) / count).masked_fill(~valid, 0.0)
    estimate = (weight.unsqueeze(-1) * f).sum(1)
    if not baseline:
        return estimate
    corrected: Tensor = _Baseline.apply(estimate, a, f, valid, ratio, False)
    return corrected


def expectation_with_replacement(
    a: Float[Tensor, "b n"],
    f: Float[Tensor, "b n d"],
    valid: Bool[Tensor, "b n"] | None = None,
    *,
    baseline: bool = False,
) -> Float[Tensor, "b d"]:
    """Estimate ``sum_k a_k f_k`` over all cells from cells drawn with replacement.

    The value is the mean of ``f``, ``dL/da_i = g.f_i / (N a_i)``, ``dL/df = g / N``: all unbiased.

    Args:
        a: probabilities of the drawn cells among all cells, ``(b, n)``.
        f: features of the drawn cells, ``(b, n, d)``.
        valid: False for draws of padding, ``(b, n)`` bool. None means that all are valid.
        baseline: subtract from ``g.f_i`` its mean over the other draws. The gradient stays unbiased
            as long as attention sums to 1 over the cells whatever its parameters.

    Returns:
        The estimate ``(b, d)``.
    """
    a, f, valid = _masked(a, f, valid)
    ratio = _bounded_ratio(torch.ones_like(a), a)
    weight = ((1 + (a - a.detach()) * ratio) / _count(a, valid)).masked_fill(~valid, 0.0)
    estimate = (weight.unsqueeze(-1) * f).sum(1)
    if not baseline:
        return estimate
    corrected: Tensor = _Baseline.apply(estimate, a, f, valid, ratio, True)
    return corrected


def estimate_deviation(
    a: Float[Tensor, "b n"],
    f: Float[Tensor, "b n d"],
    valid: Bool[Tensor, "b n"] | None = None,
    *,
    replacement: bool = False,
) -> Float[Tensor, "b d"]:
    """Estimate, from one sample, the standard deviation of the expectation due to sampling.

    The terms of the expectation have the same mean and are uncorrelated: with replacement they are
    independent, and without it each is unbiased whatever was drawn before it. Hence
    ``sum_i (F_i - mean)^2 / (N (N - 1))`` is an exactly unbiased estimate of the variance, and the
    result is its root. It does not measure any other uncertainty of the model.

    Args:
        a: probabilities of the drawn cells among all cells, ``(b, n)``, in the order of drawing.
        f: features of the drawn cells, ``(b, n, d)``, or anything linear in them: ``f @ weight.T``
            gives the deviation of the logits of a linear head.
        valid: False for draws of padding, which must come last, ``(b, n)`` bool. None means that
            all are valid.
        replacement: whether the cells were drawn with replacement.

    Returns:
        Standard deviations ``(b, d)``, without gradient; NaN where fewer than 2 draws are valid.
    """
    a, terms, valid = _masked(a.detach(), f.detach(), valid)
    mask = valid.unsqueeze(-1)
    if not replacement:
        weighted = a.unsqueeze(-1) * terms
        terms = weighted.cumsum(1) - weighted + _remaining(a).unsqueeze(-1) * terms
    count = _count(a, valid).unsqueeze(1)
    mean = terms.masked_fill(~mask, 0.0).sum(1, keepdim=True) / count
    squares = (terms - mean).square().masked_fill(~mask, 0.0).sum(1)
    count = count.squeeze(1)
    variance = squares / (count * (count - 1)).clamp_min(1)
    return variance.sqrt().masked_fill(count < 2, torch.nan)


class _Draws(NamedTuple):
    """Probabilities and features of n drawn cells of b images, and the mask of real draws."""

    a: Float[Tensor, "b n"]
    f: Float[Tensor, "b n d"]
    valid: Bool[Tensor, "b n"]


def _masked(
    a: Float[Tensor, "b n"], f: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"] | None
) -> _Draws:
    """Return the draws with 0 for padding, and their mask."""
    if valid is None:
        return _Draws(a, f, torch.ones_like(a, dtype=torch.bool))
    return _Draws(a.masked_fill(~valid, 0.0), f.masked_fill(~valid.unsqueeze(-1), 0.0), valid)


def _bounded_ratio(mass: Float[Tensor, "b n"], a: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Return ``mass / a`` ``(b, n)`` without gradient; bounded where a is below 1e-19."""
    limits = torch.finfo(a.dtype)
    return (mass / a.detach().clamp_min(limits.tiny)).clamp_max(limits.max**0.5)


def _count(a: Float[Tensor, "b n"], valid: Bool[Tensor, "b n"]) -> Float[Tensor, "b 1"]:
    """Count the valid draws of each row, at least 1, ``(b, 1)``, in the dtype of `a`."""
    return valid.sum(1, keepdim=True).clamp_min(1).to(a.dtype)


def _remaining(a: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """Compute the attention left before each draw, ``(b, n)``, from that of the drawn cells.

    It is at least a_i: rounding may push it below, even below 0, where nearly all is drawn.
    """
    exact = a.detach().to(torch.float64)
    return (1.0 - (exact.cumsum(-1) - exact)).maximum(exact).to(a.dtype)


class _Baseline(torch.autograd.Function):
    """The identity on the estimate, whose backward pass adds the baseline's part to ``dL/da``."""

    @staticmethod
    def forward(
        ctx: Any,
        estimate: Float[Tensor, "b d"],
        a: Float[Tensor, "b n"],
        f: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
        ratio: Float[Tensor, "b n"],
        replacement: bool,
    ) -> Float[Tensor, "b d"]:
        ctx.save_for_backward(a, f, valid, ratio)
        ctx.replacement = replacement
        return estimate.view_as(estimate)

    @staticmethod
    def backward(ctx: Any, g: Float[Tensor, "b d"]) -> tuple[Shaped[Tensor, " ..."] | None, ...]:
        a, f, valid, ratio = ctx.saved_tensors
        v = (f * g.unsqueeze(1)).sum(-1).to(a.dtype)
        count = _count(a, valid)
        if ctx.replacement:
            part = ratio * (v.sum(1, keepdim=True) - v) / (count - 1).clamp_min(1)
        else:
            b = _mean_of_earlier_terms(a, v, valid)
            part = ratio * b + b.sum(1, keepdim=True) - b.cumsum(1)
        return g, (-part / count).masked_fill(~valid, 0.0), None, None, None, None


def _mean_of_earlier_terms(
    a: Float[Tensor, "b n"], v: Float[Tensor, "b n"], valid: Bool[Tensor, "b n"]
) -> Float[Tensor, "b n"]:
    """Compute ``b_i = sum_{j<i} g.F_j / (i + 1)``, ``(b, n)``, from ``v_i = g.f_i``, ``(b, n)``.

    It depends on no draw from i on.
    """
    weighted = a * v
    terms = weighted.cumsum(1) - weighted + _remaining(a) * v
    rank = torch.arange(1, a.shape[1] + 1, dtype=a.dtype, device=a.device)
    return ((terms.cumsum(1) - terms) / rank).masked_fill(~valid, 0.0)


def kl_divergences(
    log_a: Float[Tensor, "b k"], log_prior: Float[Tensor, "b k"]
) -> Float[Tensor, " b"]:
    """Compute the KL divergence of each image's attention from its prior, ``(b,)``.

    Adding it to a loss spreads attention. With a uniform prior it is the paper's term, the negative
    entropy, plus a constant; with any other prior it spreads attention over the cells that are
    likely in the prior, where entropy alone would spread it over glass as well.

    Args:
        log_a: log-probabilities of the cells, ``(b, k)``; ``-inf`` marks padding.
        log_prior: log-probabilities of the cells in the prior, ``(b, k)``, normalised like `log_a`.

    Returns:
        The divergences ``(b,)``, at least 0.
    """
    padding = log_a.isneginf()
    gap = log_a.masked_fill(padding, 0.0) - log_prior.masked_fill(padding, 0.0)
    return (log_a.exp() * gap).sum(-1)
