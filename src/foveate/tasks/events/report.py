"""The part of the task of survival that is about the report: words, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.presentation import Chart, ShadedTable, Verdict
from foveate.tasks.base import AbstractTask, Point, Rows, Stored
from foveate.tasks.events.figures import build_charts
from foveate.tasks.events.scores import tabulate_horizons
from foveate.tasks.events.words import SCORE_WORDS, describe_order, show_risk, warn_of_constant


class AbstractSurvival(AbstractTask):
    """The words, tables and figures of survival.

    Attributes:
        horizons: times at which survival is stated.
    """

    horizons: tuple[float, ...]
    words = SCORE_WORDS
    tabled = ("c_index", "brier")
    averaged = "probabilities of survival"
    reading = (
        "The risk is the mean probability of an event before the horizons; only its order between "
        "images counts for the c-index.",
    )
    order = "The highest risks first."
    bar_note = "The grey line of a bar is at 0.5."
    unscored = "no two comparable images"
    chance = "the loss of the same hazards for all"
    pooling = (
        "The c-indices and the AUROC compare images of one fold only, for the folds' models have "
        "scales of their own. The Brier score is that of all folds together."
    )

    def sentence(self, scores: Stored, n_folds: int) -> str:
        """Describe the c-index as a number of pairs of images.

        Args:
            scores: scores as ``metrics.json`` holds them.
            n_folds: number of folds that the scores come from.
        """
        return describe_order(scores.get("c_index", {}), n_folds)

    def cautions(self, scores: Stored) -> list[str]:
        """Warn where the order may be chance, or where the survival of all is as good."""
        return warn_of_constant(scores)

    def verdict(self, entry: Mapping[str, Any], row: Mapping[str, str]) -> Verdict:
        """Show the risk beside the label; the highest risks rank first.

        Args:
            entry: entry of the index of pictures: ``label``, ``predicted`` and `record`.
            row: row of ``predictions.csv``; may be empty.
        """
        return show_risk(entry)

    def tables(self, metrics: Mapping[str, Any], points: Sequence[Point]) -> list[ShadedTable]:
        """Return the AUROC at each horizon.

        Args:
            metrics: content of ``metrics.json``, which may be damaged.
            points: results of `calibrate` for the model of each fold.
        """
        return tabulate_horizons(metrics.get("horizons"))

    def charts(
        self, rows: Rows, metrics: Mapping[str, Any], points: Sequence[Point]
    ) -> list[Chart]:
        """Return the figure of Kaplan-Meier curves of images of high and of low risk.

        Args:
            rows: stored answers; some may be damaged.
            metrics: content of ``metrics.json``, which may be damaged.
            points: results of `calibrate` for the model of each fold.
        """
        return build_charts(rows, self.horizons, self.columns)
