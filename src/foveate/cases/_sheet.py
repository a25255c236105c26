"""A CSV, TSV or Excel file as rows of text: ids keep their zeros, and nothing becomes a number."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from foveate.cases.base import Row, Sheet
from foveate.errors import TableError

_MISSING = frozenset({"", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "<NA>", "#N/A", "null", "NULL"})
_DELIMITERS = (",", "\t", ";", "|")
_EXCEL = (".xlsx", ".xlsm")

Cells = tuple[int, list[str]]


def read_sheet(path: Path) -> Sheet:
    """Read a table as text.

    Raises:
        TableError: no such file, not a table, no rows, a column named twice, or too many cells.
    """
    if path.is_dir():
        raise TableError(f"{path} is a folder: give the table (CSV, TSV or XLSX) inside it")
    if not path.exists():
        raise TableError(f"{path}: no such table")
    try:
        lines, notes = _excel(path) if path.suffix.lower() in _EXCEL else _text(path)
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror or error})") from error
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if not lines:
        raise TableError(f"{path} is empty: it needs a header with at least a path column")
    columns = _columns(path, lines[0][1])
    if len(lines) == 1:
        raise TableError(f"{path} has a header but no rows")
    rows = tuple(_row(path, columns, number, cells) for number, cells in lines[1:])
    return Sheet(path, tuple(c for c in columns if c), rows, tuple(notes))


def _columns(path: Path, header: Sequence[str]) -> list[str]:
    """Names in order; a nameless column (an index that was written along) stays nameless."""
    columns = ["" if name.startswith("Unnamed:") else name for name in header]
    for name in columns:
        if name and columns.count(name) > 1:
            raise TableError(f"{path}: two columns are named '{name}'; rename one")
    if not any(columns):
        raise TableError(f"{path}, row 1: no column has a name")
    return columns


def _row(path: Path, columns: list[str], number: int, cells: list[str]) -> Row:
    if any(cells[len(columns) :]):
        raise TableError(
            f"{path}, row {number}: {len(cells)} cells for {len(columns)} columns; "
            f"quote values that hold the delimiter. The last cell is '{cells[-1]}'"
        )
    padded = cells + [""] * (len(columns) - len(cells))
    return Row(
        number,
        {
            column: "" if cell in _MISSING else cell
            for column, cell in zip(columns, padded, strict=False)
            if column
        },
    )


def _text(path: Path) -> tuple[list[Cells], list[str]]:
    text, encoding = _decode(path)
    delimiter = _delimiter(text)
    notes = [] if encoding.startswith("utf") else [f"{path.name} was read as {encoding}"]
    # Rows are numbered as a text editor does, so a message leads to the line.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    lines: list[Cells] = []
    number = 1
    try:
        for cells in reader:
            lines.append((number, [cell.strip() for cell in cells]))
            number = reader.line_num + 1
    except csv.Error as error:
        raise TableError(f"{path}, row {number}: {error}") from error
    return lines, notes


def _decode(path: Path) -> tuple[str, str]:
    with path.open("rb") as file:
        head = file.read(65536)
        wide = head[:2] in (b"\xff\xfe", b"\xfe\xff")
        if b"\0" in head and not wide:
            raise TableError(f"{path} is no table: give a CSV, TSV or XLSX file")
        raw = head + file.read()
    for encoding in ("utf-16",) if wide else ("utf-8-sig", "cp1252", "latin-1"):
        try:
            return raw.decode(encoding), encoding
        except UnicodeError:
            continue
    raise TableError(f"{path}: the text cannot be decoded; save it as UTF-8")


def _delimiter(text: str) -> str:
    """The delimiter that makes most columns of the header; a comma if none does."""
    header = next((line for line in text.splitlines() if line.strip()), "")
    return max(_DELIMITERS, key=lambda d: len(next(csv.reader([header], delimiter=d), [])))


def _excel(path: Path) -> tuple[list[Cells], list[str]]:
    import openpyxl

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            lines = list(_excel_lines(book.worksheets[0]))
            names = [sheet.title for sheet in book.worksheets]
        finally:
            book.close()
    except OSError:
        raise
    except Exception as error:  # openpyxl raises whatever the damaged part provokes
        raise TableError(f"{path}: cannot be read as Excel ({error}); save it as CSV") from error
    notes = [f"{path.name} has {len(names)} sheets; '{names[0]}' was read"] if names[1:] else []
    return lines, notes


def _excel_lines(sheet: Any) -> Iterator[Cells]:
    for number, cells in enumerate(sheet.iter_rows(), start=1):
        yield number, [_excel_text(cell) for cell in cells]


def _excel_text(cell: Any) -> str:
    """What Excel shows: whole numbers without a point, and the zeros of a format such as 00000."""
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int):
        shape = str(cell.number_format)
        return str(value).zfill(len(shape) if set(shape) == {"0"} else 0)
    return str(value).strip()
