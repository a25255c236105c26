"""The text of several labels of an image, and how columns of a table are written as such texts.

A list names the labels that are present, such as ``oedema|effusion``. Where some are not known, all
are named: ``oedema=1|effusion=0|fracture=?``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from foveate.errors import OptionError, TableError
from foveate.tasks.base import CellError, Cells
from foveate.tasks.classes.negatives import is_negative
from foveate.wording import did_you_mean, several, strip_marks

NONE = "none"
"""Text for an image that has none of the labels."""

_MARKS = ("|", ";")
_PAIR = re.compile(r"(.+)=([01?])")
_YES = ("1", "yes", "true", "y", "t", "positive", "present")
_NO = ("0", "no", "false", "n", "f", "negative", "absent")
_VALUES = dict.fromkeys(_YES, "1") | dict.fromkeys(_NO, "0")
_MIN_SHARE = 0.05
"""Least share of images with several labels, below which they are rather one label too many."""


def split_label(text: str) -> dict[str, str]:
    """Return the value of each label that a text names: ``1``, ``0``, or ``?`` for not known.

    Args:
        text: the text of an image's labels.
    """
    mark = next((mark for mark in _MARKS if mark in text), _MARKS[0])
    words = [word.strip() for word in text.split(mark) if word.strip()]
    pairs = [_PAIR.fullmatch(word) for word in words]
    if words and all(pairs):
        return {pair[1].strip(): pair[2] for pair in pairs if pair}
    return dict.fromkeys(words, "1")


def is_list(text: str) -> bool:
    """Return whether a text names several labels, with a mark between them."""
    return any(mark in text and all(word.strip() for word in text.split(mark)) for mark in _MARKS)


def rename_in_list(text: str, names: Mapping[str, str]) -> str:
    """Return the text of several labels with these renamed, each at most once.

    Args:
        text: the text of an image's labels.
        names: new name by label.
    """
    mark = next((mark for mark in _MARKS if mark in text), _MARKS[0])
    words = []
    for word in (word.strip() for word in text.split(mark)):
        pair = _PAIR.fullmatch(word)
        name, value = (pair[1].strip(), f"={pair[2]}") if pair else (word, "")
        words.append(f"{names.get(name, name)}{value}")
    return mark.join(dict.fromkeys(words))


def read_values(text: str, labels: Sequence[str], none: str) -> list[float]:
    """Return 1 or 0 for each of the labels, NaN where it is not known.

    Args:
        text: the text of an image's labels.
        labels: names of the labels.
        none: the word for an image that has none of them.

    Raises:
        TableError: the text names a label that is none of these.
    """
    if text.strip() in (none, NONE) and text.strip() not in labels:
        return [0.0] * len(labels)
    values = split_label(text)
    unknown = [word for word in values if word not in labels]
    if unknown or not values:
        near = did_you_mean(unknown[0] if unknown else text, labels)
        raise TableError(f"'{text}' names no known labels.{near}")
    if set(values.values()) == {"?"}:
        raise TableError(f"'{text}' says nothing about any label; fill in one of them")
    absent = "?" if _PAIR.fullmatch(text.split("|")[0].strip()) else "0"
    return [float(values.get(label, absent).replace("?", "nan")) for label in labels]


def settle_labels(texts: Sequence[str]) -> tuple[list[str], str]:
    """Return the names of all labels, and the word for an image that has none of them.

    The word is one for a negative finding that never stands beside another label, such as ``No
    Finding``.

    Args:
        texts: the text of each image's labels.

    Raises:
        TableError: the texts are no lists of labels, or a label is present or absent in all; the
            message continues a sentence that begins with the name of the column.
    """
    values = [split_label(text) for text in texts]
    names = list(dict.fromkeys(name for row in values for name in row))
    together = {name for row in values if len(row) > 1 for name in row}
    negative = [name for name in names if name not in together and is_negative(name)]
    names = [name for name in names if name not in negative]
    are_pairs = any(_PAIR.fullmatch(text.split("|")[0].strip()) for text in texts)
    names = names if are_pairs else sorted(names)
    if len(names) < 2 or not together:
        raise TableError(
            "holds no several labels of an image; give cells such as 'a|b', or name several "
            "columns of 0 and 1 with --label A,B,C"
        )
    if len(negative) > 1:
        raise TableError(
            f"holds several words for none of the labels ({several(negative)}); write one of them "
            "in all rows"
        )
    _check_spelling(names, texts)
    none = negative[0] if negative else NONE
    if none in names:
        text = next(text for text in texts if none in split_label(text) and is_list(text))
        raise TableError(
            f"holds '{none}' beside another label, here in '{text}', and alone, so it cannot mean "
            "that an image has no label; leave it out of cells with other labels"
        )
    for name in names:
        counts = Counter(row.get(name, "?" if are_pairs else "0") for row in values)
        if not counts["1"] or not counts["0"]:
            where = "no image" if not counts["1"] else "every image"
            raise TableError(
                f"holds '{name}' for {where}, from which nothing can be learnt; leave this label "
                "out"
            )
    return names, none


def _check_spelling(names: Sequence[str], texts: Sequence[str]) -> None:
    """Raise `TableError` where one label is written in several ways, or with several marks."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[re.sub(r"[\s_-]+", " ", strip_marks(name.casefold()))].append(name)
    for same in alike.values():
        if len(same) > 1:
            writing = (text for text in texts if not split_label(text).keys().isdisjoint(same))
            text = max(writing, key=is_list)
            raise TableError(
                f"writes one label in several ways ({' = '.join(same)}), here in '{text}'; write "
                "one of them"
            )
    mixed = [text for text in texts if all(mark in text for mark in _MARKS)]
    if mixed:
        raise TableError(f"holds '{mixed[0]}', with both '|' and ';' between labels; write one")


