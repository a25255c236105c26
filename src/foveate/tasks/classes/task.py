"""The base of tasks over named classes: all but the loss and the probabilities."""

from __future__ import annotations

import statistics
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float, Shaped
from torch import Tensor

from foveate.errors import OptionError, TableError
from foveate.metrics import Difference, Score, auroc, threshold_youden
from foveate.presentation import Chart, ShadedTable, Verdict, read_number
from foveate.tasks._margin import margin_from_threshold, margin_of_best
from foveate.tasks._temperature import fit_temperature, pool_temperatures
from foveate.tasks.base import NO_OPTIONS, AbstractTask, Point, Rows, Stored
from foveate.tasks.classes.curves import collect_answers
from foveate.tasks.classes.doubts import doubt_classes
from foveate.tasks.classes.figures import build_charts
from foveate.tasks.classes.scores import compare_classes, detail_classes, score_classes
from foveate.tasks.classes.words import (
    SCORE_WORDS,
    describe_ranking,
    describe_score,
    describe_temperatures,
    judge_answer,
    read_values,
    tabulate_confusion,
    warn_of_chance,
)
from foveate.wording import did_you_mean

_MIN_LEARNT_AUROC = 0.65
"""A mean AUROC of the validation part above this shows that something was learnt."""


class ClassTask(AbstractTask):
    """Named classes; an answer is a probability for each.

    Attributes:
        classes: names of the classes, in the order of the probabilities.

    Raises:
        OptionError: there are fewer than two names, or a name stands twice.
    """

    words = SCORE_WORDS
    tabled = ("auroc", "balanced_accuracy", "brier")
    averaged = "probabilities"
    reading = (
        "Probabilities can be trusted as far as the calibration plot follows its diagonal; with a "
        "different share of positives they shift.",
    )
    order = "Wrong predictions first, then by confidence."
    bar_note = "The grey line of a bar is at 0.5."
    unscored = "one class only"
    chance = "the entropy of the labels"
    pooling = (
        "AUROC and AUPRC compare images of one fold only, for the folds' models have scales of "
        "their own; each fold counts by its pairs of a positive and a negative image. Decisions "
        "and losses are those of all folds together."
    )

    def __init__(self, *, classes: Sequence[str]) -> None:
        named = isinstance(classes, list | tuple) and all(isinstance(c, str) and c for c in classes)
        if not named or len(classes) < 2 or len(set(classes)) < len(classes):
            raise OptionError(f"classes: got {classes!r}, expected two different names or more")
        self.classes = tuple(classes)
        self.columns = tuple(f"prob_{c}" for c in self.classes)
        self.deviation_columns = tuple(f"prob_sd_{c}" for c in self.classes)

    # -- labels ---------------------------------------------------------------------------------

    @classmethod
    def doubt(cls, labels: Sequence[str], column: str) -> str | None:
        """Explain why labels are probably no classes; return None where they are.

        Args:
            labels: one label per image.
            column: name of their column.
        """
        return doubt_classes(column, labels)

    @classmethod
    def settle(
        cls,
        labels: Sequence[str],
        shared: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] = NO_OPTIONS,
    ) -> dict[str, Any]:
        """Return the classes; all folds take those of the whole table, in the same order.

        Args:
            labels: one label per image.
            shared: what the labels of the whole table settled; None where `labels` are those.
            options: options of the task.
        """
        if shared is not None:
            return dict(shared)
        distinct = sorted(set(labels))
        if len(distinct) < 2:
            only = f"one class only, '{distinct[0]}'" if distinct else "no class"
            raise TableError(
                f"holds {only}, in all {len(labels)} usable rows; at least two classes are needed. "
                "Another column can be named with --label"
            )
        if not cls.fits(distinct, ""):
            name = cls.__module__.rsplit(".", 1)[-1].rstrip("_")
            shown = ", ".join(distinct[:8])
            raise TableError(
                f"holds {len(distinct)} labels, which task '{name}' does not fit: {shown}; take "
                "another --task, or name another column with --label"
            )
        return {"classes": distinct}

    @property
    def common(self) -> Mapping[str, str]:
        """Text of the classes in their order; models that answer together must have the same."""
        return {"classes": ", ".join(self.classes)}

    @property
    def known_labels(self) -> tuple[str, ...]:
        """Names of the classes; labels of new tables get their spelling."""
        return self.classes

    @property
    def allowed(self) -> str:
        """Text that lists the names of the classes."""
        return ", ".join(self.classes)

    def describe(self) -> str:
        """Describe the task by its classes, in their order."""
        return f"classes {', '.join(self.classes)} (in this order)"

    def parse(self, label: str) -> int | list[float]:
        """Return the number of a class.

        Raises:
            TableError: there is no class of this name.
        """
        if label not in self.classes:
            raise TableError(f"no class '{label}'.{did_you_mean(label, self.classes)}")
        return self.classes.index(label)

    def tally(self, labels: Sequence[str]) -> dict[str, str]:
        """Count the images of each class."""
        known = Counter(labels)
        return {name: str(known[name]) for name in self.classes}

    # -- training -------------------------------------------------------------------------------

    @abstractmethod
    def probabilities(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, "b classes"]:
        """Compute the probabilities of the classes, ``(b, classes)`` in float64; rows sum to 1."""

    def correct(
        self, logits: Float[Tensor, "m k"], target: Shaped[Tensor, "m ..."]
    ) -> Float[Tensor, " m"]:
        """Return 1 where the most probable class of a row is true, else 0, ``(m,)``.

        Args:
            logits: logits of the rows, ``(m, k)``.
            target: numbers of their classes, ``(m,)``, or other targets, ``(m, …)``.
        """
        if not _is_class(target):
            return super().correct(logits, target)
        return (self.probabilities(logits.detach()).argmax(-1) == target).float()

    def temperature(self, logits: Float[Tensor, "n k"], target: Shaped[Tensor, "n ..."]) -> float:
        """Fit the temperature that calibrates the logits of held-out images; from 1/20 to 20.

        It maximises the likelihood of the labels, without smoothing, with a normal prior of
        standard deviation 1/2 on its logarithm, because few images determine it badly.

        Args:
            logits: logits of the images, ``(n, k)``.
            target: numbers of their classes, ``(n,)``, or other targets, ``(n, …)``.
        """
        return fit_temperature(logits, lambda scaled: self._surprise(scaled, target))

    def _surprise(
        self, logits: Float[Tensor, "m k"], target: Shaped[Tensor, "m ..."]
    ) -> Float[Tensor, " m"]:
        """Compute the negative log-likelihood ``(m,)`` of classes, or the loss of other targets."""
        if not _is_class(target):
            return self.each_loss(logits, target)
        of_target = self.probabilities(logits).gather(1, target[:, None].to(logits.device))
        return -of_target[:, 0].clamp_min(1e-300).log()

    def log_scores(
        self, values: Float[Tensor, "n classes"], target: Shaped[Tensor, "n ..."]
    ) -> dict[str, float]:
        """Compute the AUROC as ``val_auroc``; return an empty dictionary with one class only.

        Args:
            values: probabilities of the classes, ``(n, classes)``.
            target: numbers of the classes of the images, ``(n,)``.
        """
        score = auroc(values.cpu().numpy(), target.cpu().numpy())
        return {} if score is None else {"val_auroc": float(score)}

    def validate(
        self, logits: Float[Tensor, "n k"], target: Shaped[Tensor, "n ..."], chance: float
    ) -> dict[str, float]:
        """Score a validation part by ranking and calibrated loss.

        ``val_score`` is the sum of the loss at the best temperature, as a share of the loss at
        chance, and of the share of pairs of images that are ranked wrongly.

        Args:
            logits: logits of one model, ``(n, k)``.
            target: targets of the images, ``(n, …)``.
            chance: loss at chance, from `chance_loss`.
        """
        loss = float(self.loss(logits / self.temperature(logits, target), target))
        relative = loss / chance if chance > 0 else loss
        scores = self.log_scores(self.probabilities(logits), target)
        return {"val_score": relative + 1 - scores.get("val_auroc", 0.5)} | scores

    def learnt(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Return whether the mean AUROC of the epochs that have one exceeds 0.65."""
        ranked = [row["val_auroc"] for row in history if "val_auroc" in row]
        return bool(ranked) and sum(ranked) / len(ranked) > _MIN_LEARNT_AUROC

    # -- answers --------------------------------------------------------------------------------

    def calibrate(
        self, logits: Float[Tensor, "n k"], target: Shaped[Tensor, "n ..."]
    ) -> dict[str, float | None]:
        """Settle the temperature and, for two classes, the threshold by Youden's index.

        Args:
            logits: logits of one model for the images of the part, ``(n, k)``; n may be 0.
            target: targets of the images, ``(n, …)``.
        """
        if not len(logits):
            return {"temperature": 1.0, "threshold": None}
        temperature = self.temperature(logits, target)
        if len(self.classes) != 2:
            return {"temperature": temperature, "threshold": None}
        second = self.probabilities(logits / temperature)[:, 1]
        best = threshold_youden(second.numpy(), target.numpy())
        return {"temperature": temperature, "threshold": 0.5 if best is None else float(best)}

    def pool(self, points: Sequence[Point]) -> dict[str, float | None]:
        """Return the mean of the thresholds there are, and the geometric mean temperature."""
        known = [float(p["threshold"]) for p in points if p.get("threshold") is not None]
        return {
            "threshold": statistics.fmean(known) if known else None,
            "temperature": pool_temperatures(points),
        }

    def decode(self, logits: Float[Tensor, "b k"], point: Point) -> Float[Tensor, "b classes"]:
        """Compute the probabilities ``(b, classes)`` at the settled temperature.

        Args:
            logits: logits of the images, ``(b, k)``.
            point: results of `calibrate`.
        """
        return self.probabilities(logits.double() / point.get("temperature", 1.0))

    def predict(self, values: Sequence[float], point: Point) -> str:
        """Return the most probable class; the threshold, if there is one, decides between two.

        Args:
            values: probabilities of the classes.
            point: results of `calibrate`.
        """
        threshold = point.get("threshold")
        if threshold is not None and len(self.classes) == 2:
            return self.classes[int(values[1] >= threshold)]
        return self.classes[max(range(len(self.classes)), key=lambda i: values[i])]

    def margin(self, values: Sequence[float], point: Point) -> float | None:
        """Compute how far the probability is from the threshold, or above that of the next class.

        Args:
            values: probabilities of the classes.
            point: results of `calibrate`.
        """
        threshold = point.get("threshold")
        if threshold is not None and len(self.classes) == 2:
            return margin_from_threshold(values[1], float(threshold))
        return margin_of_best(values[: len(self.classes)])

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the logits: the classes, or the second of two classes with one logit."""
        n = sum(head.size for head in self.heads)
        return self.classes[-n:] if n in (1, len(self.classes)) else super().outputs

    def record(self, values: Sequence[float]) -> dict[str, Any]:
        """Return the probabilities by class."""
        return {"probs": dict(zip(self.classes, values, strict=True))}

    def write(self, value: float, *, short: bool = False) -> str:
        """Write a probability with four or six decimals.

        Args:
            value: the probability.
            short: for people; else for files.
        """
        return f"{value:.4f}" if short else f"{value:.6f}"

    def explain(self, values: Sequence[float], point: Point) -> str:
        """Describe an answer by its probabilities and, for two classes, the threshold.

        Args:
            values: probabilities of the classes.
            point: results of `calibrate`.
        """
        text = "  ".join(f"{c} {p:.3f}" for c, p in zip(self.classes, values, strict=True))
        if point.get("threshold") is not None:
            text += f"; {self.classes[1]} from {float(point['threshold']):.3f}"
        return text

    # -- scores ---------------------------------------------------------------------------------

    def score(self, rows: Rows) -> dict[str, Score]:
        """Score ranks, decisions and losses, with intervals over patients."""
        return score_classes(rows, self.classes)

    def compare(self, rows: Rows, others: Rows) -> dict[str, Difference]:
        """Compare two sets of answers by AUROC and logarithmic loss.

        Args:
            rows: answers, as rows of ``predictions.csv``.
            others: other answers about the same images.
        """
        return compare_classes(rows, others, self.classes)

    def details(self, rows: Rows) -> dict[str, Any]:
        """Return classes, confusion matrix, calibration and net benefit for ``metrics.json``."""
        return detail_classes(rows, self.classes)

    # -- words and figures ----------------------------------------------------------------------

    def sentence(self, scores: Stored, n_folds: int) -> str:
        """Describe the AUROC as a number of pairs of images, or another main score by its name.

        Args:
            scores: scores as ``metrics.json`` holds them.
            n_folds: number of folds that the scores come from.
        """
        name = self.headline(scores) or ""
        score = scores.get(name, {})
        if name == "auroc":
            return describe_ranking(score, self.classes, n_folds)
        return describe_score(score, self.title(name)) if name else ""

    def cautions(self, scores: Stored) -> list[str]:
        """Warn where the AUROC is not clearly better than chance, or worse than chance."""
        return warn_of_chance(scores.get("auroc", {}))

    def verdict(self, entry: Mapping[str, Any], row: Mapping[str, str]) -> Verdict:
        """Judge an answer right or wrong; wrong ones rank first, then confident ones.

        Args:
            entry: entry of the index of pictures: ``label``, ``predicted`` and `record`.
            row: row of ``predictions.csv``; may be empty.
        """
        return judge_answer(entry, self.classes, read_number(row, "threshold"))

    def tables(self, metrics: Mapping[str, Any], points: Sequence[Point]) -> list[ShadedTable]:
        """Return the confusion matrix as a table; no table where it does not fit the classes.

        Args:
            metrics: content of ``metrics.json``, which may be damaged.
            points: results of `calibrate` for the model of each fold.
        """
        thresholds = read_values(points, "threshold")
        return tabulate_confusion(metrics.get("confusion"), self.classes, thresholds)

    def charts(
        self, rows: Rows, metrics: Mapping[str, Any], points: Sequence[Point]
    ) -> list[Chart]:
        """Return ROC, precision and recall, calibration, scores by class, and decision curves.

        Args:
            rows: stored answers; some may be damaged.
            metrics: content of ``metrics.json``, which may be damaged.
            points: results of `calibrate` for the model of each fold.
        """
        return build_charts(
            collect_answers(rows, self.classes), metrics, read_values(points, "threshold")
        )

    def notes(self, points: Sequence[Point]) -> list[str]:
        """Describe the temperatures that the logits were divided by."""
        return describe_temperatures(read_values(points, "temperature"))


def _is_class(target: Shaped[Tensor, "b ..."]) -> bool:
    """Return whether the targets are numbers of classes."""
    return target.ndim == 1 and not target.is_floating_point()
