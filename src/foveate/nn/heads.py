"""Heads that answer a task's questions from single patches, and the vote of patches.

Sources: the gated sum is that of EMIL (MIDL 2022); the maximum is classic multiple instance
learning.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foveate.nn.additive import AdditiveHead, make_small_linear
from foveate.nn.base import FAST_RATE, Head, Pooling

__all__ = ["Head", "InstanceHead", "Pooling", "VotingHead"]


class InstanceHead(nn.Module):
    """A head in which each patch answers the task by itself; the answers are pooled per question.

    Trained beside a method's own prediction it gives every patch a gradient of its own. This ends
    the plateau at chance where the pooling fits the question. Logits are near 0 at first.

    Args:
        dim: length of a patch's vector.
        heads: questions of the task.
        k_min: number of patches from which the answer of a gated sum is certain; 1 where one
            patch suffices.
    """

    def __init__(self, dim: int, heads: Sequence[Head], *, k_min: float = 1.0) -> None:
        super().__init__()
        kinds = {"max": _MaxHead, "sum": _SumHead, "count": _SumHead, "none": _FrequencyHead}
        self.parts = nn.ModuleList(kinds[head.pooling](dim, head, k_min) for head in heads)

    def forward(self, f: Tensor, valid: Tensor) -> Tensor:
        """Compute the logits of all heads in order, ``(b, k)``.

        Args:
            f: vectors of patches, ``(b, n, d)``.
            valid: False for padding, ``(b, n)`` bool.
        """
        return torch.cat([part(f, valid) for part in self.parts], -1)


class VotingHead(nn.Module):
    """A head that combines the votes of single patches with the logits of the pooled patches.

    Counts, and questions of several outputs that do not exclude each other, can be answered both
    ways. Their answer is the mean of both, but in evaluation only, since both are trained apart:
    trained as one answer, the pooled part memorises what the votes leave to explain, and is then
    wrong about new images. Every other question is answered by the pooled patches alone.

    The votes of a count are multiplied by a learnt factor, the trust. A mean of votes is never
    certain: three votes of five are 0.6. The trust makes it certain, and must be learnt quickly, so
    its logarithm moves ten times as fast as other parameters.

    Args:
        heads: questions of the task.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__()
        self.heads = tuple(heads)
        n = sum(head.pooling == "count" for head in heads)
        self.log_trust: nn.Parameter | None
        self.register_parameter("log_trust", nn.Parameter(torch.zeros(n)) if n else None)

    def forward(self, answers: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor | None]:
        """Combine the logits of single patches with those of the pooled patches.

        Args:
            answers: logits of `InstanceHead`, ``(b, k)``, which have a loss of their own.
            pooled: logits of the pooled patches, ``(b, k)``.

        Returns:
            The logits ``(b, k)``; in training those of the votes for counts, else the pooled ones.
            And logits for a further loss ``(b, k)``, which trains the pooled answer to counts: the
            pooled ones, without gradient except for counts; None where no head counts.
        """
        sizes = [head.size for head in self.heads]
        trusts = iter(() if self.log_trust is None else (FAST_RATE * self.log_trust).exp())
        logits, further = [], []
        parts = zip(torch.split(answers, sizes, -1), torch.split(pooled, sizes, -1), strict=True)
        for head, (votes, of_pooled) in zip(self.heads, parts, strict=True):
            counts = head.pooling == "count"
            multilabel = head.pooling == "max" and head.size > 1 and not head.exclusive
            votes = votes * next(trusts) if counts else votes
            averaged = (counts or multilabel) and not self.training
            logits.append((votes + of_pooled) / 2 if averaged else votes if counts else of_pooled)
            further.append(of_pooled if counts else of_pooled.detach())
        return torch.cat(logits, -1), torch.cat(further, -1) if self.log_trust is not None else None


class _MaxHead(nn.Module):
    """The maximum over patches of a linear layer, per output; its bias for an empty image."""

    def __init__(self, dim: int, head: Head, k_min: float) -> None:
        super().__init__()
        self.score = make_small_linear(dim, head.size)

    def forward(self, f: Tensor, valid: Tensor) -> Tensor:
        single = self.score(f)
        single = single.to(torch.promote_types(single.dtype, torch.float32))
        top = single.masked_fill(~valid.unsqueeze(-1), -torch.inf).amax(1)
        return torch.where(valid.any(1, keepdim=True), top, self.score.bias.to(top))


class _SumHead(nn.Module):
    """The logits of an `AdditiveHead`, without its shares."""

    def __init__(self, dim: int, head: Head, k_min: float) -> None:
        super().__init__()
        self.sum = AdditiveHead(dim, head, k_min=k_min)

    def forward(self, f: Tensor, valid: Tensor) -> Tensor:
        logits: Tensor = self.sum(f, valid)[0]
        return logits


class _FrequencyHead(nn.Module):
    """Learnt logits that depend on no patch."""

    def __init__(self, dim: int, head: Head, k_min: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(head.size))

    def forward(self, f: Tensor, valid: Tensor) -> Tensor:
        return self.bias.expand(len(valid), -1)
