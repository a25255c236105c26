"""Tasks: what the labels mean. A task is one module, named by the user or inferred from labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.errors import TableError
from foveate.parts import check_built, find, names
from foveate.parts.options import parse_options
from foveate.tasks.base import (
    NO_OPTIONS,
    AbstractTask,
    CellError,
    Cells,
    JoinedLabels,
    restore,
)

AUTO = "auto"
"""The name of a task that is inferred from the labels."""


def build_task(
    name: str, labels: Sequence[str], options: Mapping[str, Any], column: str = "label"
) -> AbstractTask:
    """Build the task of this name (``auto`` infers it) over these labels.

    Args:
        name: name of the task.
        labels: one label per image.
        options: options of the task.
        column: name of the column of labels, for messages.

    Raises:
        UnknownName: there is no task of this name.
        TableError: the labels do not fit the task.
    """
    task_class = find("tasks", _infer_name(labels, column) if name == AUTO else name)
    return _restore(task_class, _settle(task_class, labels, options, column), options)


def explain_unfit(
    name: str, labels: Sequence[str], column: str, options: Mapping[str, Any] = NO_OPTIONS
) -> str | None:
    """Explain why a task cannot be trained on these labels; return None where it can.

    Where no task is named, labels that are probably something else are a reason as well.

    Args:
        name: name of the task, or ``auto``.
        labels: labels of all images.
        column: column of the labels, for messages.
        options: options of the task.

    Raises:
        UnknownName: there is no task of this name.
        OptionError: the options do not fit the task.
    """
    try:
        task = build_task(name, labels, options, column)
    except TableError as error:
        return str(error)
    return task.doubt(labels, column) if name == AUTO else None


def find_label_columns(name: str, cells: Cells, named: str | None = None) -> tuple[str, ...]:
    """Find the columns of a table that hold the label together; none where one column holds it.

    Args:
        name: name of the task, or ``auto``.
        cells: cells of the columns, by column; empty where missing.
        named: a column that must be one of them; None for any.

    Raises:
        UnknownName: there is no task of this name.
        TableError: it is not clear which columns are meant.
    """
    tasks = [find("tasks", name)] if name != AUTO else _list_by_preference()
    return next((columns for task in tasks if (columns := task.find_columns(cells, named))), ())


def join_columns(name: str, cells: Cells, options: Mapping[str, Any]) -> tuple[str, JoinedLabels]:
    """Write labels that several columns hold as one text for each row.

    Args:
        name: name of the task, or ``auto``.
        cells: cells of the columns, by column; empty where missing.
        options: options of the task.

    Returns:
        The name of the task, and the labels.

    Raises:
        UnknownName: there is no task of this name.
        CellError: a cell has no meaning.
        TableError: the task does not take these columns; the message names them.
    """
    columns = " and ".join(f"'{column}'" for column in cells)
    if name == AUTO:
        fitting = [n for n in names("tasks") if find("tasks", n).fits_columns(cells)]
        if not fitting:
            raise TableError(
                f"columns {columns} are no label together that a task is known to take; name the "
                "task with --task, or one column with --label"
            )
        name = max(fitting, key=lambda n: (find("tasks", n).preference, n))
    task_class = find("tasks", name)
    try:
        return name, task_class.join(cells, parse_options(task_class, options, "task"))
    except CellError:
        raise
    except TableError as error:
        raise TableError(f"columns {columns} {error}") from None


def settle_part(
    name: str, labels: Sequence[str], shared: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Settle what a task learns from the labels of a training part.

    Args:
        name: name of the task.
        labels: labels of the images of the part.
        shared: what the labels of the whole table settled.
        options: options of the task.

    Raises:
        UnknownName: there is no task of this name.
        TableError: the labels do not fit the task.
    """
    task_class: type[AbstractTask] = find("tasks", name)
    return task_class.settle(labels, shared, parse_options(task_class, options, "task"))


def learns_numbers(name: str) -> bool:
    """Return whether the labels of a task are numbers; False for ``auto``, which infers classes.

    Raises:
        UnknownName: there is no task of this name.
    """
    return name != AUTO and bool(find("tasks", name).takes_numbers)


def takes_lists(name: str) -> bool:
    """Return whether a cell may name several labels of a task; True for ``auto``, which infers it.

    Raises:
        UnknownName: there is no task of this name.
    """
    return name == AUTO or bool(find("tasks", name).takes_lists)


def suggest_tasks(name: str, labels: Sequence[str], column: str) -> list[str]:
    """Return lines on other tasks that the labels could be of, where no task is named.

    Args:
        name: name of the task, or ``auto``.
        labels: one label per image.
        column: name of their column.

    Raises:
        UnknownName: there is no task of this name.
    """
    if name != AUTO:
        return []
    inferred = _infer_name(labels, column)
    others = [find("tasks", other) for other in names("tasks") if other != inferred]
    return [line for task in others if (line := task.suggest(labels, column)) is not None]


def restore_task(name: str, settled: Mapping[str, Any], options: Mapping[str, Any]) -> AbstractTask:
    """Build the task that a stored model was trained on.

    Args:
        name: name of the task.
        settled: values that were learnt from labels in training.
        options: options that the user chose in training.

    Raises:
        UnknownName: there is no task of this name.
        OptionError: the stored values do not fit the task.
    """
    task_class = find("tasks", name)
    return _restore(task_class, settled, options)


def _restore(
    task_class: type[AbstractTask], settled: Mapping[str, Any], options: Mapping[str, Any]
) -> AbstractTask:
    """Build a task from settled values and unparsed options, and check that it is complete."""
    parsed = parse_options(task_class, options, "task")
    return check_built("tasks", restore(task_class, settled, **parsed))


def _settle(
    task_class: type[AbstractTask], labels: Sequence[str], options: Mapping[str, Any], column: str
) -> dict[str, Any]:
    """Settle what a task learns from all labels; an error names their column."""
    try:
        return task_class.settle(labels, None, parse_options(task_class, options, "task"))
    except TableError as error:
        raise TableError(f"column '{column}' {error}") from None


def _list_by_preference() -> list[type[AbstractTask]]:
    """Return all tasks, the most preferred first."""
    return sorted((find("tasks", n) for n in names("tasks")), key=lambda task: -task.preference)


def _infer_name(labels: Sequence[str], column: str) -> str:
    """Return the name of the most preferred task that takes these labels by itself."""
    distinct = sorted(set(labels))
    fitting = [name for name in names("tasks") if find("tasks", name).fits(distinct, column)]
    return max(fitting, key=lambda n: (find("tasks", n).preference, n), default="multiclass")
