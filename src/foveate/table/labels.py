"""Settle the labels of a table's rows: rename them, and give labels with one meaning one spelling.

Rows without a label are left out, and doubtful numbers refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from foveate.errors import TableError
from foveate.table.missing import blank_missing, list_words
from foveate.table.notes import quoted
from foveate.table.number_labels import read_number_labels
from foveate.table.renaming import rename_labels
from foveate.table.same import label_key, one_spelling, respelt_groups
from foveate.table.types import LabelRules, Row, TableSheet
from foveate.tasks import AUTO, learns_numbers, takes_lists
from foveate.tasks.several.labels import is_list, split_label
from foveate.wording import did_you_mean, several


@dataclass(frozen=True)
class LabelledRows:
    """The rows of a table with their labels settled.

    Attributes:
        rows: the rows.
        notes: lines to show to the user.
        missing_words: words that count as no label, with their numbers.
    """

    rows: list[Row]
    notes: list[str]
    missing_words: Counter[str]


def settle_labels(sheet: TableSheet, column: str, rules: LabelRules) -> LabelledRows:
    """Settle the labels of all rows, and leave out rows that the rules do not want.

    Args:
        sheet: the table.
        column: the column of labels.
        rules: which labels the rows need.

    Raises:
        OptionError: a label that is to be renamed does not occur.
        TableError: no row has a label, a wanted label does not occur or stands beside others in a
            cell, or a number is doubtful.
    """
    rows, notes = rename_labels(sheet, column, rules)
    keep = (*rules.known, *(rules.wanted or ()), *rules.renamed.values())
    rows, missing_words = blank_missing(rows, column, [word for word in keep if word])
    if rules.needed:
        rows = _keep_labelled(sheet, rows, column, missing_words, notes)
    if rules.needed and learns_numbers(rules.task):
        rows = read_number_labels(sheet, rows, column, rules, notes)
    else:
        rows = _unify_labels(rows, column, rules.known, notes)
    if rules.wanted is not None:
        _check_wanted(sheet, rows, column, rules)
        rows = _keep_wanted(sheet, rows, column, rules.wanted, notes)
    return LabelledRows(rows, notes, missing_words)


def _keep_labelled(
    sheet: TableSheet, rows: Sequence[Row], column: str, words: Counter[str], notes: list[str]
) -> list[Row]:
    """Return the rows with a label; `words` are those that count as none."""
    labelled = [row for row in rows if row.cells[column]]
    empty = [row.number for row in rows if not row.cells[column]]
    counts = list_words(words)
    if not labelled:
        unknown = f", or holds a word for it ({counts})" if words else ""
        raise TableError(
            f"{sheet.path}: column '{column}' is empty in every row{unknown}; fill it, or "
            "name another with --label"
        )
    if empty:
        text = f"{len(empty)} rows without a '{column}' left out (first: row {empty[0]})"
        as_class = "; where such a word is a class, list all classes with --classes"
        notes.append(f"{text}: {counts}{as_class}" if words else text)
    return labelled


def _unify_labels(
    rows: Sequence[Row], column: str, known: Sequence[str], notes: list[str]
) -> list[Row]:
    """Give all labels with one meaning one spelling: the model's, else the most frequent."""
    spelling = one_spelling([r.cells[column] for r in rows if r.cells[column]], label_key)
    models = {label_key(label): label for label in known}
    spelling = {word: models.get(label_key(word), text) for word, text in spelling.items()}
    for chosen, *others in respelt_groups(spelling):
        n = sum(row.cells[column] in others for row in rows)
        spellings = several([quoted(word) for word in others])
        notes.append(f"label {quoted(chosen)} is also written {spellings} ({n} rows): one class")
    return [
        replace(row, cells={**row.cells, column: spelling.get(word, word)})
        for row in rows
        for word in (row.cells[column],)
    ]


def _check_wanted(sheet: TableSheet, rows: Sequence[Row], column: str, rules: LabelRules) -> None:
    """Refuse to choose rows by labels of which a cell names several; whole cells may be chosen.

    Raises:
        TableError: wanted labels stand beside others in a cell.
    """
    wanted = set(rules.wanted or ())
    lists = [row for row in rows if is_list(row.cells[column]) and takes_lists(rules.task)]
    beside = [
        row for row in lists if rules.task != AUTO or wanted & split_label(row.cells[column]).keys()
    ]
    if beside and not any(map(is_list, wanted)):
        raise TableError(
            f"{sheet.where(beside[0], column)}: --classes {','.join(rules.wanted or ())} keeps "
            f"whole cells, and '{beside[0].cells[column]}' names several labels, which could be "
            "meant or not. To learn some labels only, take the others out of the table; to keep "
            "the images with exactly one of these labels, as classes, say --task multiclass too"
        )


def _keep_wanted(
    sheet: TableSheet, rows: list[Row], column: str, wanted: Sequence[str], notes: list[str]
) -> list[Row]:
    """Return the rows with a wanted label.

    Raises:
        TableError: a wanted label does not occur.
    """
    present = {row.cells[column] for row in rows}
    keys = {label_key(label) for label in present}
    for label in wanted:
        if label_key(label) not in keys:
            raise TableError(
                f"{sheet.path}: no row has the label '{label}' in column '{column}'."
                f"{did_you_mean(label, present)}"
            )
    wanted_keys = {label_key(label) for label in wanted}
    chosen = [row for row in rows if label_key(row.cells[column]) in wanted_keys]
    n_left_out = len(rows) - len(chosen)
    if n_left_out:
        others = several(sorted(present - {row.cells[column] for row in chosen}))
        notes.append(f"{n_left_out} rows with other labels left out: {others}")
    return chosen
