"""Recognise numbers that stand for a missing value, such as -999 beside 0 and 1."""

from __future__ import annotations

import re
from collections.abc import Iterable

_SENTINEL = re.compile(r"-?9+|-1")
_MIN_TIMES = 2
"""A sentinel is more than so many times as large as any other number."""
_MAX_GRADE = 6
"""Beside small whole numbers up to this one, such as grades, 9 stands for a missing value."""


def find_sentinels(values: Iterable[float]) -> list[float]:
    """Find the numbers -1, 9, 99, -999 … that lie far from all other numbers of a column.

    -1 and -9 are far from numbers that are not negative; 9, 99 and 999 from numbers of less than
    half their size; 9 from grades up to 6, too.

    Args:
        values: the numbers of the column.
    """
    numbers = sorted(set(values))
    candidates = [v for v in numbers if _SENTINEL.fullmatch(f"{v:.15g}")]
    others = [v for v in numbers if v not in candidates]
    if not others:
        return []
    largest = max(map(abs, others))
    are_grades = others[0] >= 0 and largest <= _MAX_GRADE and all(v == int(v) for v in others)
    return [
        value
        for value in candidates
        if (value < 0 <= others[0])
        or (abs(value) > 1 and abs(value) > _MIN_TIMES * largest)
        or (value == 9 and are_grades)
    ]
