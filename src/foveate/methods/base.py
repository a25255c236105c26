"""The contract of a method: a network from batches to predictions. It never owns a loop."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal

from torch import Tensor, nn

from foveate.batch import Batch, Reads
from foveate.encoders.base import AbstractEncoder
from foveate.images.evidence import Evidence
from foveate.tasks.base import AbstractTask

Meets = Literal["yes", "partly", "no", "not stated"]


@dataclass(frozen=True)
class Judge:
    """What answers of a training step are worth; a loss may ask it, and never sees the targets.

    Attributes:
        task: what the labels mean.
        target: of the ``b`` images.
    """

    task: AbstractTask
    target: Tensor

    def loss(self, logits: Tensor) -> Tensor:
        """The task's loss of each answer: ``(b, …, k)`` to ``(b, …)``."""
        return self._asked(self.task.each_loss, logits)

    def correct(self, logits: Tensor) -> Tensor:
        """1 where an answer is right, else 0: ``(b, …, k)`` to ``(b, …)``, without gradient."""
        return self._asked(self.task.correct, logits)

    def by_label(self, where_true: Tensor, where_false: Tensor) -> Tensor:
        """Sums over outputs of what holds where they are true, else of the other: ``(b,)``.

        Args:
            where_true: ``(b, k)``, taken where the output is true of the image.
            where_false: ``(b, k)``, taken where it is not.

        Returns:
            0 for tasks whose outputs are no classes.
        """
        truth = self.task.truth(self.target)
        if truth is None:
            return where_true.new_zeros(len(where_true))
        return (truth * where_true + (1 - truth) * where_false).sum(1)

    def _asked(self, question: Callable[[Tensor, Tensor], Tensor], logits: Tensor) -> Tensor:
        rows = logits.reshape(-1, logits.shape[-1])
        target = self.target.repeat_interleave(len(rows) // len(self.target), 0)
        return question(rows, target).view(logits.shape[:-1])


class Prediction:
    """What a method returns. No dataclass: Fabric would walk into it and try to change it.

    Attributes:
        logits: ``(b, k)``.
        evidence: one per image in evaluation; nothing in training, or None where a method never
            says where it looked: its heatmaps then show no regions.
        losses: scalars added to the task's loss in training.
        auxiliary: further logits ``(b, k)`` with the weight that the task's loss on them has in
            training.
        objectives: losses that hang on how right other answers than the logits are, or on the
            label: each gets a `Judge` and gives a scalar that is added in training.
        deviation: ``(b, k)`` standard deviation of the logits over the draws of a method that
            samples in evaluation; None where the method does not say.
    """

    def __init__(
        self,
        logits: Tensor,
        evidence: Sequence[Evidence] | None,
        losses: Mapping[str, Tensor] | None = None,
        auxiliary: Mapping[str, tuple[float, Tensor]] | None = None,
        deviation: Tensor | None = None,
        objectives: Mapping[str, Callable[[Judge], Tensor]] | None = None,
    ) -> None:
        self.logits = logits
        self.evidence = list(evidence or ())
        self.losses = dict(losses or {})
        self.auxiliary = dict(auxiliary or {})
        self.deviation = deviation
        self.objectives = dict(objectives or {})


class AbstractMethod(nn.Module, abc.ABC):
    """glimpse → locate → extract → embed → aggregate → predict.

    A subclass takes ``encoder`` and ``heads`` (what the task asks) by keyword; its other keywords,
    all with defaults, are its options. Its file carries its name. Its module's docstring tells
    users what to know, in paragraphs that begin with ``Source:``, ``Differs:``, ``Use when:`` and
    ``Cost:``; ``docs/methods.md`` is made from them.

    Attributes:
        reads: what it asks of a batch, for the plan and the report.
        summary: one line for ``foveate methods``.
        meets: how it meets the five requirements (only relevant parts in detail, any number of
            them, any image size, one GPU, dependencies between parts): ``yes``, ``partly``, ``no``.
        axes: how many axes the images may have.
        learns_frozen: whether there is anything to learn by steps while the encoder is frozen.
        encoder_defaults: options of encoders that this method needs; a user's own come first.
        encoder: the network that embeds glimpses and patches.
    """

    reads: ClassVar[frozenset[Reads]]
    summary: ClassVar[str]
    meets: ClassVar[tuple[Meets, ...]] = ("not stated",) * 5
    axes: ClassVar[frozenset[int]] = frozenset({2, 3})
    learns_frozen: ClassVar[bool] = True
    encoder_defaults: ClassVar[Mapping[str, object]] = MappingProxyType({})
    encoder: AbstractEncoder

    @abc.abstractmethod
    def forward(self, batch: Batch) -> Prediction:
        """Predict a batch; in evaluation mode the answer is deterministic."""

    def begin_step(self, done: float) -> None:
        """Told before each training step which share of the training is done, 0 to 1.

        For methods that change as they learn (temperatures, warm-up).
        """

    def findings(self) -> Mapping[str, float]:
        """What it has found out about itself, by name: logged after each epoch."""
        return {}


def further_loss(task: AbstractTask, prediction: Prediction, target: Tensor) -> Tensor:
    """What a method's own losses add to the task's loss of its prediction; a scalar."""
    total = prediction.logits.new_zeros(()) + sum(prediction.losses.values())
    for weight, logits in prediction.auxiliary.values():
        total = total + weight * task.loss(logits, target)
    judge = Judge(task, target)
    for objective in prediction.objectives.values():
        total = total + objective(judge)
    return total


BASE = AbstractMethod
