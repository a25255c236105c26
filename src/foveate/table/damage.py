"""Recognise ids that a spreadsheet has changed: rounded numbers, dates, signs for a narrow cell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from foveate.wording import several

_ROUNDED = re.compile(r"[1-9](?:[.,]\d+)?E\+\d{2,}", re.IGNORECASE)
_MONTHS = (
    "Jan|Feb|Mar|Mrz|Mär|Apr|May|Mai|Jun|Jul|Aug|Sep|Sept|Oct|Okt|Nov|Dec|Dez|janv|févr|mars|avr|"
    "juin|juil|août|déc"
)
_DATE = re.compile(rf"\d{{1,2}}\.?[-. ](?:{_MONTHS})\.?(?:[- ]\d{{2,4}})?|(?:{_MONTHS})[-. ]\d\d")
_MAX_DIGITS = 15
"""A spreadsheet stores this many digits of a number; further ones become zeros."""
_CUT = re.compile(rf"[1-9]\d{{{_MAX_DIGITS - 1}}}0+")
_MIN_CUT = 3


def find_damaged(values: Iterable[str]) -> Counter[str]:
    """Count the values that are probably no longer as they were entered.

    They are rounded numbers (``1.23457E+10``), dates (``03-Jan``, before ``3-1``), and numbers
    whose digits after the fifteenth are all zeros, where all long numbers of the column are so.

    Args:
        values: the values of a column, empty ones included.
    """
    counts = Counter(value for value in values if value)
    damaged = {v for v in counts if _ROUNDED.fullmatch(v) or _DATE.fullmatch(v)}
    long_numbers = {v for v in counts if v.isdecimal() and len(v) > _MAX_DIGITS}
    n_long = sum(counts[v] for v in long_numbers)
    if n_long >= _MIN_CUT and all(map(_CUT.fullmatch, long_numbers)):
        damaged |= long_numbers
    return Counter({value: counts[value] for value in sorted(damaged)})


def looks_like_date(value: str) -> bool:
    """Return whether a value looks like a date that a spreadsheet made, such as ``03-Jan``."""
    return _DATE.fullmatch(value) is not None


def describe_damaged(column: str, damaged: Counter[str]) -> str:
    """Describe the damaged values of a column of patients, and what to do.

    Args:
        column: name of the column.
        damaged: the result of `find_damaged`.
    """
    examples = several([f"'{v}' in {n} rows" for v, n in damaged.most_common()])
    return (
        f"column '{column}': {sum(damaged.values())} rows hold patients that a spreadsheet has "
        f"rounded or turned into dates ({examples}), so different patients may bear one name. "
        "Export the names again with the column formatted as text"
    )
