"""The table of the answers of several runs to the same images, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from foveate.presentation import read_number
from foveate.reports.answers import MAX_ROWS, AnswerTable, Cell, judge_row
from foveate.reports.run_files import Row
from foveate.tasks.base import AbstractTask


@dataclass(frozen=True)
class NamedAnswers:
    """The answers of one run.

    Attributes:
        name: name of the run.
        rows: rows of its predictions.
        pictures: links to its heatmaps by image id.
    """

    name: str
    rows: Sequence[Row]
    pictures: Mapping[str, str]


def build_joint_answers(runs: Sequence[NamedAnswers], task: AbstractTask) -> AnswerTable:
    """Build a table with a row for each image and a column for each run, sorted by patient.

    Args:
        runs: answers of the runs.
        task: task that judges the answers.
    """
    by_image = [{row["image_id"]: row for row in run.rows} for run in runs]
    stated: dict[str, Row] = {}
    for rows in by_image:
        stated |= {image: row for image, row in rows.items() if image not in stated}
    images = sorted(stated, key=lambda image: (stated[image].get("patient_id", ""), image))
    has_patients = any(row.get("patient_id") != image for image, row in stated.items())
    table = []
    for image in images[:MAX_ROWS]:
        answers = [rows.get(image) for rows in by_image]
        cells = [Cell(image)]
        cells += [Cell(stated[image].get("patient_id", ""))] if has_patients else []
        cells.append(Cell(stated[image].get("label", "")))
        cells.append(_count_right(answers, task))
        pairs = zip(runs, answers, strict=True)
        cells += [_show(row, run.pictures.get(image, ""), task) for run, row in pairs]
        table.append(cells)
    titles = ["image", *(["patient"] if has_patients else []), "label", "right"]
    return AnswerTable([*titles, *(run.name for run in runs)], table, len(images))


def _count_right(answers: Sequence[Row | None], task: AbstractTask) -> Cell:
    """Return how many of the runs that answered were right; empty where that is not defined."""
    kinds = [judge_row(row, task).kind for row in answers if row is not None]
    n_judged = sum(kind in ("right", "wrong") for kind in kinds)
    return Cell(f"{kinds.count('right')} of {n_judged}" if n_judged else "", is_number=True)


def _show(row: Row | None, link: str, task: AbstractTask) -> Cell:
    """Return the answer of one run: what it predicts, with the number that this rests on."""
    if row is None:
        return Cell("–")
    text, kind = row.get("predicted", ""), judge_row(row, task).kind
    value = read_number(row, f"prob_{text}")
    if value is not None:
        text = f"{text} {value:.2f}"
    return Cell(text, link=link, kind=kind if kind in ("right", "wrong") else "")
