"""Labels that several columns hold together, which become one column of the table."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from foveate.errors import TableError
from foveate.table.choice import find_named
from foveate.table.missing import is_missing
from foveate.table.renaming import rename_cells
from foveate.table.types import LabelRules, TableSheet
from foveate.tasks import find_label_columns, join_columns
from foveate.tasks.base import CellError


def named_parts(sheet: TableSheet, label: str | None) -> tuple[str, ...]:
    """Return the columns of ``--label TIME,EVENT``; none where one column or none is named.

    Args:
        sheet: the table.
        label: what the user names.

    Raises:
        TableError: one of several columns does not exist, or is named twice.
    """
    if label is None or label in sheet.columns or "," not in label:
        return ()
    parts = [find_named(sheet, part.strip(), "label") for part in label.split(",") if part.strip()]
    columns = tuple(part for part in parts if part)
    if len(set(columns)) < len(columns):
        raise TableError(f"{sheet.path}: --label {label} names a column twice; give each once")
    return columns if len(columns) > 1 else ()


def find_parts(
    sheet: TableSheet, task: str, but: Collection[str] = (), named: str | None = None
) -> tuple[str, ...]:
    """Find the columns that a task recognises as its label; none where there are no such columns.

    Args:
        sheet: the table.
        task: name of the task, or ``auto``.
        but: columns that are left out.
        named: a column that must be one of them; None for any.

    Raises:
        TableError: several could be meant.
    """
    columns = [column for column in sheet.columns if column not in but]
    try:
        return find_label_columns(task, _read_cells(sheet, columns), named)
    except TableError as error:
        raise TableError(f"{sheet.path}: {error}") from None


def describe_parts(parts: Sequence[str], named: str | None = None) -> str:
    """Describe columns that hold a label together, and how to train with them.

    Args:
        parts: the columns.
        named: the one of them that would be the label alone; None where it is not clear which
            column is the label.
    """
    columns, option = " and ".join(f"'{part}'" for part in parts), f"--label '{','.join(parts)}'"
    if named is None:
        return (
            f"{columns} are a label together, but another column could be the label as well; "
            f"say {option} to train with them, or name the other one with --label"
        )
    return (
        f"{columns} are a label together, and '{named}' alone says less, such as how long somebody "
        f"was followed: say {option}; for '{named}' alone, name the task, such as --task binary"
    )


def join_parts(
    sheet: TableSheet, parts: Sequence[str], rules: LabelRules
) -> tuple[TableSheet, LabelRules]:
    """Rename the words of the columns that hold the label together, and add the joined labels.

    Args:
        sheet: the table.
        parts: the columns that hold the label together.
        rules: rules for the labels.

    Returns:
        The table, with notes on how the columns were understood, and the rules for the joined
        labels: the task that takes them, and nothing that is still to be renamed.

    Raises:
        OptionError: a word that is to be renamed does not occur.
        TableError: the task does not take these columns, or does not understand a cell, or only
            some labels are wanted.
    """
    names = " and ".join(f"'{part}'" for part in parts)
    if rules.wanted is not None:
        raise TableError(
            f"{sheet.path}: --classes keeps the images of some classes, and {names} hold no "
            "classes but a label together. Leave --classes out; to learn some of several labels, "
            "name their columns only, as in --label A,B"
        )
    sheet = rename_cells(sheet, parts, rules)
    try:
        name, joined = join_columns(rules.task, _read_cells(sheet, parts), rules.task_options)
    except CellError as error:
        raise TableError(f"{sheet.where(sheet.rows[error.index], error.column)}: {error}") from None
    except TableError as error:
        raise TableError(f"{sheet.path}: {error}") from None
    column = name_joined(parts)
    rows = [
        replace(row, cells={**row.cells, column: label})
        for row, label in zip(sheet.rows, joined.labels, strict=True)
    ]
    columns = (*(c for c in sheet.columns if c != column), column)
    notes = (*sheet.notes, *joined.notes)
    rules = replace(rules, task=name, renamed={}, renamed_in_training={})
    return replace(sheet, columns=columns, rows=tuple(rows), notes=notes), rules


def name_joined(parts: Sequence[str]) -> str:
    """Return the name of the column of labels that these columns hold together."""
    return ",".join(parts)


def _read_cells(sheet: TableSheet, columns: Sequence[str]) -> dict[str, list[str]]:
    """Return the cells by column, words for a missing value as empty texts."""
    return {
        column: ["" if is_missing(row.cells[column]) else row.cells[column] for row in sheet.rows]
        for column in columns
    }
