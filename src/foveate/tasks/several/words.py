"""Words about several labels: what their scores mean, and which are answered wrongly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.errors import TableError
from foveate.presentation import ScoreWords, Verdict, read_number, write_interval_of_100
from foveate.tasks.classes.words import SCORE_WORDS as CLASS_WORDS
from foveate.tasks.several.labels import read_values
from foveate.wording import several

SCORE_WORDS: Mapping[str, ScoreWords] = {
    "auroc": ScoreWords(
        "mean AUROC",
        "chance that an image with a label ranks above one without, a mean over labels; 0.5 is "
        "chance",
        within_folds=True,
    ),
    "auprc": ScoreWords(
        "mean AUPRC", "area under precision and recall, a mean over labels; chance is their share"
    ),
    "brier": ScoreWords(
        "Brier score", "squared error of the probabilities; less is better", True, None
    ),
    "log_loss": CLASS_WORDS["log_loss"],
}
"""Title and meaning of the scores, by name."""


def describe_ranking(score: Mapping[str, Any], n_labels: int, n_folds: int) -> str:
    """Describe the mean AUROC as a number of pairs of images; empty where there is no value.

    Args:
        score: the mean AUROC with its interval.
        n_labels: number of labels.
        n_folds: number of folds whose models ranked images.
    """
    value, lo, hi = (read_number(score, key) for key in ("value", "lo", "hi"))
    if value is None:
        return ""
    between = write_interval_of_100(lo, hi)
    of = " of images of their own fold" if n_folds > 1 else ""
    return (
        f"images with a label ranked above images without it in {100 * value:.0f} of 100 "
        f"pairs{of}, on average over {n_labels} labels{between}."
    )


def judge_labels(entry: Mapping[str, Any], labels: Sequence[str], none: str) -> Verdict:
    """Judge which labels of an answer are wrong; answers with the most wrong labels rank first.

    Args:
        entry: entry of the index of pictures: ``label``, ``predicted`` and ``probs``.
        labels: names of the labels.
        none: the word for an image that has none of them.
    """
    shares = entry.get("probs")
    stated = shares if isinstance(shares, dict) else {}
    numbers = [(str(name), read_number(stated, name)) for name in stated]
    try:
        truth, called = (
            read_values(str(entry.get(key) or ""), labels, none) for key in ("label", "predicted")
        )
    except TableError:
        return Verdict("unlabelled", "unlabelled", (0.0, 0.0), (), numbers)
    wrong = [
        name
        for name, is_there, said in zip(labels, truth, called, strict=True)
        if is_there in (0, 1) and is_there != said
    ]
    if not wrong:
        return Verdict("right", "right", (1.0, 0.0), (), numbers)
    word = f"{len(wrong)} of {len(labels)} wrong: {several(wrong)}"
    return Verdict("wrong", word, (2.0, float(len(wrong))), (), numbers)
