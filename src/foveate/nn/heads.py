"""What a task asks of an image, as a method sees it, and how patches answer on their own.

Sources: the gated sum is that of EMIL (MIDL 2022); the maximum is classic multiple instance
learning.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foveate.nn.additive import AdditiveHead, small_linear
from foveate.nn.base import QUICK, Head, Pooling

__all__ = ["Head", "InstanceHead", "Pooling", "Voted"]


class InstanceHead(nn.Module):
    """Each patch answers the task by itself; the answers are pooled as each question allows.

    Trained beside a method's own prediction it gives every patch a gradient of its own, which ends
    the plateau at chance where the pooling fits the question. Logits begin near 0.

    Args:
        dim: length of a patch's vector.
        heads: what the task asks.
        k_min: of gated sums, how many patches it takes to be sure; 1 where one suffices.
    """

    def __init__(self, dim: int, heads: Sequence[Head], *, k_min: float = 1.0) -> None:
        super().__init__()
        kinds = {"max": _Strongest, "sum": _Sum, "count": _Sum, "none": _Frequencies}
        self.parts = nn.ModuleList(kinds[head.pooling](dim, head, k_min) for head in heads)

    def forward(self, f: Tensor, valid: Tensor) -> Tensor:
        """Logits ``(b, k)``, over all heads in order, from ``f (b, n, d)``, `valid` ``(b, n)``."""
        return torch.cat([part(f, valid) for part in self.parts], -1)


class Voted(nn.Module):
    """An image's answer from what its patches say on their own and from what was pooled of them.

    Counts, and questions that allow several findings, can be answered both ways: the answer is the
    mean of both, but in evaluation only, since both are trained apart. Trained as one, what is
    pooled learns by heart what patches leave to be explained, and is then wrong about new images.
    Any other question is answered by what is pooled.

    A count is the sum of patches' answers, times a learnt trust. A mean of opinions is never sure,
    three votes of five are 0.6; what lets it be sure is the trust, and that must be learnt quickly,
    so its logarithm moves ten times as fast as other parameters.

    Args:
        heads: what the task asks.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__()
        self.heads = tuple(heads)
        n = sum(head.pooling == "count" for head in heads)
        self.log_trust: nn.Parameter | None
        self.register_parameter("log_trust", nn.Parameter(torch.zeros(n)) if n else None)

    def forward(self, answers: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor | None]:
        """The answer, and what is to be trained beside it.

        Args:
            answers: ``(b, k)`` of `InstanceHead`, trained by a loss of their own.
            pooled: ``(b, k)`` from what was pooled.

        Returns:
            logits ``(b, k)``, in training of counts what patches say, else what is pooled; and
            those with what is pooled in the place of counts, the rest without gradient, or None
            where nothing is counted.
        """
        sizes = [head.size for head in self.heads]
        trusts = iter(() if self.log_trust is None else (QUICK * self.log_trust).exp())
        found, beside = [], []
        parts = zip(torch.split(answers, sizes, -1), torch.split(pooled, sizes, -1), strict=True)
        for head, (said, other) in zip(self.heads, parts, strict=True):
            counted = head.pooling == "count"
            several = head.pooling == "max" and head.size > 1 and not head.exclusive
            votes = said * next(trusts) if counted else said
            both = (counted or several) and not self.training
            found.append((votes + other) / 2 if both else votes if counted else other)
            beside.append(other if counted else other.detach())
        return torch.cat(found, -1), torch.cat(beside, -1) if self.log_trust is not None else None


class _Strongest(nn.Module):
    """Per output, the maximum over patches of a linear layer; its bias for an empty image."""

    def __init__(self, dim: int, head: Head, k_min: float) -> None:
        super().__init__()
        self.score = small_linear(dim, head.size)

    def forward(self, f: Tensor, valid: Tensor) -> Tensor:
        single = self.score(f)
        single = single.to(torch.promote_types(single.dtype, torch.float32))
        top = single.masked_fill(~valid.unsqueeze(-1), -torch.inf).amax(1)
        return torch.where(valid.any(1, keepdim=True), top, self.score.bias.to(top))


class _Sum(nn.Module):
    """A gated sum."""

    def __init__(self, dim: int, head: Head, k_min: float) -> None:
        super().__init__()
        self.sum = AdditiveHead(dim, head, k_min=k_min)

    def forward(self, f: Tensor, valid: Tensor) -> Tensor:
        logits: Tensor = self.sum(f, valid)[0]
        return logits


class _Frequencies(nn.Module):
    """Logits that see no patch."""

    def __init__(self, dim: int, head: Head, k_min: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(head.size))

    def forward(self, f: Tensor, valid: Tensor) -> Tensor:
        return self.bias.expand(len(valid), -1)
