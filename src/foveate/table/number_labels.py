"""Read labels that are numbers: one decimal mark for the column, doubtful values refused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from foveate.errors import TableError
from foveate.files.numerals import MAX_NUMBER, ColumnNumbers, list_readings, parse_numbers
from foveate.files.sentinels import find_repeated_outliers, find_sentinels
from foveate.table.renaming import list_confirmed
from foveate.table.same import one_spelling
from foveate.table.types import LabelRules, Row, TableSheet
from foveate.wording import several


def read_number_labels(
    sheet: TableSheet, rows: list[Row], column: str, rules: LabelRules, notes: list[str]
) -> list[Row]:
    """Write the numbers of a column with decimal points; cells that are no numbers stay.

    Args:
        sheet: the table.
        rows: the rows with a label.
        column: the column of labels.
        rules: which values the user has confirmed.
        notes: receives lines to show to the user.

    Raises:
        TableError: a number has two readings, is too large, or often stands for a missing value.
    """
    words = Counter(row.cells[column] for row in rows)
    numbers = parse_numbers(words)
    for row in rows:
        if problem := _doubt(row.cells[column], numbers):
            raise TableError(f"{sheet.where(row, column)}: {problem}")
    if problem := _doubt_sentinels(words, numbers.values, list_confirmed(rules)):
        raise TableError(f"{sheet.path}: column '{column}' {problem}")
    spelling = {word: word for word in words} | _spell(words, numbers)
    notes += _describe(words, spelling, numbers)
    return [replace(r, cells={**r.cells, column: spelling[r.cells[column]]}) for r in rows]


def _doubt(word: str, numbers: ColumnNumbers) -> str | None:
    """Explain why a cell cannot be read as a number of the column; None where it can."""
    if word in numbers.unclear:
        first, second = list_readings(word)
        return (
            f"'{word}' can be {first.value:.15g} or {second.value:.15g}, and no other value of the "
            f"column decides; write one value as '{first.spelling}' or as '{second.spelling}' (or "
            f"say --map '{word}={first.spelling}' or --map '{word}={second.spelling}'), which "
            "decides for all"
        )
    if abs(numbers.values.get(word, 0.0)) > MAX_NUMBER:
        return (
            f"'{word}' lies beyond {MAX_NUMBER:g}, the limit for labels; correct it, or say "
            f"--map '{word}=' if it stands for a missing value"
        )
    return None


def _doubt_sentinels(
    words: Counter[str], values: Mapping[str, float], confirmed: Iterable[str]
) -> str | None:
    """Explain that a number probably stands for a missing value; None where none does."""
    trusted = {values[word] for word in confirmed if word in values}
    measured = [value for word, value in values.items() for _ in range(words[word])]
    codes = {*find_sentinels(measured), *find_repeated_outliers(measured)}
    doubtful = sorted(codes - trusted)
    if not doubtful:
        return None
    chosen = [word for word in sorted(words) if values.get(word) in doubtful]
    others = [value for value in values.values() if value not in doubtful]
    counts = several([f"'{word}' in {words[word]} rows" for word in chosen])
    return (
        f"holds {counts}, while all other numbers lie from {min(others):g} to {max(others):g}: "
        f"probably a missing value. Say --map '{chosen[0]}=' if it is missing, or --map "
        f"'{chosen[0]}={chosen[0]}' if it is a value"
    )


def _spell(words: Mapping[str, int], numbers: ColumnNumbers) -> dict[str, str]:
    """Return one spelling with a decimal point for each number, by text."""
    texts = [word for word in words for _ in range(words[word]) if word in numbers.values]
    chosen = one_spelling(texts, lambda word: repr(numbers.values[word]))
    return {word: _write(text, numbers.values[word]) for word, text in chosen.items()}


def _write(text: str, value: float) -> str:
    """Return the text where Python reads it as the number, else the number with a point."""
    try:
        same = float(text) == value
    except ValueError:
        same = False
    return text if same and text.isascii() else f"{value:.15g}"


def _describe(
    words: Counter[str], spelling: Mapping[str, str], numbers: ColumnNumbers
) -> Sequence[str]:
    """Describe how many numbers were read that a program would read otherwise, or not at all."""
    changed = [w for w in words if spelling[w] != w and not _is_plain(w, numbers.values[w])]
    notes = []
    if changed:
        first = max(changed, key=lambda word: (words[word], word))
        notes.append(
            f"{sum(words[w] for w in changed)} rows hold a number with a decimal comma or with "
            "separators of thousands, or another minus sign than that of a keyboard, such as "
            f"'{first}', read as {numbers.values[first]:.15g}"
        )
    if numbers.assumed:
        first = numbers.assumed[0]
        thousands, decimal = list_readings(first)
        notes.append(
            "warning: every number has a point before three digits, which is read as a decimal "
            f"point: '{first}' is {decimal.value:.15g}; if thousands are meant, say "
            f"--map '{first}={thousands.spelling}', which decides for all"
        )
    return notes


def _is_plain(word: str, value: float) -> bool:
    """Return whether any program reads the text as this number."""
    return math.isfinite(value) and _write(word, value) == word
