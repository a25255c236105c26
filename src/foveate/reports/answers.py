"""The table of all answers on a page, which readers can sort and filter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveate.presentation import read_number, write_fold
from foveate.reports.gallery import ShownHeatmap
from foveate.reports.run_files import Row
from foveate.tasks.base import AbstractTask

MAX_ROWS = 5000
"""Number of answers from which on the page shows only the first ones; the CSV file has all."""


@dataclass(frozen=True)
class Cell:
    """One cell of the table.

    Attributes:
        text: its text.
        is_number: whether it is sorted as a number.
        link: the place that it links to; empty for none.
        kind: class of its colour, as in `foveate.presentation.Verdict`; empty for none.
    """

    text: str
    is_number: bool = False
    link: str = ""
    kind: str = ""


@dataclass(frozen=True)
class AnswerTable:
    """The answers as a table.

    Attributes:
        titles: titles of the columns.
        rows: cells of each answer.
        n_answers: number of all answers, of which the page may show the first only.
    """

    titles: list[str]
    rows: list[list[Cell]]
    n_answers: int


def build_answers(
    rows: Sequence[Row], heatmaps: Sequence[ShownHeatmap], task: AbstractTask | None
) -> AnswerTable:
    """Build the table from rows of ``predictions.csv``; columns without content are left out.

    Args:
        rows: rows of the file; some may be damaged.
        heatmaps: heatmaps of the page, which images link to.
        task: task that judges the answers; None where it is not known.
    """
    pictures = {shown.case: shown.png for shown in reversed(heatmaps) if shown.png}
    shown = rows[:MAX_ROWS]
    by_title: dict[str, list[Cell]] = {
        "image": [
            Cell(row.get("image_id", ""), link=pictures.get(row.get("image_id", "")) or "")
            for row in shown
        ],
        "patient": _texts(shown, "patient_id", but="image_id"),
        "fold": [Cell(write_fold(row.get("fold") or "")) for row in shown],
        "label": _texts(shown, "label"),
        "predicted": _texts(shown, "predicted"),
        "judgement": [judge_row(row, task) for row in shown],
    }
    for column in () if task is None else (*task.columns, *task.deviation_columns):
        title = column.removeprefix("prob_").replace("_", " ")
        by_title[title] = [_number(row, column, task) for row in shown]
    by_title["uncertainty"] = [_number(row, "uncertainty", task) for row in shown]
    by_title["abstain"] = _texts(shown, "abstain")
    by_title["unlike training"] = _texts(shown, "unlike")
    by_title["in training"] = _texts(shown, "in_training")
    filled = {title: cells for title, cells in by_title.items() if any(cell.text for cell in cells)}
    return AnswerTable(
        list(filled), [list(row) for row in zip(*filled.values(), strict=True)], len(rows)
    )


def _texts(rows: Sequence[Row], column: str, but: str = "") -> list[Cell]:
    """Return the cells of a column; empty ones if all equal those of the column `but`."""
    if but and all(row.get(column) == row.get(but) for row in rows):
        return [Cell("") for _ in rows]
    return [Cell(row.get(column) or "") for row in rows]


def _number(row: Row, column: str, task: AbstractTask | None) -> Cell:
    value = read_number(row, column)
    if value is None or task is None:
        return Cell("", is_number=True)
    return Cell(task.write(value, short=True), is_number=True)


def judge_row(row: Row, task: AbstractTask | None) -> Cell:
    """Return the judgement of an answer that has a label; an empty cell for others.

    Args:
        row: row of ``predictions.csv``.
        task: task that judges it; None where it is not known.
    """
    if task is None or not row.get("label"):
        return Cell("")
    values = [read_number(row, column) for column in task.columns]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Cell("")
    entry: Mapping[str, Any] = {
        "label": row["label"], "predicted": row.get("predicted", ""), **task.record(known)
    }  # fmt: skip
    verdict = task.verdict(entry, row)
    return Cell(verdict.word, kind=verdict.kind)
