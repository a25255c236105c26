"""Set aside the rows of a table whose labels a task does not understand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from foveate.errors import TableError
from foveate.table.types import Case, CaseTable, SetAside
from foveate.tasks.base import AbstractTask
from foveate.wording import did_you_mean, several


def with_known_labels(table: CaseTable, task: AbstractTask) -> CaseTable:
    """Return a table without rows whose label has no target.

    Rows that are left out are set aside, and a note counts them.

    Args:
        table: the table, of labelled cases.
        task: the task of the model.

    Raises:
        TableError: no row is left.
    """
    cases = table.cases
    excluded = [case for case in cases if not task.understands(case.label)]
    if not excluded:
        return table
    known, counts, maps = task.allowed, *_describe_unknown(excluded)
    if len(excluded) == len(cases):
        near = did_you_mean(min(str(case.label) for case in excluded), task.known_labels)
        raise TableError(
            f"column '{table.label_column}' holds no label that the model knows: {counts}; it "
            f"knows {known}.{near} Rename with {maps}"
        )
    note = (
        f"warning: {len(excluded)} of {len(cases)} rows left out, for the model does not know "
        f"their label: {counts}; it knows {known}. Rename with {maps}"
    )
    aside = [
        SetAside(0, case.image_id, case.paths, f"label '{case.label}' is none of {known}")
        for case in excluded
    ]
    return replace(
        table,
        cases=tuple(case for case in cases if task.understands(case.label)),
        notes=(*table.notes, note),
        set_aside=(*table.set_aside, *aside),
    )


def _describe_unknown(cases: Sequence[Case]) -> tuple[str, str]:
    """Describe labels that the model does not know, and write options that rename them."""
    unknown = Counter(str(case.label) for case in cases)
    counts = several([f"'{label}' {n}" for label, n in sorted(unknown.items())])
    return counts, " ".join(f"--map '{label}=LABEL'" for label in sorted(unknown)[:3])
