"""What the glimpse as a whole says: linear answers to what a frozen network sees in it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foveate.nn._linear_fit import EachLoss, fit_linear, fit_trust, likelihood_shares
from foveate.nn.base import Standardise


class OverviewHead(nn.Module):
    """Linear answers to groups of features, averaged by how well each did on left-out images.

    Before `settle` it answers 0. After it, it is what logistic regression makes of the frozen
    features, times a trust that is near 0 where the glimpse does not tell the classes apart.

    Args:
        groups: lengths of the groups of features.
        n_outputs: k.
    """

    share: Tensor
    trust: Tensor

    def __init__(self, groups: Sequence[int], n_outputs: int) -> None:
        super().__init__()
        self.groups, self.n_outputs = tuple(groups), n_outputs
        self.standardise = Standardise(sum(groups))
        self.answers = nn.ModuleList(nn.Linear(n, n_outputs) for n in groups)
        for parameter in self.answers.parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("share", torch.full((len(self.groups),), 1 / len(self.groups)))
        self.register_buffer("trust", torch.zeros(()))

    @property
    def settled(self) -> bool:
        """Whether it has been fitted."""
        return bool(self.standardise.settled)

    @torch.no_grad()
    def settle(self, features: Tensor, each_loss: EachLoss, parts: Tensor) -> Tensor:
        """Fit it to frozen features.

        Args:
            features: ``(n, d)``.
            each_loss: of logits ``(m, k)`` and indices of rows.
            parts: ``(n,)``, which rows are left out together.

        Returns:
            ``(n, k)``, what to add to its logits of each row to have those of fits that did not see
            the row's part.
        """
        self.standardise.settle(features, self.groups)
        x = self.standardise(features.float())
        fits = [
            fit_linear(part, each_loss, self.n_outputs, parts) for part in x.split(self.groups, 1)
        ]
        for answer, fit in zip(self.answers, fits, strict=True):
            assert isinstance(answer, nn.Linear)
            answer.weight.copy_(fit.weight.T)
            answer.bias.copy_(fit.bias)
        share = likelihood_shares([fit.loss for fit in fits], len(x))
        held_out = sum(s * fit.held_out for s, fit in zip(share, fits, strict=True))
        assert isinstance(held_out, Tensor)
        trust = fit_trust(held_out, each_loss)
        self.share.copy_(share)
        self.trust.fill_(trust)
        fitted: Tensor = self(features)
        return (trust * held_out).float() - fitted

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(b, k)`` from features ``(b, d)``."""
        parts = self.standardise(features.float()).split(self.groups, 1)
        each = torch.stack([a(x) for a, x in zip(self.answers, parts, strict=True)])
        logits: Tensor = self.trust * torch.einsum("g,gbk->bk", self.share, each)
        return logits
