"""Rename the labels of a table as the user says (``--map OLD=NEW``), before they are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from foveate.errors import OptionError
from foveate.files.numerals import parse_numbers
from foveate.table.same import label_key
from foveate.table.types import LabelRules, Row, TableSheet
from foveate.tasks import takes_lists
from foveate.tasks.base import AbstractTask
from foveate.tasks.several.labels import is_list, rename_in_list, split_label
from foveate.wording import did_you_mean, several

_MIN_MEASURED = 4
"""The least number of different words of a column of measured numbers."""


def rename_labels(sheet: TableSheet, column: str, rules: LabelRules) -> tuple[list[Row], list[str]]:
    """Rename the labels of all rows, each at most once; return the rows and a note with counts.

    A label means all its spellings (``1`` and ``1.0``), unless one of them is renamed itself. An
    empty new name means that the label is missing. A label that is renamed to itself is confirmed.
    Where a cell may name several labels, each of them is renamed, unless the whole cell is.

    Args:
        sheet: the table.
        column: the column of labels.
        rules: the new names by label: those of the run, and those of the user, which must occur.

    Raises:
        OptionError: a label that the user renames does not occur, or stands beside others in a cell
            and shall be missing.
    """
    words = Counter(row.cells[column] for row in sheet.rows if row.cells[column])
    lists = [word for word in words if takes_lists(rules.task) and is_list(word)]
    _check_occurs(rules, [*words, *(name for text in lists for name in split_label(text))])
    chosen = _choose_names(words, rules)
    for text in lists:
        if chosen[text] == text:
            row = next(row for row in sheet.rows if row.cells[column] == text)
            chosen[text] = _rename_in_list(text, rules, sheet.where(row, column))
    rows = [
        replace(row, cells={**row.cells, column: chosen.get(word, word)})
        for row in sheet.rows
        for word in (row.cells[column],)
    ]
    return rows, _describe(words, chosen)


def rename_cells(sheet: TableSheet, columns: Sequence[str], rules: LabelRules) -> TableSheet:
    """Rename the words of columns that hold the label together; notes count them.

    In a column of measured numbers, such as times, a word is renamed only where no other column has
    it, so that ``0=no`` changes events and not times. There, a run's own names only say which words
    are missing, for another table may not write events as the table of the run did.

    Args:
        sheet: the table.
        columns: the columns.
        rules: the new names by word: those of the run, and those of the user, which must occur.

    Raises:
        OptionError: a word that the user renames is in none of the columns.
    """
    words = {c: Counter(row.cells[c] for row in sheet.rows if row.cells[c]) for c in columns}
    measured = _find_measured(words)
    _check_occurs(rules, [word for column in columns for word in words[column]])
    codes = {label_key(word) for column in columns for word in words[column] if column != measured}
    notes, chosen = [], {}
    for column in columns:
        names = _choose_names(words[column], rules)
        if column == measured:
            missing = {old: new for old, new in rules.renamed_in_training.items() if not new}
            names = _choose_names(words[column], replace(rules, renamed_in_training=missing))
            names |= {word: word for word in names if label_key(word) in codes}
        chosen[column] = names
        notes += [f"'{column}': {note}" for note in _describe(words[column], names)]
    rows = [
        replace(row, cells=row.cells | {c: chosen[c].get(row.cells[c], "") for c in columns})
        for row in sheet.rows
    ]
    return replace(sheet, rows=tuple(rows), notes=(*sheet.notes, *notes))


def _find_measured(words: Mapping[str, Collection[str]]) -> str | None:
    """Return the column that holds measured numbers and not codes, such as times; None without one.

    Most of its words are numbers, and it has at least twice as many different ones as the others.

    Args:
        words: the different words of each column.
    """
    *others, (column, longest) = sorted(words.items(), key=lambda item: len(item[1]))
    most = max((len(other) for _, other in others), default=0)
    is_long = len(longest) >= max(_MIN_MEASURED, 2 * most)
    return column if is_long and 2 * len(parse_numbers(longest).values) > len(longest) else None


def _check_occurs(rules: LabelRules, words: Iterable[str]) -> None:
    """Raise `OptionError` where a label that the user renames is none of the words of the table."""
    known = set(words)
    keys = {label_key(word) for word in known}
    for old in rules.renamed:
        if label_key(old) not in keys:
            raise OptionError(
                f"--map {old}={rules.renamed[old]}: the table has no label '{old}'."
                f"{did_you_mean(old, known)}"
            )


def _choose_names(words: Iterable[str], rules: LabelRules) -> dict[str, str]:
    """Return the new name of each word; the word itself where it is not renamed."""
    new_names = {**rules.renamed_in_training, **rules.renamed}
    by_key = {label_key(old): new for old, new in new_names.items()}
    return {word: new_names.get(word, by_key.get(label_key(word), word)) for word in words}


def _rename_in_list(text: str, rules: LabelRules, where: str) -> str:
    """Return a cell that names several labels with these renamed; `where` is its place.

    Raises:
        OptionError: one of them shall be missing.
    """
    names = _choose_names(split_label(text), rules)
    if missing := [name for name, new in names.items() if not new]:
        raise OptionError(
            f"{where}: --map {missing[0]}=: '{text}' names '{missing[0]}' beside other labels, and "
            "a list cannot say that one label is missing. Take it out of such cells, or say what "
            f"the whole cell means, as in --map '{text}=LABEL'"
        )
    return rename_in_list(text, names)


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

    Words of cells from which a label is made, such as those for an event, are checked there.

    Args:
        renamed: new name by label.
        task: the task of the model.

    Raises:
        OptionError: a new name has no target; the message names the nearest that has one.
    """
    if not task.known_labels and not task.takes_numbers:
        return
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
