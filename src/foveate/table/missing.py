"""Words that stand for a missing label or patient, so that they become no class and no person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

from foveate.table.same import label_key
from foveate.table.types import Row

MISSING_WORDS = frozenset(
    {"-", "--", "---", ".", "..", "...", "?", "??", "???", "/", "na", "n/a", "n.a.", "n.a", "nan"}
    | {"null", "unknown", "unk", "unk.", "not known", "tbd", "tba", "t.b.d.", "pending"}
    | {"to be determined", "missing", "not available", "not applicable", "not reported"}
    | {"not specified", "unspecified", "not determined", "unlabelled", "unlabeled"}
    | {"no label", "not labelled", "not labeled"}
)
"""The words, in small letters; brackets and quotation marks around them do not count. An empty cell
is missing as well. Words that are findings (none, normal, indeterminate, other) are not listed."""


def is_missing(word: str) -> bool:
    """Return whether a cell is empty or holds a word for a missing value."""
    text = label_key(word).casefold().strip("'\"`[](){}<> ").replace("_", " ")
    return not text or text in MISSING_WORDS


def blank_missing(
    rows: Sequence[Row], column: str, keep: Collection[str] = ()
) -> tuple[list[Row], Counter[str]]:
    """Empty the cells of a column that hold a word for a missing value; count the words.

    A minus sign beside a plus sign is a value.

    Args:
        rows: rows of the table.
        column: the column.
        keep: words that are values here.
    """
    words = Counter(row.cells[column] for row in rows if row.cells[column])
    values = {label_key(word) for word in keep}
    if any(set(word) == {"+"} for word in words):
        values.add("-")
    missing = {word for word in words if is_missing(word) and label_key(word) not in values}
    cleared = [
        replace(row, cells={**row.cells, column: ""}) if row.cells[column] in missing else row
        for row in rows
    ]
    return cleared, Counter({word: words[word] for word in sorted(missing)})


def list_words(words: Counter[str]) -> str:
    """List words with their numbers, such as ``'?' 2, 'unknown' 5``."""
    return ", ".join(f"'{word}' {n}" for word, n in words.items())
