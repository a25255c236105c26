"""Rename the labels of a table as the user says (``--map OLD=NEW``), before they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace

from foveate.errors import OptionError
from foveate.table.same import label_key
from foveate.table.types import LabelRules, Row, TableSheet
from foveate.tasks.base import AbstractTask
from foveate.wording import did_you_mean, several


def rename_labels(sheet: TableSheet, column: str, rules: LabelRules) -> tuple[list[Row], list[str]]:
    """Rename the labels of all rows, each at most once; return the rows and a note with counts.

    A label means all its spellings (``1`` and ``1.0``), unless one of them is renamed itself. An
    empty new name means that the label is missing. A label that is renamed to itself is confirmed.

    Args:
        sheet: the table.
        column: the column of labels.
        rules: the new names by label: those of the run, and those of the user, which must occur.

    Raises:
        OptionError: a label that the user renames does not occur.
    """
    words = Counter(row.cells[column] for row in sheet.rows if row.cells[column])
    keys = {label_key(word) for word in words}
    for old in rules.renamed:
        if label_key(old) not in keys:
            raise OptionError(
                f"--map {old}={rules.renamed[old]}: the table has no label '{old}'."
                f"{did_you_mean(old, words)}"
            )
    new_names = {**rules.renamed_in_training, **rules.renamed}
    by_key = {label_key(old): new for old, new in new_names.items()}
    chosen = {word: new_names.get(word, by_key.get(label_key(word), word)) for word in words}
    rows = [
        replace(row, cells={**row.cells, column: chosen.get(word, word)})
        for row in sheet.rows
        for word in (row.cells[column],)
    ]
    return rows, _describe(words, chosen)


def _describe(words: Counter[str], chosen: Mapping[str, str]) -> list[str]:
    """Describe which labels were renamed, and in how many rows."""
    changed = sorted(word for word, new in chosen.items() if new != word)
    if not changed:
        return []
    texts = [
        f"'{word}' to '{chosen[word]}'" if chosen[word] else f"'{word}' to no label"
        for word in changed
    ]
    n = sum(words[word] for word in changed)
    return [f"{n} rows with renamed labels: {several(texts, 10)}"]


def check_new_names(renamed: Mapping[str, str], task: AbstractTask) -> None:
    """Check that labels are renamed to labels that a model understands, or to no label.

    Args:
        renamed: new name by label.
        task: the task of the model.

    Raises:
        OptionError: a new name has no target; the message names the nearest that has one.
    """
    for old, new in renamed.items():
        if not new or task.understands(new):
            continue
        asked = f"--map {old}={new}: the model knows no '{new}'"
        if task.understands(old):
            right = f"say --map {new}={old}"
            raise OptionError(f"{asked}, but '{old}' is one, which comes second: {right}")
        near = did_you_mean(new, task.known_labels)
        raise OptionError(f"{asked}; it knows {task.allowed}.{near}")


def list_confirmed(rules: LabelRules) -> Collection[str]:
    """Return the labels that the user names as they are, so that they are not doubtful."""
    names = {**rules.renamed_in_training, **rules.renamed}
    return {*(rules.wanted or ()), *(old for old, new in names.items() if old == new)}