def write_present(labels: Sequence[str], present: Sequence[bool], none: str) -> str:
    """Write the labels that are present as a list.

    Args:
        labels: names of the labels.
        present: whether each is present.
        none: the word for an image that has none of them.
    """
    return (
        "|".join(name for name, is_there in zip(labels, present, strict=True) if is_there) or none
    )


def holds_values(cells: Sequence[str]) -> bool:
    """Return whether most cells of a column that are not empty say yes or no.

    A column with a few other cells is meant to do so as well: `join_values` names them.
    """
    filled = [cell for cell in cells if cell]
    return 2 * sum(_simplify(cell) in _VALUES for cell in filled) > len(filled)


def join_values(cells: Cells) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write the labels of each row, one in each column, as one text; empty without any value.

    Args:
        cells: the columns, each of which says whether a label is present.

    Returns:
        The texts, and notes for the user.

    Raises:
        CellError: a cell says neither.
        TableError: the name of a column cannot be that of a label; the message continues a
            sentence that names the columns.
    """
    for column in cells:
        if set(column) & set("|;=") or column in (NONE, "?"):
            raise TableError(f"have a name with |, ; or =: rename '{column}'")
    values = {column: _read_column(column, texts) for column, texts in cells.items()}
    rows = [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    texts = tuple("" if set(row.values()) == {"?"} else _write_pairs(row) for row in rows)
    counts = [
        f"'{column}' {column_values.count('1')} of {len(rows) - column_values.count('?')} rows"
        for column, column_values in values.items()
    ]
    note = f"labels of which an image may have several: {several(counts, 20)}"
    return texts, (note,)


def _write_pairs(row: Mapping[str, str]) -> str:
    return "|".join(f"{name}={value}" for name, value in row.items())


def _read_column(column: str, cells: Sequence[str]) -> list[str]:
    """Return 1, 0 or ? for each cell of a column."""
    wrong = [i for i, cell in enumerate(cells) if cell and _simplify(cell) not in _VALUES]
    if wrong:
        cell = cells[wrong[0]]
        raise CellError(
            f"got '{cell}', which is neither 1 (present) nor 0 (absent). Correct it, say --map "
            f"'{cell}=1' or --map '{cell}=0', or --map '{cell}=' if nobody knows",
            column,
            wrong[0],
        )
    return [_VALUES[_simplify(cell)] if cell else "?" for cell in cells]


def _simplify(cell: str) -> str:
    """Return a cell in small letters; whole numbers without decimals."""
    return re.sub(r"^(\d+)[.,]0+$", r"\1", cell.strip().casefold())


def doubt_few_lists(labels: Sequence[str], column: str) -> str | None:
    """Explain that hardly any image has several labels; None where enough have.

    Args:
        labels: one label per image.
        column: name of their column.
    """
    lists = [label for label in labels if is_list(label)]
    if len(lists) >= max(2, _MIN_SHARE * len(labels)) or "=" in "".join(lists):
        return None
    example = lists[0]
    return (
        f"column '{column}' holds several labels in {len(lists)} of {len(labels)} rows only, such "
        f"as '{example}'. Say --task multilabel if images may have several, or --map "
        f"'{example}=LABEL' for one of them (--map '{example}=' if it is missing)"
    )


def check_names(classes: Sequence[str], none: str) -> None:
    """Check the settled names of labels.

    Args:
        classes: names of the labels.
        none: word for an image that has none of them.

    Raises:
        OptionError: they are no different names, or no word.
    """
    named = isinstance(classes, list | tuple) and all(isinstance(c, str) and c for c in classes)
    if not named or len(classes) < 2 or len(set(classes)) < len(classes):
        raise OptionError(f"classes: got {classes!r}, expected two different names or more")
    if not isinstance(none, str) or not none:
        raise OptionError(f"none: got {none!r}, expected a word")
