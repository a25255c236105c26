"""What a task asks of an image, as a method sees it, and how patches answer on their own.

Sources: the gated sum is that of EMIL (MIDL 2022); the maximum is classic multiple instance
learning.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from foveate.nn._additive import AdditiveHead, small_linear
from foveate.nn.base import Head, Pooling

__all__ = ["Head", "InstanceHead", "Pooling", "Voted", "saliency"]

_PACE = 10.0


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

    def forward(self, f: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Answers of images and of patches.

        Args:
            f: ``(b, n, d)``.
            valid: ``(b, n)`` bool.

        Returns:
            logits ``(b, k)`` of the images, k over all heads in order, and ``(b, n, k)`` of the
            patches: times their gate where sums are gated, 0 where no patch can answer.
        """
        found = [part(f, valid) for part in self.parts]
        return torch.cat([x for x, _ in found], -1), torch.cat([x for _, x in found], -1)


class Voted(nn.Module):
    """An image's answer from what its patches say on their own and from what was pooled of them.

    Patches' answers count times a learnt trust. A mean of opinions is never sure, three votes of
    five are 0.6; what lets it be sure is the trust, and that must be learnt quickly, so its
    logarithm moves ten times as fast as other parameters.

    - A sum, and the strongest patch for each of several findings, join what is pooled: one
      attention cannot point at all findings.
    - A count is the sum and nothing else: what is pooled learns by heart what the sum leaves to be
      explained, and is then wrong about new images. It is trained beside the answer, as attention
      learns by it.
    - Where there is one finding to point at, what is pooled is the answer: with the strongest patch
      in it, attention would have nothing left to explain.

    Args:
        heads: what the task asks.
    """

    def __init__(self, heads: Sequence[Head]) -> None:
        super().__init__()
        self.heads = tuple(heads)
        n = sum(map(_votes, heads))
        self.log_trust: nn.Parameter | None
        self.register_parameter("log_trust", nn.Parameter(torch.zeros(n)) if n else None)

    def forward(self, answers: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor | None]:
        """The answer, and what is to be trained beside it.

        Args:
            answers: ``(b, k)`` of `InstanceHead`.
            pooled: ``(b, k)`` from what was pooled.

        Returns:
            logits ``(b, k)``; and those with what is pooled in the place of counts, the rest
            without gradient, or None where nothing is counted.
        """
        sizes = [head.size for head in self.heads]
        trusts = iter(() if self.log_trust is None else (_PACE * self.log_trust).exp())
        found, beside = [], []
        parts = zip(torch.split(answers, sizes, -1), torch.split(pooled, sizes, -1), strict=True)
        for head, (said, other) in zip(self.heads, parts, strict=True):
            votes = said * next(trusts) if _votes(head) else torch.zeros_like(said)
            counted = head.pooling == "count"
            found.append(votes if counted else other + votes)
            beside.append(other if counted else found[-1].detach())
        counts = any(head.pooling == "count" for head in self.heads)
        return torch.cat(found, -1), torch.cat(beside, -1) if counts else None


def _votes(head: Head) -> bool:
    """Whether what patches say is part of the answer."""
    several = head.size > 1 and not head.exclusive
    return head.pooling in ("sum", "count") or (head.pooling == "max" and several)


class _Strongest(nn.Module):
    """Per output, the maximum over patches of a linear layer; its bias for an empty image."""

    def __init__(self, dim: int, head: Head, k_min: float) -> None:
        super().__init__()
        self.score = small_linear(dim, head.size)

    def forward(self, f: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        single = self.score(f)
        single = single.to(torch.promote_types(single.dtype, torch.float32))
        top = single.masked_fill(~valid.unsqueeze(-1), -torch.inf).amax(1)
        return torch.where(valid.any(1, keepdim=True), top, self.score.bias.to(top)), single


class _Sum(nn.Module):
    """A gated sum."""

    def __init__(self, dim: int, head: Head, k_min: float) -> None:
        super().__init__()
        self.sum = AdditiveHead(dim, head, k_min=k_min)

    def forward(self, f: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        found = self.sum(f, valid)
        return found.logits, found.opinion * found.gate.unsqueeze(-1)


class _Frequencies(nn.Module):
    """Logits that see no patch."""

    def __init__(self, dim: int, head: Head, k_min: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(head.size))

    def forward(self, f: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        b, n = valid.shape
        return self.bias.expand(b, -1), self.bias.new_zeros(b, n, len(self.bias))


def saliency(single: Tensor, heads: Sequence[Head]) -> Tensor:
    """How much each patch speaks for some class, to be added to scores of attention.

    Args:
        single: ``(b, n, k)`` answers of patches, from `InstanceHead`.
        heads: what the task asks.

    Returns:
        ``(b, n)`` without gradient: the highest over heads of, where outputs exclude each other,
        the highest logit above their mean; else the highest logit. 0 if no patch can answer.
    """
    parts = torch.split(single.detach(), [head.size for head in heads], -1)
    found = [
        part.amax(-1) - part.mean(-1) if head.exclusive else part.amax(-1)
        for part, head in zip(parts, heads, strict=True)
        if head.pooling != "none"
    ]
    return torch.stack(found).amax(0) if found else single.new_zeros(single.shape[:2])
