"""What a task asks of an image, as a method sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Pooling = Literal["max", "sum", "none"]


@dataclass(frozen=True)
class Head:
    """One question that a task asks of an image.

    Attributes:
        name: of the question.
        size: number of outputs.
        exclusive: one softmax over the outputs; else a sigmoid each.
        pooling: how single patches answer it: ``max`` where one patch suffices (presence), ``sum``
            for a gated sum (counts, grades), ``none`` where no patch can.
    """

    name: str
    size: int
    exclusive: bool
    pooling: Pooling


class InstanceHead(nn.Module):
    """Stub until the real one lands."""

    def __init__(self, dim: int, heads: Sequence[Head], *, k_min: float = 1.0) -> None:
        super().__init__()
        self.score = nn.Linear(dim, sum(h.size for h in heads))

    def forward(self, f: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        single = self.score(f)
        return single.masked_fill(~valid.unsqueeze(-1), -torch.inf).amax(1), single


def saliency(single: Tensor, heads: Sequence[Head]) -> Tensor:
    if single.shape[-1] == 1:
        return single.detach()[..., 0]
    return (single.amax(-1) - single.mean(-1)).detach()
