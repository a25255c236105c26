"""Regularised linear answers, fitted to the end, with answers to rows that were left out.

Source: logistic regression with a ridge penalty; the weights of several answers are those of
pseudo-Bayesian model averaging (Geisser & Eddy, "A Predictive Approach to Model Selection", JASA
1979): by the likelihood of rows that were left out. Where we differ: any loss of logits will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
    """A linear answer.

    Attributes:
        weight: ``(d, k)``.
        bias: ``(k,)``.
        held_out: ``(n, k)`` logits of each row by a fit that did not see its part.
        loss: their mean loss.
        strength: of the penalty, chosen by that loss.
    """

    weight: Tensor
    bias: Tensor
    held_out: Tensor
    loss: float
    strength: float


def fit_linear(
    features: Tensor,
    each_loss: EachLoss,
    n_outputs: int,
    parts: Tensor,
    *,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearFit:
    """Minimise ``sum of losses + strength / 2 * |weight|²``, the strength chosen by left-out parts.

    Args:
        features: ``(n, d)``, standardised.
        each_loss: convex in the logits.
        n_outputs: k.
        parts: ``(n,)`` int, which part each row belongs to; rows of one patient share a part.
        strengths: to choose from.
    """
    # All that a penalised fit can use lies in the span of the rows.
    x = features.double()
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    z = u * s
    best: tuple[float, float, Tensor] | None = None
    for strength in strengths:
        held_out = x.new_zeros(len(x), n_outputs)
        for part in parts.unique():  # type: ignore[no-untyped-call]
            out = parts == part
            rows = (~out).nonzero().flatten()
            w, b = _minimise(z[rows], each_loss, rows, n_outputs, strength)
            held_out[out] = z[out] @ w + b
        loss = float(each_loss(held_out, torch.arange(len(x))).mean())
        if best is None or loss < best[0]:
            best = (loss, strength, held_out)
    assert best is not None
    loss, strength, held_out = best
    w, b = _minimise(z, each_loss, torch.arange(len(x)), n_outputs, strength)
    return LinearFit(vh.T @ w, b, held_out, loss, strength)


def likelihood_shares(losses: Sequence[float], n: int) -> Tensor:
    """What each of several answers counts, ``(m,)``, from its mean loss on n left-out rows.

    However many rows there are, answers that are nearly as good keep nearly the same share.
    """
    rows = min(n, _ROWS_THAT_COUNT)
    return torch.softmax(-rows * torch.tensor(losses, dtype=torch.float64), 0)


def fit_trust(held_out: Tensor, each_loss: EachLoss) -> float:
    """The factor from 0 to 2 that makes left-out logits as sure as they are right.

    Near 0 for answers that are sure and no better than chance. Shrunk towards 1/2, by about the
    evidence of one row, where rows say little: few of them, or logits that are near 0 anyway.
    """
    rows = torch.arange(len(held_out))
    losses = torch.stack([each_loss(held_out * t, rows).sum() for t in _TRUSTS])
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
