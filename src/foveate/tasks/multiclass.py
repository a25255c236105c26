"""The task of several classes, exactly one of which is true."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from foveate.nn.heads import Head, Pooling
from foveate.parts.options import Within
from foveate.tasks.classes import ClassTask


class MulticlassTask(ClassTask):
    """Several classes, one logit each, with a softmax over them.

    Args:
        classes: the labels.
        smoothing: label smoothing in the loss.
        patches: how single patches speak for a class: ``max`` where one suffices, ``sum`` where
            many must agree (grades), ``none`` where no patch can.
    """

    link = "softmax"

    def __init__(
        self,
        *,
        classes: Sequence[str],
        smoothing: Annotated[float, Within(0, 1)] = 0.05,
        patches: Pooling = "sum",
    ) -> None:
        super().__init__(classes=classes)
        self.smoothing = smoothing
        self.heads = (Head("class", len(self.classes), True, patches),)

    @classmethod
    def fits(cls, labels: Sequence[str], column: str) -> bool:
        """Return whether there are two labels or more."""
        del column
        return len(labels) >= 2

    def loss(self, logits: Float[Tensor, "b k"], target: Shaped[Tensor, " b"]) -> Float[Tensor, ""]:
        """Compute the mean cross-entropy of logits ``(b, k)`` with smoothed labels ``(b,)``.

        Args:
            logits: logits of the images, ``(b, k)``.
            target: numbers of their classes, ``(b,)``.
        """
        return self.each_loss(logits, target).mean()

    def each_loss(
        self, logits: Float[Tensor, "m k"], target: Shaped[Tensor, " m"]
    ) -> Float[Tensor, " m"]:
        """Compute the cross-entropy of every row, ``(m,)``, with smoothed labels ``(m,)``.

        Args:
            logits: logits of the rows, ``(m, k)``.
            target: numbers of their classes, ``(m,)``.
        """
        return functional.cross_entropy(
            logits.float(), target.long(), label_smoothing=self.smoothing, reduction="none"
        )

    def truth(self, target: Shaped[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """Return 1 for the class of the label, else 0, ``(b, k)``."""
        return functional.one_hot(target.long(), len(self.classes)).float()

    def probabilities(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Compute the softmax of logits ``(b, k)`` in float64."""
        return logits.double().softmax(-1)
