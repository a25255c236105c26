"""The task of several labels, any number of which an image may have."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from foveate.metrics import Difference, Score, average_auroc, subtract_all, threshold_youden
from foveate.nn.heads import Head, Pooling
from foveate.parts.options import Within
from foveate.presentation import Chart, ShadedTable, Verdict
from foveate.tasks._margin import margin_from_threshold
from foveate.tasks._temperature import fit_temperature, pool_temperatures
from foveate.tasks.base import NO_OPTIONS, AbstractTask, Cells, JoinedLabels, Point, Rows, Stored
from foveate.tasks.classes.words import describe_temperatures, read_values, warn_of_chance
from foveate.tasks.several import labels as texts
from foveate.tasks.several.figures import build_charts
from foveate.tasks.several.scores import describe_labels, measure_answers, tabulate_labels
from foveate.tasks.several.strata import divide_patients
from foveate.tasks.several.words import SCORE_WORDS, describe_ranking, judge_labels
from foveate.wording import several

_MIN_LEARNT_AUROC = 0.65
"""A mean AUROC of the validation part above this shows that something was learnt."""


class MultilabelTask(AbstractTask):
    """Several labels, each present, absent or not known, with one logit each.

    The loss of an image is the mean cross-entropy of its known labels.

    Args:
        classes: names of the labels.
        none: the word for an image that has none of them.
        smoothing: label smoothing in the loss.
        patches: how single patches speak for a label: ``max`` where one suffices, ``sum`` where
            many must agree, ``none`` where no patch can.

    Raises:
        OptionError: there are fewer than two names, or a name stands twice.
    """

    preference = 2
    takes_lists = True
    words = SCORE_WORDS
    tabled = ("auroc", "auprc", "brier")
    averaged = "probabilities"
    link = "sigmoid"
    reading = (
        "Each label has its own threshold, chosen on the inner validation part; probabilities can "
        "be trusted as far as the calibration plot follows its diagonal.",
    )
    order = "Images with the most wrong labels first."
    bar_note = "The grey line of a bar is at 0.5."
    unscored = "no label with both values"
    chance = "the entropy of the labels"
    pooling = (
        "AUROC and AUPRC compare images of one fold only, for the folds' models have scales of "
        "their own. Decisions and losses are those of all folds together."
    )

    def __init__(
        self,
        *,
        classes: Sequence[str],
        none: str,
        smoothing: Annotated[float, Within(0, 1)] = 0.05,
        patches: Pooling = "max",
    ) -> None:
        texts.check_names(classes, none)
        self.classes, self.none = tuple(classes), none
        self.smoothing = smoothing
        self.columns = tuple(f"prob_{name}" for name in self.classes)
        self.deviation_columns = tuple(f"prob_sd_{name}" for name in self.classes)
        self.heads = (Head("present", len(self.classes), False, patches),)

    # -- labels ---------------------------------------------------------------------------------

    @classmethod
    def fits(cls, labels: Sequence[str], column: str) -> bool:
        """Return whether a label is a list of several, such as ``a|b``."""
        del column
        return any(texts.is_list(label) for label in labels)

    @classmethod
    def doubt(cls, labels: Sequence[str], column: str) -> str | None:
        """Explain that hardly any image has several labels; None where enough have."""
        return texts.doubt_few_lists(labels, column)

    @classmethod
    def fits_columns(cls, cells: Cells) -> bool:
        """Return whether all columns say yes or no, or are empty."""
        return len(cells) > 1 and all(texts.holds_values(column) for column in cells.values())

    @classmethod
    def join(cls, cells: Cells, options: Mapping[str, Any] = NO_OPTIONS) -> JoinedLabels:
        """Write the labels of each row, one in each column, as one text.

        Args:
            cells: the columns, each of which says whether a label is present.
            options: options of the task.

        Raises:
            TableError: a cell says neither yes nor no.
        """
        del options
        return JoinedLabels(*texts.join_values(cells))

    @classmethod
    def settle(
        cls,
        labels: Sequence[str],
        shared: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] = NO_OPTIONS,
    ) -> dict[str, Any]:
        """Return the names of all labels; all folds take those of the whole table.

        Args:
            labels: the text of each image's labels.
            shared: what the labels of the whole table settled; None where `labels` are those.
            options: options of the task.
        """
        del options
        if shared is not None:
            return dict(shared)
        classes, none = texts.settle_labels(labels)
        return {"classes": classes, "none": none}

    @property
    def common(self) -> Mapping[str, str]:
        """Text of the labels in their order; models that answer together must have the same."""
        return {"classes": ", ".join(self.classes)}

    @property
    def allowed(self) -> str:
        """Text that lists the names of the labels."""
        return f"lists of {', '.join(self.classes)}; or {self.none}"

    def describe(self) -> str:
        """Describe the task by its labels."""
        return f"labels {', '.join(self.classes)}, several at once; '{self.none}' for none of them"

    def parse(self, label: str) -> list[float]:
        """Return 1 or 0 for each label, NaN where it is not known.

        Raises:
            TableError: the text names another label.
        """
        return texts.read_values(label, self.classes, self.none)

    def strata(self, labels: Sequence[str], patients: Sequence[str]) -> list[str]:
        """Return for each image the rarest label of its patient that ten patients have or more.

        Patients without such a label, if they are fewer than ten, are of the largest stratum.

        Args:
            labels: the text of each image's labels.
            patients: one patient per image.
        """
        return divide_patients([self.parse(label) for label in labels], patients)

    def tally(self, labels: Sequence[str]) -> dict[str, str]:
        """Count the images with each label."""
        rows = [self.parse(label) for label in labels if self.understands(label)]
        counts = np.nansum(np.array(rows).reshape(-1, len(self.classes)), 0)
        return {name: f"{n:.0f}" for name, n in zip(self.classes, counts, strict=True)}

    # -- training -------------------------------------------------------------------------------

    def loss(
        self, logits: Float[Tensor, "b k"], target: Shaped[Tensor, "b k"]
    ) -> Float[Tensor, ""]:
        """Compute the mean over images of the cross-entropy of their known labels.

        Args:
            logits: logits of the images, ``(b, k)``.
            target: 1, 0, or NaN where a label is not known, ``(b, k)``.
        """
        return self.each_loss(logits, target).mean()

    def each_loss(
        self, logits: Float[Tensor, "m k"], target: Shaped[Tensor, "m k"]
    ) -> Float[Tensor, " m"]:
        """Compute the mean cross-entropy of the known labels of every row, ``(m,)``.

        Args:
            logits: logits of the rows, ``(m, k)``.
            target: 1, 0, or NaN where a label is not known, ``(m, k)``.
        """
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        known = ~target.isnan().to(logits.device)
        soft = target.nan_to_num().to(wide) * (1 - self.smoothing) + self.smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(wide, soft, reduction="none")
        return (losses * known).sum(1) / known.sum(1).clamp_min(1)

    def truth(self, target: Shaped[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Return 1 for each label that is present, else 0; one half where that is not known."""
        return target.float().nan_to_num(0.5)

    def log_scores(
        self, values: Float[Tensor, "n k"], target: Shaped[Tensor, "n k"]
    ) -> dict[str, float]:
        """Compute the mean AUROC of the labels with both values as ``val_auroc``.

        Args:
            values: probabilities of the labels, ``(n, k)``.
            target: 1, 0, or NaN where a label is not known, ``(n, k)``.
        """
        score = average_auroc(values.double().cpu().numpy(), target.double().cpu().numpy())
        return {} if score is None else {"val_auroc": score}

    def validate(
        self, logits: Float[Tensor, "n k"], target: Shaped[Tensor, "n k"], chance: float
    ) -> dict[str, float]:
        """Score a validation part by its calibrated loss, relative to chance, and by its ranking.

        Args:
            logits: logits of one model, ``(n, k)``.
            target: targets of the images, ``(n, k)``.
            chance: loss at chance, from `chance_loss`.
        """
        scores = super().validate(logits / self._fit_temperature(logits, target), target, chance)
        scores["val_score"] += 1 - scores.get("val_auroc", 0.5)
        return scores

    def learnt(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Return whether the mean AUROC of the epochs that have one exceeds 0.65.

        Args:
            history: what `validate` returned for some epochs.
        """
        ranked = [row["val_auroc"] for row in history if "val_auroc" in row]
        return bool(ranked) and sum(ranked) / len(ranked) > _MIN_LEARNT_AUROC

    # -- answers --------------------------------------------------------------------------------

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the logits: the labels."""
        return self.classes

    def _fit_temperature(
        self, logits: Float[Tensor, "n k"], target: Shaped[Tensor, "n k"]
    ) -> float:
        return fit_temperature(logits, lambda scaled: self.each_loss(scaled, target))

    def calibrate(
        self, logits: Float[Tensor, "n k"], target: Shaped[Tensor, "n ..."]
    ) -> dict[str, float | None]:
        """Settle the temperature, and the threshold of each label by Youden's index.

        Args:
            logits: logits of one model for the images of the part, ``(n, k)``; n may be 0.
            target: 1, 0, or NaN where a label is not known, ``(n, k)``.
        """
        if not len(logits):
            return {"temperature": 1.0}
        temperature = self._fit_temperature(logits, target)
        point: dict[str, float | None] = {"temperature": temperature}
        prob = self.decode(logits, point)
        for c, name in enumerate(self.classes):
            known = ~target[:, c].isnan()
            best = threshold_youden(prob[known, c].numpy(), target[known, c].long().numpy())
            point[f"threshold_{name}"] = 0.5 if best is None else float(best)
        return point

    def pool(self, points: Sequence[Point]) -> dict[str, float | None]:
        """Return the mean threshold of each label, and the geometric mean temperature."""
        pooled: dict[str, float | None] = {"temperature": pool_temperatures(points)}
        for name in self.classes:
            if known := read_values(points, f"threshold_{name}"):
                pooled[f"threshold_{name}"] = statistics.fmean(known)
        return pooled

    def decode(self, logits: Float[Tensor, "b k"], point: Point) -> Float[Tensor, "b k"]:
        """Compute the probability of each label at the settled temperature, ``(b, k)``.

        Args:
            logits: logits of the images, ``(b, k)``.
            point: results of `calibrate`.
        """
        return torch.sigmoid(logits.double() / point.get("temperature", 1.0))

    def predict(self, values: Sequence[float], point: Point) -> str:
        """Return the labels whose probability reaches their threshold, as a list.

        Args:
            values: probabilities of the labels.
            point: results of `calibrate`.
        """
        present = [
            value >= float(point.get(f"threshold_{name}") or 0.5)
            for name, value in zip(self.classes, values, strict=True)
        ]
        return texts.write_present(self.classes, present, self.none)

    def margin(self, values: Sequence[float], point: Point) -> float | None:
        """Compute how far the nearest probability of a label is from the label's threshold."""
        limits = [float(point.get(f"threshold_{name}") or 0.5) for name in self.classes]
        return min(map(margin_from_threshold, values, limits))

    def record(self, values: Sequence[float]) -> dict[str, Any]:
        """Return the probabilities by label."""
        return {"probs": dict(zip(self.classes, values, strict=True))}

    def explain(self, values: Sequence[float], point: Point) -> str:
        """Describe an answer by the probabilities of its labels, the highest first.

        Args:
            values: probabilities of the labels.
            point: results of `calibrate`.
        """
        del point
        pairs = sorted(zip(self.classes, values, strict=True), key=lambda pair: -pair[1])
        return several([f"{name} {value:.3f}" for name, value in pairs], 8)

    # -- scores ---------------------------------------------------------------------------------

    def score(self, rows: Rows) -> dict[str, Score]:
        """Score ranks and losses, means over labels, with intervals over patients."""
        folds = [row.get("fold", "") for row in rows]
        measured = measure_answers(rows, folds, self.classes, self.none)
        return {name: m.score for name, m in measured.items()}

    def compare(self, rows: Rows, others: Rows) -> dict[str, Difference]:
        """Compare two sets of answers by the scores that are tabled.

        Args:
            rows: answers, as rows of ``predictions.csv``.
            others: other answers about the same images.
        """
        pairs = zip(rows, others, strict=True)
        folds = [(ours.get("fold", ""), theirs.get("fold", "")) for ours, theirs in pairs]
        ours, theirs = (
            measure_answers(side, folds, self.classes, self.none) for side in (rows, others)
        )
        a, b = ([[row[c] for c in self.columns] for row in side] for side in (rows, others))
        return subtract_all(ours, theirs, self.tabled, a == b)

    def details(self, rows: Rows) -> dict[str, Any]:
        """Return the scores by label and the calibration for ``metrics.json``."""
        return describe_labels(rows, self.classes, self.none)

    # -- words and figures ----------------------------------------------------------------------

    def sentence(self, scores: Stored, n_folds: int) -> str:
        """Describe the mean AUROC as a number of pairs of images.

        Args:
            scores: scores as ``metrics.json`` holds them.
            n_folds: number of folds that the scores come from.
        """
        return describe_ranking(scores.get("auroc", {}), len(self.classes), n_folds)

    def cautions(self, scores: Stored) -> list[str]:
        """Warn where the mean AUROC is not clearly better than chance, or worse than chance."""
        return warn_of_chance(scores.get("auroc", {}))

    def verdict(self, entry: Mapping[str, Any], row: Mapping[str, str]) -> Verdict:
        """Judge which labels of an answer are wrong.

        Args:
            entry: entry of the index of pictures: ``label``, ``predicted`` and `record`.
            row: row of ``predictions.csv``; may be empty.
        """
        return judge_labels(entry, self.classes, self.none)

    def tables(self, metrics: Mapping[str, Any], points: Sequence[Point]) -> list[ShadedTable]:
        """Return the scores by label.

        Args:
            metrics: content of ``metrics.json``, which may be damaged.
            points: results of `calibrate` for the model of each fold.
        """
        return tabulate_labels(metrics.get("labels"))

    def charts(
        self, rows: Rows, metrics: Mapping[str, Any], points: Sequence[Point]
    ) -> list[Chart]:
        """Return the ROC curve of each label, and their calibration together.

        Args:
            rows: stored answers; some may be damaged.
            metrics: content of ``metrics.json``, which may be damaged.
            points: results of `calibrate` for the model of each fold.
        """
        return build_charts(rows, self.classes, self.none, metrics)

    def notes(self, points: Sequence[Point]) -> list[str]:
        """Describe the temperatures that the logits were divided by."""
        return describe_temperatures(read_values(points, "temperature"))
