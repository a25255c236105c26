"""Recognise survival data, whose events must not be trained as classes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from foveate.files.numerals import list_readings, parse_numbers
from foveate.table.same import plain_name
from foveate.table.types import TableSheet

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


def survival_columns(sheet: TableSheet, events: Iterable[str]) -> str | None:
    """Find a column of events and one of times, which cannot be trained as classes.

    Args:
        sheet: the table.
        events: columns that are, or could be, the label.

    Returns:
        a sentence that names both columns and says what to do; None where there is no such pair.
    """
    for event in events:
        if not _EVENT.fullmatch(plain_name(event)):
            continue
        for time in sheet.columns:
            if time != event and _TIME.fullmatch(plain_name(time)) and _holds_times(sheet, time):
                return (
                    f"'{event}' and '{time}' are survival data (an event, and the time until it), "
                    "for which there is no task yet; as a class of its own, an event would say "
                    "how long somebody was followed. Make a column of classes, such as alive or "
                    "dead after five years, without those who were followed for less, and name it "
                    "with --label; where all were followed for as long, say --task binary"
                )
    return None


def _holds_times(sheet: TableSheet, column: str) -> bool:
    """Return whether a column holds more than two different numbers, none below 0."""
    texts = {row.cells[column] for row in sheet.rows if row.cells[column]}
    numbers = parse_numbers(texts)
    times = [*numbers.values.values(), *(list_readings(t)[0].value for t in numbers.unclear)]
    return len(texts) == len(times) > 2 and min(times) >= 0
