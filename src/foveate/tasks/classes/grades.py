"""Recognise grades by their words, and put them in order."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from foveate.errors import TableError
from foveate.wording import several

_MIN_GRADES = 3
_GRADES = "g|gr|grade|grading|stage|stadium|isup|gleason|who|nyha|bi_?rads|birads|pi_?rads|pirads"
_STAGES = "t|n|pt|pn|kl|level|severity|score|figo|nottingham|fibrosis|f|dr|icdr"
_ROMAN = {"i": 1, "ii": 2, "iii": 3, "iv": 4, "v": 5, "vi": 6}
_ROMAN_WORDS = "iv|v|vi|i{1,3}"
_NUMBERED = re.compile(
    rf"(?P<kind>{_GRADES}|{_STAGES})[ _-]*(?:group[ _-]*)?(?P<rank>\d|{_ROMAN_WORDS})"
    r"(?P<letter>[a-d]?)"
)
_BARE = re.compile(rf"(?P<kind>)(?P<rank>{_ROMAN_WORDS})(?P<letter>[a-d]?)")
_GLEASON = re.compile(r"(\d)\+(\d)(?:=\d+)?")
_STAINING = {"-": 0, "0": 0, "neg": 0, "negative": 0} | {
    word: n for n in range(1, 5) for word in (f"{n}+", "+" * n)
}
"""Strengths of a staining: ``0, 1+, 2+, 3+`` or ``-, +, ++``."""
_SCORES = "ordinal|severity|level|score|kl|figo|nottingham|fibrosis|dr|icdr|pt|pn"
_GRADE_COLUMN = re.compile(rf"(?:\w+_)?(?:{_GRADES}|{_SCORES})(?:_\w+)?")
_SCALES = (
    "none < very low < low < intermediate = moderate = medium < high < very high",
    "none = no = absent = normal < minimal < mild < moderate < marked < severe",
    "none = negative < weak < moderate < strong",
    "well < moderately < poorly < undifferentiated",
)

Rank = tuple[str | int | float, ...]


def are_grades(labels: Sequence[str], column: str) -> bool:
    """Return whether three or more labels are known as grades with an order.

    Args:
        labels: the labels.
        column: name of their column; under a name such as ``isup``, single digits are grades.
    """
    words = {label.casefold() for label in labels}
    if len(words) < _MIN_GRADES:
        return False
    if all(re.fullmatch(r"\d(?:[.,]0+)?", word) for word in words):
        name = re.sub(r"[\s._-]+", "_", column.strip(" ._-").casefold())
        return bool(_GRADE_COLUMN.fullmatch(name))
    if all(_NUMBERED.fullmatch(word) or _GLEASON.fullmatch(word) for word in words):
        return True
    return _rank_words(words) is not None


def sort_grades(labels: Sequence[str]) -> list[str] | None:
    """Return the distinct labels from the lowest to the highest grade.

    Numbers are grades, too. None is returned where the words have no known order.

    Raises:
        TableError: two labels have the same rank; the message continues a sentence that begins
            with the name of the column.
    """
    distinct = sorted(set(labels))
    words = {label.casefold() for label in distinct}
    ranks = _rank_words(words) or _rank_each(words, _rank_number)
    if ranks is None:
        return None
    equal: dict[Any, list[str]] = defaultdict(list)
    for label in distinct:
        equal[ranks[label.casefold()]].append(label)
    for same in equal.values():
        if len(same) > 1:
            raise TableError(
                f"holds grades of which {several(same, 5)} have the "
                "same rank. Write one word for them, or say which is lower with --task.order "
                "LOWEST,…,HIGHEST; --task multiclass trains classes without an order"
            )
    return [same[0] for _, same in sorted(equal.items())]


def _rank_words(words: set[str]) -> dict[str, Rank] | None:
    """Return the rank of each word, in small letters; None where they are of no one kind."""
    first = {word: re.split(r"[\s_-]", word)[0] or word for word in words}
    kinds = [_rank_numbered, _rank_bare, _rank_gleason]
    if any("+" in word for word in words):
        kinds.append(_rank_staining)
    for rank in kinds:
        if (ranks := _rank_each(words, rank)) is not None:
            return ranks
    for scale in _SCALES:
        steps: dict[str, Rank] = {
            word: (n,) for n, same in enumerate(scale.split(" < ")) for word in same.split(" = ")
        }
        if words <= steps.keys():
            return {word: steps[word] for word in words}
        if set(first.values()) <= steps.keys() and len(set(first.values())) == len(words):
            return {word: steps[first[word]] for word in words}
    return None


def _rank_each(words: set[str], rank: Callable[[str], Rank | None]) -> dict[str, Rank] | None:
    """Return the rank of each word; None where one has none, or they are of several kinds.

    Args:
        words: the words.
        rank: returns the kind of a word, followed by what is compared; None for other words.
    """
    ranks = {word: value for word in words if (value := rank(word)) is not None}
    kinds = {value[0] for value in ranks.values()}
    if len(ranks) < len(words) or len(kinds) != 1:
        return None
    return {word: value[1:] for word, value in ranks.items()}


def _rank_numbered(word: str) -> Rank | None:
    """Return kind, number and letter of grades such as ``G2``, ``stage IIIa`` or ``pT2``."""
    match = _NUMBERED.fullmatch(word)
    return None if match is None else _read_rank(match)


def _rank_bare(word: str) -> Rank | None:
    """Return number and letter of Roman numerals."""
    match = _BARE.fullmatch(word)
    return None if match is None else _read_rank(match)


def _read_rank(match: re.Match[str]) -> Rank:
    number = match["rank"]
    return match["kind"], _ROMAN.get(number) or int(number), match["letter"]


def _rank_gleason(word: str) -> Rank | None:
    """Return the ISUP grade group of a Gleason score; 0 for ``0+0``.

    Source: Epstein et al., American Journal of Surgical Pathology 40 (2016), 244.
    """
    match = _GLEASON.fullmatch(word)
    if match is None:
        return None
    first, total = int(match[1]), int(match[1]) + int(match[2])
    if total <= 6:
        return "gleason", int(total > 0)
    return "gleason", {7: 3 if first > 3 else 2, 8: 4}.get(total, 5)


def _rank_staining(word: str) -> Rank | None:
    strength = _STAINING.get(word)
    return None if strength is None else ("staining", strength)


def _rank_number(word: str) -> Rank | None:
    """Return a number that is written with a point or a comma."""
    if not re.fullmatch(r"[+-]?\d+(?:[.,]\d+)?", word):
        return None
    return "number", float(word.replace(",", "."))
