"""Reasons to doubt labels in training: one word written in several ways, and codes for missing."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from foveate.files.numerals import parse_number
from foveate.files.sentinels import find_sentinels
from foveate.table.notes import quoted
from foveate.table.same import label_key, loose_key
from foveate.tasks.classes.grades import are_grades
from foveate.tasks.several.labels import is_list
from foveate.wording import several

_LOST = "\ufffd"
"""The sign that programs put in the place of a letter that they could not read."""
_ONE_DIGIT = re.compile(r"-?\d")


def doubt_missing(column: str, labels: Sequence[str], confirmed: Collection[str]) -> str | None:
    """Explain which label is probably a code for a missing value; None where there is none.

    Such codes are -1, 9, 99, -999 and so on, beside words or beside numbers that they lie far from.
    Two labels are both classes if each has one digit, such as -1 and 1.

    Args:
        column: name of the column.
        labels: one label per image.
        confirmed: labels that the user has named as classes.
    """
    counts = Counter(labels)
    values = {label: value for label in counts if (value := parse_number(label)) is not None}
    words = [label for label in counts if label not in values]
    if len(counts) == 2 and all(map(_ONE_DIGIT.fullmatch, counts)):
        return None
    numbers = [value for label, value in values.items() for _ in range(counts[label])]
    numbers += [0.0] if words else []
    codes = set(find_sentinels(numbers))
    doubtful = [label for label in sorted(values) if values[label] in codes]
    keys = {label_key(label) for label in confirmed}
    doubtful = [label for label in doubtful if label_key(label) not in keys]
    if not doubtful:
        return None
    shown = several([f"'{label}' in {counts[label]} rows" for label in doubtful])
    others = several([f"'{label}'" for label in sorted(counts) if label not in doubtful])
    return (
        f"column '{column}' holds {shown} beside {others}: often a code for a missing value. "
        f"Say {_write_maps(dict.fromkeys(doubtful, ''))} if it is one; if it is a class, "
        "list all classes with --classes"
    )


def doubt_none(
    column: str, labels: Sequence[str], n_empty: int, confirmed: Collection[str]
) -> str | None:
    """Explain that ``none`` beside empty cells may stand for one; None where it clearly does not.

    Python writes an empty value so. Among grades, and beside several labels, it is a label.

    Args:
        column: name of the column.
        labels: one label per image.
        n_empty: number of rows whose cell is empty or holds a word for a missing value.
        confirmed: labels that the user has named as classes.
    """
    counts = Counter(labels)
    keys = {label_key(label) for label in confirmed}
    words = [w for w in sorted(counts) if w.casefold() == "none" and label_key(w) not in keys]
    if not n_empty or not words or any(map(is_list, counts)) or are_grades(list(counts), column):
        return None
    return (
        f"column '{column}' holds '{words[0]}' in {counts[words[0]]} rows beside {n_empty} empty "
        f"ones, so it may be a class or stand for an empty cell. Say --map '{words[0]}=' if it is "
        f"missing there, or --map '{words[0]}={words[0]}' if it is a class"
    )


def doubt_spellings(column: str, labels: Sequence[str], confirmed: Collection[str]) -> str | None:
    """Explain that one label is written in several ways; None where none is.

    They differ in capitals, blanks, dashes or marks only, or in a letter that a program has lost.

    Args:
        column: name of the column.
        labels: one label per image.
        confirmed: labels that the user has named as classes.
    """
    counts = Counter(labels)
    keys = {label_key(label) for label in confirmed}
    groups: dict[str, list[str]] = defaultdict(list)
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        groups[_find_whole(loose_key(label), counts)].append(label)
    twins = [g for g in groups.values() if g[1:] and not all(label_key(w) in keys for w in g)]
    if not twins:
        return None
    shown = several([" and ".join(f"{quoted(w)} in {counts[w]} rows" for w in g) for g in twins])
    better = [sorted(g, key=lambda label: _LOST in label) for g in twins]
    renamed = {other: chosen for chosen, *others in better for other in others}
    return (
        f"column '{column}' writes one label in several ways ({shown}), and each would become a "
        f"class. Say {_write_maps(renamed)} if they mean the same; if they are different classes, "
        "list all classes with --classes"
    )


def _find_whole(key: str, labels: Collection[str]) -> str:
    """Return the key of a label without the letters that another label has lost; else the key."""
    if _LOST not in key:
        return key
    pattern = re.compile(".{1,2}".join(map(re.escape, key.split(_LOST))))
    whole = sorted(map(loose_key, labels))
    return next((w for w in whole if _LOST not in w and pattern.fullmatch(w)), key)


def _write_maps(renamed: Mapping[str, str]) -> str:
    """Write the options that rename labels."""
    return " ".join(f"--map '{old}={new}'" for old, new in renamed.items())
