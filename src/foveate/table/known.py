"""Labels of a table that a trained model shall be scored on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from foveate.errors import OptionError, TableError, did_you_mean
from foveate.table.types import CaseTable, SetAside, several


def with_known_labels(
    table: CaseTable, classes: Sequence[str], renamed: Mapping[str, str]
) -> CaseTable:
    """The table with labels renamed, and without the rows whose label the model does not know.

    What is left out is counted in a note, and set aside.

    Args:
        table: of labelled cases.
        classes: that the model knows.
        renamed: labels of the table to classes.

    Raises:
        OptionError: a label shall become something that is no class, or does not occur.
        TableError: no row is left.
    """
    present = Counter(str(case.label) for case in table.cases)
    for old, new in renamed.items():
        if new not in classes:
            raise OptionError(f"--map {old}={new}: no class '{new}'.{did_you_mean(new, classes)}")
        if old not in present:
            raise OptionError(f"--map {old}={new}: no label '{old}'.{did_you_mean(old, present)}")
    cases = [replace(case, label=renamed.get(str(case.label), case.label)) for case in table.cases]
    left = [case for case in cases if case.label not in classes]
    if not left:
        return replace(table, cases=tuple(cases))
    odd = Counter(str(case.label) for case in left)
    known = ", ".join(classes)
    said = several([f"'{label}' {n}" for label, n in sorted(odd.items())])
    first = min(odd)
    maps = " ".join(f"--map '{label}=CLASS'" for label in sorted(odd)[:3])
    if len(left) == len(cases):
        raise TableError(
            f"column '{table.label_column}' holds no label that the model knows: {said}; it knows "
            f"{known}.{did_you_mean(first, classes)} Rename with {maps}"
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
        cases=tuple(case for case in cases if case.label in classes),
        notes=(*table.notes, note),
        set_aside=(*table.set_aside, *aside),
    )
