"""CSV as foveate writes and reads it: what a spreadsheet would take for a formula is guarded.

A cell of text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a return gets an apostrophe in
front, which spreadsheets take for "this is text". Numbers stay numbers.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_GUARDED = re.compile(r"'+[=+\-@\t\r]")


def guarded(value: Any) -> Any:
    """A cell that no spreadsheet runs; numbers, also those written as text, are left alone."""
    if not isinstance(value, str) or not _FORMULA.match(value) or _is_number(value):
        return value
    return f"'{value}"


def unguarded(text: str) -> str:
    """The cell as it was before `guarded`."""
    return text[1:] if _GUARDED.match(text) else text


def csv_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as CSV with a header.

    Args:
        rows: column to value; values of other columns are left out.
        columns: in their order; values that a row lacks are empty.
    """
    out = io.StringIO()
    plain = csv.writer(out, lineterminator="\n")
    # Python up to 3.12 leaves a lone return unquoted, and would read it as the end of the row.
    quoting = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in (dict(zip(columns, columns, strict=True)), *rows):
        cells = [guarded(row.get(column, "")) for column in columns]
        writer = quoting if any(isinstance(c, str) and "\r" in c for c in cells) else plain
        writer.writerow(cells)
    return out.getvalue()


def rows_of(text: str) -> list[dict[str, str]]:
    """What `csv_text` wrote, as text."""
    return [
        {unguarded(key): unguarded(value or "") for key, value in row.items() if key is not None}
        for row in csv.DictReader(io.StringIO(text, newline=""))
    ]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
