"""The part of the contract of a task that is about the report: its words, tables and figures."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from foveate.presentation import Chart, ScoreWords, ShadedTable, Verdict

Rows = Sequence[Mapping[str, str]]
"""Answers as rows of ``predictions.csv``: texts by column."""

Stored = Mapping[str, Mapping[str, Any]]
"""Scores as ``metrics.json`` holds them: by name, with ``value``, ``lo`` and ``hi``."""

Point = Mapping[str, Any]
"""Results of `AbstractTask.calibrate` for one model, by name; other keys are ignored."""


class AbstractReport(abc.ABC):
    """The words, tables and figures by which the report shows answers and scores of a task.

    Attributes:
        words: title and meaning of the scores by name, in the order of the report; the main score
            is first.
        tabled: names of the scores that compare folds and methods, the main score first.
        averaged: noun for the values that are averaged where several models answer together.
        reading: sentences on how to read the answers.
        order: sentence on the order in which pictures are shown.
        bar_note: sentence on what the middle of a bar means.
        unscored: text for a part without the main score.
        chance: noun for the loss at chance.
        pooling: sentences on how the scores of several folds are pooled.
    """

    words: ClassVar[Mapping[str, ScoreWords]]
    tabled: ClassVar[tuple[str, ...]]
    averaged: ClassVar[str] = "answers"
    reading: ClassVar[tuple[str, ...]] = ()
    order: ClassVar[str] = ""
    bar_note: ClassVar[str] = ""
    unscored: ClassVar[str] = "not scored"
    chance: ClassVar[str] = "the loss of the best constant answer"
    pooling: ClassVar[str] = ""

    def headline(self, scores: Mapping[str, Any]) -> str | None:
        """Return the name of the main score among these scores; None without scores."""
        return next((name for name in (*self.words, *scores) if name in scores), None)

    def title(self, name: str, n_folds: int = 1) -> str:
        """Return the title of a score.

        Args:
            name: name of the score.
            n_folds: number of folds that the scores come from.
        """
        words = self.words.get(name)
        if words is None:
            return name.replace("_", " ")
        return words.title + (" within folds" if words.within_folds and n_folds > 1 else "")

    @abc.abstractmethod
    def sentence(self, scores: Stored, n_folds: int) -> str:
        """Describe the main score, as the rest of a sentence that names the images.

        Args:
            scores: the scores.
            n_folds: number of folds that the scores come from.
        """

    def cautions(self, scores: Stored) -> list[str]:
        """List warnings about the scores, one sentence each."""
        del scores
        return []

    def verdict(self, entry: Mapping[str, Any], row: Mapping[str, str]) -> Verdict:
        """Judge one answer against its label.

        Args:
            entry: entry of the index of pictures: ``label``, ``predicted`` and `record`.
            row: row of ``predictions.csv``; may be empty.
        """
        del row
        word = "unlabelled" if not entry.get("label") else "measured"
        return Verdict(word, word, (0.0, 0.0))

    def tables(self, metrics: Mapping[str, Any], points: Sequence[Point]) -> list[ShadedTable]:
        """Return the tables of the task for the report.

        Args:
            metrics: content of ``metrics.json``, which may be damaged.
            points: results of `calibrate` for the model of each fold.
        """
        del metrics, points
        return []

    def charts(
        self, rows: Rows, metrics: Mapping[str, Any], points: Sequence[Point]
    ) -> list[Chart]:
        """Return the figures of the task for the report.

        Args:
            rows: stored answers; some may be damaged.
            metrics: content of ``metrics.json``, which may be damaged.
            points: results of `calibrate` for the model of each fold.
        """
        del rows, metrics, points
        return []

    def notes(self, points: Sequence[Point]) -> list[str]:
        """Describe the results of `calibrate` for each fold, as notes below the figures."""
        del points
        return []
