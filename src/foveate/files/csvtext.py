"""Write and read CSV in which spreadsheets find no formulas.

A cell of text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a return gets an apostrophe in
front, by which spreadsheets recognise text. Numbers stay numbers.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_GUARDED = re.compile(r"'+[=+\-@\t\r]")


def guard_cell(value: Any) -> Any:
    """Put an apostrophe before a text that a spreadsheet would run; return numbers unchanged.

    Numbers may be written as text.
    """
    if not isinstance(value, str) or not _FORMULA.match(value) or _is_number(value):
        return value
    return f"'{value}"


def unguard_cell(text: str) -> str:
    """Undo `guard_cell`."""
    return text[1:] if _GUARDED.match(text) else text


def csv_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Format rows as CSV with a header.

    Args:
        rows: the values of each row by column; those of columns not in `columns` are left out.
        columns: the columns in their order; a value that a row lacks is empty.
    """
    out = io.StringIO()
    plain = csv.writer(out, lineterminator="\n")
    # Python up to 3.12 leaves a lone return unquoted, and would read it as the end of the row.
    quoting = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in (dict(zip(columns, columns, strict=True)), *rows):
        cells = [guard_cell(row.get(column, "")) for column in columns]
        writer = quoting if any(isinstance(c, str) and "\r" in c for c in cells) else plain
        writer.writerow(cells)
    return out.getvalue()


def parse_csv(text: str) -> list[dict[str, str]]:
    """Parse the rows that `csv_text` wrote; all values are texts."""
    return [
        {
            unguard_cell(key): unguard_cell(value or "")
            for key, value in row.items()
            if key is not None
        }
        for row in csv.DictReader(io.StringIO(text, newline=""))
    ]


def _is_number(text: str) -> bool:
    """Return whether Python reads a text as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
