"""Recognise numbers that stand for a missing value, such as -999 beside 0 and 1."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_SENTINEL = re.compile(r"-?9+|-1|-9+\.9+")
_REPEATED_SENTINEL = re.compile(r"-?([78])\1\1+|9+\.9+")
"""Codes that could also be measured; a measured number hardly occurs twice."""
_MIN_TIMES = 2
"""A sentinel is more than so many times as large as any other number."""
_MAX_GRADE = 6
"""Beside small whole numbers up to this one, such as grades, 9 stands for a missing value."""
_MIN_REPEATS, _MIN_OTHERS, _MIN_SPANS = 3, 5, 5
"""Any number is a sentinel that occurs so often, and beside so many different ones, which lie
together: it is more than so many times their span away from them."""


def find_sentinels(values: Iterable[float]) -> list[float]:
    """Find the numbers -1, 9, 99, -999 … that lie far from all other numbers of a column.

    -1 and -9 are far from numbers that are not negative; 9, 99 and 999 from numbers of less than
    half their size; 9 from grades up to 6, too. 777, 8888 and 99.9 count only where they repeat.

    Args:
        values: the numbers of the column, with repetitions.
    """
    counts = Counter(values)
    numbers = sorted(counts)
    candidates = [v for v in numbers if _may_be_sentinel(v, counts[v])]
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


def find_repeated_outliers(values: Iterable[float]) -> list[float]:
    """Find the number of a measured column that repeats exactly, far outside all others.

    It is the smallest or the largest, occurs three times or more and more often than any other, and
    lies more than five times as far from the others as these lie apart. 0 is a value.

    Args:
        values: the numbers of the column, with repetitions.
    """
    counts = Counter(values)
    numbers = sorted(counts)
    if len(numbers) <= _MIN_OTHERS:
        return []
    outliers = []
    for value, others in ((numbers[0], numbers[1:]), (numbers[-1], numbers[:-1])):
        distance = min(abs(value - others[0]), abs(value - others[-1]))
        often = counts[value] >= max(_MIN_REPEATS, 1 + max(counts[other] for other in others))
        if value and often and distance > _MIN_SPANS * (others[-1] - others[0]):
            outliers.append(value)
    return outliers


def _may_be_sentinel(value: float, n: int) -> bool:
    """Return whether a number that occurs `n` times is written like a code for missing values."""
    text = f"{value:.15g}"
    return _SENTINEL.fullmatch(text) is not None or (
        n > 1 and _REPEATED_SENTINEL.fullmatch(text) is not None
    )
