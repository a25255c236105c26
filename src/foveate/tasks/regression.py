"""The task of a number, trained by its squared error on a settled scale."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Shaped
from scipy.special import stdtrit
from scipy.stats import rankdata
from torch import Tensor

from foveate.errors import OptionError, TableError
from foveate.files.numerals import MAX_NUMBER, parse_number
from foveate.metrics import Difference, MeasuredScore, Score, subtract_all
from foveate.metrics.intervals import measure_losses
from foveate.metrics.jackknife import Cohort, group_patients, measure_leaving_out
from foveate.metrics.types import ALPHA, Floats, Ints, number_names
from foveate.nn.heads import Head, Pooling
from foveate.presentation import (
    BLUE,
    GREY,
    Chart,
    ScoreWords,
    Verdict,
    add_legend,
    read_number,
)
from foveate.tasks.base import NO_OPTIONS, AbstractTask, Point, Rows, Stored

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MIN_LEARNT_CORRELATION = 0.3
"""A mean rank correlation of the validation part above this shows that something was learnt."""

_MAX_STRATA, _MIN_PATIENTS_PER_STRATUM = 5, 10

_PRIOR_PATIENTS = 4.0
"""Number of imaginary patients with the expected variance, who steady the variance of a few."""


class RegressionTask(AbstractTask):
    """Predict a number for each image, in the unit of the labels.

    The logit is the predicted number minus the mean of the training labels, divided by their
    standard deviation.

    Args:
        mean: mean of the labels of the training part.
        spread: standard deviation of these labels.
        patches: how the answers of patches become the answer of the image: ``sum`` where many
            patches count a little, ``max`` where the strongest patch decides, ``none`` where single
            patches do not answer.

    Raises:
        OptionError: mean or spread is not finite, or the spread is not positive.
    """

    preference = -1
    takes_numbers = True
    words: ClassVar[Mapping[str, ScoreWords]] = {
        "spearman": ScoreWords(
            "Spearman correlation",
            "do larger answers go with larger labels? 1 is the same order, 0 is chance",
            span=(-1.0, 1.0),
            within_folds=True,
        ),
        "mae": ScoreWords(
            "mean absolute error",
            "how far answers are off, in the unit of the label; less is better",
            small_is_good=True,
            span=None,
        ),
        "mae_constant": ScoreWords(
            "error of a constant",
            "the same if the median label were the answer for every image: chance",
            small_is_good=True,
            span=None,
        ),
    }
    tabled = ("spearman", "mae")
    reading = (
        "Answers are drawn towards the mean of the training part where the model is unsure, so "
        "very small and very large values are understated.",
    )
    order = "The largest errors first."
    bar_note = "The grey line of a bar is at 0, no relation."
    unscored = "too few images"
    chance = "the spread of the labels"
    pooling = (
        "The Spearman correlation compares images of one fold only, for the folds' models have "
        "means of their own; each fold counts by its images. Errors are those of all folds "
        "together."
    )
    columns = ("value",)
    deviation_columns = ("value_sd",)

    def __init__(self, *, mean: float, spread: float, patches: Pooling = "sum") -> None:
        numbers = all(isinstance(v, int | float) and math.isfinite(v) for v in (mean, spread))
        if not numbers or spread <= 0:
            raise OptionError(f"scale: got mean {mean!r} and spread {spread!r}, expected numbers")
        self.mean, self.spread = float(mean), float(spread)
        self.large_deviation = self.spread / 2
        self.heads = (Head("value", 1, False, patches),)

    # -- labels ---------------------------------------------------------------------------------

    @classmethod
    def fits(cls, labels: Sequence[str], column: str) -> bool:
        """Return False: numbers may also be names of classes, so the user must name this task."""
        return False

    @classmethod
    def settle(
        cls,
        labels: Sequence[str],
        shared: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] = NO_OPTIONS,
    ) -> dict[str, Any]:
        """Compute mean and spread of the labels that are numbers; each fold has its own."""
        known = [value for value in map(_parse_number, labels) if value is not None]
        if 2 * len(known) <= len(labels):
            raise TableError(
                f"holds {len(known)} numbers in {len(labels)} usable rows, and task 'regression' "
                "learns numbers. Another column can be named with --label"
            )
        if min(known) == max(known):
            raise TableError(
                f"holds one number only, {known[0]:g}, in all {len(known)} usable rows. Another "
                "column can be named with --label"
            )
        return {"mean": float(np.mean(known)), "spread": float(np.std(known))}

    @property
    def allowed(self) -> str:
        """Text that says that labels are numbers."""
        return "numbers"

    def describe(self) -> str:
        """Describe the task by mean and spread of its labels."""
        return f"numbers of mean {self.mean:.4g} and spread {self.spread:.4g}"

    def parse(self, label: str) -> float:
        """Return the number of a label; a comma may stand for the point.

        Raises:
            TableError: the label is no number, has two readings (``1,200``), or is too large.
        """
        value = _parse_number(label)
        if value is None:
            raise TableError(f"'{label}' is no number: write one such as 1.5")
        return value

    def strata(self, labels: Sequence[str], patients: Sequence[str]) -> list[str]:
        """Return for each image the range of numbers in which its patient's mean label lies.

        There are at most five ranges. All hold about the same number of patients, at least ten.
        """
        of_patient: dict[str, list[float]] = defaultdict(list)
        for label, patient in zip(labels, patients, strict=True):
            of_patient[patient].append(self.parse(label))
        mean = {patient: float(np.mean(values)) for patient, values in of_patient.items()}
        n = max(1, min(_MAX_STRATA, len(mean) // _MIN_PATIENTS_PER_STRATUM))
        order = sorted(mean, key=lambda patient: (mean[patient], patient))
        stratum: dict[str, str] = {}
        for k, members in enumerate(np.array_split(np.array(order, dtype=object), n)):
            name = f"{k + 1}: {mean[members[0]]:.4g} to {mean[members[-1]]:.4g}"
            stratum |= dict.fromkeys(members, name)
        return [stratum[patient] for patient in patients]

    def tally(self, labels: Sequence[str]) -> dict[str, str]:
        """Return the smallest, the median and the largest label."""
        known = [value for value in map(_parse_number, labels) if value is not None]
        names = ("smallest", "median", "largest")
        if not known:
            return dict.fromkeys(names, "–")
        values = np.quantile(known, (0.0, 0.5, 1.0))
        return {name: f"{value:.4g}" for name, value in zip(names, values, strict=True)}

    # -- training -------------------------------------------------------------------------------

    def loss(self, logits: Float[Tensor, "b 1"], target: Shaped[Tensor, " b"]) -> Float[Tensor, ""]:
        """Compute the mean squared error of logits ``(b, 1)``, in units of the spread."""
        return self.each_loss(logits, target).mean()

    def each_loss(
        self, logits: Float[Tensor, "m 1"], target: Shaped[Tensor, " m"]
    ) -> Float[Tensor, " m"]:
        """Compute the squared error of every row, ``(m,)``, in units of the spread."""
        wide = torch.promote_types(logits.dtype, torch.float32)
        scaled = (target.to(logits.device, wide) - self.mean) / self.spread
        return (logits[:, 0].to(wide) - scaled).square()

    def log_scores(
        self, values: Float[Tensor, "n columns"], target: Shaped[Tensor, " n"]
    ) -> dict[str, float]:
        """Compute the Spearman correlation as ``val_spearman``; empty where it is undefined."""
        answer, truth = values[:, 0].double().cpu().numpy(), target.double().cpu().numpy()
        one = np.ones((1, len(truth)))
        value = float(_correlate_ranks(answer, truth, np.zeros(len(truth), np.int64), one)[0])
        return {} if math.isnan(value) else {"val_spearman": value}

    def validate(
        self, logits: Float[Tensor, "n 1"], target: Shaped[Tensor, " n"], chance: float
    ) -> dict[str, float]:
        """Score a validation part by its error, relative to that of chance, and by its ranking."""
        scores = super().validate(logits, target, chance)
        scores["val_score"] += (1 - scores.get("val_spearman", 0.0)) / 2
        return scores

    def learnt(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Return whether the mean rank correlation of these epochs exceeds 0.3.

        Epochs without a correlation are left out.
        """
        ranked = [row["val_spearman"] for row in history if "val_spearman" in row]
        return bool(ranked) and sum(ranked) / len(ranked) > _MIN_LEARNT_CORRELATION

    # -- answers --------------------------------------------------------------------------------

    def decode(self, logits: Float[Tensor, "b 1"], point: Point) -> Float[Tensor, "b 1"]:
        """Convert logits ``(b, 1)`` to numbers in the unit of the label, ``(b, 1)``."""
        return self.mean + self.spread * logits.double()

    def predict(self, values: Sequence[float], point: Point) -> str:
        """Return the number of an answer with four digits."""
        return self.write(values[0], short=True)

    # -- scores ---------------------------------------------------------------------------------

    def score(self, rows: Rows) -> dict[str, Score]:
        """Score the order of the answers and their errors, with intervals over patients."""
        return {name: measured.score for name, measured in self._measure(rows).items()}

    def compare(self, rows: Rows, others: Rows) -> dict[str, Difference]:
        """Compare two sets of answers to the same images by order and errors."""
        ours, theirs = self._measure(rows), self._measure(others)
        same = [row["value"] for row in rows] == [row["value"] for row in others]
        return subtract_all(ours, theirs, self.tabled, same)

    def _measure(self, rows: Rows) -> dict[str, MeasuredScore]:
        n = len(rows)
        answer = np.array([float(row["value"]) for row in rows])
        truth = np.array([self.parse(row["label"]) for row in rows])
        fold = number_names([row.get("fold", "") for row in rows], n, "folds")
        owner = number_names([row["patient_id"] for row in rows], n)
        cohort = group_patients(np.zeros(n, np.int64), owner, fold)
        error, constant = np.abs(answer - truth), np.abs(truth - np.median(truth))
        measured = _measure_rank(answer, truth, cohort)
        for name, loss in (("mae", error), ("mae_constant", constant)):
            usual = max(float(loss.mean()), 1e-9 * self.spread)  # all errors may be 0
            value, (lo, hi), influence = measure_losses(cohort, loss, usual, math.inf)
            how = "logarithmic scale, jackknife over patients"
            measured[name] = MeasuredScore(Score(value, lo, hi, how, n), influence)
        return measured

    # -- words and figures ----------------------------------------------------------------------

    def sentence(self, scores: Stored, n_folds: int) -> str:
        """Describe how answers and labels rank, and the error of the answers."""
        clauses = []
        rank, lo, hi = (read_number(scores.get("spearman", {}), k) for k in ("value", "lo", "hi"))
        if rank is not None:
            between = "" if lo is None or hi is None else f" (95 % interval {lo:.2f} to {hi:.2f})"
            of = " of each fold" if n_folds > 1 else ""
            clauses.append(f"answers and labels{of} ranked alike with a correlation of {rank:.2f}"
                        f"{between}")  # fmt: skip
        error = read_number(scores.get("mae", {}), "value")
        constant = read_number(scores.get("mae_constant", {}), "value")
        if error is not None and constant is not None:
            clauses.append(
                f"answers were off by {error:.3g} on average, where the median label as the answer "
                f"for every image would be off by {constant:.3g}"
            )
        return f"{'; '.join(clauses)}." if clauses else ""

    def cautions(self, scores: Stored) -> list[str]:
        """Warn where the order may be chance, or where a constant answer is as good."""
        cautions = []
        lo, hi = (read_number(scores.get("spearman", {}), key) for key in ("lo", "hi"))
        if lo is not None and hi is not None and lo <= 0 <= hi:
            cautions.append("The interval holds 0: this order cannot be told from chance.")
        error, constant = (
            read_number(scores.get(name, {}), "value") for name in ("mae", "mae_constant")
        )
        if error is not None and constant is not None and error >= constant:
            cautions.append("A constant answer would be off by no more than this model.")
        return cautions

    def verdict(self, entry: Mapping[str, Any], row: Mapping[str, str]) -> Verdict:
        """Judge an answer by its error; the largest errors rank first."""
        stored = entry.get("values")
        value = read_number(stored, "value") if isinstance(stored, dict) else None
        truth = _parse_number(str(entry.get("label") or ""))
        if value is None or truth is None:
            return Verdict("unlabelled", "unlabelled", (0.0, 0.0))
        error = abs(value - truth)
        return Verdict("measured", f"off by {error:.3g}", (1.0, error))

    def charts(
        self, rows: Rows, metrics: Mapping[str, Any], points: Sequence[Point]
    ) -> list[Chart]:
        """Return the figure of the answers against the labels."""
        caption = "Each dot is an image; on the dashed line answers are exact."
        pairs = [(_parse_number(row.get("label", "")), read_number(row, "value")) for row in rows]
        known = np.array([pair for pair in pairs if None not in pair], np.float64)
        if not len(known):
            return [Chart("answers", caption, "No answers of labelled images were stored.")]
        alt = f"Answers against labels of {len(known)} images"
        return [Chart("answers", caption, "", alt, partial(_draw_answers, known=known))]


