"""Recognise the columns of survival data, and read times and events from them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from foveate.errors import TableError
from foveate.files.numerals import list_readings, parse_numbers
from foveate.tasks.base import CellError, Cells
from foveate.wording import several

_KINDS = "os|pfs|dfs|dss|rfs|efs|pfi|dfi|ttp|survival|overall_survival"
_EVENT = re.compile(
    rf"(?:{_KINDS})(?:_(?:event|status|censor|censored|censoring|cens|indicator|e|bin))?"
    r"|(?:\w+_)?(?:event|censor|censored|censoring|censorship|vital_status|dead|death|died)"
    r"|(?:event|death|censor)_(?:\w+)|deceased|status|relapse|recurrence|progression"
    r"|fu_?stat(?:us)?"
)
_TIME = re.compile(
    rf"(?:{_KINDS})(?:_(?:time|days|months|years|weeks|t|m|d))?"
    r"|(?:\w+_)?(?:time|days|months|weeks|duration|follow_?up)"
    r"|(?:time|days|months|years|follow_?up|survival|duration)_\w+|years|tte"
    r"|fu_?time"
)
_SUFFIX = re.compile(
    r"_?(?:event|status|indicator|e|bin|time|days|months|years|weeks|t|m|d|censor\w*|cens|stat)$"
)
_UNCLEAR = re.compile(
    r"cens|vital|free|alive|(?:^|_)(?:no|non|not|without)(?:_|$)|surviv(?!.*(?:event|death|dead))"
)
"""Columns in which 1 may mean either: that somebody was censored or not, is alive or dead, or is
free of the event."""
_EVENTS = (
    *("event", "dead", "deceased", "died", "death", "uncensored", "recurred", "relapsed"),
    *("progressed", "progression", "relapse", "recurrence", "recurred/progressed"),
)
_NO_EVENTS = (
    *("no event", "alive", "living", "censored", "disease free", "diseasefree", "event free"),
    *("none", "not progressed", "no relapse", "no recurrence", "no progression"),
)
_YES, _NO = ("1", "yes", "true", "y", "t"), ("0", "no", "false", "n", "f")
_CODED = re.compile(r"[01]\s*:\s*")


def plain(column: str) -> str:
    """Return a column's name in small letters, with ``_`` for blanks, dots and dashes."""
    return "_".join(re.split(r"[\s._-]+", column.lower().strip(" ._-")))


def find_pairs(cells: Cells, events: Sequence[str] | None = None) -> list[tuple[str, str]]:
    """Find the pairs of a column of times and a column of events, by their names and cells.

    Args:
        cells: the columns of a table.
        events: columns that may hold the events; None for all.

    Returns:
        Pairs of a time and an event. If names of times begin like that of an event, as ``OS.time``
        and ``OS``, other times are no partners of it.
    """
    times = [name for name in cells if _TIME.fullmatch(plain(name)) and _holds_times(cells[name])]
    pairs = []
    for event in cells if events is None else events:
        if not _EVENT.fullmatch(plain(event)) or len(set(filter(None, cells[event]))) > 3:
            continue
        partners = [name for name in times if name != event]
        stem = _SUFFIX.sub("", plain(event))
        alike = [name for name in partners if stem and _SUFFIX.sub("", plain(name)) == stem]
        pairs += [(time, event) for time in alike or partners]
    return pairs


def order_pair(cells: Cells) -> tuple[str, str]:
    """Return the column of times and that of events, of two columns.

    Args:
        cells: the columns.

    Raises:
        TableError: they are no pair; the message continues a sentence that names the columns.
    """
    names = tuple(cells)
    for time, event in (names, names[::-1]) if len(names) == 2 else ():
        if _holds_times(cells[time]) and len(set(filter(None, cells[event]))) <= 3:
            return time, event
    counts = [f"'{name}' {len(set(filter(None, cells[name])))}" for name in names]
    raise TableError(
        "are not a column of times, numbers of at least 0, and one of two or three values, the "
        f"event ({several(counts, 5)} different values). Name them as --label TIME,EVENT; values "
        "of the event that mean the same are made one with --map OLD=NEW"
    )


