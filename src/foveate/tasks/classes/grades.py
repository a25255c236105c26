"""Recognise grades by their words, and put them in order."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from foveate.errors import TableError
from foveate.wording import several

_MIN_GRADES = 3
_RADS = "(?:bi|pi|ti|li|o|ni|lung)[ _-]?rads"
_GRADES = f"g|gr|gg|ggg|grade|grading|stage|stadium|isup|gleason|who|nyha|{_RADS}"
_STAGES = "t|n|pt|pn|ypt|ypn|kl|level|severity|score|figo|nottingham|fibrosis|f|dr|icdr"
_KIND = (
    rf"(?P<kind>{_GRADES}|{_STAGES})"
    r"(?:[ _-]*(?:group|grade|stage|score|category|cat|class))*[ _-]*"
)
"""The words before the number of a grade."""
_ROMAN = {"i": 1, "ii": 2, "iii": 3, "iv": 4, "v": 5, "vi": 6}
_ROMAN_WORDS = "iv|v|vi|i{1,3}"
_LETTER = r"(?P<letter>(?:mi|[a-d]\d?)?)"
_NUMBERED = re.compile(rf"{_KIND}(?P<rank>\d|{_ROMAN_WORDS}){_LETTER}")
_IN_SITU = re.compile(r"(?P<kind>t|pt|ypt)(?P<rank>is)(?P<letter>)")
_BARE = re.compile(rf"(?P<kind>)(?P<rank>0|{_ROMAN_WORDS}){_LETTER}")
_DIGIT = re.compile(rf"(?P<kind>)(?P<rank>\d){_LETTER}(?:[.,]0+)?")
_GLEASON_WORDS = r"(?:(?:gleason|gs)(?:[ _-]*(?:score|sum|grade))?[ _:-]*)"
_GLEASON = re.compile(rf"{_GLEASON_WORDS}?(\d)\+(\d)(?:=\d+)?")
_GLEASON_SUM = re.compile(rf"{_GLEASON_WORDS}(\d|10)")
_NOT_ASSESSED = re.compile(rf"(?:{_KIND})?x|(?:{_RADS})(?:[ _-]*(?:score|category|cat))?[ _-]*0")
"""``TX``, ``NX`` or ``GX``: it could not be judged; BI-RADS 0: it is not judged yet."""
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
    "well < moderately = moderate < poorly = poor < undifferentiated = anaplastic",
)

Rank = tuple[str | int | float, ...]


def are_grades(labels: Sequence[str], column: str) -> bool:
    """Return whether three or more labels are known as grades with an order.

    Args:
        labels: the labels.
        column: name of their column; under a name such as ``isup``, single digits are grades.
    """
    words = {simplify_grade(label) for label in labels}
    if len(words) < _MIN_GRADES or list_not_assessed(words, column):
        return False
    if all(map(_DIGIT.fullmatch, words)):
        return bool(_GRADE_COLUMN.fullmatch(_simplify_column(column)))
    if all(_NUMBERED.fullmatch(word) or _GLEASON.fullmatch(word) for word in words):
        return True
    return rank_grades(words) is not None


def list_not_assessed(labels: Collection[str], column: str = "") -> list[str]:
    """Return the labels that say that a grade could not be judged, such as ``TX`` or BI-RADS 0.

    Args:
        labels: the labels.
        column: name of their column; where it is ``birads``, 0 is such a label.
    """
    is_rads = re.search(_RADS, _simplify_column(column)) is not None
    return [
        label
        for label in sorted(labels)
        for word in (simplify_grade(label),)
        if _NOT_ASSESSED.fullmatch(word) or (is_rads and word == "0")
    ]


def simplify_grade(label: str) -> str:
    """Return a label in small letters, with plain digits and dashes, and without blanks about +."""
    plain = unicodedata.normalize("NFKC", label).casefold().replace("\u2212", "-")
    dashes = "".join("-" if unicodedata.category(c) == "Pd" else c for c in plain)
    return re.sub(r"\s*([+=])\s*", r"\1", " ".join(dashes.split()))


def _simplify_column(column: str) -> str:
    return re.sub(r"[\s._-]+", "_", column.strip(" ._-").casefold())


def sort_grades(labels: Sequence[str]) -> list[str] | None:
    """Return the distinct labels from the lowest to the highest grade.

    Numbers are grades, too. None is returned where the words have no known order.

    Raises:
        TableError: two labels have the same rank, or one says that a grade could not be judged;
            the message continues a sentence that begins with the name of the column.
    """
    distinct = sorted(set(labels))
    words = {label: simplify_grade(label) for label in distinct}
    ranks = rank_grades(words.values()) or _rank_each(set(words.values()), _rank_number)
    unknown = list_not_assessed(distinct)
    if unknown and rank_grades({words[label] for label in distinct if label not in unknown}):
        raise TableError(
            f"holds '{unknown[0]}', which says that a grade could not be judged and has no rank. "
            f"Say --map '{unknown[0]}=' to leave these images out, or state its place with "
            "--task.order LOWEST,…,HIGHEST"
        )
    if ranks is None:
        return None
    equal: dict[Any, list[str]] = defaultdict(list)
    for label in distinct:
        equal[ranks[words[label]]].append(label)
    for same in equal.values():
        if len(same) > 1:
            raise TableError(
                f"holds grades of which {several(same, 5)} have the "
                "same rank. Write one word for them, or say which is lower with --task.order "
                "LOWEST,…,HIGHEST; --task multiclass trains classes without an order"
            )
    return [same[0] for _, same in sorted(equal.items())]


def rank_grades(labels: Collection[str]) -> Mapping[str, Rank] | None:
    """Return the rank of each grade; None where they are of no one kind.

    Args:
        labels: labels after `simplify_grade`.
    """
    words = set(labels)
    kinds = [_rank_numbered, _rank_bare, _rank_gleason, _rank_gleason_sum]
    if any("+" in word for word in words):
        kinds.append(_rank_staining)
    ranks = next((r for rank in kinds if (r := _rank_each(words, rank)) is not None), None)
    return _rank_on_scale(words) if ranks is None else ranks


def _rank_on_scale(words: set[str]) -> dict[str, Rank] | None:
    """Return the rank of each word on the first scale that has all, also with words behind it."""
    first = {word: re.split(r"[\s_-]", word)[0] or word for word in words}
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
    """Return kind, number and letter of grades such as ``G2``, ``stage IIIa`` or ``pTis``."""
    match = _NUMBERED.fullmatch(word) or _IN_SITU.fullmatch(word)
    return None if match is None else _read_rank(match)


def _rank_bare(word: str) -> Rank | None:
    """Return number and letter of Roman numerals, and of the 0 beside them."""
    match = _BARE.fullmatch(word)
    return None if match is None else _read_rank(match)


def _read_rank(match: re.Match[str]) -> Rank:
    """Return kind, number and letter; in situ comes after 0, and ``mi`` before ``a``."""
    number, letter = match["rank"], match["letter"].replace("mi", "!")
    kind = re.sub(r"[ _-]", "", match["kind"])
    return kind, 0.5 if number == "is" else _ROMAN.get(number) or int(number), letter


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


def _rank_gleason_sum(word: str) -> Rank | None:
    """Return the sum of a Gleason score that is written as such, ``Gleason 7``."""
    match = _GLEASON_SUM.fullmatch(word)
    return None if match is None else ("gleason sum", int(match[1]))


def _rank_staining(word: str) -> Rank | None:
    strength = _STAINING.get(word)
    return None if strength is None else ("staining", strength)


def _rank_number(word: str) -> Rank | None:
    """Return a number that is written with a point or a comma, or a digit with a letter."""
    if match := _DIGIT.fullmatch(word):
        return "number", float(match["rank"]), match["letter"]
    if not re.fullmatch(r"[+-]?\d+(?:[.,]\d+)?", word):
        return None
    return "number", float(word.replace(",", ".")), ""
