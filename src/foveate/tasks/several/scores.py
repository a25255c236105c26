"""Scores of several labels from stored answers, with intervals over patients."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from foveate.metrics import (
    MeasuredScore,
    calibration_bins,
    measure_benefits,
    score_label,
    score_labels,
)
from foveate.metrics.types import Floats
from foveate.presentation import ShadedTable, read_number, write_decimals
from foveate.tasks.base import Rows
from foveate.tasks.several.labels import read_values


def read_answers(rows: Rows, labels: Sequence[str], none: str) -> tuple[Floats, Floats]:
    """Return probabilities and truth of rows with known labels, both ``(n, k)``.

    Args:
        rows: rows of ``predictions.csv``.
        labels: names of the labels.
        none: the word for an image that has none of them.
    """
    prob = [[float(row[f"prob_{name}"]) for name in labels] for row in rows]
    truth = [read_values(row["label"], labels, none) for row in rows]
    shape = (len(rows), len(labels))
    return np.array(prob).reshape(shape), np.array(truth, np.float64).reshape(shape)


def measure_answers(
    rows: Rows, folds: Sequence[Hashable], labels: Sequence[str], none: str
) -> dict[str, MeasuredScore]:
    """Score rows with known labels; return scores by name.

    Args:
        rows: rows of ``predictions.csv``.
        folds: fold of each row; ranks are compared within a fold.
        labels: names of the labels.
        none: the word for an image that has none of them.
    """
    prob, truth = read_answers(rows, labels, none)
    return score_labels(prob, truth, [row["patient_id"] for row in rows], folds)


def describe_labels(rows: Rows, labels: Sequence[str], none: str) -> dict[str, Any]:
    """Return scores by label, calibration and decision curves, as ``metrics.json`` holds them.

    Args:
        rows: rows of ``predictions.csv`` with known labels.
        labels: names of the labels.
        none: the word for an image that has none of them.
    """
    prob, truth = read_answers(rows, labels, none)
    predicted = [read_values(row["predicted"], labels, none) for row in rows]
    called = np.array(predicted, np.float64).reshape(truth.shape)
    patients, folds = [row["patient_id"] for row in rows], [row.get("fold", "") for row in rows]
    by_label, curves = [], []
    for c, name in enumerate(labels):
        present, absent = truth[:, c] == 1, truth[:, c] == 0
        scores = score_label(prob[:, c], truth[:, c], patients, folds)
        by_label.append(
            {
                "label": name,
                "n": int((present | absent).sum()),
                "n_present": int(present.sum()),
                "sensitivity": float(called[present, c].mean()) if present.any() else None,
                "specificity": float(1 - called[absent, c].mean()) if absent.any() else None,
            }
            | {key: asdict(score) for key, score in scores.items()}
        )
        inside = np.flatnonzero(present | absent)
        if len(inside):
            owners = [patients[i] for i in inside]
            points = measure_benefits(prob[inside, c], present[inside].astype(np.int64), owners)
            curves.append({"class": name, "points": points})
    known = ~np.isnan(truth)
    both = np.stack([1 - prob[known], prob[known]], 1)
    bins = calibration_bins(both, truth[known].astype(np.int64)) if known.any() else []
    return {"labels": by_label, "calibration": bins, "benefit": curves}


def tabulate_labels(stored: object) -> list[ShadedTable]:
    """Return the scores by label as a table; no table where none were stored.

    Args:
        stored: scores by label, as `describe_labels` returns them; may be damaged.
    """
    entries = [e for e in stored if isinstance(e, dict)] if isinstance(stored, list) else []
    rows = []
    for entry in entries:
        cells = [_write_area(entry.get("auroc")), _write_area(entry.get("auprc"))]
        for key in ("sensitivity", "specificity"):
            share = read_number(entry, key)
            cells.append((write_decimals(share, 2), share or 0.0))
        count = f"{entry.get('n_present', '–')} of {entry.get('n', '–')}"
        rows.append((str(entry.get("label", "")), cells, count))
    columns = ("AUROC", "AUPRC", "sensitivity", "specificity")
    note = (
        "Sensitivity and specificity at the threshold of each label, chosen on the inner "
        "validation part."
    )
    title = "Scores by label"
    return [ShadedTable(title, "score", "label", "present", columns, rows, note)] if rows else []


def _write_area(score: object) -> tuple[str, float]:
    """Return an area with its interval as text, and the area."""
    if not isinstance(score, dict):
        return "–", 0.0
    value, lo, hi = (read_number(score, key) for key in ("value", "lo", "hi"))
    between = "" if lo is None or hi is None else f" ({lo:.2f} to {hi:.2f})"
    return f"{write_decimals(value)}{between}", value or 0.0
