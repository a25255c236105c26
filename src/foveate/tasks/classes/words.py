"""Words about classes: what scores mean, how good they are, and whether an answer is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.presentation import (
    ScoreWords,
    ShadedTable,
    Verdict,
    read_number,
    write_interval_of_100,
    write_percent,
)

SCORE_WORDS: Mapping[str, ScoreWords] = {
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
    "sensitivity": ScoreWords(
        "sensitivity",
        "share of the positive images that were called so at the threshold of the validation part",
    ),
    "specificity": ScoreWords(
        "specificity",
        "share of the negative images that were called so at the threshold of the validation part",
    ),
    "kappa": ScoreWords("Cohen's kappa", "agreement beyond chance"),
    "kappa_linear": ScoreWords(
        "kappa, linear", "agreement beyond chance, near misses count in part"
    ),
    "kappa_quadratic": ScoreWords("kappa, quadratic", "the same, weighted by the squared distance"),
    "brier": ScoreWords(
        "Brier score", "squared error of the probabilities; less is better", True, None
    ),
    "log_loss": ScoreWords("log loss", "surprise at the true class; less is better", True, None),
    "ece": ScoreWords(
        "calibration error",
        "gap between stated and observed shares; less is better",
        True,
        None,
    ),
}
"""Title and meaning of the scores, by name."""


def describe_score(score: Mapping[str, Any], title: str) -> str:
    """Describe a score and its interval in a sentence; empty where there is no value.

    Args:
        score: the score with its interval.
        title: title of the score.
    """
    value, lo, hi = (read_number(score, key) for key in ("value", "lo", "hi"))
    if value is None:
        return ""
    between = "" if lo is None or hi is None else f" (95 % interval {lo:.2f} to {hi:.2f})"
    return f"the {title} was {value:.3f}{between}."


def describe_ranking(score: Mapping[str, Any], classes: Sequence[str], n_folds: int) -> str:
    """Describe the AUROC as a number of pairs of images; empty where there is no value.

    Args:
        score: the AUROC with its interval.
        classes: names of the classes.
        n_folds: number of folds whose models ranked images.
    """
    value, lo, hi = (read_number(score, key) for key in ("value", "lo", "hi"))
    if value is None:
        return ""
    within = write_interval_of_100(lo, hi)
    pair = "an image of a class above one of another, on average over the classes,"
    if len(classes) == 2:
        pair = f"an image of '{classes[1]}' above one of '{classes[0]}'"
    who, of = "the model", ""
    if n_folds > 1:
        who, of = f"the models of {n_folds} folds", " of images of their own fold"
    return f"{who} ranked {pair} in {100 * value:.0f} of 100 pairs{of}{within}."


def warn_of_chance(score: Mapping[str, Any]) -> list[str]:
    """Warn where an AUROC is not clearly better than chance, or worse than chance."""
    lo, hi = (read_number(score, key) for key in ("lo", "hi"))
    if lo is not None and hi is not None and lo <= 0.5 <= hi:
        return ["The interval holds 0.5: this cannot be told from chance."]
    if hi is not None and hi < 0.5:
        return ["This is worse than chance: check the labels and the split."]
    return []


def judge_answer(
    entry: Mapping[str, Any], classes: Sequence[str], threshold: float | None
) -> Verdict:
    """Judge an answer right or wrong; wrong ones rank first, then confident ones.

    Args:
        entry: the answer, with ``label``, ``predicted`` and the probabilities ``probs``.
        classes: names of the classes.
        threshold: probability from which the second of two classes is predicted; None without.
    """
    shares = entry.get("probs")
    shares = shares if isinstance(shares, dict) else {}
    kind = "right" if entry.get("label") == entry.get("predicted") else "wrong"
    kind = kind if entry.get("label") else "unlabelled"
    sure = read_number(shares, str(entry.get("predicted")))
    rank = {"wrong": 2.0, "right": 1.0, "unlabelled": 0.0}[kind]
    return Verdict(
        kind,
        kind,
        (rank, sure or 0.0),
        _describe_certainty(shares, classes[1], sure, threshold),
        [(str(name), read_number(shares, name)) for name in shares],
    )


def _describe_certainty(
    shares: Mapping[str, Any], second: str, sure: float | None, threshold: float | None
) -> list[tuple[str, bool]]:
    """Describe how sure an answer is, in pieces of text that are bold or not.

    Args:
        shares: probabilities by class.
        second: the second class.
        sure: probability of the predicted class.
        threshold: probability from which the second of two classes is predicted.
    """
    probability = read_number(shares, second)
    if threshold is not None and len(shares) == 2 and probability is not None:
        return [
            (f": probability of {second} ", False),
            (f"{probability:.3f}", True),
            (", called so from ", False),
            (f"{threshold:.3f}", True),
            (" on", False),
        ]
    return [] if sure is None else [(f" with probability {sure:.3f}", False)]


def tabulate_confusion(
    matrix: object, classes: tuple[str, ...], thresholds: Sequence[float]
) -> list[ShadedTable]:
    """Return the confusion matrix as a table; no table where it does not fit the classes.

    Args:
        matrix: counts by true and predicted class, as ``metrics.json`` holds them.
        classes: names of the classes.
        thresholds: the threshold of each model.
    """
    if not isinstance(matrix, list) or len(matrix) != len(classes):
        return []
    rows = []
    for i, counts in enumerate(matrix):
        total = sum(counts)
        cells = [(str(n), n / total if total else 0.0) for n in counts]
        rows.append((classes[i], cells, write_percent(counts[i] / total) if total else "–"))
    note = ""
    if thresholds:
        note = (
            f"Called {classes[-1]} from a probability of {_join(thresholds, 3)}, chosen on "
            "the inner validation part."
        )
    return [ShadedTable("Confusion matrix", "predicted", "true", "recall", classes, rows, note)]


def describe_temperatures(temperatures: Sequence[float]) -> list[str]:
    """Describe the temperatures that the logits of each model were divided by."""
    if not temperatures:
        return []
    return [
        "Before they became probabilities, logits were divided by a temperature of "
        f"{_join(temperatures, 2)}, chosen on the inner validation part. Above 1 it makes "
        "the model less sure, below 1 surer; 1.00 changes nothing."
    ]


def read_values(points: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Return the numbers under a key, of those models that have one.

    Args:
        points: calibration of each model.
        key: name of the number.
    """
    numbers = (read_number(point, key) for point in points)
    return [value for value in numbers if value is not None]


def _join(values: Sequence[float], places: int) -> str:
    text = ", ".join(f"{value:.{places}f}" for value in values)
    return f"{text} (one per fold)" if len(values) > 1 else text
