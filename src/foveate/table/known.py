"""Labels of a table that a task understands, or does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from foveate.errors import OptionError, TableError, did_you_mean, several
from foveate.table.types import CaseTable, SetAside
from foveate.tasks.base import AbstractTask


def with_known_labels(
    table: CaseTable, task: AbstractTask, renamed: Mapping[str, str]
) -> CaseTable:
    """Return the table with labels renamed, and without rows whose label has no target.

    What is left out is counted in a note, and set aside.

    Args:
        table: of labelled cases.
        task: of the model.
        renamed: labels of the table to labels that the task understands.

    Raises:
        OptionError: a label shall become something that has no target, or does not occur.
        TableError: no row is left.
    """
    present = Counter(str(case.label) for case in table.cases)
    for old, new in renamed.items():
        try:
            task.parse(new)
        except TableError as error:
            raise OptionError(f"--map {old}={new}: {error}") from None
        if old not in present:
            raise OptionError(f"--map {old}={new}: no label '{old}'.{did_you_mean(old, present)}")
    cases = [replace(case, label=renamed.get(str(case.label), case.label)) for case in table.cases]
    left = [case for case in cases if not task.understands(case.label)]
    if not left:
        return replace(table, cases=tuple(cases))
    odd = Counter(str(case.label) for case in left)
    known = task.allowed
    said = several([f"'{label}' {n}" for label, n in sorted(odd.items())])
    first = min(odd)
    maps = " ".join(f"--map '{label}=LABEL'" for label in sorted(odd)[:3])
    if len(left) == len(cases):
        raise TableError(
            f"column '{table.label_column}' holds no label that the model knows: {said}; it knows "
            f"{known}.{did_you_mean(first, task.known_labels)} Rename with {maps}"
        )
    note = (
        f"warning: {len(left)} of {len(cases)} rows left out, for the model does not know their "
        f"label: {said}; it knows {known}. Rename with {maps}"
    )
    aside = [
        SetAside(0, case.image_id, str(case.path), f"label '{case.label}' is none of {known}")
        for case in left
    ]
    return replace(
        table,
        cases=tuple(case for case in cases if task.understands(case.label)),
        notes=(*table.notes, note),
        set_aside=(*table.set_aside, *aside),
    )
