"""A question answered by a gated sum of what each patch says, in the domain of logarithms."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from foveate.errors import OptionError
from foveate.nn.base import GatedAttention, Head

_SMALL = 1e-2
_LEAST = -1e4
"""Stands in for the logarithm of nothing, whose gradient would be nan."""


def small_linear(dim: int, size: int) -> nn.Linear:
    """A linear layer whose outputs begin near 0."""
    layer = nn.Linear(dim, size)
    nn.init.normal_(layer.weight, std=_SMALL)
    nn.init.zeros_(layer.bias)
    return layer


class AdditiveHead(nn.Module):
    """One question: each patch has an opinion and a gate, and the opinions are added.

    Patch k says ``p_k`` (softmax or sigmoid of a linear layer) and is let through by ``w_k =
    sigmoid(w . (tanh(V f) * sigmoid(U f)))``; the image's answer is ``sum w_k p_k / max(sum w_k,
    k_min)``. Where the gates let less than `k_min` through, what is missing is spread evenly over
    exclusive classes, and counts as "no" otherwise. An image without patches answers by the bias of
    the linear layer.

    Source: EMIL (MIDL 2022). Where we differ: the answer is returned as logits, and what is missing
    is part of it, so that exclusive probabilities sum to 1.

    Raises:
        OptionError: `k_min` is not positive.
    """

    def __init__(self, dim: int, head: Head, *, k_min: float) -> None:
        super().__init__()
        if not k_min > 0:
            raise OptionError(f"k_min: got {k_min}, allowed: above 0")
        self.exclusive, self.k_min = head.exclusive, k_min
        self.opinion = small_linear(dim, head.size)
        self.gate = GatedAttention(dim)
        nn.init.normal_(self.gate.score.weight, std=_SMALL)
        nn.init.zeros_(self.gate.score.bias)

    def forward(self, f: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Answers of images with patches ``f (b, n, d)``, where `valid` ``(b, n)``.

        Returns:
            logits ``(b, k)``, log-probabilities where exclusive; and the log of what each patch
            adds ``(b, n, k)``, ``-inf`` where not valid.
        """
        opinion, gate = self.opinion(f), self.gate(f)
        exact = torch.promote_types(opinion.dtype, torch.float32)
        opinion, gate = opinion.to(exact), gate.to(exact)
        log_w = logsigmoid(gate).unsqueeze(-1).masked_fill(~valid.unsqueeze(-1), -torch.inf)
        total = (gate.sigmoid() * valid).sum(1, keepdim=True)
        lacking = total < self.k_min
        missing = torch.where(lacking, self.k_min - total, 1.0).log().masked_fill(~lacking, _LEAST)
        bias = self.opinion.bias.to(exact)
        if self.exclusive:
            log_share = log_w + opinion.log_softmax(-1)
            even = missing - math.log(opinion.shape[-1])
            logits = torch.logaddexp(_log_sum(log_share), even) - total.clamp_min(self.k_min).log()
            bias = bias.log_softmax(-1)
        else:
            log_share = log_w + logsigmoid(opinion)
            no = torch.logaddexp(_log_sum(log_w + logsigmoid(-opinion)), missing)
            logits = _log_sum(log_share) - no
        logits = torch.where(valid.any(1, keepdim=True), logits, bias)
        return logits, log_share


def _log_sum(terms: Tensor) -> Tensor:
    """Log of the sum over patches of exponentials ``(b, n, k)``, finite also for none."""
    floor = terms.new_full((terms.shape[0], 1, terms.shape[2]), _LEAST)
    return torch.cat([terms, floor], 1).logsumexp(1)
