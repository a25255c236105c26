"""Scores of survival from stored answers, with intervals over patients."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from foveate.metrics import MeasuredScore, score_horizons, score_survival
from foveate.presentation import ShadedTable, read_number, write_decimals
from foveate.tasks.base import Rows
from foveate.tasks.events.bins import write_time


def measure_answers(
    rows: Rows,
    folds: Sequence[Hashable],
    truth: Sequence[Sequence[float]],
    columns: Sequence[str],
    horizons: Sequence[float],
) -> dict[str, MeasuredScore]:
    """Score rows with known labels; return scores by name.

    Args:
        rows: rows of ``predictions.csv``.
        folds: fold of each row; ranks are compared within a fold.
        truth: time of each row, and 1 for an event.
        columns: columns of the answers: the risk, then survival at each horizon.
        horizons: times at which survival is stated.
    """
    stated = [[float(row[column]) for column in columns] for row in rows]
    pairs = np.array(truth, np.float64).reshape(len(rows), 2)
    return score_survival(
        np.array(stated).reshape(len(rows), len(columns)),
        np.array(horizons),
        pairs[:, 0],
        pairs[:, 1].astype(np.int64),
        [row["patient_id"] for row in rows],
        folds,
    )


def describe_horizons(
    rows: Rows,
    truth: Sequence[Sequence[float]],
    columns: Sequence[str],
    horizons: Sequence[float],
) -> list[dict[str, Any]]:
    """Return the AUROC at each horizon and the numbers of images, as ``metrics.json`` holds them.

    Args:
        rows: rows of ``predictions.csv`` with known labels.
        truth: time of each row, and 1 for an event.
        columns: columns of the answers: the risk, then survival at each horizon.
        horizons: times at which survival is stated.
    """
    if not rows:
        return []
    time, event = np.array(truth, np.float64).T
    patients, folds = [row["patient_id"] for row in rows], [row.get("fold", "") for row in rows]
    entries = []
    for horizon, column in zip(horizons, columns[1:], strict=True):
        survival = np.array([[float(row[column])] for row in rows])
        areas = score_horizons(
            survival, np.array([horizon]), time, event.astype(np.int64), patients, folds
        )
        entry: dict[str, Any] = {
            "horizon": horizon,
            "n_event": int(((time <= horizon) & (event > 0)).sum()),
            "n_free": int((time > horizon).sum()),
        }
        for area in areas.values():
            entry["auroc"] = asdict(area.score)
        entries.append(entry)
    return entries


def tabulate_horizons(stored: object) -> list[ShadedTable]:
    """Return the AUROC at each horizon as a table; no table where none were stored.

    Args:
        stored: entries by horizon, as `describe_horizons` returns them; may be damaged.
    """
    entries = [e for e in stored if isinstance(e, dict)] if isinstance(stored, list) else []
    rows = []
    for entry in entries:
        horizon, score = read_number(entry, "horizon"), entry.get("auroc")
        if horizon is None:
            continue
        read = score if isinstance(score, dict) else {}
        value, lo, hi = (read_number(read, key) for key in ("value", "lo", "hi"))
        between = "" if lo is None or hi is None else f" ({lo:.2f} to {hi:.2f})"
        cells = [(f"{write_decimals(value)}{between}", value or 0.0)]
        counts = f"{entry.get('n_event', '–')} and {entry.get('n_free', '–')}"
        rows.append((write_time(horizon), cells, counts))
    note = (
        "Images that were censored before a horizon are left out there; the events stand for them "
        "by weights."
    )
    last = "images with an event, without"
    title = "AUROC by horizon"
    return [ShadedTable(title, "score", "horizon", last, ("AUROC",), rows, note)] if rows else []
