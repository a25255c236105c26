"""What a task asks of an image, as a method sees it, and how patches answer on their own.

Sources: the gated sum is that of EMIL (MIDL 2022); the maximum is classic multiple instance
learning.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foveate.nn.additive import AdditiveHead, small_linear
from foveate.nn.base import Head, Pooling

__all__ = ["Head", "InstanceHead", "Pooling"]


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
        kinds = {"max": _Strongest, "sum": _Sum, "none": _Frequencies}
        self.parts = nn.ModuleList(kinds[head.pooling](dim, head, k_min) for head in heads)

    def forward(self, f: Tensor, valid: Tensor) -> Tensor:
        """Logits ``(b, k)``, over all heads in order, from ``f (b, n, d)``, `valid` ``(b, n)``."""
        return torch.cat([part(f, valid) for part in self.parts], -1)


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
