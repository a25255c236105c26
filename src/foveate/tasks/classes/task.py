"""A task over named classes: everything but the loss and the probabilities."""

from __future__ import annotations

import statistics
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from foveate.errors import OptionError, TableError, did_you_mean
from foveate.metrics import Difference, Score, auroc, threshold_youden
from foveate.presentation import (
    Chart,
    ScoreWords,
    ShadedTable,
    Verdict,
    finite,
    percent,
)
from foveate.tasks.base import AbstractTask, Point, Rows, Stored
from foveate.tasks.classes.curves import scored
from foveate.tasks.classes.figures import class_charts
from foveate.tasks.classes.scores import compare_classes, count_classes, score_classes

_RANKED = 0.65
"""An AUROC of the validation part from which on something was learnt."""


class ClassTask(AbstractTask):
    """Classes by name, of which an answer holds a probability each.

    Attributes:
        classes: their names, in the order of the probabilities.

    Raises:
        OptionError: fewer than two names, or a name twice.
    """

    words: ClassVar[Mapping[str, ScoreWords]] = {
        "auroc": ScoreWords(
            "AUROC",
            "chance that a positive image ranks above a negative one; 0.5 is chance",
            within_folds=True,
        ),
        "auprc": ScoreWords(
            "AUPRC", "area under precision and recall; chance is the share of positives"
        ),
        "accuracy": ScoreWords("accuracy", "share of images whose class was predicted"),
        "balanced_accuracy": ScoreWords("balanced accuracy", "mean of the classes' sensitivities"),
        "kappa": ScoreWords("Cohen's kappa", "agreement beyond chance"),
        "kappa_linear": ScoreWords(
            "kappa, linear", "agreement beyond chance, near misses count in part"
        ),
        "kappa_quadratic": ScoreWords(
            "kappa, quadratic", "the same, weighted by the squared distance"
        ),
        "brier": ScoreWords(
            "Brier score", "squared error of the probabilities; less is better", True, None
        ),
        "log_loss": ScoreWords(
            "log loss", "surprise at the true class; less is better", True, None
        ),
        "ece": ScoreWords(
            "calibration error",
            "gap between stated and observed shares; less is better",
            True,
            None,
        ),
    }
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
        self.spread_columns = tuple(f"prob_sd_{c}" for c in self.classes)

    # -- labels ---------------------------------------------------------------------------------

    @classmethod
    def settle(
        cls, labels: Sequence[str], shared: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the classes; all folds have those of the whole table, in the same order."""
        if shared is not None:
            return dict(shared)
        distinct = sorted(set(labels))
        if len(distinct) < 2:
            only = f"one class only, '{distinct[0]}'" if distinct else "no class"
            raise TableError(
                f"holds {only}, in all {len(labels)} usable rows; at least two classes are needed. "
                "Another column can be named with --label"
            )
        if not cls.fits(distinct):
            name = cls.__module__.rsplit(".", 1)[-1].rstrip("_")
            shown = ", ".join(distinct[:8])
            raise TableError(
                f"holds {len(distinct)} labels, which task '{name}' does not fit: {shown}"
            )
        return {"classes": distinct}

    @property
    def common(self) -> Mapping[str, str]:
        """The classes and their order."""
        return {"classes": ", ".join(self.classes)}

    @property
    def known_labels(self) -> tuple[str, ...]:
        """The classes."""
        return self.classes

    @property
    def allowed(self) -> str:
        """The classes."""
        return ", ".join(self.classes)

    def describe(self) -> str:
        """Name the classes."""
        return f"classes {', '.join(self.classes)} (in this order)"

    def parse(self, label: str) -> int | list[float]:
        """Return the number of a class.

        Raises:
            TableError: no class of this name.
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
    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each class, ``(b, classes)``, in float64; rows sum to 1."""

    def correct(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return 1 where a row answers rightly, else 0, ``(m,)``, without gradient."""
        if not _is_class(target):
            return super().correct(logits, target)
        return (self.probabilities(logits.detach()).argmax(-1) == target).float()

    def temperature(self, logits: Tensor, target: Tensor) -> float:
        """Return what logits of held-out images should be divided by to be as sure as right.

        Found by the likelihood of the labels, which are not smoothed here. From 1/20 to 20, drawn
        towards 1, as if its logarithm were known to about 1/2: a handful of images says little.
        """
        candidates = torch.logspace(-1.3, 1.3, 53, dtype=torch.float64)
        exact = logits.double()
        losses = [float(self._surprise(exact / t, target).sum()) for t in candidates]
        drawn = torch.tensor(losses, dtype=torch.float64) + 2 * candidates.log().square()
        return float(candidates[int(drawn.argmin())])

    def _surprise(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return minus the logarithm of what a row gives its label, ``(m,)``; else its loss."""
        if not _is_class(target):
            return self.each_loss(logits, target)
        own = self.probabilities(logits).gather(1, target[:, None].to(logits.device))
        return -own[:, 0].clamp_min(1e-300).log()

    def log_scores(self, values: Tensor, target: Tensor) -> dict[str, float]:
        """Return the AUROC; nothing where one class occurs."""
        score = auroc(values.cpu().numpy(), target.cpu().numpy())
        return {} if score is None else {"val_auroc": float(score)}

    def validate(self, logits: Tensor, target: Tensor, chance: float) -> dict[str, float]:
        """Judge a validation part by ranking and calibrated loss.

        ``val_score`` is the loss at the best temperature, as a share of chance, and the share of
        pairs of images that are ranked wrongly.
        """
        loss = float(self.loss(logits / self.temperature(logits, target), target))
        relative = loss / chance if chance > 0 else loss
        scores = self.log_scores(self.probabilities(logits), target)
        return {"val_score": relative + 1 - scores.get("val_auroc", 0.5)} | scores

    def learnt(self, history: Sequence[Mapping[str, float]]) -> bool:
        """Say whether the classes are ranked, on average over the epochs that say so."""
        ranked = [row["val_auroc"] for row in history if "val_auroc" in row]
        return bool(ranked) and sum(ranked) / len(ranked) > _RANKED

    # -- answers --------------------------------------------------------------------------------

    def calibrate(self, logits: Tensor, target: Tensor) -> dict[str, float | None]:
        """Settle the temperature and, of two classes, from which probability the second is called.

        The threshold is Youden's.
        """
        if not len(logits):
            return {"temperature": 1.0, "threshold": None}
        temperature = self.temperature(logits, target)
        if len(self.classes) != 2:
            return {"temperature": temperature, "threshold": None}
        best = threshold_youden(
            self.probabilities(logits / temperature)[:, 1].numpy(), target.numpy()
        )
        return {"temperature": temperature, "threshold": 0.5 if best is None else float(best)}

    def pool(self, points: Sequence[Point]) -> dict[str, float | None]:
        """Return the mean threshold of those that have one, and the geometric mean temperature."""
        known = [float(p["threshold"]) for p in points if p.get("threshold") is not None]
        logs = np.log([p.get("temperature", 1.0) for p in points])
        return {
            "threshold": statistics.fmean(known) if known else None,
            "temperature": float(np.exp(np.mean(logs))),
        }

    def decode(self, logits: Tensor, point: Point) -> Tensor:
        """Return the probability of each class, at the temperature that was settled."""
        return self.probabilities(logits.double() / point.get("temperature", 1.0))

    def predict(self, values: Sequence[float], point: Point) -> str:
        """Return the most probable class; of two, by the threshold where there is one."""
        threshold = point.get("threshold")
        if threshold is not None and len(self.classes) == 2:
            return self.classes[int(values[1] >= threshold)]
        return self.classes[max(range(len(self.classes)), key=lambda i: values[i])]

    @property
    def outputs(self) -> tuple[str, ...]:
        """The classes; one logit of two classes is the second's."""
        n = sum(head.size for head in self.heads)
        return self.classes[-n:] if n in (1, len(self.classes)) else super().outputs

    def record(self, values: Sequence[float]) -> dict[str, Any]:
        """Return the probabilities by class."""
        return {"probs": dict(zip(self.classes, values, strict=True))}

    def write(self, value: float, *, short: bool = False) -> str:
        """Return a probability as text."""
        return f"{value:.4f}" if short else f"{value:.6f}"

    def explain(self, values: Sequence[float], point: Point) -> str:
        """Say the probabilities, and from where the second of two classes is called."""
        text = "  ".join(f"{c} {p:.3f}" for c, p in zip(self.classes, values, strict=True))
        if point.get("threshold") is not None:
            text += f"; {self.classes[1]} from {float(point['threshold']):.3f}"
        return text

    # -- scores ---------------------------------------------------------------------------------

    def score(self, rows: Rows) -> dict[str, Score]:
        """Score ranks, decisions and losses."""
        return score_classes(rows, self.classes)

    def compare(self, rows: Rows, others: Rows) -> dict[str, Difference]:
        """Compare the AUROC and the logarithmic loss."""
        return compare_classes(rows, others, self.classes)

    def details(self, rows: Rows) -> dict[str, Any]:
        """Return classes, confusion matrix and calibration."""
        return count_classes(rows, self.classes)

    # -- words and figures ----------------------------------------------------------------------

    def sentence(self, scores: Stored, n_folds: int) -> str:
        """Say the AUROC in pairs of images, or another main score by its name."""
        name = self.headline(scores) or ""
        score = scores.get(name, {})
        value, lo, hi = (finite(score, key) for key in ("value", "lo", "hi"))
        if value is None:
            return ""
        if name != "auroc":
            between = "" if lo is None or hi is None else f" (95 % interval {lo:.2f} to {hi:.2f})"
            return f"the {self.title(name)} was {value:.3f}{between}."
        within = (
            "" if lo is None or hi is None else f" (95 % interval {100 * lo:.0f} to {100 * hi:.0f})"
        )
        pair = "an image of a class above one of another, on average over the classes,"
        if len(self.classes) == 2:
            pair = f"an image of '{self.classes[1]}' above one of '{self.classes[0]}'"
        who, of = "the model", ""
        if n_folds > 1:
            who, of = f"the models of {n_folds} folds", " of images of their own fold"
        return f"{who} ranked {pair} in {100 * value:.0f} of 100 pairs{of}{within}."

    def cautions(self, scores: Stored) -> list[str]:
        """Say where the AUROC cannot be told from chance, or is worse."""
        lo, hi = (finite(scores.get("auroc", {}), key) for key in ("lo", "hi"))
        if lo is not None and hi is not None and lo <= 0.5 <= hi:
            return ["The interval holds 0.5: this cannot be told from chance."]
        if hi is not None and hi < 0.5:
            return ["This is worse than chance: check the labels and the split."]
        return []

    def verdict(self, entry: Mapping[str, Any], row: Mapping[str, str]) -> Verdict:
        """Judge an answer right or wrong; wrong ones come first, then by confidence."""
        shares = entry.get("probs")
        shares = shares if isinstance(shares, dict) else {}
        kind = "right" if entry.get("label") == entry.get("predicted") else "wrong"
        kind = kind if entry.get("label") else "unlabelled"
        sure = finite(shares, str(entry.get("predicted")))
        rank = {"wrong": 2.0, "right": 1.0, "unlabelled": 0.0}[kind]
        return Verdict(
            kind,
            kind,
            (rank, sure or 0.0),
            self._certainty(shares, sure, finite(row, "threshold")),
            [(str(name), finite(shares, name)) for name in shares],
        )

    def _certainty(
        self, shares: Mapping[str, Any], sure: float | None, threshold: float | None
    ) -> list[tuple[str, bool]]:
        second = finite(shares, self.classes[1])
        if threshold is not None and len(shares) == 2 and second is not None:
            return [
                (f": probability of {self.classes[1]} ", False),
                (f"{second:.3f}", True),
                (", called so from ", False),
                (f"{threshold:.3f}", True),
                (" on", False),
            ]
        return [] if sure is None else [(f" with probability {sure:.3f}", False)]

    def tables(self, metrics: Mapping[str, Any], points: Sequence[Point]) -> list[ShadedTable]:
        """Return the confusion matrix; nothing where none fits the classes."""
        matrix, classes = metrics.get("confusion"), self.classes
        if not isinstance(matrix, list) or len(matrix) != len(classes):
            return []
        rows = []
        for i, counts in enumerate(matrix):
            total = sum(counts)
            cells = [(str(n), n / total if total else 0.0) for n in counts]
            rows.append((classes[i], cells, percent(counts[i] / total) if total else "–"))
        note = ""
        if thresholds := _values(points, "threshold"):
            note = (
                f"Called {classes[-1]} from a probability of {_listed(thresholds, 3)}, chosen on "
                "the inner validation part."
            )
        return [ShadedTable("Confusion matrix", "predicted", "true", "found", classes, rows, note)]

    def charts(
        self, rows: Rows, metrics: Mapping[str, Any], points: Sequence[Point]
    ) -> list[Chart]:
        """Return ROC, precision and recall, calibration, and the distribution of scores."""
        return class_charts(scored(rows, self.classes), metrics, _values(points, "threshold"))

    def notes(self, points: Sequence[Point]) -> list[str]:
        """Say the temperatures."""
        temperatures = _values(points, "temperature")
        if not temperatures:
            return []
        return [
            "Before they became probabilities, logits were divided by a temperature of "
            f"{_listed(temperatures, 2)}, chosen on the inner validation part. Above 1 it makes "
            "the model less sure, below 1 surer; 1.00 changes nothing."
        ]


def _is_class(target: Tensor) -> bool:
    """Say whether each target is a single class."""
    return target.ndim == 1 and not target.is_floating_point()


def _values(points: Sequence[Point], key: str) -> list[float]:
    found = (finite(point, key) for point in points)
    return [value for value in found if value is not None]


def _listed(values: Sequence[float], places: int) -> str:
    text = ", ".join(f"{value:.{places}f}" for value in values)
    return f"{text} (one per fold)" if len(values) > 1 else text
