"""The contract of a task, which handles labels from the cell of a table to the report."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from foveate.errors import OptionError
from foveate.metrics import Difference, Score
from foveate.nn.heads import Head
from foveate.tasks._labels import (
    NO_OPTIONS,
    AbstractLabels,
    CellError,
    Cells,
    JoinedLabels,
    Target,
    list_settled_keywords,
)
from foveate.tasks._report import AbstractReport, Point, Rows, Stored

__all__ = [
    "NO_OPTIONS",
    "AbstractTask",
    "CellError",
    "Cells",
    "JoinedLabels",
    "Point",
    "Rows",
    "Stored",
    "Target",
    "restore",
]


class AbstractTask(AbstractLabels, AbstractReport):
    """The meaning of the labels: targets, loss, answers, scores and words about them.

    Keywords of a constructor without a default are settled from labels (`settle`), are attributes
    and are stored with the model; those with a default are options.
    `AbstractLabels` has the part of the contract that is about labels, `AbstractReport` that about
    the report.

    Attributes:
        heads: questions about an image; a method predicts the outputs of all, in this order.
        columns: names of the numbers of an answer, as in ``predictions.csv``; the probabilities of
            `known_labels` come first.
        deviation_columns: names of the columns for the standard deviations of these numbers over
            several models.
        link: how logits became the probabilities of answers, where the temperature of stored
            answers can be undone: ``softmax`` or ``sigmoid``; None where not.
        large_deviation: standard deviation of the first of these numbers over several models from
            which these disagree, for answers that are numbers; None where it is not known.
    """

    link: ClassVar[str | None] = None
    heads: tuple[Head, ...]
    columns: tuple[str, ...]
    deviation_columns: tuple[str, ...]
    large_deviation: float | None = None

    # -- training -------------------------------------------------------------------------------

    @abc.abstractmethod
    def loss(
        self, logits: Float[Tensor, "b k"], target: Shaped[Tensor, "b ..."]
    ) -> Float[Tensor, ""]:
        """Compute the mean loss of logits ``(b, k)`` for targets ``(b, …)``; a scalar.

        Args:
            logits: logits of the images, ``(b, k)``.
            target: their targets, ``(b, …)``.
        """

    def each_loss(
        self, logits: Float[Tensor, "m k"], target: Shaped[Tensor, "m ..."]
    ) -> Float[Tensor, " m"]:
        """Compute the loss of every row, ``(m,)``; `loss` is its mean, if rows are independent.

        Args:
            logits: logits of the rows, ``(m, k)``.
            target: targets of the rows, ``(m, …)``.
        """
        rows = [self.loss(logits[i : i + 1], target[i : i + 1]) for i in range(len(logits))]
        return torch.stack(rows)

    def correct(
        self, logits: Float[Tensor, "m k"], target: Shaped[Tensor, "m ..."]
    ) -> Float[Tensor, " m"]:
        """Compute how right every row is, ``(m,)`` in [0, 1], without gradient: ``exp(-loss)``.

        Args:
            logits: logits of the rows, ``(m, k)``.
            target: their targets, ``(m, …)``.
        """
        return self.each_loss(logits.detach(), target).neg().exp().clamp_max(1.0)

    def truth(self, target: Shaped[Tensor, "b ..."]) -> Float[Tensor, "b k"] | None:
        """Return which outputs are true for the images, ``(b, k)`` in [0, 1].

        Return None where outputs are no classes; losses that need a class are then left out.
        """
        return None

    def chance_loss(self, target: Shaped[Tensor, "b ..."]) -> float:
        """Compute the smallest loss of constant logits: the loss of answers without images.

        L-BFGS minimises it over the logits ``(k,)``.
        """
        logits = torch.zeros(sum(h.size for h in self.heads), requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], max_iter=50, line_search_fn="strong_wolfe")

        def closure() -> Float[Tensor, ""]:
            optimizer.zero_grad()
            loss = self.loss(logits.expand(len(target), -1), target)
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        return float(self.loss(logits.detach().expand(len(target), -1), target))

    @abc.abstractmethod
    def log_scores(
        self, values: Float[Tensor, "n columns"], target: Shaped[Tensor, "n ..."]
    ) -> dict[str, float]:
        """Score answers for the log, by names that begin with ``val_``; larger is better.

        Args:
            values: numbers of the answers, ``(n, columns)``, of one model or the mean of several.
            target: targets of the images, ``(n, …)``.
        """

    def validate(
        self, logits: Float[Tensor, "n k"], target: Shaped[Tensor, "n ..."], chance: float
    ) -> dict[str, float]:
        """Score a validation part: ``val_score``, which is better when lower, and `log_scores`.

        Args:
            logits: logits of one model, ``(n, k)``.
            target: targets of the images, ``(n, …)``.
            chance: loss at chance, from `chance_loss`.
        """
        loss = float(self.loss(logits, target))
        score = loss / chance if chance > 0 else loss
        return {"val_score": score} | self.log_scores(self.decode(logits, {}), target)

    def learnt(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Return whether `validate` of some epochs shows that something was learnt."""
        del history
        return False

    # -- answers --------------------------------------------------------------------------------

    def calibrate(
        self, logits: Float[Tensor, "n k"], target: Shaped[Tensor, "n ..."]
    ) -> dict[str, float | None]:
        """Settle how logits become answers, such as a temperature, on the validation part.

        Args:
            logits: logits of one model for the images of the part, ``(n, k)``; n may be 0.
            target: targets of the images, ``(n, …)``.
        """
        del logits, target
        return {}

    def pool(self, points: Sequence[Point]) -> dict[str, float | None]:
        """Average the results of `calibrate` of several models."""
        del points
        return {}

    @abc.abstractmethod
    def decode(self, logits: Float[Tensor, "b k"], point: Point) -> Float[Tensor, "b columns"]:
        """Convert logits ``(b, k)`` to the numbers of answers, ``(b, columns)`` in float64.

        Args:
            logits: logits of the images, ``(b, k)``.
            point: results of `calibrate`.
        """

    @abc.abstractmethod
    def predict(self, values: Sequence[float], point: Point) -> str:
        """Return the predicted label for the numbers of an answer, in the order of `columns`.

        Args:
            values: numbers of an answer.
            point: temperature and threshold of the model.
        """

    def margin(self, values: Sequence[float], point: Point) -> float | None:
        """Compute how far an answer is from another one: 0 at the border, 1 where it is certain.

        Return None for an answer that is a number, which has no border.

        Args:
            values: numbers of the answer, in the order of `columns`.
            point: results of `calibrate`.
        """
        del values, point
        return None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the logits, in their order."""
        return tuple(str(i) for i in range(sum(head.size for head in self.heads)))

    def record(self, values: Sequence[float]) -> dict[str, Any]:
        """Return the entries of an answer in the index of pictures."""
        return {"values": dict(zip(self.columns, values, strict=True))}

    def write(self, value: float, *, short: bool = False) -> str:
        """Write a number of an answer as text for tables; `short` for people.

        Args:
            value: the number.
            short: for people; else for files.
        """
        return f"{value:.4g}" if short else f"{value:.9g}"

    def explain(self, values: Sequence[float], point: Point) -> str:
        """Describe an answer by its numbers and its threshold, if there is one.

        Args:
            values: numbers of the answer, in the order of `columns`.
            point: results of `calibrate`.
        """
        del point
        pairs = zip(self.columns, values, strict=True)
        return "  ".join(f"{name} {self.write(value, short=True)}" for name, value in pairs)

    # -- scores ---------------------------------------------------------------------------------

    def scorable(self, rows: Rows) -> list[Mapping[str, str]]:
        """Return the rows whose label has a target."""
        return [row for row in rows if self.understands(row.get("label"))]

    @abc.abstractmethod
    def score(self, rows: Rows) -> dict[str, Score]:
        """Score answers of `scorable` rows, with intervals over patients; the main score first."""

    @abc.abstractmethod
    def compare(self, rows: Rows, others: Rows) -> dict[str, Difference]:
        """Compute by score how far `rows` are better than `others` about the same images.

        Args:
            rows: answers.
            others: other answers about the same images.
        """

    def details(self, rows: Rows) -> dict[str, Any]:
        """Return further entries of ``metrics.json`` about `scorable` rows, such as the classes."""
        del rows
        return {}


def restore(task: type[AbstractTask], settled: Mapping[str, Any], **options: Any) -> AbstractTask:
    """Build a task from settled values and options.

    Args:
        task: class of the task.
        settled: the settled values, by keyword.
        **options: options, by keyword.

    Raises:
        OptionError: a settled value is missing, unknown or impossible.
    """
    needed = list_settled_keywords(task)
    if sorted(needed) != sorted(settled):
        raise OptionError(
            f"settled: got {', '.join(settled) or 'nothing'}, the task needs {', '.join(needed)}"
        )
    return task(**settled, **options)


BASE = AbstractTask
