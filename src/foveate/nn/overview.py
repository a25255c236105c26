"""What the glimpse as a whole says: linear answers to what a frozen network sees in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foveate.nn.base import Standardise
from foveate.nn.linear_fit import EachLoss, fit_linear, fit_trust, likelihood_shares

N_PARTS = 5
"""Parts of the images of which one is left out at a time."""


class OverviewHead(nn.Module):
    """Linear answers to groups of features, averaged by how well each did on left-out images.

    Before `settle` it answers 0. After it, it is what logistic regression makes of the frozen
    features, times a trust that is near 0 where the glimpse does not tell the classes apart. It
    keeps the answers of all refits that left out a part of the images as well: an image that it was
    fitted to is answered by the one that did not see it, also when the network has moved since.

    Args:
        groups: lengths of the groups of features.
        n_outputs: k.
    """

    weight: Tensor
    bias: Tensor
    share: Tensor
    trust: Tensor

    def __init__(self, groups: Sequence[int], n_outputs: int) -> None:
        super().__init__()
        self.groups, self.n_outputs = tuple(groups), n_outputs
        self.standardise = Standardise(sum(groups))
        # The answer fitted to all images, then those that left out a part.
        self.register_buffer("weight", torch.zeros(1 + N_PARTS, sum(groups), n_outputs))
        self.register_buffer("bias", torch.zeros(1 + N_PARTS, n_outputs))
        self.register_buffer("share", torch.full((len(self.groups),), 1 / len(self.groups)))
        self.register_buffer("trust", torch.zeros(()))

    @property
    def settled(self) -> bool:
        """Whether it has been fitted."""
        return bool(self.standardise.settled)

    @torch.no_grad()
    def settle(self, features: Tensor, each_loss: EachLoss, parts: Tensor) -> None:
        """Fit it to frozen features.

        Args:
            features: ``(n, d)``.
            each_loss: of logits ``(m, k)`` and indices of rows.
            parts: ``(n,)`` int from 0 to `N_PARTS` - 1, which rows are left out together.
        """
        self.standardise.settle(features, self.groups)
        x = self.standardise(features.float())
        fits = [
            fit_linear(group, each_loss, self.n_outputs, parts, N_PARTS)
            for group in x.split(self.groups, 1)
        ]
        share = likelihood_shares([fit.loss for fit in fits], len(x))
        pairs = list(zip(share, fits, strict=True))
        weight = torch.cat([s * fit.weight for s, fit in pairs], 1)
        bias = torch.stack([s * fit.bias for s, fit in pairs]).sum(0)
        left_out = torch.stack([s * fit.left_out for s, fit in pairs]).sum(0)
        trust = fit_trust(left_out, each_loss)
        self.weight.copy_(trust * weight)
        self.bias.copy_(trust * bias)
        self.share.copy_(share)
        self.trust.fill_(trust)

    def forward(self, features: Tensor, part: Tensor | None = None) -> Tensor:
        """Logits ``(b, k)`` from features ``(b, d)``.

        Args:
            features: of the network as it is now.
            part: ``(b,)`` int, which part each image was fitted with; -1 for images that no fit has
                seen, as all are by default.
        """
        with torch.autocast(features.device.type, enabled=False):
            x = self.standardise(features.float())
            if part is None:
                logits: Tensor = x @ self.weight[0] + self.bias[0]
                return logits
            return torch.einsum("bd,bdk->bk", x, self.weight[part + 1]) + self.bias[part + 1]
