"""The contract of a method: a network from batches to predictions. It never owns a loop."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple, Protocol

from torch import Tensor, nn

from foveate.bags.embedding import Bag
from foveate.batch import Batch, Reads
from foveate.encoders.base import AbstractEncoder
from foveate.images.evidence import EvidenceList
from foveate.nn.heads import Head, InstanceHead
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

    def mean_loss(self, logits: Tensor) -> Tensor:
        """The task's loss of logits ``(b, k)``; a scalar."""
        return self.task.loss(logits, self.target)

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


class FurtherLoss(Protocol):
    """A loss beside the task's: a NamedTuple of tensors and constants, which the loop asks."""

    def __call__(self, judge: Judge) -> Tensor:
        """Compute a scalar that is added to the task's loss in training."""


class Penalty(NamedTuple):
    """A loss that needs no label.

    Attributes:
        value: scalar, the mean over the images of the batch.
    """

    value: Tensor

    def __call__(self, judge: Judge) -> Tensor:
        """Return the penalty as it is."""
        return self.value


class Auxiliary(NamedTuple):
    """Another answer, taught by the task's own loss.

    Attributes:
        logits: ``(b, k)``.
        weight: of its loss.
    """

    logits: Tensor
    weight: float = 1.0

    def __call__(self, judge: Judge) -> Tensor:
        """Compute the weighted loss of the task."""
        return self.weight * judge.mean_loss(self.logits)


class Prediction(NamedTuple):
    """What a method returns: tensors that distributed wrappers can walk, and evidence beside them.

    Attributes:
        logits: ``(b, k)``.
        evidence: one per image in evaluation; empty in training, and where a method never says
            where it looked: its heatmaps then show no regions.
        further: losses that are added to the task's in training, by name.
        deviation: ``(b, k)`` standard deviation of the logits over the draws of a method that
            samples in evaluation; None where the method does not say.
    """

    logits: Tensor
    evidence: EvidenceList = EvidenceList()
    further: Mapping[str, FurtherLoss] = MappingProxyType({})
    deviation: Tensor | None = None


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


class BagAnswer(NamedTuple):
    """What a paper's aggregation makes of the patches of images.

    Attributes:
        logits: ``(b, k)``.
        weight: computes the share ``(b, n)`` of each patch in the answer; in evaluation only.
        instances: ``(b, n, d)``, what the instance head answers from; None for no such head.
        further: losses of the paper's own.
        by_output: shares for each output ``(b, k, n)``, of methods that look once for each.
    """

    logits: Tensor
    weight: Callable[[], Tensor]
    instances: Tensor | None = None
    further: Mapping[str, FurtherLoss] = MappingProxyType({})
    by_output: Tensor | None = None


class AbstractBagMethod(AbstractMethod):
    """Methods that embed every patch of an image; a subclass is its paper's aggregation.

    Reading, embedding, padding, the instance head and evidence are the same for all of them.

    Args:
        encoder: of the patches.
        heads: what the task asks.
        train_encoder: learn the encoder too, by two-pass replay; off, it stays as it began and
            each image is embedded once.
        chunk: patches encoded at a time.
        jitter: in training, shift the lattice at random (with a trained encoder only).
        instance: weight of the instance head's loss.
        dim_instance: length of what it answers from; None for no instance head.
    """

    reads = frozenset({"glimpse", "bag"})

    def __init__(
        self,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        *,
        train_encoder: bool,
        chunk: int,
        jitter: bool,
        instance: float = 0.0,
        dim_instance: int | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.task_heads = encoder.requires_grad_(train_encoder), tuple(heads)
        self.instance = instance
        self.bag = Bag(train_encoder=train_encoder, chunk=chunk, jitter=jitter)
        self.head_instance: InstanceHead | None = None
        if instance > 0 and dim_instance is not None:
            self.head_instance = InstanceHead(dim_instance, heads)

    @abc.abstractmethod
    def answer_bag(self, f: Tensor, valid: Tensor, place: Callable[[], Tensor]) -> BagAnswer:
        """Aggregate the patches of each image.

        Args:
            f: their features ``(b, n, d)``, zeros on padding.
            valid: ``(b, n)`` bool, False on padding.
            place: gives their centres ``(b, n, ndim)``, in sides of a patch.
        """

    def forward(self, batch: Batch) -> Prediction:
        """Predict from every patch of each image."""
        patches = self.bag.cover(batch, training=self.training)
        f, valid = self.bag.embed(self.encoder, batch, patches)
        answer = self.answer_bag(f, valid, lambda: batch.layout(patches, valid.shape[1])[0])
        if not self.training:
            weight, by_output = answer.weight(), answer.by_output
            evidence = batch.evidence(patches, weight, by_output=by_output)
            return Prediction(answer.logits, evidence)
        further = dict(answer.further)
        if self.head_instance is not None and answer.instances is not None:
            alone = self.head_instance(answer.instances, valid)
            further["instance"] = Auxiliary(alone, self.instance)
        return Prediction(answer.logits, further=further)


def further_loss(task: AbstractTask, prediction: Prediction, target: Tensor) -> Tensor:
    """Sum what a method's own losses add to the task's loss of its prediction; a scalar."""
    judge, zero = Judge(task, target), prediction.logits.new_zeros(())
    return zero + sum(loss(judge) for loss in prediction.further.values())


BASE = AbstractMethod
