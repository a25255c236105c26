"""Tasks: what the labels mean. One file each; inferred from the labels unless named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foveate.errors import TableError
from foveate.parts import find, names, parse_options
from foveate.tasks.base import AbstractTask


def build_task(name: str, labels: Sequence[str], options: Mapping[str, Any]) -> AbstractTask:
    """The task of this name (``auto`` infers it) over these labels.

    Raises:
        UnknownName: no task of this name.
        TableError: the labels do not fit it, or hold one class only.
    """
    distinct = sorted(set(labels))
    if len(distinct) < 2:
        found = f"only '{distinct[0]}'" if distinct else "none"
        raise TableError(f"the label column needs at least two classes, found {found}")
    if name == "auto":
        fitting = [n for n in names("tasks") if find("tasks", n).fits(distinct)]
        if not fitting:
            raise TableError(f"no task fits these labels: {', '.join(distinct[:8])}. Name one")
        name = max(fitting, key=lambda n: (find("tasks", n).preference, n))
    part = find("tasks", name)
    if not part.fits(distinct):
        shown = ", ".join(distinct[:8])
        raise TableError(f"task '{name}' does not fit {len(distinct)} labels: {shown}")
    return part(classes=tuple(distinct), **parse_options(part, options, "task"))  # type: ignore[no-any-return]


def restore_task(name: str, classes: Sequence[str], options: Mapping[str, Any]) -> AbstractTask:
    """The task that a stored model was trained on."""
    part = find("tasks", name)
    return part(classes=tuple(classes), **parse_options(part, options, "task"))  # type: ignore[no-any-return]
