"""What several building blocks share: the questions of a task, masked softmax, gated scores.

Source: Ilse, Tomczak & Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018
(gated attention, their eq. 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Pooling = Literal["max", "sum", "none"]

# How much faster than others a parameter moves that has to get far in one training.
QUICK = 10.0


@dataclass(frozen=True)
class Head:
    """One question that a task asks of an image.

    Attributes:
        name: of the question.
        size: number of outputs.
        exclusive: one softmax over the outputs; else a sigmoid each.
        pooling: how single patches answer it: ``max`` where one patch suffices (presence), ``sum``
            for a gated sum (grades), ``none`` where no patch can and only the frequencies of the
            labels are learnt.
    """

    name: str
    size: int
    exclusive: bool
    pooling: Pooling


def masked_softmax(scores: Tensor, valid: Tensor) -> Tensor:
    """Softmax over the last axis where `valid`; exactly 0 elsewhere, and 0 for an empty row."""
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    filled = scores.masked_fill(~valid, -torch.inf)
    top = filled.amax(-1, keepdim=True)
    exp = torch.exp(filled - top.masked_fill(top.isneginf(), 0.0))
    return exp / exp.sum(-1, keepdim=True).clamp_min(torch.finfo(exp.dtype).tiny)


class GatedAttention(nn.Module):
    """Scores ``w . (tanh(V h) * sigmoid(U h))``, one per token, before the softmax."""

    def __init__(self, dim: int, *, hidden: int = 128) -> None:
        super().__init__()
        self.value = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(…, d)`` to ``(…)``."""
        mixed = torch.tanh(self.value(tokens)) * torch.sigmoid(self.gate(tokens))
        scores: Tensor = self.score(mixed).squeeze(-1)
        return scores


class Standardise(nn.Module):
    """Subtracts a mean and divides by a spread, both settled from data and stored with the model.

    Args:
        n_features: length of a vector.
    """

    mean: Tensor
    spread: Tensor
    settled: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("spread", torch.ones(n_features))
        self.register_buffer("settled", torch.tensor(False))

    @torch.no_grad()
    def settle(self, features: Tensor, groups: Sequence[int] = ()) -> None:
        """Take mean and spread from features ``(n, n_features)``, n at least 1.

        A feature that hardly varies is not blown up: its spread counts as at least a hundredth of
        the largest of its group.

        Args:
            features: to take them from.
            groups: lengths of groups of features, which may be on different scales; one by default.
        """
        exact = features.double()
        parts = torch.split(exact.std(0, correction=0), list(groups or (exact.shape[1],)))
        least = [max(1e-2 * float(part.max()), 1e-6) for part in parts]
        spread = [part.clamp_min(low) for part, low in zip(parts, least, strict=True)]
        self.mean.copy_(exact.mean(0))
        self.spread.copy_(torch.cat(spread))
        self.settled.fill_(True)

    def forward(self, features: Tensor) -> Tensor:
        """``(…, n_features)`` of the same shape."""
        return (features - self.mean) / self.spread
