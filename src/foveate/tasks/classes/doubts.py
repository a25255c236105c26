"""Reasons to doubt that labels are classes: numbers, lists, one answer in two spellings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from foveate.files.numerals import list_readings, parse_numbers
from foveate.wording import several

_MAX_CODES = 100
_MIN_DATES = 3
_YEAR, _MONTH, _DAY = r"(?:1[89]|20|21)\d\d", r"(?:0?[1-9]|1[0-2])", r"(?:0?[1-9]|[12]\d|3[01])"
_NAMES = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
_DATE = re.compile(
    rf"(?:{_YEAR}(?:-{_MONTH}-{_DAY}|/{_MONTH}/{_DAY}|\.{_MONTH}\.{_DAY})"
    rf"|{_DAY}([-./]){_DAY}\1(?:{_YEAR}|\d\d)"
    rf"|{_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
    rf"|{_DAY}[-. ]+{_NAMES}[-., ]+(?:{_YEAR}|\d\d)|{_NAMES} {_DAY},? {_YEAR})"
    r"(?:[T ]\d\d?:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?",
    re.IGNORECASE | re.ASCII,
)
"""A date, with a time or without, as spreadsheets, databases and people write it."""
_BETWEEN = (",", "/", "&", "+")
"""Marks that may stand between labels of one cell; ``|`` and ``;`` always do."""
_ANSWERS = (
    {"y", "yes", "t", "true", "1", "positive", "pos", "+", "present"},
    {"n", "no", "f", "false", "0", "negative", "neg", "-", "absent"},
)
"""Words for yes and for no, in small letters."""


def doubt_classes(column: str, labels: Sequence[str]) -> str | None:
    """Explain why labels are probably no classes; return None where they are.

    Such labels are trained as classes only where the user names the task.

    Args:
        column: name of the column of labels.
        labels: one label per image.

    Returns:
        Sentences on what the labels are and what to do; None for classes.
    """
    counts = Counter(labels)
    return (
        _doubt_dates(column, counts)
        or _doubt_answers(column, counts)
        or _doubt_codes(column, counts)
        or _doubt_lists(column, counts)
        or _doubt_numbers(column, counts)
    )


def _doubt_dates(column: str, counts: Counter[str]) -> str | None:
    """Explain that labels are dates; None where most are not, or where there are hardly several."""
    dates = sorted(label for label in counts if _DATE.fullmatch(label))
    if len(dates) < _MIN_DATES or 2 * len(dates) <= len(counts):
        return None
    return (
        f"column '{column}' holds {len(dates)} different dates, such as '{dates[0]}', and each "
        "would become a class. Name the column of labels with --label; for the time until an "
        "event, make a column of days; where the dates are names of classes, say --task multiclass"
    )


def _doubt_answers(column: str, counts: Counter[str]) -> str | None:
    """Explain that one answer, yes or no, is written in several ways; None where it is not."""
    written = [sorted(w for w in counts if w.casefold() in words) for words in _ANSWERS]
    if all(len(words) < 2 for words in written):
        return None
    spellings = " and ".join(
        " = ".join(f"'{word}'" for word in words) for words in written if len(words) > 1
    )
    return (
        f"column '{column}' writes one answer in several ways ({spellings}), and each would become "
        f"a class. Write one word for each answer, or say {_write_maps(written, counts)}; where "
        "these are different classes, say --task multiclass"
    )


def _write_maps(written: Sequence[Sequence[str]], counts: Counter[str]) -> str:
    """Write the options that rename the spellings of each answer to the most frequent one."""
    pairs = [
        (other, chosen)
        for words in written
        for chosen, *others in [sorted(words, key=lambda word: (-counts[word], word))]
        for other in others
    ]
    return " ".join(f"--map '{old}={new}'" for old, new in pairs)


def _doubt_codes(column: str, counts: Counter[str]) -> str | None:
    """Explain that 0 and 1 stand beside words, two ways to write the same classes."""
    words = [label for label in counts if not re.search(r"\d", label)]
    if not words or len(words) + 2 < len(counts) or not {"0", "1"} <= counts.keys():
        return None
    shown = several([f"'{word}' {counts[word]}" for word in sorted(words)])
    return (
        f"column '{column}' holds 0 and 1 ('0' {counts['0']}, '1' {counts['1']}) beside words "
        f"({shown}), and each would become a class. Rename the words with --map "
        f"'{min(words)}=1' or --map '{min(words)}=0' (--map '{min(words)}=' if they are missing), "
        "or keep 0 and 1 only with --classes 0,1; where all are different classes, say "
        "--task multiclass"
    )


def _doubt_numbers(column: str, counts: Counter[str]) -> str | None:
    numbers = parse_numbers(counts)
    if len(counts) < 3 or len(numbers.values) + len(numbers.unclear) < len(counts):
        return None
    unclear = [list_readings(label)[0].value for label in numbers.unclear]
    values = sorted([*numbers.values.values(), *unclear])
    are_integers = all(value.is_integer() for value in values)
    images_per_label = sum(counts.values()) / len(counts)
    if are_integers and (
        len(counts) <= 10 or (images_per_label >= 10 and len(counts) <= _MAX_CODES)
    ):
        return None
    if not are_integers and len(counts) <= 5 and images_per_label >= 5:
        return None
    return (
        f"column '{column}' holds {len(counts)} different numbers ({values[0]:g} to "
        f"{values[-1]:g}): a value that is measured, which --task regression learns. For classes, "
        "such as below and above a limit, make a column of their own, and name it with --label; "
        "where the numbers are names of classes, say --task multiclass"
    )


def _doubt_lists(column: str, counts: Counter[str]) -> str | None:
    lists = [label for label in counts if re.fullmatch(r"\[.*\]|\{.*\}", label)]
    for mark in _BETWEEN:
        words_of = {
            label: [p.strip() for p in label.split(mark)] for label in counts if mark in label
        }
        alone = counts.keys() - words_of.keys()
        lists += sorted(
            label for label, words in words_of.items() if all(words) and set(words) <= alone
        )
    if not lists:
        return None
    n = sum(counts[label] for label in set(lists))
    return (
        f"column '{column}' holds several labels in one cell for {n} images ('{lists[0]}'); each "
        "combination would become a class. Write | between them, as in 'a|b', and --task "
        "multilabel learns them; where these are names of classes, say --task multiclass"
    )
