"""Parts that several layers share: a task's questions, masked softmax, gated attention scores.

Source: Ilse, Tomczak & Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018
(gated attention, their eq. 9).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

Pooling = Literal["max", "sum", "none"]

FAST_RATE = 10.0
"""Factor of parameters that must move further in one training than others do."""


@dataclass(frozen=True)
class Head:
    """One question that a task asks of an image, and how it is answered.

    Attributes:
        name: name of the question.
        size: number of outputs.
        exclusive: whether one softmax runs over the outputs; else each output has a sigmoid.
        pooling: how the answers of single patches are combined: ``max`` where one patch suffices
            (presence), ``sum`` for a gated sum (grades), ``none`` where no patch can answer and
            only the frequencies of the labels are learnt.
    """

    name: str
    size: int
    exclusive: bool
    pooling: Pooling


def masked_softmax(
    scores: Float[Tensor, "*b n"], valid: Bool[Tensor, " ..."]
) -> Float[Tensor, "*b n"]:
    """Compute a softmax over the valid entries of the last axis; others are exactly 0.

    Args:
        scores: logits, ``(…, n)``.
        valid: False for padding, ``(…, n)`` bool or a shape that expands to it.

    Returns:
        Probabilities ``(…, n)`` in float32 at least; all 0 in a row without valid entries.
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    filled = scores.masked_fill(~valid, -torch.inf)
    top = filled.amax(-1, keepdim=True)
    exp = torch.exp(filled - top.masked_fill(top.isneginf(), 0.0))
    return exp / exp.sum(-1, keepdim=True).clamp_min(torch.finfo(exp.dtype).tiny)


class GatedAttention(nn.Module):
    """Scores of gated attention before the softmax: ``w . (tanh(V h) * sigmoid(U h))`` per token.

    Args:
        dim: length of a token.
        hidden: width of the two hidden layers.
    """

    def __init__(self, dim: int, *, hidden: int = 128) -> None:
        super().__init__()
        self.value = nn.Linear(dim, hidden)
        self.gate = nn.Linear(dim, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, tokens: Float[Tensor, "*b d"]) -> Float[Tensor, " *b"]:
        """Return a score ``(…)`` for each token ``(…, d)``."""
        mixed = torch.tanh(self.value(tokens)) * torch.sigmoid(self.gate(tokens))
        scores: Tensor = self.score(mixed).squeeze(-1)
        return scores


class Standardise(nn.Module):
    """Subtraction of a mean and division by a spread that are taken from data, once.

    Both are buffers, stored with the model.

    Args:
        n_features: length of a vector.
    """

    mean: Float[Tensor, " n_features"]
    spread: Float[Tensor, " n_features"]
    settled: Shaped[Tensor, ""]

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("spread", torch.ones(n_features))
        self.register_buffer("settled", torch.tensor(False))

    @torch.no_grad()
    def fit(self, features: Float[Tensor, "n n_features"], groups: Sequence[int] = ()) -> None:
        """Set the stored mean and spread to the mean and standard deviation of features.

        The spread of a feature is at least a hundredth of the largest spread in its group, so that
        features that hardly vary are not enlarged to noise.

        Args:
            features: features of n examples, ``(n, n_features)``, n at least 1.
            groups: lengths of groups of features, which may have different scales; one group of all
                features if empty.
        """
        features = features.double()
        deviation = features.std(0, correction=0)
        spread = [
            group.clamp_min(max(1e-2 * float(group.max()), 1e-6))
            for group in torch.split(deviation, list(groups or (len(deviation),)))
        ]
        self.mean.copy_(features.mean(0))
        self.spread.copy_(torch.cat(spread))
        self.settled.fill_(True)

    def forward(self, features: Float[Tensor, "*b n_features"]) -> Float[Tensor, "*b n_features"]:
        """Standardise features ``(…, n_features)``; the result has the same shape."""
        rate = 1 / self.spread
        return torch.addcmul(-self.mean * rate, features, rate)
