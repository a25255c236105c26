"""Regularised linear answers, fitted to the end, with answers to rows that were left out.

Source: logistic regression with a ridge penalty; the weights of several answers are those of
pseudo-Bayesian model averaging (Geisser & Eddy, "A Predictive Approach to Model Selection", JASA
1979): by the likelihood of rows that were left out. Where we differ: any loss of logits will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

EachLoss = Callable[[Tensor, Tensor], Tensor]
"""The loss of every row: logits ``(n, k)`` and indices of the rows ``(n,)`` to ``(n,)``."""

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
"""Of the penalty; the features have spread 1."""

_ROWS_THAT_COUNT = 50
_TRUSTS = torch.linspace(0, 2, 41, dtype=torch.float64)


@dataclass(frozen=True)
class LinearFit:
    """A linear answer, and those of refits that left out a part of the rows.

    Attributes:
        weight: ``(1 + parts, d, k)``, the first of a fit to all rows.
        bias: ``(1 + parts, k)``.
        left_out: ``(n, k)`` logits of each row by the fit that did not see its part.
        loss: their mean loss.
        strength: of the penalty, chosen by that loss.
    """

    weight: Tensor
    bias: Tensor
    left_out: Tensor
    loss: float
    strength: float


def fit_linear(
    features: Tensor,
    each_loss: EachLoss,
    n_outputs: int,
    parts: Tensor,
    n_parts: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearFit:
    """Minimise ``sum of losses + strength / 2 * |weight|²``, the strength chosen by left-out parts.

    Args:
        features: ``(n, d)``, standardised.
        each_loss: convex in the logits.
        n_outputs: k.
        parts: ``(n,)`` int, which part each row belongs to; rows of one patient share a part.
        n_parts: parts; of an empty one the fit is that to all rows.
        strengths: to choose from.
    """
    # All that a penalised fit can use lies in the span of the rows.
    x = features.double()
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    z = u * s
    every = torch.arange(len(x))
    present = [part for part in range(n_parts) if bool((parts == part).any())]
    best: LinearFit | None = None
    for strength in strengths:
        weight, bias = (
            z.new_zeros(1 + n_parts, z.shape[1], n_outputs),
            z.new_zeros(1 + n_parts, n_outputs),
        )
        left_out = z.new_zeros(len(x), n_outputs)
        for part in present:
            out = parts == part
            rows = every[~out]
            w, b = _minimise(z[rows], each_loss, rows, n_outputs, strength)
            weight[1 + part], bias[1 + part], left_out[out] = w, b, z[out] @ w + b
        loss = float(each_loss(left_out, every).mean())
        if best is None or loss < best.loss:
            best = LinearFit(weight, bias, left_out, loss, strength)
    assert best is not None
    w, b = _minimise(z, each_loss, every, n_outputs, best.strength)
    absent = [0, *(1 + part for part in range(n_parts) if part not in present)]
    best.weight[absent], best.bias[absent] = w, b
    return replace(best, weight=vh.T @ best.weight)


def likelihood_shares(losses: Sequence[float], n: int) -> Tensor:
    """What each of several answers counts, ``(m,)``, from its mean loss on n left-out rows.

    However many rows there are, answers that are nearly as good keep nearly the same share.
    """
    rows = min(n, _ROWS_THAT_COUNT)
    return torch.softmax(-rows * torch.tensor(losses, dtype=torch.float64), 0)


def fit_trust(left_out: Tensor, each_loss: EachLoss) -> float:
    """The factor from 0 to 2 that makes left-out logits as sure as they are right.

    Near 0 for answers that are sure and no better than chance. Shrunk towards 1/2, by about the
    evidence of one row, where rows say little: few of them, or logits that are near 0 anyway.
    """
    rows = torch.arange(len(left_out))
    losses = torch.stack([each_loss(left_out * t, rows).sum() for t in _TRUSTS])
    return float(_TRUSTS[int((losses + (_TRUSTS - 0.5).square()).argmin())])


def _minimise(
    z: Tensor, each_loss: EachLoss, rows: Tensor, n_outputs: int, strength: float
) -> tuple[Tensor, Tensor]:
    weight = z.new_zeros(z.shape[1], n_outputs, requires_grad=True)
    bias = z.new_zeros(n_outputs, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=60, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = each_loss(z @ weight + bias, rows).sum() + strength / 2 * weight.square().sum()
        loss = loss / len(rows)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()
