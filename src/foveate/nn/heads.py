"""Heads that answer a task's questions from single patches, and pool the answers.

Sources: the gated sum is that of EMIL (MIDL 2022); the maximum is classic multiple instance
learning.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveate.nn.additive import AdditiveHead, make_small_linear
from foveate.nn.base import Head, Pooling

__all__ = ["Head", "InstanceHead", "Pooling"]


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
        kinds = {"max": _MaxHead, "sum": _SumHead, "none": _FrequencyHead}
        self.parts = nn.ModuleList(kinds[head.pooling](dim, head, k_min) for head in heads)

    def forward(
        self, f: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b k"]:
        """Compute the logits of all heads in order, ``(b, k)``.

        Args:
            f: vectors of patches, ``(b, n, d)``.
            valid: False for padding, ``(b, n)`` bool.
        """
        return torch.cat([part(f, valid) for part in self.parts], -1)


class _MaxHead(nn.Module):
    """The maximum over patches of a linear layer, per output; its bias for an empty image."""

    def __init__(self, dim: int, head: Head, k_min: float) -> None:
        super().__init__()
        self.score = make_small_linear(dim, head.size)

    def forward(
        self, f: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b k"]:
        single = self.score(f)
        single = single.to(torch.promote_types(single.dtype, torch.float32))
        top = single.masked_fill(~valid.unsqueeze(-1), -torch.inf).amax(1)
        return torch.where(valid.any(1, keepdim=True), top, self.score.bias.to(top))


class _SumHead(nn.Module):
    """The logits of an `AdditiveHead`, without its shares."""

    def __init__(self, dim: int, head: Head, k_min: float) -> None:
        super().__init__()
        self.sum = AdditiveHead(dim, head, k_min=k_min)

    def forward(
        self, f: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b k"]:
        logits: Tensor = self.sum(f, valid)[0]
        return logits


class _FrequencyHead(nn.Module):
    """Learnt logits that depend on no patch."""

    def __init__(self, dim: int, head: Head, k_min: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(head.size))

    def forward(
        self, f: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]
    ) -> Float[Tensor, "b k"]:
        return self.bias.expand(len(valid), -1)
