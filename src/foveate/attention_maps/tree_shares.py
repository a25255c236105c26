"""Weights of the nodes of a tree in its mean: learnt, or averaged over the trees that may be drawn.

A survey is one tree of patches that a frozen encoder is shown, far wider than the trees that are
drawn later. All its features are known, so nothing has to be drawn: the mean over a tree, averaged
over all trees that a policy may draw, is a weighted mean over the survey, and has a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveate.nn.attention import masked_softmax


def compute_expected_shares(
    log_prob: Float[Tensor, "*b n"],
    parent: Int[Tensor, "*b n"],
    level: Int[Tensor, "*b n"],
    valid: Bool[Tensor, "*b n"],
    counts: Sequence[int],
) -> Float[Tensor, "*b n"]:
    """Compute the weight of each node of a survey in the mean over a tree, averaged over trees.

    Trees count as drawn with replacement.

    Args:
        log_prob: log-probability ``(…, n)`` of each node among the nodes cut from the same patch.
        parent: ``(…, n)``, index of the node that each was cut from.
        level: ``(…, n)``, 0 for the whole image.
        valid: ``(…, n)``, False on padding.
        counts: patches that a tree has in each region, level by level; 1 on every further level.

    Returns:
        weights ``(…, n)``; rows sum to 1.
    """
    share = valid.to(log_prob.dtype)
    for depth in range(1, int(level.max()) + 1):
        count = counts[depth - 1] if depth <= len(counts) else 1
        inside = share.gather(-1, parent) * log_prob.exp() * count
        share = torch.where((level == depth) & valid, inside, share)
    return share / share.sum(-1, keepdim=True)


class FeatureWeights(nn.Module):
    """Learnt weights of nodes in the pooled feature: squeeze and excite, a linear score, softmax.

    Args:
        dim: length of a feature.
        ratio: width of the squeeze-and-excite layer, as a share of `dim`.
    """

    def __init__(self, dim: int, *, ratio: float = 0.25) -> None:
        super().__init__()
        inner = max(1, round(ratio * dim))
        self.excite = nn.Sequential(
            nn.Linear(dim, inner), nn.ReLU(), nn.Linear(inner, dim), nn.Sigmoid()
        )
        self.score = nn.Linear(dim, 1)

    def forward(
        self, f: Float[Tensor, "*b n d"], valid: Bool[Tensor, "*b n"]
    ) -> Float[Tensor, "*b n"]:
        """Compute weights ``(…, n)``, whose rows sum to 1.

        Args:
            f: features ``(…, n, d)``.
            valid: ``(…, n)``, False on padding.
        """
        mean = (f * valid.unsqueeze(-1)).sum(-2) / valid.sum(-1, keepdim=True)
        return masked_softmax(self.score(f * self.excite(mean).unsqueeze(-2)).squeeze(-1), valid)
