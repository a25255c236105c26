"""Compare runs on the same images: scores, costs, and differences with adjusted p values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.evaluation.scores import compare_rows
from foveate.metrics import adjust_p_values
from foveate.tasks.base import AbstractTask, Rows

_COSTS = ("seconds", "seconds_per_image", "decoded_fraction")


@dataclass(frozen=True)
class Contestant:
    """Answers that take part in a comparison.

    Attributes:
        name: name of the method, or of the run.
        rows: rows of its predictions.
        scores: its scores, as ``metrics.json`` holds them.
        cost: content of its ``cost.json``; empty for a frozen start, whose cost is part of another.
        run: folder of its run, relative to that of the comparison where it lies in it.
        is_frozen: whether these are the answers of the frozen start of a run.
        split: the division of the patients that its models were trained with.
    """

    name: str
    rows: Rows
    scores: Mapping[str, Any]
    cost: Mapping[str, Any]
    run: str
    is_frozen: bool = False
    split: str = ""


def compare_contestants(contestants: Sequence[Contestant], task: AbstractTask) -> dict[str, Any]:
    """Compare the answers of several runs to the same images, each with each.

    A pair is compared if both were trained with one split, or answer the same images. The p values
    of the main score are adjusted for the number of pairs by Holm's method. Two contestants with
    the same answers are no test.

    Args:
        contestants: at least two, the first of which the others are compared with in tables.
        task: the task of all.

    Returns:
        The content of ``comparison.json``: the main score, a row for each contestant, and the
        difference of each pair.
    """
    main = task.tabled[0]
    pairs = []
    for (i, a), (j, b) in itertools.combinations(enumerate(contestants), 2):
        if not _is_paired(a, b):
            continue
        for score, difference in compare_rows(a.rows, b.rows, task).items():
            pairs.append({"first": i, "second": j, "score": score, **difference})
    tests = [p for p in pairs if p["score"] == main and not _is_identical(p)]
    for pair, p_value in zip(tests, adjust_p_values([p["p_value"] for p in tests]), strict=True):
        pair["p_adjusted"] = p_value
    return {
        "score": main,
        "rows": [
            _describe(contestant) | {"less_first": _subtract_first(pairs, i, main)}
            for i, contestant in enumerate(contestants)
        ],
        "differences": [
            pair
            | {"first": contestants[pair["first"]].name, "second": contestants[pair["second"]].name}
            for pair in pairs
        ],
    }


def _is_paired(a: Contestant, b: Contestant) -> bool:
    """Return whether two contestants can be compared image by image."""
    images, others = ({row["image_id"] for row in c.rows} for c in (a, b))
    return a.split == b.split or images == others


def _is_identical(pair: Mapping[str, Any]) -> bool:
    """Return whether both of a pair gave the same answers."""
    return not (pair["value"] or pair["lo"] or pair["hi"])


def _describe(contestant: Contestant) -> dict[str, Any]:
    costs = {key: contestant.cost.get(key) for key in _COSTS}
    level0, asked = (contestant.cost.get(key) for key in ("level0_px", "asked_px"))
    costs["asked_fraction"] = asked / level0 if asked is not None and level0 else None
    return {
        "name": contestant.name,
        "run": contestant.run,
        "is_frozen": contestant.is_frozen,
        "n_images": len(contestant.rows),
        "n_patients": len({row["patient_id"] for row in contestant.rows}),
        "scores": dict(contestant.scores),
        **costs,
    }


def _subtract_first(pairs: Sequence[Mapping[str, Any]], i: int, score: str) -> dict[str, Any]:
    """Return the difference of row i to the first row, from their pair; empty for the first."""
    for pair in pairs:
        if (pair["first"], pair["second"], pair["score"]) == (0, i, score):
            p_values = {key: pair[key] for key in ("p_value", "p_adjusted") if key in pair}
            return {"value": -pair["value"], "lo": -pair["hi"], "hi": -pair["lo"], **p_values}
    return {}
