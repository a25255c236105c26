"""Tasks: what the labels mean. A task is one module, named by the user or inferred from labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.errors import TableError
from foveate.parts import check_built, find, names
from foveate.parts.options import parse_options
from foveate.tasks.base import AbstractTask, restore
from foveate.tasks.classes.doubts import doubt_classes

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
    task_class = find("tasks", _infer_name(labels) if name == AUTO else name)
    try:
        settled = task_class.settle(labels)
    except TableError as error:
        raise TableError(f"column '{column}' {error}") from None
    return _restore(task_class, settled, options)


def explain_unfit(name: str, labels: Sequence[str], column: str) -> str | None:
    """Explain why a task cannot be trained on these labels; return None where it can.

    Where no task is named, labels that are probably no classes are a reason as well.

    Args:
        name: name of the task, or ``auto``.
        labels: labels of all images.
        column: column of the labels, for messages.

    Raises:
        UnknownName: there is no task of this name.
    """
    try:
        build_task(name, labels, {}, column)
    except TableError as error:
        return str(error)
    return doubt_classes(column, labels) if name == AUTO else None


def learns_numbers(name: str) -> bool:
    """Return whether the labels of a task are numbers; False for ``auto``, which infers classes.

    Raises:
        UnknownName: there is no task of this name.
    """
    return name != AUTO and bool(find("tasks", name).takes_numbers)


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


def _infer_name(labels: Sequence[str]) -> str:
    """Return the name of the most preferred task that takes these labels by itself."""
    distinct = sorted(set(labels))
    fitting = [name for name in names("tasks") if find("tasks", name).fits(distinct)]
    return max(fitting, key=lambda n: (find("tasks", n).preference, n), default="multiclass")
