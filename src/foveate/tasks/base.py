"""The contract of a task: labels as text in, a loss and probabilities out. Pure."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from foveate.errors import TableError, did_you_mean


class AbstractTask(abc.ABC):
    """What the labels mean.

    Attributes:
        preference: of several tasks that fit, the one with the highest is taken.
        classes: their names, in the order of the probabilities.
        n_outputs: numbers that a method predicts per image.
    """

    preference: ClassVar[int] = 0
    n_outputs: int

    def __init__(self, *, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    @classmethod
    @abc.abstractmethod
    def fits(cls, labels: Sequence[str]) -> bool:
        """Whether these distinct labels can be this task."""

    @abc.abstractmethod
    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss of logits ``(b, n_outputs)`` and targets ``(b,)``; a scalar."""

    @abc.abstractmethod
    def probabilities(self, logits: Tensor) -> Tensor:
        """``(b, len(classes))``, rows sum to 1, in float64."""

    def target(self, label: str) -> int:
        """The target of a label.

        Raises:
            TableError: an unknown label.
        """
        if label not in self.classes:
            raise TableError(f"unknown label '{label}'.{did_you_mean(label, self.classes)}")
        return self.classes.index(label)


BASE = AbstractTask
