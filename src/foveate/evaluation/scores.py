"""Scores of stored predictions, over all images and by fold, with intervals over patients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from foveate.tasks.base import AbstractTask, Rows


def evaluate_rows(rows: Rows, task: AbstractTask) -> dict[str, Any]:
    """Return the content of ``metrics.json`` from rows of ``predictions.csv``.

    Args:
        rows: rows with ``label``, ``predicted``, ``patient_id`` and the columns of the task;
            ``fold`` where several models answered, each for some of the rows.
        task: task that scores them.

    Returns:
        The scores; with several folds also the scores of each fold, under ``folds``, and how the
        main scores are pooled, under ``pooling``.
    """
    known = task.scorable(rows)
    folds = sorted({row.get("fold", "") for row in known}, key=lambda name: (len(name), name))
    metrics = _score(known, task) | task.details(known)
    if len(folds) > 1:
        metrics["pooling"] = task.pooling
        metrics["folds"] = [
            {"fold": fold} | _score([row for row in known if row.get("fold", "") == fold], task)
            for fold in folds
        ]
    return metrics


def _score(rows: Rows, task: AbstractTask) -> dict[str, Any]:
    return {
        "n_images": _count_images(rows),
        "n_patients": len({row["patient_id"] for row in rows}),
        "metrics": {name: asdict(score) for name, score in task.score(rows).items()},
    }


def _count_images(rows: Rows) -> int:
    """Count the images that were answered about; a row of a patient may name several."""
    named = {row["image_id"]: row.get("images") or "" for row in rows}
    return sum(max(1, len(images.split("|"))) for images in named.values())


def compare_rows(rows: Rows, others: Rows, task: AbstractTask) -> dict[str, Any]:
    """Compute how much better one set of predictions is than another of the same images.

    Args:
        rows: rows of ``predictions.csv``.
        others: rows of another ``predictions.csv``; images that only one of both tables has are
            left out.
        task: task that compares them.

    Returns:
        By score, the difference with its 95 % interval over patients.
    """
    # Where several folds test an image, its answers are told apart by the fold.
    repeated = len({row["image_id"] for row in others}) < len(others)

    def name(row: Mapping[str, str]) -> tuple[str, str]:
        return row["image_id"], row.get("fold", "") if repeated else ""

    other_of = {name(row): row for row in others}
    known = task.scorable([row for row in rows if name(row) in other_of])
    if not known:
        return {}
    differences = task.compare(known, [other_of[name(row)] for row in known])
    return {name: asdict(difference) for name, difference in differences.items()}
