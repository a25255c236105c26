"""The text of a survival time, and how columns of a table are written as such texts."""

from __future__ import annotations

import re

from foveate.errors import TableError
from foveate.files.sentinels import find_sentinels
from foveate.tasks.base import Cells
from foveate.tasks.events.columns import choose_events, read_times
from foveate.wording import several

_LABEL = re.compile(r"(event at|no event until) (\d+(?:\.\d+)?(?:e[+-]?\d+)?)")


def write_label(time: float, event: bool) -> str:
    """Write a time with or without an event: ``event at 412`` or ``no event until 913``.

    Args:
        time: the time.
        event: whether the event was seen then.
    """
    return f"{'event at' if event else 'no event until'} {time:.10g}"


def parse_label(text: str) -> tuple[float, float] | None:
    """Parse a text of `write_label` to the time, and 1 for an event; None for others."""
    match = _LABEL.fullmatch(text.strip())
    return None if match is None else (float(match[2]), float(match[1] == "event at"))


def join_pair(
    cells: Cells, time: str, event: str, word: str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write time and event of each row as one text; empty where either is missing.

    Args:
        cells: the columns.
        time: column of times.
        event: column of events.
        word: value that says that the event was seen; None for the word that says so.

    Returns:
        The texts, and notes for the user.

    Raises:
        CellError: a cell is no time.
        TableError: it is not clear which value is the event.
    """
    pairs = [
        (when, what) if when and what else None
        for when, what in zip(cells[time], cells[event], strict=True)
    ]
    words = [pair[1] for pair in pairs if pair]
    events = choose_events(event, words, word)
    without = sum(
        bool(when) and not what for when, what in zip(cells[time], cells[event], strict=True)
    )
    if without and len(set(words)) == 1 and events:
        raise TableError(
            f"hold an event in every row that says something, and {without} rows with a time say "
            f"nothing in '{event}'. Write 0 there if an empty cell means that nobody saw the "
            "event, or leave these rows out"
        )
    times = read_times([pair[0] if pair else "" for pair in pairs], time)
    texts = tuple(
        "" if pair is None else write_label(times[pair[0]], pair[1] in events) for pair in pairs
    )
    others = sorted(set(words) - set(events))
    n = sum(word in events for word in words)
    says = f"'{event}' = {' or '.join(events) or 'none'} is an event ({n} of {len(words)} rows)"
    censored = f", {several(others)} is censored" if others else ""
    notes = [f"survival: {says}{censored}; '{time}' is the time until then"]
    if codes := find_sentinels(times[pair[0]] for pair in pairs if pair):
        shown = several([f"{code:g}" for code in codes])
        notes.append(
            f"warning: '{time}' holds {shown}, far from all other times. If that stands for a "
            f"missing value, leave the cell empty, or say --map '{codes[0]:g}='"
        )
    return texts, tuple(notes)
