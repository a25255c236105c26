"""When two spellings mean the same: column names, labels and patients of a table."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping

_WHOLE = re.compile(r"([+-]?)0*(\d+)(?:[.,]0+)?")
_NUMBERED = re.compile(r"([^\W\d_]*)[ _-]?0*(\d+)(?:[.,]0+)?")


def clean(text: str) -> str:
    """Text as it is shown: composed letters (NFC), single blanks, no invisible characters."""
    visible = (c for c in unicodedata.normalize("NFC", text) if unicodedata.category(c) != "Cf")
    return " ".join("".join(visible).split())


def plain_name(column: str) -> str:
    """A column's name without capitals, with ``_`` for blanks, dots and dashes."""
    return "_".join(re.split(r"[\s._-]+", clean(column).lower().strip(" ._-")))


def label_key(label: str) -> str:
    """What is equal for spellings of one class: ``1``, ``1.0`` and ``01``; blanks; NFC and NFD."""
    text = _compatible(label)
    number = _WHOLE.fullmatch(text)
    return f"{number[1].replace('+', '')}{number[2]}" if number else text


def patient_key(patient: str) -> str:
    """What is equal for spellings of one patient: ``P01``, ``p01``, ``P 01``; ``1``, ``1.0``."""
    text = _compatible(patient).casefold()
    number = _NUMBERED.fullmatch(text)
    return f"{number[1]}{number[2]}" if number else text.replace(" ", "")


def _compatible(text: str) -> str:
    """Text in which wide letters are plain ones (NFKC) and all dashes are one."""
    plain = unicodedata.normalize("NFKC", clean(text))
    return clean("".join("-" if unicodedata.category(c) == "Pd" else c for c in plain))


def one_spelling(words: Iterable[str], key: Callable[[str], str]) -> dict[str, str]:
    """The spelling that stands for each word: the most frequent of those with the same key.

    Args:
        words: with repetition; their order has no influence.
        key: equal for words that mean the same.

    Returns:
        every word, and its spelling after `clean`.
    """
    counts = Counter(words)
    groups: dict[str, list[str]] = defaultdict(list)
    for word in counts:
        groups[key(word)].append(word)
    return {
        word: clean(min(group, key=lambda w: (-counts[w], len(w), w)))
        for group in groups.values()
        for word in group
    }


def respelt(spelling: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Groups of words that became one, each with the chosen spelling first."""
    groups: dict[str, list[str]] = defaultdict(list)
    for word in sorted(spelling):
        groups[spelling[word]].append(word)
    return [
        (chosen, *(w for w in group if w != chosen))
        for chosen, group in sorted(groups.items())
        if len(group) > 1
    ]
