"""Rename the labels of a table, and set aside those that a task does not understand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from foveate.errors import OptionError, TableError
from foveate.table.same import label_key
from foveate.table.types import Case, CaseTable, SetAside
from foveate.tasks.base import AbstractTask
from foveate.wording import did_you_mean, several


def with_known_labels(
    table: CaseTable, task: AbstractTask, renamed: Mapping[str, str]
) -> CaseTable:
    """Return a table with labels renamed, and without rows whose label has no target.

    Rows that are left out are set aside, and a note counts them.

    Args:
        table: the table, of labelled cases.
        task: the task of the model.
        renamed: labels that the task understands, by labels of the table.

    Raises:
        OptionError: a label does not occur, or its new name has no target.
        TableError: no row is left.
    """
    present = Counter(str(case.label) for case in table.cases)
    for old, new in renamed.items():
        _check_pair(old, new, task, present)
    cases = [replace(case, label=renamed.get(str(case.label), case.label)) for case in table.cases]
    excluded = [case for case in cases if not task.understands(case.label)]
    if not excluded:
        return replace(table, cases=tuple(cases))
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
        SetAside(0, case.image_id, str(case.path), f"label '{case.label}' is none of {known}")
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


def _check_pair(old: str, new: str, task: AbstractTask, present: Collection[str]) -> None:
    """Check that a label of the table is renamed to one that the model understands.

    Raises:
        OptionError: it is not; the message names the nearest that is there.
    """
    asked = f"--map {old}={new}"
    if not task.understands(new):
        if task.understands(old) and new in present:
            raise OptionError(
                f"{asked}: '{new}' is a label of the table and '{old}' one of the model, which "
                f"comes second: say --map {new}={old}"
            )
        near = did_you_mean(new, task.known_labels)
        raise OptionError(f"{asked}: the model knows no '{new}'; it knows {task.allowed}.{near}")
    if old not in present and label_key(old).casefold() != label_key(new).casefold():
        raise OptionError(f"{asked}: the table has no label '{old}'.{did_you_mean(old, present)}")