def _parse_number(label: str) -> float | None:
    """Parse a label as a number that can be learnt; None for others and where it has two readings.

    The table writes numbers with decimal points (`foveate.table.number_labels`).
    """
    value = parse_number(label)
    return None if value is None or abs(value) > MAX_NUMBER else value


def _correlate_ranks(answer: Floats, truth: Floats, fold: Ints, weight: Floats) -> Floats:
    """Compute the mean Spearman correlation of the folds, weighted by their images less one.

    Args:
        answer: numbers of the answers, ``(n,)``.
        truth: numbers of the labels, ``(n,)``.
        fold: numbers of the folds, ``(n,)``; only images of one fold are compared.
        weight: 0 for images that are left out, ``(r, n)``.

    Returns:
        The correlation for each row of `weight`, ``(r,)``; NaN where no fold has three images with
        different answers and different labels.
    """
    correlations = np.full(len(weight), math.nan)
    for i, row in enumerate(weight):
        total, count = 0.0, 0
        for k in np.unique(fold):
            chosen = (row > 0) & (fold == k)
            ranks = np.array([rankdata(answer[chosen]), rankdata(truth[chosen])])
            if chosen.sum() >= 3 and (np.ptp(ranks, axis=1) > 0).all():
                total += (chosen.sum() - 1) * float(np.corrcoef(ranks)[0, 1])
                count += int(chosen.sum()) - 1
        correlations[i] = total / count if count else math.nan
    return correlations


