"""Columns that a user may expect to matter, and that are not used: splits, and repeated names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection

from foveate.table.same import plain_name
from foveate.table.types import TableSheet
from foveate.wording import several

_SPLIT = re.compile(r"(?:data_?|my_)?(?:split|fold|kfold|cv_fold)(?:_?\d+)?|train_(?:val_)?test")
_MAYBE_SPLIT = re.compile(r"(?:data_?)?(?:set|subset|partition|part|phase|usage)|group|is_\w+")
PART_WORDS = {
    "train": ("train", "training", "trn", "tr"),
    "val": ("val", "valid", "validation", "dev", "tune", "tuning"),
    "test": (
        *("test", "testing", "tst", "te"),
        *("holdout", "hold-out", "held-out", "eval", "evaluation"),
    ),
}
"""Words for the parts of a split in tables."""
_PARTS = frozenset(word for words in PART_WORDS.values() for word in words)
_REPEATED = re.compile(r"(.+)\.\d+")


def describe_unused(sheet: TableSheet, used: Collection[str]) -> list[str]:
    """Describe columns with a split, and columns that repeat the name of one that is used.

    Args:
        sheet: the table.
        used: columns that have a role.
    """
    notes = []
    for column in sheet.columns:
        values = Counter(row.cells[column] for row in sheet.rows if row.cells[column])
        if column in used or not values:
            continue
        if _is_split(column, values):
            counts = several([f"{value} {n}" for value, n in sorted(values.items())])
            notes.append(
                f"column '{column}' ({counts}) is not used: training divides the patients itself, "
                "unless --split.from names the table with such columns, and evaluation scores "
                "every row. To test on rows of your choice, train on a table of the others, and "
                "give these to `foveate evaluate`"
            )
        repeated = _REPEATED.fullmatch(column)
        if repeated and repeated[1] in used:
            notes.append(
                f"warning: column '{column}' repeats the name of '{repeated[1]}' and is not used"
            )
    return notes


def _is_split(column: str, values: Collection[str]) -> bool:
    """Return whether a column names the part of a split, by its name and its values."""
    name = plain_name(column)
    named_parts = {value.casefold() for value in values} <= _PARTS
    return bool(_SPLIT.fullmatch(name) or (_MAYBE_SPLIT.fullmatch(name) and named_parts))
