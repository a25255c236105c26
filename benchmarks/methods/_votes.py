"""Heads that combine the votes of single patches with pooled logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foveate.nn.base import FAST_RATE
from foveate.nn.heads import Head


class Voted(nn.Module):
    """A head that combines the outputs of single patches with those of the pooled features.

    Counts (gated sums), and questions that allow several findings, can be answered both ways: the
    answer is the mean of both, but in evaluation only, since both are trained apart. Trained as
    one, what is pooled learns by heart what patches leave to be explained, and is then wrong about
    new images. Any other question is answered by what is pooled.

    A count is the sum of patches' answers, times a learnt trust. A mean of opinions is never sure,
    three votes of five are 0.6; what lets it be sure is the trust, and that must be learnt quickly,
    so its logarithm moves ten times as fast as other parameters.

    Args:
        heads: what the task asks.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__()
        self.heads = tuple(heads)
        n = sum(head.pooling == "sum" for head in heads)
        self.log_trust: nn.Parameter | None
        self.register_parameter("log_trust", nn.Parameter(torch.zeros(n)) if n else None)

    def forward(self, answers: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the outputs, and the pooled outputs that are trained beside them.

        Args:
            answers: ``(b, k)`` of `InstanceHead`, trained by a loss of their own.
            pooled: ``(b, k)`` from what was pooled.

        Returns:
            logits ``(b, k)``, in training of counts what patches say, else what is pooled; and
            those with what is pooled in the place of counts, the rest without gradient, or None
            where nothing is counted.
        """
        sizes = [head.size for head in self.heads]
        trusts = iter(() if self.log_trust is None else (FAST_RATE * self.log_trust).exp())
        answers_out, beside = [], []
        parts = zip(torch.split(answers, sizes, -1), torch.split(pooled, sizes, -1), strict=True)
        for head, (opinions, other) in zip(self.heads, parts, strict=True):
            counted = head.pooling == "sum"
            several = head.pooling == "max" and head.size > 1 and not head.exclusive
            votes = opinions * next(trusts) if counted else opinions
            both = (counted or several) and not self.training
            answers_out.append((votes + other) / 2 if both else votes if counted else other)
            beside.append(other if counted else other.detach())
        return torch.cat(answers_out, -1), torch.cat(
            beside, -1
        ) if self.log_trust is not None else None
