"""The contract of a task: labels as text in, a loss and probabilities out. Pure."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from foveate.errors import TableError, did_you_mean
from foveate.metrics import auroc
from foveate.nn.heads import Head


class AbstractTask(abc.ABC):
    """What the labels mean.

    Attributes:
        preference: of several tasks that fit, the one with the highest is taken.
        classes: their names, in the order of the probabilities.
        heads: what it asks of an image; a method predicts the outputs of all, in this order.
    """

    preference: ClassVar[int] = 0
    heads: tuple[Head, ...]

    def __init__(self, *, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    @classmethod
    @abc.abstractmethod
    def fits(cls, labels: Sequence[str]) -> bool:
        """Whether these distinct labels can be this task."""

    @abc.abstractmethod
    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss of logits ``(b, k)`` and targets as `target` gives them; a scalar."""

    @abc.abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """``(b, len(classes))``, rows sum to 1, in float64."""

    def chance_loss(self, target: Tensor) -> float:
        """The least loss of somebody who knows the targets' frequencies but sees no image.

        For classes, the entropy of the labels. Found by minimising over constant logits.
        """
        logits = torch.zeros(sum(h.size for h in self.heads), requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=50, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(logits.expand(len(target), -1), target)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[no-untyped-call]
        return float(self.loss(logits.detach().expand(len(target), -1), target))

    def validation(self, logits: Tensor, target: Tensor) -> dict[str, float]:
        """Scores of a validation part, for the log; the loss aside."""
        score = auroc(self.probabilities(logits).cpu().numpy(), target.cpu().numpy())
        return {} if score is None else {"val_auroc": float(score)}

    def target(self, label: str) -> int | list[float]:
        """The target of a label.

        Raises:
            TableError: an unknown label.
        """
        if label not in self.classes:
            raise TableError(f"unknown label '{label}'.{did_you_mean(label, self.classes)}")
        return self.classes.index(label)


BASE = AbstractTask
