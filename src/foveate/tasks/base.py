"""The contract of a task: the whole life of a label, from a table's cell to the report. Pure."""

from __future__ import annotations

import abc
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.errors import OptionError, TableError
from foveate.metrics import Difference, Score
from foveate.nn.heads import Head
from foveate.presentation import Chart, ScoreWords, ShadedTable, Verdict

Target = int | float | list[float]
"""What a label is to the loss."""

Rows = Sequence[Mapping[str, str]]
"""Answers as rows of ``predictions.csv``, texts by the names of columns."""

Stored = Mapping[str, Mapping[str, Any]]
"""Scores as ``metrics.json`` holds them: by name, with ``value``, ``lo`` and ``hi``."""

Point = Mapping[str, Any]
"""What `AbstractTask.calibrate` settled for one model, by name; other keys are let be."""


class AbstractTask(abc.ABC):
    """What the labels mean.

    The keywords of a constructor that have no default are settled from labels (`settle`) and stored
    with the model; those with a default are options. Each of the former is an attribute.

    Attributes:
        preference: of several tasks that fit, the one with the highest is taken.
        heads: what it asks of an image; a method predicts the outputs of all, in this order.
        columns: names of the numbers of an answer, as in ``predictions.csv``.
        spread_columns: of the columns that hold their spread over several models.
        words: what each score means, by name, in the order of the report; the headline is first.
        tabled: scores that are compared between folds and methods, the headline first.
        averaged: what is averaged where several models answer together.
        reading: how to read the answers, in sentences.
        order: in which order pictures are shown, in a sentence.
        bar_note: what the middle of a bar is, in a sentence.
        unscored: said of a part that the headline cannot be computed of.
        chance: what a loss at chance is, in words.
        pooling: what the scores of several folds are, in sentences.
    """

    preference: ClassVar[int] = 0
    words: ClassVar[Mapping[str, ScoreWords]]
    tabled: ClassVar[tuple[str, ...]]
    averaged: ClassVar[str] = "answers"
    reading: ClassVar[tuple[str, ...]] = ()
    order: ClassVar[str] = ""
    bar_note: ClassVar[str] = ""
    unscored: ClassVar[str] = "not scored"
    chance: ClassVar[str] = "the loss of the best constant answer"
    pooling: ClassVar[str] = ""

    heads: tuple[Head, ...]
    columns: tuple[str, ...]
    spread_columns: tuple[str, ...]

    # -- labels ---------------------------------------------------------------------------------

    @classmethod
    @abc.abstractmethod
    def fits(cls, labels: Sequence[str]) -> bool:
        """Say whether these distinct labels are this task where no task is named."""

    @classmethod
    @abc.abstractmethod
    def settle(
        cls, labels: Sequence[str], shared: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Learn from labels what the constructor needs, as plain values by keyword.

        Args:
            labels: one of each image; of the whole table first, then of each training part.
            shared: what the whole table settled; what all folds must have in common is taken
                from it.

        Raises:
            TableError: why the labels cannot be this task, as the rest of a sentence that begins
                with the column's name.
        """

    @property
    def settled(self) -> dict[str, Any]:
        """What was settled, as plain values by keyword: `settle` and the constructor's own."""
        return {
            name: list(value) if isinstance(value := getattr(self, name), tuple) else value
            for name in settled_keywords(type(self))
        }

    @property
    def resolved(self) -> Mapping[str, Any]:
        """Options that were left open and are known now, by name."""
        return {}

    @property
    def common(self) -> Mapping[str, str]:
        """What models that answer together must agree in, in words by name."""
        return {}

    @property
    def known_labels(self) -> tuple[str, ...]:
        """Labels whose spelling others take; empty where labels are no names."""
        return ()

    @property
    @abc.abstractmethod
    def allowed(self) -> str:
        """The labels that are understood, in a few words."""

    @abc.abstractmethod
    def describe(self) -> str:
        """Say what is predicted, in a few words."""

    @abc.abstractmethod
    def parse(self, label: str) -> Target:
        """Return the target of a label.

        Raises:
            TableError: why it has none.
        """

    def targets(self, labels: Sequence[str]) -> Tensor:
        """Return the targets of labels, ``(n,)`` or ``(n, k)``.

        Raises:
            TableError: one has none.
        """
        return torch.tensor([self.parse(label) for label in labels])

    def understands(self, label: str | None) -> bool:
        """Say whether a label has a target."""
        try:
            self.parse(label or "")
        except TableError:
            return False
        return True

    def strata(self, labels: Sequence[str], patients: Sequence[str]) -> list[str]:
        """Return what each image counts as where parts of the patients are made alike.

        Args:
            labels: one of each image.
            patients: of each image.
        """
        del patients
        return list(labels)

    def tally(self, labels: Sequence[str]) -> dict[str, str]:
        """Summarise the labels of a part of the images, as a table's cells by column."""
        del labels
        return {}

    # -- training -------------------------------------------------------------------------------

    @abc.abstractmethod
    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of logits ``(b, k)``; a scalar."""

    def each_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss of every row, ``(m,)``; where rows stand alone, `loss` is its mean.

        Args:
            logits: ``(m, k)``.
            target: ``(m, …)``.
        """
        rows = [self.loss(logits[i : i + 1], target[i : i + 1]) for i in range(len(logits))]
        return torch.stack(rows)

    def correct(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return how right each row is, ``(m,)`` from 0 to 1, without gradient: ``exp(-loss)``."""
        return self.each_loss(logits.detach(), target).neg().exp().clamp_max(1.0)

    def truth(self, target: Tensor) -> Tensor | None:
        """Return which outputs are true of each image, ``(b, k)`` in [0, 1].

        None where outputs are no classes; losses that ask for a class are left out then.
        """
        return None

    def chance_loss(self, target: Tensor) -> float:
        """Return the least loss of somebody who knows the targets but sees no image.

        Found by minimising over constant logits.
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

    @abc.abstractmethod
    def log_scores(self, values: Tensor, target: Tensor) -> dict[str, float]:
        """Score answers for the log, by names that begin with ``val_``; more is better.

        Args:
            values: ``(n, columns)``, of one model or the mean of several.
            target: of the n images.
        """

    def validate(self, logits: Tensor, target: Tensor, chance: float) -> dict[str, float]:
        """Judge a validation part: ``val_score``, of which less is better, and `log_scores`.

        Args:
            logits: ``(n, k)`` of one model.
            target: of the n images.
            chance: the loss at chance.
        """
        loss = float(self.loss(logits, target))
        score = loss / chance if chance > 0 else loss
        return {"val_score": score} | self.log_scores(self.decode(logits, {}), target)

    def learnt(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Say whether the `validate` of some epochs shows that something was learnt."""
        del history
        return False

    # -- answers --------------------------------------------------------------------------------

    def calibrate(self, logits: Tensor, target: Tensor) -> dict[str, float | None]:
        """Settle on a validation part how logits become answers; it may be empty.

        Args:
            logits: ``(n, k)``.
            target: of the n images.
        """
        del logits, target
        return {}

    def pool(self, points: Sequence[Point]) -> dict[str, float | None]:
        """Return the mean of what several models' `calibrate` settled."""
        del points
        return {}

    @abc.abstractmethod
    def decode(self, logits: Tensor, point: Point) -> Tensor:
        """Turn logits ``(b, k)`` into the numbers of answers, ``(b, columns)`` in float64."""

    @abc.abstractmethod
    def predict(self, values: Sequence[float], point: Point) -> str:
        """Return the answer as a label, from the numbers in `columns`."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the logits."""
        return tuple(str(i) for i in range(sum(head.size for head in self.heads)))

    def record(self, values: Sequence[float]) -> dict[str, Any]:
        """Return what the index of pictures holds of an answer."""
        return {"values": dict(zip(self.columns, values, strict=True))}

    def write(self, value: float, *, short: bool = False) -> str:
        """Return a number of an answer as text for tables; `short` where people read it."""
        return f"{value:.4g}" if short else f"{value:.9g}"

    def explain(self, values: Sequence[float], point: Point) -> str:
        """Say what stands beside an answer: its numbers, and what decided."""
        del point
        pairs = zip(self.columns, values, strict=True)
        return "  ".join(f"{name} {self.write(value, short=True)}" for name, value in pairs)

    # -- scores ---------------------------------------------------------------------------------

    def scorable(self, rows: Rows) -> list[Mapping[str, str]]:
        """Return the rows with a label that has a target."""
        return [row for row in rows if self.understands(row.get("label"))]

    @abc.abstractmethod
    def score(self, rows: Rows) -> dict[str, Score]:
        """Score answers of `scorable` rows, with intervals over patients; the headline first."""

    @abc.abstractmethod
    def compare(self, rows: Rows, others: Rows) -> dict[str, Difference]:
        """Say how much better one set of answers is than another of the same images, by score."""

    def details(self, rows: Rows) -> dict[str, Any]:
        """Return what ``metrics.json`` holds besides scores, of `scorable` rows."""
        del rows
        return {}

    # -- words and figures ----------------------------------------------------------------------

    def headline(self, scores: Mapping[str, Any]) -> str | None:
        """Return the name of the main score of those that there are."""
        return next((name for name in (*self.words, *scores) if name in scores), None)

    def title(self, name: str, n_folds: int = 1) -> str:
        """Return what a score is called."""
        words = self.words.get(name)
        if words is None:
            return name.replace("_", " ")
        return words.title + (" within folds" if words.within_folds and n_folds > 1 else "")

    @abc.abstractmethod
    def sentence(self, scores: Stored, n_folds: int) -> str:
        """Say the main score, as the rest of a sentence that names the images."""

    def cautions(self, scores: Stored) -> list[str]:
        """Say what should be known before scores are believed."""
        del scores
        return []

    def verdict(self, entry: Mapping[str, Any], row: Mapping[str, str]) -> Verdict:
        """Judge one answer.

        Args:
            entry: of the index of pictures: ``label``, ``predicted`` and `record`.
            row: of ``predictions.csv``; may be empty.
        """
        del row
        word = "unlabelled" if not entry.get("label") else "measured"
        return Verdict(word, word, (0.0, 0.0))

    def tables(self, metrics: Mapping[str, Any], points: Sequence[Point]) -> list[ShadedTable]:
        """Return tables of the report.

        Args:
            metrics: content of ``metrics.json``, which may be damaged.
            points: what was settled for each fold's model.
        """
        del metrics, points
        return []

    def charts(
        self, rows: Rows, metrics: Mapping[str, Any], points: Sequence[Point]
    ) -> list[Chart]:
        """Return figures of the report.

        Args:
            rows: answers, of which some may be damaged.
            metrics: content of ``metrics.json``, which may be damaged.
            points: what was settled for each fold's model.
        """
        del rows, metrics, points
        return []

    def notes(self, points: Sequence[Point]) -> list[str]:
        """Say below the figures what was settled for each fold's model."""
        del points
        return []


def settled_keywords(part: type[AbstractTask]) -> list[str]:
    """Return the keywords of a task's constructor that are settled from labels."""
    parameters = inspect.signature(part).parameters.values()
    return [p.name for p in parameters if p.default is inspect.Parameter.empty]


def restored(part: type[AbstractTask], settled: Mapping[str, Any], **options: Any) -> AbstractTask:
    """Build a task of what was settled.

    Raises:
        OptionError: a value is missing, too much or impossible.
    """
    needed = settled_keywords(part)
    if sorted(needed) != sorted(settled):
        raise OptionError(
            f"settled: got {', '.join(settled) or 'nothing'}, the task needs {', '.join(needed)}"
        )
    return part(**settled, **options)


BASE = AbstractTask
