"""The task of the time until an event, which is not seen for everybody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from foveate.errors import TableError
from foveate.metrics import Difference, MeasuredScore, Score, concordance_of, subtract_all
from foveate.nn.continuation import continuation_losses
from foveate.nn.heads import Head, Pooling
from foveate.parts.options import Within
from foveate.tasks._temperature import fit_temperature, pool_temperatures
from foveate.tasks.base import NO_OPTIONS, Cells, JoinedLabels, Point, Rows
from foveate.tasks.events.bins import (
    Bins,
    check_rising,
    choose_horizons,
    read_median,
    settle_edges,
    write_time,
)
from foveate.tasks.events.columns import find_pairs, order_pair
from foveate.tasks.events.labels import join_pair, parse_label, write_label
from foveate.tasks.events.report import AbstractSurvival
from foveate.tasks.events.scores import describe_horizons, measure_answers
from foveate.tasks.events.strata import count_events, divide_patients
from foveate.wording import several

_MIN_LEARNT_INDEX = 0.6
"""A mean concordance of the validation part above this shows that something was learnt."""


class SurvivalTask(AbstractSurvival):
    """Predict how likely an event is in each of a few bins of time, and thereby the risk.

    A logit is the log odds of the event in a bin, if there was none before. The loss is the
    negative log-likelihood of these hazards, which needs one image at a time. The partial
    likelihood of Cox compares an image with all who are at risk at the same time; the one or two
    images of a step are no such set, and its gradient would need the answers to all others. The
    bins hold equal numbers of the events of the training part, as in Zadeh and Schmid, IEEE TPAMI
    43 (2021), 3126.

    Source: Gensheimer and Narasimhan, PeerJ 7 (2019), e6257: who is censored in the second half of
    a bin has survived it, and in the first half counts up to the bin before.

    Args:
        edges: ends of the bins; the last is the longest time.
        horizons: times at which survival is stated, the same for all folds.
        bins: number of bins, fewer where there are few events.
        event: value of the event's column that says that the event was seen; by default the word
            that says so.
        patches: how single patches speak for an event: ``sum`` where many count a little, ``max``
            where the strongest decides, ``none`` where no patch can.

    Raises:
        OptionError: edges or horizons are no rising positive numbers.
    """

    preference = 3
    large_deviation = 0.15

    def __init__(
        self,
        *,
        edges: Sequence[float],
        horizons: Sequence[float],
        bins: Annotated[int, Within(2, 50)] = 4,
        event: str | None = None,
        patches: Pooling = "sum",
    ) -> None:
        check_rising("edges", edges)
        check_rising("horizons", horizons)
        self.edges, self.horizons = tuple(map(float, edges)), tuple(map(float, horizons))
        self.bins, self.event = bins, event
        self._bins = Bins(self.edges)
        self.heads = (Head("event", len(self.edges), False, patches),)
        times = [write_time(horizon) for horizon in self.horizons]
        self.columns = ("risk", *(f"survival_{time}" for time in times))
        self.deviation_columns = ("risk_sd", *(f"survival_sd_{time}" for time in times))

    # -- labels ---------------------------------------------------------------------------------

    @classmethod
    def fits(cls, labels: Sequence[str], column: str) -> bool:
        """Return whether all labels are texts of a time with or without an event."""
        del column
        return bool(labels) and all(parse_label(label) is not None for label in labels)

    @classmethod
    def fits_columns(cls, cells: Cells) -> bool:
        """Return whether two columns are a time and an event, by their names."""
        return len(cells) == 2 and bool(find_pairs(cells))

    @classmethod
    def find_columns(cls, cells: Cells, named: str | None = None) -> tuple[str, ...]:
        """Find the only pair of columns of a table whose names say time and event.

        Args:
            cells: the columns.
            named: the column of the event; None for any.

        Raises:
            TableError: there are several pairs.
        """
        pairs = find_pairs(cells, None if named is None else [named])
        if len(pairs) > 1:
            named = several([f"--label '{time},{event}'" for time, event in pairs], 4)
            raise TableError(f"several pairs of columns could be time and event: say {named}")
        return pairs[0] if pairs else ()

    @classmethod
    def join(cls, cells: Cells, options: Mapping[str, Any] = NO_OPTIONS) -> JoinedLabels:
        """Write time and event of each row as one text.

        Args:
            cells: the columns of time and event.
            options: options of the task.

        Raises:
            TableError: a cell is no time, or it is not clear which value is the event.
        """
        return JoinedLabels(*join_pair(cells, *order_pair(cells), options.get("event")))

    @classmethod
    def settle(
        cls,
        labels: Sequence[str],
        shared: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] = NO_OPTIONS,
    ) -> dict[str, Any]:
        """Settle the bins from the events of the labels; all folds share the horizons.

        Args:
            labels: one label per image.
            shared: what the labels of the whole table settled; None where `labels` are those.
            options: options of the task.
        """
        edges = settle_edges([parse_label(label) for label in labels], options.get("bins", 4))
        horizons = choose_horizons(edges) if shared is None else list(shared["horizons"])
        return {"edges": edges, "horizons": horizons}

    @property
    def common(self) -> Mapping[str, str]:
        """Text of the horizons; models that answer together must have the same."""
        return {"horizons": ", ".join(map(write_time, self.horizons))}

    @property
    def allowed(self) -> str:
        """Text that says that labels are times with or without an event."""
        return "times with or without an event"

    def describe(self) -> str:
        """Describe the task by its bins and horizons."""
        return (
            f"the time until an event, in {len(self.edges)} bins up to {self.edges[-1]:g}; "
            f"survival is stated at {self.common['horizons']}"
        )

    def parse(self, label: str) -> list[float]:
        """Return the time of a label, and 1 where the event was seen, else 0.

        Raises:
            TableError: the label is no time with or without an event.
        """
        pair = parse_label(label)
        if pair is None:
            raise TableError(
                f"'{label}' is no survival time; write one such as 'event at 412' or "
                "'no event until 913'"
            )
        return list(pair)

    def strata(self, labels: Sequence[str], patients: Sequence[str]) -> list[str]:
        """Return for each image whether its patient had an event, and the range of the time.

        With an event and without one, there are at most three ranges of about as many patients, at
        least ten.

        Args:
            labels: one label per image.
            patients: one patient per image.
        """
        return divide_patients([self.parse(label) for label in labels], patients)

    def tally(self, labels: Sequence[str]) -> dict[str, str]:
        """Return the numbers of events and of censored times, and the median time."""
        return count_events([pair for pair in map(parse_label, labels) if pair])

    # -- training -------------------------------------------------------------------------------

    def loss(
        self, logits: Float[Tensor, "b bins"], target: Shaped[Tensor, "b 2"]
    ) -> Float[Tensor, ""]:
        """Compute the mean negative log-likelihood of times and events.

        Args:
            logits: log odds of the event in each bin, ``(b, bins)``.
            target: times, and 1 for an event, ``(b, 2)``.
        """
        return self.each_loss(logits, target).mean()

    def each_loss(
        self, logits: Float[Tensor, "m bins"], target: Shaped[Tensor, "m 2"]
    ) -> Float[Tensor, " m"]:
        """Compute the negative log-likelihood of each row, ``(m,)``.

        Args:
            logits: log odds of the event in each bin, ``(m, bins)``.
            target: times, and 1 for an event, ``(m, 2)``.
        """
        passed, stopped = self._bins.count_passed(target)
        return continuation_losses(-logits, passed, stopped)

    def log_scores(
        self, values: Float[Tensor, "n columns"], target: Shaped[Tensor, "n 2"]
    ) -> dict[str, float]:
        """Compute the c-index as ``val_c_index``; empty where no two images are comparable.

        Args:
            values: numbers of the answers, ``(n, columns)``.
            target: times, and 1 for an event, ``(n, 2)``.
        """
        truth = target.double().cpu().numpy()
        risk, event = values[:, 0].double().cpu().numpy(), truth[:, 1].astype(np.int64)
        value = concordance_of(risk, truth[:, 0], event)
        return {} if value is None else {"val_c_index": value}

    def validate(
        self, logits: Float[Tensor, "n bins"], target: Shaped[Tensor, "n 2"], chance: float
    ) -> dict[str, float]:
        """Score a validation part by its loss, relative to that of chance, and by its ranking.

        Args:
            logits: logits of one model, ``(n, bins)``.
            target: targets of the images, ``(n, 2)``.
            chance: loss at chance, from `chance_loss`.
        """
        calibrated = logits / self._fit_temperature(logits, target)
        scores = super().validate(calibrated, target, chance)
        scores["val_score"] += 1 - scores.get("val_c_index", 0.5)
        return scores

    def learnt(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Return whether the mean c-index of the epochs that have one exceeds 0.6.

        Args:
            history: what `validate` returned for some epochs.
        """
        ranked = [row["val_c_index"] for row in history if "val_c_index" in row]
        return bool(ranked) and sum(ranked) / len(ranked) > _MIN_LEARNT_INDEX

    # -- answers --------------------------------------------------------------------------------

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the logits: the event in each bin, by the end of the bin."""
        return tuple(f"event by {write_time(edge)}" for edge in self.edges)

    def _fit_temperature(
        self, logits: Float[Tensor, "n bins"], target: Shaped[Tensor, "n 2"]
    ) -> float:
        return fit_temperature(logits, lambda scaled: self.each_loss(scaled, target))

    def calibrate(
        self, logits: Float[Tensor, "n bins"], target: Shaped[Tensor, "n ..."]
    ) -> dict[str, float | None]:
        """Settle the temperature of the logits on the validation part.

        Args:
            logits: logits of one model for the images of the part, ``(n, bins)``; n may be 0.
            target: times, and 1 for an event, ``(n, 2)``.
        """
        return {"temperature": self._fit_temperature(logits, target) if len(logits) else 1.0}

    def pool(self, points: Sequence[Point]) -> dict[str, float | None]:
        """Return the geometric mean of the temperatures."""
        return {"temperature": pool_temperatures(points)}

    def decode(self, logits: Float[Tensor, "b bins"], point: Point) -> Float[Tensor, "b columns"]:
        """Compute the risk and the survival at each horizon, ``(b, columns)``.

        Args:
            logits: log odds of the event in each bin, ``(b, bins)``.
            point: results of `calibrate`.
        """
        calibrated = logits.double() / point.get("temperature", 1.0)
        survival = self._bins.compute_survival(calibrated, self.horizons)
        return torch.cat([1 - survival.mean(1, keepdim=True), survival], 1)

    def predict(self, values: Sequence[float], point: Point) -> str:
        """Return the median time until the event, or the last horizon if survival is higher there.

        Args:
            values: risk, and survival at each horizon.
            point: results of `calibrate`.
        """
        return write_label(*read_median(values[1:], self.horizons))

    # -- scores ---------------------------------------------------------------------------------

    def score(self, rows: Rows) -> dict[str, Score]:
        """Score the order of the risks and the stated survival, with intervals over patients."""
        folds = [row.get("fold", "") for row in rows]
        return {name: m.score for name, m in self._measure(rows, folds).items()}

    def compare(self, rows: Rows, others: Rows) -> dict[str, Difference]:
        """Compare two sets of answers to the same images by order and stated survival.

        Args:
            rows: answers, as rows of ``predictions.csv``.
            others: other answers about the same images.
        """
        pairs = zip(rows, others, strict=True)
        folds = [(ours.get("fold", ""), theirs.get("fold", "")) for ours, theirs in pairs]
        ours, theirs = self._measure(rows, folds), self._measure(others, folds)
        same = [row["risk"] for row in rows] == [row["risk"] for row in others]
        return subtract_all(ours, theirs, self.tabled, same)

    def details(self, rows: Rows) -> dict[str, Any]:
        """Return the AUROC at each horizon for ``metrics.json``."""
        truth = [self.parse(row["label"]) for row in rows]
        return {"horizons": describe_horizons(rows, truth, self.columns, self.horizons)}

    def _measure(self, rows: Rows, folds: Sequence[Any]) -> dict[str, MeasuredScore]:
        truth = [self.parse(row["label"]) for row in rows]
        return measure_answers(rows, folds, truth, self.columns, self.horizons)
