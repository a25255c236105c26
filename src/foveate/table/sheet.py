"""Read a CSV, TSV or Excel file as rows of text, so that ids keep their leading zeros."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from foveate.errors import TableError, explain_os_error
from foveate.files.csvtext import unguard_cell
from foveate.table.same import clean, plain_name
from foveate.table.text import read_text
from foveate.table.types import Row, TableSheet
from foveate.table.workbook import Workbook
from foveate.wording import several

_MISSING = frozenset({"", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "<NA>", "null", "NULL"})
_ERROR = re.compile(r"#[^\W\d_]{2,}(?:/0)?[!?]|#N/?[ADV]|#DIV/0!|#GETTING_DATA|#{3,}")
"""An error of a spreadsheet, or the signs that it shows where a cell is too narrow."""
_EXCEL = (".xlsx", ".xlsm")
_OLD_EXCEL = (".xls", ".xlsb", ".ods", ".numbers")
_SEARCHED_ROWS = 30
_MAX_LETTERS = 32_767
"""The largest number of letters in a cell, as in Excel."""


def read_sheet(path: Path, known: frozenset[str] = frozenset()) -> TableSheet:
    """Read a table as text.

    Args:
        path: the table's file.
        known: names of columns, after `plain_name`, by which the header is found where other lines
            or sheets come first.

    Raises:
        TableError: the file does not exist, is no table, has no rows or too many cells, or two
            columns have one name.
    """
    _check_is_file(path)
    try:
        excel = path.suffix.lower() in _EXCEL or _is_zip(path)
        frame, notes = _read_excel(path, known) if excel else _read_text_file(path, known)
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({explain_os_error(error)})") from error
    frame = _strip(frame)
    if frame.empty:
        raise TableError(
            f"{path} is empty: it needs a header with at least a path column; write one"
        )
    start, _ = _header(frame, known)
    if start:
        above = clean(" ".join(frame.iloc[0]))[:60]
        notes.append(f"{start} rows above the header skipped: '{above}'")
    return _as_sheet(path, frame.iloc[start:], notes)


def _check_is_file(path: Path) -> None:
    """Raise `TableError` if there is no file of this path."""
    if path.is_dir():
        raise TableError(f"{path} is a folder: give the table (CSV, TSV or XLSX) inside it")
    if not path.exists():
        raise TableError(f"{path}: no such table; check the name")
    if not path.is_file():
        raise TableError(f"{path} is no file: give a table (CSV, TSV or XLSX)")


def _read_text_file(path: Path, known: frozenset[str]) -> tuple[pd.DataFrame, list[str]]:
    """Read the cells of a text file, and notes; refuse old Excel files."""
    if path.suffix.lower() in _OLD_EXCEL:
        raise TableError(f"{path}: tables of this kind are not read; save it as XLSX or CSV")
    return read_text(path, known)


def _is_zip(path: Path) -> bool:
    """Return whether a file is a ZIP archive, as XLSX files are, whatever its suffix."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\3\4" and path.suffix.lower() not in _OLD_EXCEL


def _read_excel(path: Path, known: frozenset[str]) -> tuple[pd.DataFrame, list[str]]:
    """Read the sheet with a table of images: the first with a known header, else with any cell."""
    with Workbook(path) as book:
        heads = {name: _strip(book.cells(name, _SEARCHED_ROWS)) for name in book.names}
        filled = [name for name, head in heads.items() if not head.empty]
        tables = [name for name in filled if _header(heads[name], known)[1]]
        if not filled:
            return pd.DataFrame(), []
        name = (tables or filled)[0]
        frame, notes = book.cells(name), book.notes
    if len(book.names) > 1:
        notes.append(f"{path.name} has {len(book.names)} sheets; '{name}' was read")
    if tables[1:]:
        notes.append(
            f"warning: {several([repr(n) for n in tables[1:]])} could be the table as well; save "
            "the sheet that is meant as CSV"
        )
    return frame, notes


def _strip(frame: pd.DataFrame) -> pd.DataFrame:
    """Remove blanks around cells, and empty rows."""
    frame = frame.map(lambda cell: unguard_cell(str(cell).strip("\ufeff\u200b").strip()))
    return frame.loc[(frame != "").any(axis=1)] if len(frame.columns) else frame


def _header(frame: pd.DataFrame, known: frozenset[str]) -> tuple[int, int]:
    """Find the row with the names of columns; return it and how many of the names are known.

    A row below the first is the header only if it holds two known names, or one known name and more
    cells than every row above it. The rows above are titles then.
    """
    counts, filled = [], []
    for cells in frame.head(_SEARCHED_ROWS).itertuples(index=False):
        counts.append(len({plain_name(str(c)) for c in cells if c} & known))
        filled.append(_count_filled(cells))
    best = max(counts, default=0)
    start = counts.index(best) if counts else 0
    if start and best < 2 and filled[start] <= max(filled[:start]):
        start = 0
    return start, counts[start] if counts else 0


