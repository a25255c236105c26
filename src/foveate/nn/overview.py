"""A head that answers from the whole glimpse: linear models of its frozen features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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

N_PARTS = 5
"""Number of parts that the images are divided into for cross-validation."""


class OverviewHead(nn.Module):
    """The average of linear models of groups of features, weighted by their left-out likelihood.

    Before `settle` its logits are 0. After it, they are those of logistic regression on the frozen
    features, times a trust that is near 0 where the glimpse does not tell the classes apart. The
    fits without one part of the images are stored as well: an image of the fit is answered by the
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
        # The fit to all images, then the fits without each part.
        self.register_buffer("weight", torch.zeros(1 + N_PARTS, sum(groups), n_outputs))
        self.register_buffer("bias", torch.zeros(1 + N_PARTS, n_outputs))
        self.register_buffer("share", torch.full((len(self.groups),), 1 / len(self.groups)))
        self.register_buffer("trust", torch.zeros(()))

    @property
    def settled(self) -> bool:
        """Whether `settle` has fitted the models."""
        return bool(self.standardise.settled)

    @torch.no_grad()
    def settle(
        self, features: Float[Tensor, "n d"], row_losses: RowLosses, parts: Int[Tensor, " n"]
    ) -> None:
        """Fit the models to frozen features.

        Args:
            features: features of n images, ``(n, d)``.
            row_losses: function from logits ``(m, k)`` and indices of rows ``(m,)`` to their losses
                ``(m,)``.
            parts: number of each row's part, ``(n,)`` int from 0 to `N_PARTS` - 1; the rows of a
                part are left out together.
        """
        self.standardise.settle(features, self.groups)
        x = self.standardise(features.float())
        fits = [
            fit_linear(group, row_losses, self.n_outputs, parts, N_PARTS)
            for group in x.split(self.groups, 1)
        ]
        share = compute_pseudo_bma_weights([fit.loss for fit in fits], len(x))
        pairs = list(zip(share, fits, strict=True))
        weight = torch.cat([s * fit.weight for s, fit in pairs], 1)
        bias = torch.stack([s * fit.bias for s, fit in pairs]).sum(0)
        left_out = torch.stack([s * fit.left_out for s, fit in pairs]).sum(0)
        trust = fit_trust(left_out, row_losses)
        self.weight.copy_(trust * weight)
        self.bias.copy_(trust * bias)
        self.share.copy_(share)
        self.trust.fill_(trust)

    def forward(
        self, features: Float[Tensor, "b d"], part: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b k"]:
        """Compute logits ``(b, k)`` from features.

        Args:
            features: features of images by the network in its present state, ``(b, d)``.
            part: number of the part that each image was in when the models were fitted, ``(b,)``
                int; -1 for an image of no fit. None stands for -1 throughout.
        """
        with torch.autocast(features.device.type, enabled=False):
            x = self.standardise(features.float())
            if part is None:
                logits: Tensor = x @ self.weight[0] + self.bias[0]
                return logits
            return torch.einsum("bd,bdk->bk", x, self.weight[part + 1]) + self.bias[part + 1]


class PatchTrust(nn.Module):
    """The factor of the patches' answer, which is added to that of the whole glimpse.

    It is 1 until it is fitted to images that the patches were not trained on. Where patches were
    learnt by heart it is near 0, and the glimpse answers alone.
    """

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.ones(()))

    def forward(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Multiply logits ``(b, k)`` by the factor."""
        return self.value * logits

    @torch.no_grad()
    def settle(
        self,
        answer: Callable[[], tuple[Float[Tensor, "n k"], Shaped[Tensor, "n ..."]]],
        each_loss: Callable[..., Float[Tensor, " n"]],
    ) -> None:
        """Fit the factor.

        Args:
            answer: computes the answers of the network ``(n, k)`` in its present state to images
                that it was not trained on, and their targets ``(n, …)``.
            each_loss: function from logits ``(n, k)`` and targets to the images' losses ``(n,)``.
        """
        self.value.fill_(0.0)
        base, target = answer()
        self.value.fill_(1.0)
        logits, _ = answer()
        if len(logits) and torch.isfinite(logits).all():
            added = (logits - base).double()
            factor = fit_trust(
                added, lambda x, _: each_loss(x, target), base=base.double(), most=1.0, expected=1.0
            )
            self.value.fill_(factor)
