"""How much each node of a tree counts: learnt, or as likely as it is to be drawn.

A survey is one tree of crops of a frozen encoder, far wider than the ones that are drawn later. As
all of it is known, nothing has to be drawn: the mean over a tree, on average over all trees that a
policy may draw, is a weighted mean over the survey, and has a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foveate.nn.attention import masked_softmax


def expected_shares(
    log_prob: Tensor, parent: Tensor, level: Tensor, valid: Tensor, counts: Sequence[int]
) -> Tensor:
    """How much each node of a survey counts in the mean over a tree, on average over trees.

    As if trees were drawn with replacement.

    Args:
        log_prob: ``(…, n)`` of each node among those cut from the same crop.
        parent: ``(…, n)``, which node each was cut from.
        level: ``(…, n)``, 0 of the whole image.
        valid: ``(…, n)``.
        counts: crops that a tree has in each region, level by level; 1 on every further level.

    Returns:
        ``(…, n)``; rows sum to 1.
    """
    share = valid.to(log_prob.dtype)
    for depth in range(1, int(level.max()) + 1):
        count = counts[depth - 1] if depth <= len(counts) else 1
        inside = share.gather(-1, parent) * log_prob.exp() * count
        share = torch.where((level == depth) & valid, inside, share)
    return share / share.sum(-1, keepdim=True)


class FeatureWeights(nn.Module):
    """Shares of nodes in the pooled feature: squeeze and excite, a linear score, softmax."""

    def __init__(self, dim: int, *, ratio: float = 0.25) -> None:
        super().__init__()
        inner = max(1, round(ratio * dim))
        self.excite = nn.Sequential(
            nn.Linear(dim, inner), nn.ReLU(), nn.Linear(inner, dim), nn.Sigmoid()
        )
        self.score = nn.Linear(dim, 1)

    def forward(self, f: Tensor, valid: Tensor) -> Tensor:
        """``(…, n)`` of features ``(…, n, d)``; rows sum to 1."""
        mean = (f * valid.unsqueeze(-1)).sum(-2) / valid.sum(-1, keepdim=True)
        return masked_softmax(self.score(f * self.excite(mean).unsqueeze(-2)).squeeze(-1), valid)
