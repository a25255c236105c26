"""The task of grades with an order, such as G1 to G3 or ISUP 1 to 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from foveate.errors import OptionError, TableError
from foveate.metrics import Difference, MeasuredScore, Score, score_grades, subtract_all
from foveate.nn.continuation import continuation_losses, continuation_shares
from foveate.nn.heads import Head, Pooling
from foveate.parts.options import Within
from foveate.presentation import Chart, ScoreWords, ShadedTable, read_number
from foveate.tasks._margin import HALF, margin_of_median
from foveate.tasks.base import NO_OPTIONS, Point, Rows, Stored
from foveate.tasks.classes import ClassTask
from foveate.tasks.classes.curves import collect_answers
from foveate.tasks.classes.graded import build_grade_charts
from foveate.tasks.classes.grades import are_grades, sort_grades
from foveate.tasks.classes.near_grades import suggest_grades
from foveate.tasks.classes.scores import count_classes, read_answers, read_decisions
from foveate.tasks.classes.words import SCORE_WORDS, tabulate_confusion, warn_of_chance
from foveate.wording import did_you_mean, several

_MAX_GRADES = 20


class OrdinalTask(ClassTask):
    """Grades with an order; each logit says how likely an image is beyond one grade.

    The logits are those of the continuation ratio: the log odds that the grade is higher than the
    j-th, if it is not lower. Its loss is a likelihood for every order of the logits, so grades are
    consistent without constraints on the weights of a method's last layer, which a task does
    not own, as they would be with the cumulative link of CORAL. The predicted grade is the median.

    Source: Shi, Cao and Raschka, "Deep Neural Networks for Rank-Consistent Ordinal Regression Based
    On Conditional Probabilities" (CORN), Pattern Analysis and Applications 26 (2023), 941. Where we
    differ: the loss is a mean over images and not over all answered steps.

    Args:
        classes: the grades, from the lowest to the highest.
        order: the grades from the lowest to the highest, where their words do not say it.
        smoothing: label smoothing of the answer at each grade.
        patches: how single patches speak for being beyond a grade: ``max`` where one suffices,
            ``sum`` where many must agree, ``none`` where no patch can.

    Raises:
        OptionError: `order` does not list the grades in their order.
    """

    preference = 2
    words: ClassVar[Mapping[str, ScoreWords]] = {
        "kappa_quadratic": ScoreWords(
            "quadratic kappa",
            "agreement of grades beyond chance, misses weighted by their squared distance; 1 is "
            "full agreement, 0 is chance",
            span=(-1.0, 1.0),
        ),
        "concordance": ScoreWords(
            "concordance of grades",
            "chance that of two images of different grades the higher ranks above; 0.5 is chance",
            within_folds=True,
        ),
        "within_one": ScoreWords("within one grade", "share of images off by one grade at most"),
        "accuracy": ScoreWords("accuracy", "share of images whose grade was predicted"),
        "mae": ScoreWords(
            "mean absolute error", "by how many grades answers are off; less is better", True, None
        ),
        "log_loss": SCORE_WORDS["log_loss"],
    }
    tabled = ("kappa_quadratic", "concordance", "mae")
    bar_note = "The grey line of a bar is at 0, agreement by chance."
    unscored = "one grade only"
    pooling = (
        "The concordance compares images of one fold only, for the folds' models have scales of "
        "their own. Kappa, decisions and losses are those of all folds together."
    )

    def __init__(
        self,
        *,
        classes: Sequence[str],
        order: tuple[str, ...] | None = None,
        smoothing: Annotated[float, Within(0, 1)] = 0.05,
        patches: Pooling = "sum",
    ) -> None:
        super().__init__(classes=classes)
        if order is not None and tuple(order) != self.classes:
            raise OptionError(
                f"task.order: got {', '.join(order)}, expected the order that was settled, "
                f"{', '.join(self.classes)}"
            )
        self.smoothing, self._is_stated = smoothing, order is not None
        self.columns = (*self.columns, "expected_rank")
        self.deviation_columns = (*self.deviation_columns, "expected_rank_sd")
        self.heads = (Head("beyond", len(self.classes) - 1, False, patches),)

    # -- labels ---------------------------------------------------------------------------------

    @classmethod
    def fits(cls, labels: Sequence[str], column: str) -> bool:
        """Return whether the labels are three or more words that are known as grades."""
        return are_grades(labels, column)

    @classmethod
    def suggest(cls, labels: Sequence[str], column: str) -> str | None:
        """Explain how labels that resemble grades could be trained as such; None for others."""
        return suggest_grades(labels, column)

    @classmethod
    def settle(
        cls,
        labels: Sequence[str],
        shared: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] = NO_OPTIONS,
    ) -> dict[str, Any]:
        """Return the grades in their order, by option ``order`` or by their words.

        Args:
            labels: one label per image.
            shared: what the labels of the whole table settled; None where `labels` are those.
            options: options of the task.
        """
        if shared is not None:
            return dict(shared)
        distinct = sorted(set(labels))
        if len(distinct) < 2:
            only = f"one grade only, '{distinct[0]}'" if distinct else "no grade"
            raise TableError(
                f"holds {only}, in all {len(labels)} usable rows. Another column can be named with "
                "--label"
            )
        if order := options.get("order"):
            return {"classes": _apply_order(distinct, order)}
        if len(distinct) > _MAX_GRADES:
            raise TableError(
                f"holds {len(distinct)} different labels, more than grades have; take "
                "--task regression for measured numbers"
            )
        grades = sort_grades(distinct)
        if grades is None:
            raise TableError(
                f"holds {several(distinct, 5)}, whose order is not "
                "known; state it with --task.order LOWEST,…,HIGHEST, or train classes without an "
                "order with --task multiclass"
            )
        return {"classes": grades}

    @property
    def resolved(self) -> Mapping[str, Any]:
        """Option ``order`` with the grades from the lowest to the highest."""
        return {"order": list(self.classes)}

    @property
    def assumptions(self) -> tuple[str, ...]:
        """A sentence about the order where only the words of the labels have decided it."""
        if self._is_stated:
            return ()
        return (
            "The labels are taken for grades in this order, only because of their words. Where "
            "they are names without an order, such as arms, sites or scanners, train with --task "
            "multiclass; another order is stated with --task.order LOWEST,…,HIGHEST.",
        )

    def describe(self) -> str:
        """Describe the task by its grades, from the lowest to the highest."""
        return f"grades {' < '.join(self.classes)}"

    # -- training -------------------------------------------------------------------------------

    def loss(
        self, logits: Float[Tensor, "b steps"], target: Shaped[Tensor, " b"]
    ) -> Float[Tensor, ""]:
        """Compute the mean negative log-likelihood of the grades, with smoothed answers.

        Args:
            logits: log odds of being beyond each grade but the highest, ``(b, steps)``.
            target: numbers of the grades, ``(b,)``.
        """
        return self.each_loss(logits, target).mean()

    def each_loss(
        self, logits: Float[Tensor, "m steps"], target: Shaped[Tensor, " m"]
    ) -> Float[Tensor, " m"]:
        """Compute the negative log-likelihood of each row's grade, ``(m,)``.

        Args:
            logits: log odds of being beyond each grade but the highest, ``(m, steps)``.
            target: numbers of the grades, ``(m,)``.
        """
        stopped = torch.ones_like(target, dtype=torch.bool)
        return continuation_losses(logits, target, stopped, self.smoothing)

    def truth(self, target: Shaped[Tensor, " b"]) -> Float[Tensor, "b steps"]:
        """Return 1 for each grade that an image is beyond, else 0, ``(b, steps)``."""
        step = torch.arange(len(self.classes) - 1, device=target.device)
        return (target[:, None] > step).float()

    def probabilities(self, logits: Float[Tensor, "b steps"]) -> Float[Tensor, "b classes"]:
        """Compute the probabilities of the grades, ``(b, classes)`` in float64."""
        beyond = continuation_shares(logits)
        ones = beyond.new_ones(len(beyond), 1)
        return torch.cat([ones, beyond], 1) - torch.cat([beyond, 0 * ones], 1)

    def log_scores(
        self, values: Float[Tensor, "n columns"], target: Shaped[Tensor, " n"]
    ) -> dict[str, float]:
        """Compute the AUROC as ``val_auroc`` from probabilities and what may follow them."""
        return super().log_scores(values[:, : len(self.classes)], target)

    # -- answers --------------------------------------------------------------------------------

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the logits: beyond each grade but the highest."""
        return tuple(f"beyond {name}" for name in self.classes[:-1])

    def calibrate(
        self, logits: Float[Tensor, "n k"], target: Shaped[Tensor, "n ..."]
    ) -> dict[str, float | None]:
        """Settle the temperature; the median decides, so that no threshold is needed.

        Args:
            logits: logits of one model for the images of the part, ``(n, k)``; n may be 0.
            target: targets of the images, ``(n,)``.
        """
        return super().calibrate(logits, target) | {"threshold": None}

    def decode(self, logits: Float[Tensor, "b k"], point: Point) -> Float[Tensor, "b columns"]:
        """Compute the probabilities and the expected rank, counted from 0, ``(b, columns)``.

        Args:
            logits: logits of the images, ``(b, k)``.
            point: results of `calibrate`.
        """
        shares = super().decode(logits, point)
        rank = torch.arange(len(self.classes), dtype=shares.dtype, device=shares.device)
        return torch.cat([shares, (shares @ rank)[:, None]], 1)

    def predict(self, values: Sequence[float], point: Point) -> str:
        """Return the median grade: the lowest at or below which half of the probability lies.

        Args:
            values: probabilities of the grades, and the expected rank.
            point: results of `calibrate`.
        """
        total = 0.0
        for grade, share in zip(self.classes, values, strict=False):
            total += share
            if total >= HALF:
                return grade
        return self.classes[-1]

    def margin(self, values: Sequence[float], point: Point) -> float | None:
        """Compute how far the median grade is from its neighbours.

        Args:
            values: probabilities of the grades, and the expected rank.
            point: results of `calibrate`.
        """
        return margin_of_median(values[: len(self.classes)])

    def record(self, values: Sequence[float]) -> dict[str, Any]:
        """Return the probabilities by grade."""
        return super().record(values[: len(self.classes)])

    def explain(self, values: Sequence[float], point: Point) -> str:
        """Describe an answer by the probabilities of the grades and the expected rank.

        Args:
            values: probabilities of the grades, and the expected rank.
            point: results of `calibrate`.
        """
        text = super().explain(values[: len(self.classes)], point)
        return f"{text}; expected rank {values[-1]:.2f} of 0 to {len(self.classes) - 1}"

    # -- scores ---------------------------------------------------------------------------------

    def score(self, rows: Rows) -> dict[str, Score]:
        """Score agreement, order and errors of the grades, with intervals over patients."""
        folds = [row.get("fold", "") for row in rows]
        return {name: m.score for name, m in self._measure(rows, folds).items()}

    def compare(self, rows: Rows, others: Rows) -> dict[str, Difference]:
        """Compare two sets of answers by the scores that are tabled.

        Args:
            rows: answers, as rows of ``predictions.csv``.
            others: other answers about the same images.
        """
        pairs = zip(rows, others, strict=True)
        folds = [(ours.get("fold", ""), theirs.get("fold", "")) for ours, theirs in pairs]
        ours, theirs = self._measure(rows, folds), self._measure(others, folds)
        same = [[row[c] for c in self.columns] for row in rows] == [
            [row[c] for c in self.columns] for row in others
        ]
        return subtract_all(ours, theirs, self.tabled, same)

    def _measure(self, rows: Rows, folds: Sequence[Any]) -> dict[str, MeasuredScore]:
        prob, target = read_answers(rows, self.classes)
        predicted = read_decisions(rows, self.classes)
        patients = [row["patient_id"] for row in rows]
        measured = score_grades(prob, target, predicted, patients, folds)
        return {name: measured[name] for name in self.words if name in measured}

    def details(self, rows: Rows) -> dict[str, Any]:
        """Return grades, confusion matrix and calibration for ``metrics.json``."""
        return count_classes(rows, self.classes)

    # -- words and figures ----------------------------------------------------------------------

    def sentence(self, scores: Stored, n_folds: int) -> str:
        """Describe the agreement of the grades, and by how many they are off.

        Args:
            scores: scores as ``metrics.json`` holds them.
            n_folds: number of folds that the scores come from.
        """
        clauses = []
        kappa, lo, hi = (
            read_number(scores.get("kappa_quadratic", {}), key) for key in ("value", "lo", "hi")
        )
        if kappa is not None:
            between = "" if lo is None or hi is None else f" (95 % interval {lo:.2f} to {hi:.2f})"
            clauses.append(
                f"predicted and true grades agreed with a quadratic kappa of {kappa:.2f}{between}, "
                "where 0 is chance and 1 full agreement"
            )
        error = read_number(scores.get("mae", {}), "value")
        near = read_number(scores.get("within_one", {}), "value")
        if error is not None and near is not None:
            clauses.append(f"answers were off by {error:.2f} grades on average, and "
                           f"{100 * near:.0f} % of them by one at most")  # fmt: skip
        return f"{'; '.join(clauses)}." if clauses else ""

    def cautions(self, scores: Stored) -> list[str]:
        """Warn where kappa may be chance, or where the order may be."""
        lo, hi = (read_number(scores.get("kappa_quadratic", {}), key) for key in ("lo", "hi"))
        if lo is not None and hi is not None and lo <= 0 <= hi:
            return ["The interval holds 0: this agreement cannot be told from chance."]
        return warn_of_chance(scores.get("concordance", {}))

    def tables(self, metrics: Mapping[str, Any], points: Sequence[Point]) -> list[ShadedTable]:
        """Return the confusion matrix, its grades in order.

        Args:
            metrics: content of ``metrics.json``, which may be damaged.
            points: results of `calibrate` for the model of each fold.
        """
        return tabulate_confusion(metrics.get("confusion"), self.classes, [])

    def charts(
        self, rows: Rows, metrics: Mapping[str, Any], points: Sequence[Point]
    ) -> list[Chart]:
        """Return the figures of expected ranks by true grade, and of calibration.

        Args:
            rows: stored answers; some may be damaged.
            metrics: content of ``metrics.json``, which may be damaged.
            points: results of `calibrate` for the model of each fold.
        """
        return build_grade_charts(collect_answers(rows, self.classes), metrics)


def _apply_order(labels: Sequence[str], order: Sequence[str]) -> list[str]:
    """Return the order that the user states, if it names every label once.

    Raises:
        OptionError: it does not.
    """
    if absent := sorted(set(order) - set(labels)):
        raise OptionError(f"task.order: no label '{absent[0]}'.{did_you_mean(absent[0], labels)}")
    if missing := sorted(set(labels) - set(order)):
        raise OptionError(
            f"task.order: {several(missing)} of the labels not listed; "
            "name all, or keep some rows only with --classes"
        )
    if len(set(order)) < len(order):
        raise OptionError(f"task.order: got {','.join(order)}; give each grade once")
    return list(order)
