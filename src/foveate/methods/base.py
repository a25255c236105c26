"""The contract of a method: a network from batches to predictions, without a training loop."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, TypedDict

from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from foveate.bags.embedding import Bag
from foveate.batch import Batch, Reads, View
from foveate.encoders.base import AbstractEncoder
from foveate.errors import ArrayError
from foveate.images.evidence import EvidenceList
from foveate.images.likeness import ImageFacts
from foveate.nn.heads import Head, InstanceHead
from foveate.nn.linear_fit import RowLosses
from foveate.parts.options import Count
from foveate.tasks.base import AbstractTask

Meets = Literal["yes", "partly", "no", "not stated"]


@dataclass(frozen=True)
class Judge:
    """Computes losses and rewards of answers in a training step, so that methods see no targets.

    Attributes:
        task: the task, which gives labels their meaning.
        target: targets of the b images.
    """

    task: AbstractTask
    target: Shaped[Tensor, "b ..."]

    def loss(self, logits: Float[Tensor, "b *more k"]) -> Float[Tensor, " b *more"]:
        """Compute the task's loss of each answer: ``(b, …, k)`` to ``(b, …)``."""
        return self._apply(self.task.each_loss, logits)

    def mean_loss(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
        """Compute the task's loss of logits ``(b, k)``; a scalar."""
        return self.task.loss(logits, self.target)

    def correct(self, logits: Float[Tensor, "b *more k"]) -> Float[Tensor, " b *more"]:
        """Return 1 for right answers, else 0: ``(b, …, k)`` to ``(b, …)``, without gradient."""
        return self._apply(self.task.correct, logits)

    def by_label(
        self, where_true: Float[Tensor, "b k"], where_false: Float[Tensor, "b k"]
    ) -> Float[Tensor, " b"]:
        """Sum up a value over outputs that depends on whether the output is true of the image.

        Args:
            where_true: values ``(b, k)`` of outputs that are true.
            where_false: values ``(b, k)`` of outputs that are not true.

        Returns:
            sums ``(b,)``; 0 for tasks whose outputs are no classes.
        """
        truth = self.task.truth(self.target)
        if truth is None:
            return where_true.new_zeros(len(where_true))
        return (truth * where_true + (1 - truth) * where_false).sum(1)

    def _apply(
        self, score: Callable[..., Float[Tensor, " m"]], logits: Float[Tensor, "b *more k"]
    ) -> Float[Tensor, " b *more"]:
        rows = logits.reshape(-1, logits.shape[-1])
        target = self.target.repeat_interleave(len(rows) // len(self.target), 0)
        return score(rows, target).view(logits.shape[:-1])


class FurtherLoss(Protocol):
    """A loss beside the task's: a NamedTuple of tensors and constants that the loop calls."""

    def __call__(self, judge: Judge) -> Float[Tensor, ""]:
        """Compute a scalar that is added to the task's loss in training."""


class Penalty(NamedTuple):
    """A loss that needs no label.

    Attributes:
        value: the loss, a scalar: the mean over the images of the batch.
    """

    value: Float[Tensor, ""]

    def __call__(self, judge: Judge) -> Float[Tensor, ""]:
        """Return the value; labels are not needed."""
        return self.value


class Auxiliary(NamedTuple):
    """A further answer, trained by the task's loss.

    Attributes:
        logits: the answer ``(b, k)``.
        weight: factor of its loss.
    """

    logits: Float[Tensor, "b k"]
    weight: float = 1.0

    def __call__(self, judge: Judge) -> Float[Tensor, ""]:
        """Compute the weighted loss of the task."""
        return self.weight * judge.mean_loss(self.logits)


class Prediction(NamedTuple):
    """The result of a method: tensors in a form that distributed wrappers can walk, and evidence.

    Attributes:
        logits: answers ``(b, k)``.
        evidence: evidence of each image in evaluation; empty in training and for methods that give
            none, whose heatmaps show no regions.
        further: losses that are added to the task's in training, by name.
        deviation: standard deviation ``(b, k)`` of the logits over the draws of a method that
            samples in evaluation; None for other methods.
    """

    logits: Float[Tensor, "b k"]
    evidence: EvidenceList = EvidenceList()
    further: Mapping[str, FurtherLoss] = MappingProxyType({})
    deviation: Float[Tensor, "b k"] | None = None


class Requirements(NamedTuple):
    """How a method meets the five requirements: ``yes``, ``partly`` or ``no``.

    Attributes:
        relevant_parts: only the relevant parts of an image are read in detail.
        any_number: any number of parts may be relevant.
        any_size: images may have any size.
        one_gpu: one GPU suffices.
        dependencies: the answer may depend on several parts together.
    """

    relevant_parts: Meets = "not stated"
    any_number: Meets = "not stated"
    any_size: Meets = "not stated"
    one_gpu: Meets = "not stated"
    dependencies: Meets = "not stated"


class AbstractMethod(nn.Module, abc.ABC):
    """A method: glimpse → locate → extract → embed → aggregate → predict.

    A subclass takes ``encoder`` and ``heads`` (the questions of the task) by keyword; its other
    keywords, all with defaults, are its options. Its file has its name. The docstring of its module
    is for users, in paragraphs that begin with ``Source:``, ``Differs:``, ``Use when:`` and
    ``Cost:``; ``docs/methods.md`` is made from them.

    Attributes:
        reads: kinds of pixels that the method reads, for the plan and the report.
        summary: one line for ``foveate methods``.
        meets: how the method meets each of the five requirements.
        axes: numbers of axes that the images may have.
        needs_pixels: False if all comes through `Bag`, so that files of features suffice.
        learns_frozen: whether the method learns anything by steps while the encoder is frozen.
        fits_glimpses: whether `fit_start` fits anything to the features of all glimpses.
        encoder_defaults: options of encoders that this method needs; those of the user win.
        encoder: the network that embeds glimpses and patches.
    """

    reads: ClassVar[frozenset[Reads]]
    summary: ClassVar[str]
    meets: ClassVar[Requirements] = Requirements()
    axes: ClassVar[frozenset[int]] = frozenset({2, 3})
    needs_pixels: ClassVar[bool] = True
    learns_frozen: ClassVar[bool] = True
    fits_glimpses: bool = False
    encoder_defaults: ClassVar[Mapping[str, object]] = MappingProxyType({})
    encoder: AbstractEncoder

    @classmethod
    def choose_options(
        cls, options: Mapping[str, Any], view: View, images: Sequence[ImageFacts]
    ) -> dict[str, Any]:
        """Choose the options that the user leaves to the images; called once, before training.

        Args:
            options: the options of the run, defaults included.
            view: the geometry in which patches and glimpses are read.
            images: facts about the images that can be read, at least one.

        Returns:
            values that replace those of `options`, by name; they are stored with the run.
        """
        return {}

    @abc.abstractmethod
    def forward(self, batch: Batch) -> Prediction:
        """Predict a batch; in evaluation mode the answer is deterministic."""

    def begin_step(self, done: float) -> None:
        """Adapt to the progress of the training (temperatures, warm-up); called before each step.

        Args:
            done: share of the training that is done, 0 to 1.
        """

    def fit_start(
        self,
        overviews: Float[Tensor, "n d"],
        row_losses: RowLosses,
        left_out_fold: Int[Tensor, " n"],
    ) -> None:
        """Fit answers to the glimpses of a frozen encoder, before the first step.

        Called where `fits_glimpses` is true and the encoder is pretrained.

        Args:
            overviews: `Look.overview` of the n images of the training and the validation part,
                ``(n, d)``.
            row_losses: function from logits ``(m, k)`` and indices of rows ``(m,)`` to their losses
                ``(m,)``.
            left_out_fold: number of the left-out fold of each image, ``(n,)`` int; in all later
                batches, `Batch.left_out_fold` has the number of the fit that did not see the image.
        """

    def fit_trust(
        self,
        answer: Callable[[], tuple[Float[Tensor, "n k"], Shaped[Tensor, "n ..."]]],
        each_loss: Callable[..., Float[Tensor, " n"]],
        view: View,
    ) -> None:
        """Fit to the validation part how far learnt answers count, at the end of the frozen start.

        Args:
            answer: computes the answers of the method ``(n, k)`` in its present state to the
                validation part, and the targets ``(n, …)``; may be called several times.
            each_loss: function from logits ``(n, k)`` and targets to the images' losses ``(n,)``.
            view: how images are read.
        """

    def share_trust(self, others: Sequence[Self]) -> None:
        """Take over what `fit_trust` fitted in other models, where there is no validation part.

        Args:
            others: methods of the same class and options, one for each fold.
        """

    def findings(self) -> Mapping[str, float]:
        """Return figures of the method's state by name, which are logged after each epoch."""
        return {}


class BagAnswer(NamedTuple):
    """The result of aggregating the patches of images.

    Attributes:
        logits: answers ``(b, k)``.
        weight: computes the share ``(b, n)`` of each patch in the answer; called in evaluation.
        instances: vectors ``(b, n, d)`` that the instance head answers from; None for no such head.
        further: further losses of the paper, by name.
        by_output: shares of patches for each output ``(b, k, n)``, for methods that have them.
    """

    logits: Float[Tensor, "b k"]
    weight: Callable[[], Float[Tensor, "b n"]]
    instances: Float[Tensor, "b n d"] | None = None
    further: Mapping[str, FurtherLoss] = MappingProxyType({})
    by_output: Float[Tensor, "b k n"] | None = None


class BagOptions(TypedDict, total=False):
    """The options of every method that embeds all patches; see `AbstractBagMethod`."""

    train_encoder: bool
    chunk: int
    jitter: bool


class AbstractBagMethod(AbstractMethod):
    """A method that embeds every patch of an image; a subclass aggregates them.

    Reading, embedding, padding, the instance head and evidence are the same for all of them. A
    subclass passes `BagOptions` on, and has the option `instance` if it has an instance head.

    Args:
        encoder: the encoder of the patches.
        heads: the questions of the task.
        dim_instance: length of the vectors that the instance head answers from; None for no
            instance head.
        train_encoder: whether the encoder is trained too, by two-pass replay; if not, it keeps its
            weights and each image is embedded once.
        chunk: number of patches encoded at a time.
        instance: weight of the loss of the instance head, which answers the task from single
            patches and pools these answers as the task allows; 0 for no such head, as published.
        jitter: whether the lattice is shifted at random in training (with a trained encoder only).
    """

    reads = frozenset({"glimpse", "bag"})
    needs_pixels = False

    def __init__(
        self,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        dim_instance: int | None,
        *,
        train_encoder: bool = True,
        chunk: Count = 64,
        instance: float = 0.0,
        jitter: bool = True,
    ) -> None:
        super().__init__()
        self.encoder, self.task_heads = encoder.requires_grad_(train_encoder), tuple(heads)
        self.instance = instance
        self.bag = Bag(train_encoder=train_encoder, chunk=chunk, jitter=jitter)
        self.head_instance: InstanceHead | None = None
        if instance > 0 and dim_instance is not None:
            self.head_instance = InstanceHead(dim_instance, heads)

    @abc.abstractmethod
    def answer_bag(
        self,
        f: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
        place: Callable[[], Float[Tensor, "b n ndim"]],
    ) -> BagAnswer:
        """Aggregate the patches of each image.

        Args:
            f: features of the patches ``(b, n, d)``, zeros on padding.
            valid: ``(b, n)`` bool, False on padding.
            place: returns the centres of the patches ``(b, n, ndim)``, in sides of a patch.
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


def further_loss(
    task: AbstractTask, prediction: Prediction, target: Shaped[Tensor, "b ..."]
) -> Float[Tensor, ""]:
    """Sum up the losses of a prediction that are added to the task's loss; a scalar.

    Args:
        task: the task, which defines the losses of answers.
        prediction: the prediction of a training step.
        target: targets of the b images.
    """
    judge, zero = Judge(task, target), prediction.logits.new_zeros(())
    return zero + sum(loss(judge) for loss in prediction.further.values())


def check_prediction(prediction: Prediction, task: AbstractTask, n: int) -> None:
    """Check that a method returns what its contract promises.

    Args:
        prediction: result of the method.
        task: the task, whose heads state the number of outputs.
        n: number of images.

    Raises:
        ArrayError: logits have another shape, or evidence is there for some images only.
    """
    expected = (n, sum(head.size for head in task.heads))
    if tuple(prediction.logits.shape) != expected:
        raise ArrayError(
            f"it returns logits of shape {tuple(prediction.logits.shape)}, expected {expected}, "
            "one row for each image and one column for each output of the task"
        )
    if prediction.evidence and len(prediction.evidence) != n:
        raise ArrayError(
            f"it returns the evidence of {len(prediction.evidence)} images, expected {n} or none"
        )


BASE = AbstractMethod
