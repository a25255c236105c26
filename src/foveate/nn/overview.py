"""A head that answers from the whole glimpse: linear models of its frozen features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from foveate.nn.base import Standardise
from foveate.nn.linear_fit import (
    RowLosses,
    compute_pseudo_bma_weights,
    fit_linear,
    fit_trust,
)

N_LEFT_OUT_FOLDS = 5
"""Number of groups of images for cross-validation; each is left out of one fit."""


class OverviewHead(nn.Module):
    """The average of linear models of groups of features, weighted by their left-out likelihood.

    Before `fit` its logits are 0. After it, they are those of logistic regression on the frozen
    features, times a trust that is near 0 where the glimpse does not tell the classes apart. The
    fits without one group of the images are stored as well: an image of the fit is answered by the
    model that did not see it, also when the network has changed since.

    Args:
        groups: lengths of the groups of features.
        n_outputs: number of outputs, k.
    """

    weight: Tensor
    bias: Tensor
    share: Tensor
    trust: Tensor

    def __init__(self, groups: Sequence[int], n_outputs: int) -> None:
        super().__init__()
        self.groups, self.n_outputs = tuple(groups), n_outputs
        self.standardise = Standardise(sum(groups))
        # The fit to all images, then the fits without each group.
        self.register_buffer("weight", torch.zeros(1 + N_LEFT_OUT_FOLDS, sum(groups), n_outputs))
        self.register_buffer("bias", torch.zeros(1 + N_LEFT_OUT_FOLDS, n_outputs))
        self.register_buffer("share", torch.full((len(self.groups),), 1 / len(self.groups)))
        self.register_buffer("trust", torch.zeros(()))

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` has fitted the models."""
        return bool(self.standardise.settled)

    @torch.no_grad()
    def fit(
        self,
        features: Float[Tensor, "n d"],
        row_losses: RowLosses,
        left_out_fold: Int[Tensor, " n"],
    ) -> None:
        """Fit the models to frozen features.

        Args:
            features: features of n images, ``(n, d)``.
            row_losses: function from logits ``(m, k)`` and indices of rows ``(m,)`` to their losses
                ``(m,)``.
            left_out_fold: number of each row's group, ``(n,)`` int from 0 to `N_LEFT_OUT_FOLDS` -
                1; the rows of a group are left out together.
        """
        self.standardise.fit(features, self.groups)
        x = self.standardise(features.float())
        fits = [
            fit_linear(group, row_losses, self.n_outputs, left_out_fold, N_LEFT_OUT_FOLDS)
            for group in x.split(self.groups, 1)
        ]
        share = compute_pseudo_bma_weights([fit.loss for fit in fits], len(x))
        trust = fit_trust(_sum_weighted([fit.left_out for fit in fits], share), row_losses)
        weight = torch.cat([s * fit.weight for s, fit in zip(share, fits, strict=True)], 1)
        self.weight.copy_(trust * weight)
        self.bias.copy_(trust * _sum_weighted([fit.bias for fit in fits], share))
        self.share.copy_(share)
        self.trust.fill_(trust)

    def forward(
        self, features: Float[Tensor, "b d"], left_out_fold: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b k"]:
        """Compute logits ``(b, k)`` from features.

        Args:
            features: features of images by the network in its present state, ``(b, d)``.
            left_out_fold: number of the group that each image was left out with, ``(b,)``
                int; -1 for an image of no fit. None stands for -1 throughout.
        """
        with torch.autocast(features.device.type, enabled=False):
            x = self.standardise(features.float())
            if left_out_fold is None:
                logits: Tensor = x @ self.weight[0] + self.bias[0]
                return logits
            fit = left_out_fold + 1
            return torch.einsum("bd,bdk->bk", x, self.weight[fit]) + self.bias[fit]


class PatchTrust(nn.Module):
    """The factor of the patches' answer, which is added to that of the whole glimpse.

    It is 1 until it is fitted to images that the patches were not trained on. Where patches were
    learnt by heart it is near 0, and the glimpse answers alone.
    """

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.ones(()))

    def forward(self, added: Float[Tensor, " b *k"]) -> Float[Tensor, " b *k"]:
        """Multiply logits ``(b, k)``, or shares ``(b,)`` of the patches, by the factor."""
        return self.value * added

    @torch.no_grad()
    def fit(
        self,
        answer: Callable[[], tuple[Float[Tensor, "n k"], Shaped[Tensor, "n ..."]]],
        each_loss: Callable[..., Float[Tensor, " n"]],
        *,
        expected: float = 1.0,
    ) -> None:
        """Fit the factor.

        Args:
            answer: computes the answers of the network ``(n, k)`` in its present state to images
                that it was not trained on, and their targets ``(n, …)``.
            each_loss: function from logits ``(n, k)`` and targets to the images' losses ``(n,)``.
            expected: factor that is expected before any image is seen, and taken where none says
                anything.
        """
        self.value.fill_(0.0)
        base, target = answer()
        self.value.fill_(1.0)
        logits, _ = answer()
        self.value.fill_(expected)
        if len(logits) and torch.isfinite(logits).all():
            added = (logits - base).double()
            factor = fit_trust(
                added,
                lambda x, _: each_loss(x, target),
                base=base.double(),
                max_factor=1.0,
                expected=expected,
            )
            self.value.fill_(factor)


def _sum_weighted(
    values: Sequence[Float[Tensor, " *shape"]], weights: Iterable[Float[Tensor, ""]]
) -> Float[Tensor, " *shape"]:
    """Sum tensors of one shape, each times its weight, a scalar."""
    return torch.stack([w * v for w, v in zip(weights, values, strict=True)]).sum(0)
