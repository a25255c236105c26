"""Several classes, exactly one of them true."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from foveate.nn.heads import Head, Pooling
from foveate.tasks.classes import ClassTask


class MulticlassTask(ClassTask):
    """One logit per class, softmax over them.

    Args:
        classes: the labels.
        smoothing: of the label in the loss.
        patches: how single patches speak for a class: ``max`` where one suffices, ``sum`` where
            many must agree (grades), ``none`` where no patch can.
    """

    def __init__(
        self, *, classes: Sequence[str], smoothing: float = 0.05, patches: Pooling = "sum"
    ) -> None:
        super().__init__(classes=classes)
        self.smoothing = smoothing
        self.heads = (Head("class", len(self.classes), True, patches),)

    @classmethod
    def fits(cls, labels: Sequence[str]) -> bool:
        """Say whether there are two labels or more."""
        return len(labels) >= 2

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy with smoothed labels."""
        return self.each_loss(logits, target).mean()

    def each_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the same of every row."""
        return functional.cross_entropy(
            logits.float(), target.long(), label_smoothing=self.smoothing, reduction="none"
        )

    def truth(self, target: Tensor) -> Tensor:
        """Return 1 for the class of the label."""
        return functional.one_hot(target.long(), len(self.classes)).float()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the softmax."""
        return logits.double().softmax(-1)
