"""Read numbers as tables write them, with the decimal mark that the whole column shows.

A table may be written with decimal points or decimal commas, and with commas, points, blanks or
apostrophes between thousands. ``1,200`` alone is 1200 or 1.2; beside ``12,5`` it is 1.2, and
beside ``12.5`` it is 1200. Where a column shows neither, nothing is guessed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass

MAX_NUMBER = 1e15
"""The largest size of a label that is learnt: a spreadsheet stores no more digits."""
_DECIMAL_MARKS = (".", ",")
_REPLACED = str.maketrans(
    "\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d\uff0b\u2019\u2018\u00b4`\uff0c\uff0e",
    "-------+'''',.",
)
"""Minus signs and dashes, apostrophes, and wide marks, as a keyboard types them."""


def _compile(mark: str, other: str) -> re.Pattern[str]:
    """Return the pattern of numbers with a decimal mark; `other` may stand between thousands."""
    grouped = rf"[1-9]\d{{0,2}}(?P<between>[{other} '])\d{{3}}(?:(?P=between)\d{{3}})*"
    return re.compile(
        rf"(?P<sign>[+-]?)(?P<whole>{grouped}|\d*)(?:[{mark}](?P<part>\d*))?"
        r"(?P<power>(?(between)(?!e)|(?:e[+-]?\d+)?))",
        re.IGNORECASE | re.ASCII,
    )


_PATTERNS = {
    mark: _compile(mark, other)
    for mark, other in zip(_DECIMAL_MARKS, reversed(_DECIMAL_MARKS), strict=True)
}


@dataclass(frozen=True)
class ColumnNumbers:
    """The numbers of a column.

    Attributes:
        values: number by text; texts that are no numbers are absent.
        unclear: texts that are numbers in two ways, between which the column does not decide.
        assumed: texts that could have separators of thousands and are read with decimal points.
    """

    values: dict[str, float]
    unclear: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


def parse_number(text: str) -> float | None:
    """Read one number; return None where the text is none, or has two readings."""
    return parse_numbers([text]).values.get(text)


def parse_numbers(
    texts: Iterable[str], is_possible: Callable[[float], bool] = lambda _: True
) -> ColumnNumbers:
    """Read the numbers of a column, all with the decimal mark that the column shows.

    A text with one reading only has this one. Texts with two readings take the decimal mark of
    the others. Points before three digits are decimal points where every number has one.

    Args:
        texts: the texts of the column.
        is_possible: returns whether a number can be meant; impossible readings are left out.
    """
    readings = {text: _list_possible(text, is_possible) for text in texts}
    decided = {text: by for text, by in readings.items() if len(set(by.values())) == 1}
    unclear = [text for text, by in readings.items() if len(set(by.values())) > 1]
    values = {text: next(iter(by.values())) for text, by in decided.items()}
    marks = {mark for by in decided.values() if len(by) == 1 for mark in by}
    if len(marks) == 1:
        mark = marks.pop()
        return ColumnNumbers(values | {text: readings[text][mark] for text in unclear})
    # Programs write 1.250, 2.345 and 5.0 with decimal points; 1.250 beside 850 is rather 1250.
    if not decided and not any("," in text for text in unclear):
        return ColumnNumbers({text: readings[text]["."] for text in unclear}, (), tuple(unclear))
    return ColumnNumbers(values, tuple(unclear))


@dataclass(frozen=True)
class Reading:
    """One of the numbers that an unclear text can be.

    Attributes:
        value: the number.
        spelling: the text with a further digit, so that it has this reading only; one such text
            decides for the column.
    """

    value: float
    spelling: str


def list_readings(text: str) -> tuple[Reading, Reading]:
    """Return both readings of an unclear text: with separators of thousands, and with decimals."""
    by_mark = {mark: _read(text, mark) or 0.0 for mark in _DECIMAL_MARKS}
    decimal = "," if "," in text else "."
    thousands = "." if decimal == "," else ","
    return (
        Reading(by_mark[thousands], f"{text}{thousands}0"),
        Reading(by_mark[decimal], f"{text}0"),
    )


def _list_possible(text: str, is_possible: Callable[[float], bool]) -> dict[str, float]:
    """Return the numbers that a text can be, by decimal mark; all if none of them is possible."""
    by_mark = {mark: _read(text, mark) for mark in _DECIMAL_MARKS}
    readings = {mark: value for mark, value in by_mark.items() if value is not None}
    possible = {mark: value for mark, value in readings.items() if is_possible(value)}
    return possible or readings


def _read(text: str, mark: str) -> float | None:
    """Read a number with a decimal mark; None where the text is none."""
    digits = (str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)
    plain = " ".join("".join(digits).translate(_REPLACED).split())
    match = _PATTERNS[mark].fullmatch(plain)
    if match is None or not (match["whole"] or match["part"]):
        return None
    whole = re.sub(r"\D", "", match["whole"])
    return float(f"{match['sign']}{whole or 0}.{match['part'] or 0}{match['power'] or ''}")