def _measure_rank(answer: Floats, truth: Floats, cohort: Cohort) -> dict[str, MeasuredScore]:
    """Compute the Spearman correlation and its interval, as ``spearman``.

    The dictionary is empty where the correlation is undefined.

    Source: Fisher's transformation. Its variance is a jackknife over patients, drawn towards that
    of Fieller, Hartley and Pearson, Biometrika 44 (1957), 470, where patients are few.
    """
    measure = partial(_correlate_ranks, answer, truth, cohort.fold)
    value = float(measure(np.ones((1, len(truth))))[0])
    if math.isnan(value):
        return {}
    influence = cohort.compute_influence(value, measure_leaving_out(cohort, measure))
    patients, inside = cohort.n_patients, min(abs(value), 0.999)
    seen = float((influence**2).sum()) / (1 - inside**2) ** 2
    expected = 1.06 / max(patients - 3, 1)
    variance = (patients * seen + _PRIOR_PATIENTS * expected) / (patients + _PRIOR_PATIENTS)
    half = float(stdtrit(max(1, patients - 1), 1 - ALPHA / 2)) * math.sqrt(variance)
    middle = math.copysign(math.atanh(inside), value)
    lo, hi = min(value, math.tanh(middle - half)), max(value, math.tanh(middle + half))
    how = "Fisher's transformation, jackknife over patients"
    return {"spearman": MeasuredScore(Score(value, lo, hi, how, len(truth)), influence)}


def _draw_answers(figure: Figure, known: Floats) -> None:
    """Draw answers against labels on axes of the same scale."""
    axes = figure.subplots()
    low, high = float(known.min()), float(known.max())
    margin = 0.05 * (high - low or 1.0)
    ends = (low - margin, high + margin)
    axes.plot(ends, ends, color=GREY, linestyle="--", linewidth=1, label="exact")
    median = float(np.median(known[:, 0]))
    axes.axhline(median, color=GREY, linestyle=":", linewidth=1, label="median label, a constant")
    axes.scatter(known[:, 0], known[:, 1], color=BLUE, edgecolor="white", s=30, alpha=0.8, zorder=3)
    axes.set(xlim=ends, ylim=ends, xlabel="label", ylabel="answer")
    axes.set_aspect("equal")
    add_legend(axes)
