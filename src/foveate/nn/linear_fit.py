"""Regularised linear models, fitted to convergence, with cross-validated logits.

Source: logistic regression with a ridge penalty. Several models are averaged with the weights of
pseudo-Bayesian model averaging (pseudo-BMA; Geisser & Eddy, "A Predictive Approach to Model
Selection", JASA 1979): by the likelihood of left-out rows. Where we differ: any convex loss of
logits will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

RowLosses = Callable[[Float[Tensor, "m k"], Int[Tensor, " m"]], Float[Tensor, " m"]]
"""A function from logits ``(n, k)`` and indices of rows ``(n,)`` to the rows' losses ``(n,)``."""

STRENGTHS = (1.0, 10.0, 100.0, 1000.0)
"""Strengths of the penalty to choose from, for features of spread 1."""

_MAX_COUNTED_ROWS = 50
"""Rows from which pseudo-BMA weights no longer sharpen as the number of rows grows."""

_N_FACTORS = 41


@dataclass(frozen=True)
class LinearFit:
    """A linear model, and those that were fitted without one fold of the rows.

    Attributes:
        weight: weights ``(1 + folds, d, k)``: of the fit to all rows, then without each fold.
        bias: biases ``(1 + folds, k)``, in the same order.
        left_out: logits of each row by the fit that left out its fold, ``(n, k)``.
        loss: mean loss of `left_out`.
        strength: strength of the penalty, chosen by that loss.
    """

    weight: Float[Tensor, "fits d k"]
    bias: Float[Tensor, "fits k"]
    left_out: Float[Tensor, "n k"]
    loss: float
    strength: float


def fit_linear(
    features: Float[Tensor, "n d"],
    row_losses: RowLosses,
    n_outputs: int,
    left_out_fold: Int[Tensor, " n"],
    n_folds: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearFit:
    """Minimise ``sum of losses + strength / 2 * |weight|²``; cross-validation chooses the strength.

    Args:
        features: standardised features, ``(n, d)``.
        row_losses: loss of each row, convex in the logits.
        n_outputs: number of outputs, k.
        left_out_fold: number of each row's fold, ``(n,)`` int; rows of one patient share a fold.
        n_folds: number of folds. For a fold without rows the fit to all rows is returned.
        strengths: strengths of the penalty to choose from.
    """
    # The weights of a penalised fit lie in the span of the rows: fit in its coordinates.
    x = features.double()
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    z = u * s
    all_rows = torch.arange(len(x))
    present = [k for k in range(n_folds) if bool((left_out_fold == k).any())]
    best: LinearFit | None = None
    for strength in strengths:
        weight, bias = (
            z.new_zeros(1 + n_folds, z.shape[1], n_outputs),
            z.new_zeros(1 + n_folds, n_outputs),
        )
        left_out = z.new_zeros(len(x), n_outputs)
        for k in present:
            out = left_out_fold == k
            rows = all_rows[~out]
            w, b = _minimise(z[rows], row_losses, rows, n_outputs, strength)
            weight[1 + k], bias[1 + k], left_out[out] = w, b, z[out] @ w + b
        loss = float(row_losses(left_out, all_rows).mean())
        if best is None or loss < best.loss:
            best = LinearFit(weight, bias, left_out, loss, strength)
    assert best is not None
    w, b = _minimise(z, row_losses, all_rows, n_outputs, best.strength)
    absent = [0, *(1 + k for k in range(n_folds) if k not in present)]
    best.weight[absent], best.bias[absent] = w, b
    return replace(best, weight=vh.T @ best.weight)


def compute_pseudo_bma_weights(losses: Sequence[float], n: int) -> Float[Tensor, " m"]:
    """Compute the weights of m models in their average, ``(m,)``, by their left-out likelihood.

    The number of rows is capped, so that models that are nearly as good keep nearly the same
    weight however many rows there are.

    Args:
        losses: mean loss of each model on left-out rows.
        n: number of rows.
    """
    rows = min(n, _MAX_COUNTED_ROWS)
    return torch.softmax(-rows * torch.tensor(losses, dtype=torch.float64), 0)


def fit_trust(
    logits: Float[Tensor, "n k"],
    row_losses: RowLosses,
    *,
    base: Float[Tensor, "n k"] | None = None,
    max_factor: float = 2.0,
    expected: float = 0.5,
) -> float:
    """Find the factor of unseen rows' logits that calibrates them, shrunk towards an expected one.

    It is near 0 for logits that are large and no better than chance, or than the base that they are
    added to. The shrinkage has about the evidence of one row, so that the factor stays near the
    expected one where few rows or small logits say little.

    Args:
        logits: logits of rows that they were not fitted to, ``(n, k)``.
        row_losses: loss of each row.
        base: logits ``(n, k)`` that they are added to; None for 0.
        max_factor: largest factor.
        expected: factor that is expected before any row is seen.
    """
    rows, start = torch.arange(len(logits)), 0.0 if base is None else base
    factors = torch.linspace(0, max_factor, _N_FACTORS, dtype=torch.float64)
    losses = torch.stack([row_losses(start + logits * f, rows).sum() for f in factors])
    losses = (losses + (factors - expected).square()).nan_to_num(torch.inf)
    return float(factors[int(losses.argmin())])


def _minimise(
    z: Float[Tensor, "n d"],
    row_losses: RowLosses,
    rows: Int[Tensor, " n"],
    n_outputs: int,
    strength: float,
) -> tuple[Float[Tensor, "d k"], Float[Tensor, " k"]]:
    """Fit weight ``(d, k)`` and bias ``(k,)`` to features ``z (n, d)`` of these rows ``(n,)``."""
    weight = z.new_zeros(z.shape[1], n_outputs, requires_grad=True)
    bias = z.new_zeros(n_outputs, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=60, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
    )

    def closure() -> Float[Tensor, ""]:
        optimizer.zero_grad()
        loss = row_losses(z @ weight + bias, rows).sum() + strength / 2 * weight.square().sum()
        loss = loss / len(rows)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return weight.detach(), bias.detach()
