"""Words about survival: what its scores mean, and how good they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foveate.presentation import ScoreWords, Verdict, read_number, write_interval_of_100
from foveate.tasks.base import Stored
from foveate.tasks.classes.words import warn_of_chance

SCORE_WORDS: Mapping[str, ScoreWords] = {
    "c_index": ScoreWords(
        "c-index",
        "Harrell's concordance: chance that of two images the one with the earlier event has "
        "the higher risk; 0.5 is chance",
        within_folds=True,
    ),
    "c_index_uno": ScoreWords(
        "Uno's c-index",
        "the same up to the last horizon, with pairs weighed so that the length of the follow-up "
        "has no influence; 0.5 is chance",
        within_folds=True,
    ),
    "auroc_horizons": ScoreWords(
        "AUROC at the horizons",
        "chance that an image with an event until a horizon has the lower stated survival than "
        "one without, a mean over the horizons; 0.5 is chance",
        within_folds=True,
    ),
    "brier": ScoreWords(
        "Brier score of survival",
        "squared error of the stated survival, a mean over the horizons; less is better",
        small_is_good=True,
        span=None,
    ),
    "brier_constant": ScoreWords(
        "Brier score of a constant",
        "the same if everybody were given the survival of all (Kaplan-Meier): chance",
        small_is_good=True,
        span=None,
    ),
}
"""Title and meaning of the scores, by name."""


def describe_order(score: Mapping[str, Any], n_folds: int) -> str:
    """Describe the c-index as a number of pairs of images; empty where there is no value.

    Args:
        score: the c-index with its interval.
        n_folds: number of folds whose models answered.
    """
    value, lo, hi = (read_number(score, key) for key in ("value", "lo", "hi"))
    if value is None:
        return ""
    between = write_interval_of_100(lo, hi)
    of = " of images of their own fold" if n_folds > 1 else ""
    return (
        f"of 100 comparable pairs{of}, the image with the earlier event had the higher risk in "
        f"{100 * value:.0f}{between}."
    )


def warn_of_constant(scores: Stored) -> list[str]:
    """Warn where the order may be chance, or where the survival of all is as good an answer.

    Args:
        scores: scores as ``metrics.json`` holds them.
    """
    cautions = warn_of_chance(scores.get("c_index", {}))
    error, constant = (
        read_number(scores.get(name, {}), "value") for name in ("brier", "brier_constant")
    )
    if error is not None and constant is not None and error >= constant:
        cautions.append("The survival of all as the answer would be no worse than this model's.")
    return cautions


def show_risk(entry: Mapping[str, Any]) -> Verdict:
    """Return the risk of an answer as its judgement; the highest risks rank first.

    Args:
        entry: entry of the index of pictures, with ``label`` and ``values``.
    """
    stored = entry.get("values")
    risk = read_number(stored, "risk") if isinstance(stored, dict) else None
    if risk is None or not entry.get("label"):
        return Verdict("unlabelled", "unlabelled", (0.0, risk or 0.0))
    return Verdict("measured", f"risk {risk:.2f}", (1.0, risk))
