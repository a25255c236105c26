"""Sampling without replacement, and the expectation it estimates without bias.

Notation of the paper: ``a`` the attention over K cells, ``f`` the features of the N drawn cells in
the order of their drawing.

Source: Katharopoulos & Fleuret, "Processing Megapixel Images with Deep Attention-Sampling Models",
ICML 2019. The value and the feature gradient are the paper's. The attention gradient differs from
the published code, which is biased (up to the wrong sign where attention concentrates); the form
here is exact in expectation, as enumeration of every ordered draw shows
(``tests/reference/test_sampling.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor


def smoothed_log_softmax(logits: Tensor, valid: Tensor, *, smoothing: float) -> Tensor:
    """Log of ``(1 - smoothing) * softmax(logits) + smoothing * uniform`` over the valid cells.

    Args:
        logits: ``(b, k)``.
        valid: ``(b, k)`` bool; cells that are padding get ``-inf``.
        smoothing: mass spread evenly over the valid cells.

    Returns:
        ``(b, k)`` in float32 or better.
    """
    masked = logits.to(torch.promote_types(logits.dtype, torch.float32))
    masked = masked.masked_fill(~valid, -torch.inf)
    log_a = masked.log_softmax(-1)
    if smoothing == 0:
        return log_a
    count = valid.sum(-1, keepdim=True)
    log_uniform = torch.log(smoothing / count).to(log_a.dtype)
    kept = (log_a + torch.log1p(torch.tensor(-smoothing, dtype=log_a.dtype))).masked_fill(
        ~valid, 0.0
    )
    mixed = torch.logaddexp(kept, log_uniform.expand_as(kept))
    return mixed.masked_fill(~valid, -torch.inf)


def draw_without_replacement(log_a: Tensor, n: int) -> Tensor:
    """Draw n different cells by Gumbel top-n.

    The order of the result is the order of drawing: the first is a draw from ``a``, the second a
    draw from ``a`` without the first, and so on.

    Args:
        log_a: ``(b, k)``; ``-inf`` marks padding.
        n: number of draws; at most k are returned.

    Returns:
        ``(b, min(n, k))`` indices. Where fewer than n cells are valid, padding cells come last.
    """
    tiny = torch.finfo(log_a.dtype).tiny
    exponential = (-torch.log(torch.rand_like(log_a).clamp_min(tiny))).clamp_min(tiny)
    gumbel = -torch.log(exponential)
    return (log_a + gumbel).topk(min(n, log_a.shape[-1]), dim=-1, sorted=True).indices


def expectation(a: Tensor, f: Tensor, valid: Tensor | None = None) -> Tensor:
    """Estimate ``sum_k a_k f_k`` over all cells from cells drawn without replacement.

    Unbiased in value, in the gradient with respect to the features, and in the gradient with
    respect to the logits of the attention (expectation over the draws).

    Args:
        a: ``(b, n)`` full-map probabilities of the drawn cells, in draw order, not renormalised.
        f: ``(b, n, d)`` their features.
        valid: ``(b, n)`` bool; False marks draws of padding, which must come last.

    Returns:
        ``(b, d)``.
    """
    # Remaining mass before each draw; rounding may push it below a_i when nearly all is drawn.
    exact = a.detach().to(torch.float64)
    remaining = (1.0 - (exact.cumsum(-1) - exact)).maximum(exact).to(a.dtype)
    # Value: remaining mass. Derivative with respect to a_i: remaining / a_i, the score of the draw.
    scored = a / (a / remaining).detach().clamp_min(torch.finfo(a.dtype).tiny)
    weighted = a.unsqueeze(-1) * f
    before = weighted.cumsum(1) - weighted
    terms = before + scored.unsqueeze(-1) * f
    if valid is None:
        return terms.mean(1)
    keep = valid.unsqueeze(-1)
    count = valid.sum(1, keepdim=True).clamp_min(1)
    return terms.masked_fill(~keep, 0.0).sum(1) / count


def divergence(log_a: Tensor, log_prior: Tensor) -> Tensor:
    """KL divergence of attention from its prior, averaged over the batch.

    Adding it to a loss spreads attention. With a uniform prior it is the paper's term, the negative
    entropy, plus a constant; with any other prior it spreads attention over what the prior holds
    likely, where entropy alone would spread it over glass as well.

    Args:
        log_a: ``(b, k)``, ``-inf`` on padding.
        log_prior: ``(b, k)``, normalised like `log_a`.
    """
    padding = log_a.isneginf()
    gap = log_a.masked_fill(padding, 0.0) - log_prior.masked_fill(padding, 0.0)
    return (log_a.exp() * gap).sum(-1).mean()