def _as_sheet(path: Path, frame: pd.DataFrame, notes: list[str]) -> TableSheet:
    """Convert cells whose first row is the header to a table."""
    columns = _columns(path, int(frame.index[0]), [clean(name) for name in frame.iloc[0]])
    body = frame.iloc[1:].to_numpy(dtype=object)
    numbers = [int(n) for n in frame.index[1:]]
    comment = [
        cells[0].startswith("#")
        and not (_is_error(cells[0]) and _count_filled(cells) > 1)
        and _count_filled(cells) != len(columns)
        for cells in body
    ]
    if any(comment):
        notes.append(f"{sum(comment)} comment lines skipped")
    errors: list[tuple[int, str]] = []
    rows = tuple(
        _row(path, columns, number, [_value(str(cell), number, errors) for cell in cells])
        for number, cells, skip in zip(numbers, body, comment, strict=True)
        if not skip
    )
    if not rows:
        raise TableError(f"{path} has a header but no rows; add a row for each image")
    notes += _describe_nameless(columns, body)
    if errors:
        notes.append(
            f"{len(errors)} cells hold an error of the spreadsheet ('{errors[0][1]}') and count "
            f"as empty (first: row {errors[0][0]})"
        )
    return TableSheet(path, tuple(c for c in columns if c), rows, tuple(notes))


def _describe_nameless(columns: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """Describe the columns with values and without a name; those that only count rows are left out.

    Args:
        columns: names of the columns; that of a nameless one is empty.
        body: the cells of the rows.
    """
    values = {i: [cells[i] for cells in body if cells[i]] for i, c in enumerate(columns) if not c}
    nameless = {i: v for i, v in values.items() if v and not _counts_rows(v)}
    if not nameless:
        return []
    first = min(nameless)
    places = several([str(i + 1) for i in nameless])
    return [
        f"warning: {len(nameless)} columns have no name and are not read (number {places} from the "
        f"left, which begins with '{nameless[first][0]}'); write a name into the header to use one"
    ]


def _counts_rows(values: Sequence[str]) -> bool:
    """Return whether the values of a column are 0, 1, 2 … or 1, 2, 3 …."""
    return any(all(value == str(n) for n, value in enumerate(values, start)) for start in (0, 1))


def _count_filled(cells: Iterable[object]) -> int:
    """Count the cells that are not empty."""
    return sum(cell != "" for cell in cells)


def _value(cell: str, number: int, errors: list[tuple[int, str]]) -> str:
    """Return the text of a cell, empty for a missing value; append Excel's errors to `errors`."""
    if _is_error(cell):
        errors.append((number, cell))
        return ""
    return "" if cell in _MISSING else cell


def _is_error(cell: str) -> bool:
    """Return whether a cell holds an error of a spreadsheet, such as ``#REF!``."""
    return cell.startswith("#") and _ERROR.fullmatch(cell) is not None


def _columns(path: Path, row: int, header: Sequence[str]) -> list[str]:
    """Return the names of columns; that of a nameless one, such as a written index, is empty."""
    _check_lengths(path, row, header)
    columns = ["" if name.startswith("Unnamed:") else name for name in header]
    while columns and not columns[-1]:
        columns.pop()
    for name, n in Counter(columns).items():
        if name and n > 1:
            raise TableError(f"{path}: two columns are named '{name}'; rename one")
    if not any(columns):
        raise TableError(
            f"{path}, row {row}: no column has a name; write names such as path and label there"
        )
    return columns


def _check_lengths(path: Path, row: int, cells: Sequence[str]) -> None:
    """Raise `TableError` if a cell is longer than a spreadsheet allows."""
    longest = max(map(len, cells), default=0)
    if longest > _MAX_LETTERS:
        raise TableError(
            f"{path}, row {row}: a cell of {longest:,} letters, more than {_MAX_LETTERS:,}; is a "
            "quotation mark not closed before it? Mend the row, or leave the column out"
        )


def _row(path: Path, columns: list[str], number: int, cells: list[str]) -> Row:
    """Build a row from its cells; refuse cells beyond the last column."""
    _check_lengths(path, number, cells)
    beyond = [cell for cell in cells[len(columns) :] if cell]
    if beyond:
        filled = max(i for i, cell in enumerate(cells, 1) if cell)
        raise TableError(
            f"{path}, row {number}: {filled} cells for {len(columns)} columns; "
            f"quote values that hold the delimiter. The last cell is '{beyond[-1]}'"
        )
    return Row(number, {c: cell for c, cell in zip(columns, cells, strict=False) if c})
