"""A head that answers a question by a gated sum of the patches' answers, computed in logarithms."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from foveate.errors import OptionError
from foveate.nn.base import GatedAttention, Head

_SMALL_STD = 1e-2
"""Standard deviation of initial weights whose outputs should be near 0."""

_LOG_OF_ZERO = -1e4
"""Stands in for the logarithm of zero, whose gradient would be NaN."""


def make_small_linear(dim: int, n_outputs: int) -> nn.Linear:
    """Make a linear layer from `dim` to `n_outputs` features whose outputs are near 0 at first.

    Args:
        dim: length of the input.
        n_outputs: length of the output.
    """
    layer = nn.Linear(dim, n_outputs)
    nn.init.normal_(layer.weight, std=_SMALL_STD)
    nn.init.zeros_(layer.bias)
    return layer


class AdditiveHead(nn.Module):
    """A head for one question that sums the probabilities of the patches, each times a gate.

    Patch j has the probabilities ``p_j`` (softmax or sigmoid of a linear layer) and the gate ``w_j
    = sigmoid(w . (tanh(V f) * sigmoid(U f)))``. The image has the probabilities ``sum w_j p_j /
    max(sum w_j, k_min)``. Where the gates sum to less than `k_min`, the missing probability is
    spread evenly over exclusive classes, and counts as "no" otherwise. An image without patches
    gets the bias of the linear layer.

    Args:
        dim: length of a patch's vector.
        head: the question.
        k_min: sum of gates from which the answer needs no missing probability.

    Raises:
        OptionError: `k_min` is not positive.

    Source: EMIL (MIDL 2022). Where we differ: the answer is returned as logits, and the missing
    probability is part of it, so that exclusive probabilities sum to 1.
    """

    def __init__(self, dim: int, head: Head, *, k_min: float) -> None:
        super().__init__()
        if not k_min > 0:
            raise OptionError(f"k_min: got {k_min}, allowed: above 0")
        self.exclusive, self.k_min = head.exclusive, k_min
        self.opinion = make_small_linear(dim, head.size)
        self.gate = GatedAttention(dim)
        nn.init.normal_(self.gate.score.weight, std=_SMALL_STD)
        nn.init.zeros_(self.gate.score.bias)

    def forward(
        self, f: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b n k"]]:
        """Answer the question for images from the vectors of their patches.

        Args:
            f: vectors of patches, ``(b, n, d)``.
            valid: False for padding, ``(b, n)`` bool.

        Returns:
            Logits ``(b, k)``, log-probabilities where the outputs are exclusive; and the logarithm
            of each patch's summand ``(b, n, k)``, ``-inf`` for padding.
        """
        opinion, gate = self.opinion(f), self.gate(f)
        dtype = torch.promote_types(opinion.dtype, torch.float32)
        opinion, gate = opinion.to(dtype), gate.to(dtype)
        log_w = logsigmoid(gate).unsqueeze(-1).masked_fill(~valid.unsqueeze(-1), -torch.inf)
        total = (gate.sigmoid() * valid).sum(1, keepdim=True)
        lacking = total < self.k_min
        log_missing = torch.where(lacking, self.k_min - total, 1.0).log()
        log_missing = log_missing.masked_fill(~lacking, _LOG_OF_ZERO)
        bias = self.opinion.bias.to(dtype)
        if self.exclusive:
            log_share = log_w + opinion.log_softmax(-1)
            even = log_missing - math.log(opinion.shape[-1])
            logits = torch.logaddexp(_log_sum(log_share), even) - total.clamp_min(self.k_min).log()
            bias = bias.log_softmax(-1)
        else:
            log_share = log_w + logsigmoid(opinion)
            log_no = torch.logaddexp(_log_sum(log_w + logsigmoid(-opinion)), log_missing)
            logits = _log_sum(log_share) - log_no
        logits = torch.where(valid.any(1, keepdim=True), logits, bias)
        return logits, log_share


def _log_sum(log_terms: Float[Tensor, "b n k"]) -> Float[Tensor, "b k"]:
    """Return the logarithm of the sum over patches ``(b, k)``, finite also without patches.

    Args:
        log_terms: logarithms of the summands, ``(b, n, k)``.
    """
    floor = log_terms.new_full((log_terms.shape[0], 1, log_terms.shape[2]), _LOG_OF_ZERO)
    return torch.cat([log_terms, floor], 1).logsumexp(1)