def read_times(cells: Sequence[str], column: str) -> dict[str, float]:
    """Parse times, numbers that are at least 0, all with the decimal mark that the column shows.

    Args:
        cells: the cell of each row; empty where no time is needed.
        column: name of their column, for the message.

    Returns:
        The time of each text.

    Raises:
        CellError: a cell is none, or has two readings.
    """
    numbers = parse_numbers([cell for cell in cells if cell])
    for i, cell in enumerate(cells):
        if cell in numbers.unclear:
            first, second = list_readings(cell)
            raise CellError(
                f"got '{cell}', which is {first.value:g} or {second.value:g}. Write times without "
                f"separators of thousands and with decimal points, or say --map "
                f"'{cell}={first.spelling}' or --map '{cell}={second.spelling}', which decides for "
                "all",
                column,
                i,
            )
        if cell and numbers.values.get(cell, -1.0) < 0:
            raise CellError(
                f"got '{cell}', which is no time. Write a number of days, months or years there, "
                f"or say --map '{cell}=' if it is missing",
                column,
                i,
            )
    return numbers.values


def choose_events(column: str, words: Sequence[str], event: str | None) -> list[str]:
    """Return which of the words of a column say that the event was seen.

    Args:
        column: name of the column.
        words: its words.
        event: the word for an event that the user names; None for the word that says so.

    Raises:
        TableError: it is not clear which word is the event; the message continues a sentence that
            names the columns.
    """
    distinct = sorted(set(words))
    if event is not None:
        same = [word for word in distinct if _simplify(word) == _simplify(event)]
        if not same and [_judge(word, column) for word in distinct] not in ([], [False]):
            raise TableError(
                f"hold no '{event}' in '{column}', the value that means that the event was seen "
                f"(--task.event, stored with a model). Take one of its values, "
                f"{several(distinct, 5)}, or rename one of them, as in --map "
                f"'{distinct[0]}={event}'"
            )
        return same
    sides = [_judge(word, column) for word in distinct]
    if None in sides or len(distinct) > 2 or (len(distinct) == 2 and sides[0] == sides[1]):
        raise TableError(
            f"hold {several(distinct, 5)} in '{column}', and it is not "
            "clear which of them is an event and which is censored. Say which value means that the "
            "event was seen with --task.event, in training; or rename them, as in --map "
            f"'{distinct[-1]}=event' --map '{distinct[0]}=censored'"
        )
    return [word for word, is_event in zip(distinct, sides, strict=True) if is_event]


def _judge(word: str, column: str) -> bool | None:
    """Return whether a word says that an event was seen; None where that is not clear."""
    text = _simplify(word)
    bare = _CODED.sub("", text)
    if bare in _EVENTS:
        return True
    if bare in _NO_EVENTS:
        return False
    name = plain(column)
    if _EVENT.fullmatch(name) and not _UNCLEAR.search(name):
        return True if text in _YES else False if text in _NO else None
    return None


def _simplify(word: str) -> str:
    """Return a word in small letters with single blanks; whole numbers without decimals."""
    text = " ".join(word.casefold().replace("_", " ").split())
    return re.sub(r"^(\d+)[.,]0+$", r"\1", text)


def _holds_times(cells: Sequence[str]) -> bool:
    """Return whether a column holds more than two different numbers that are at least 0.

    Most of its different cells must be such numbers; `read_times` names the others.
    """
    texts = {cell for cell in cells if cell}
    numbers = parse_numbers(texts)
    values = [*numbers.values.values(), *(list_readings(t)[0].value for t in numbers.unclear)]
    times = [value for value in values if value >= 0]
    return len(times) > 2 and 2 * len(times) > len(texts)
