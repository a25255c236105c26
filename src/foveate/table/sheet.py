"""A CSV, TSV or Excel file as rows of text: ids keep their zeros, and nothing becomes a number."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from foveate.errors import TableError, several
from foveate.files.csvtext import unguarded
from foveate.table.same import clean, plain_name
from foveate.table.text import read_text
from foveate.table.types import Row, Sheet
from foveate.table.workbook import Workbook

_MISSING = frozenset({"", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "<NA>", "null", "NULL"})
_ERROR = re.compile(r"#[^\W\d_]{2,}(?:/0)?[!?]|#N/?[ADV]|#DIV/0!|#GETTING_DATA")
_EXCEL = (".xlsx", ".xlsm")
_OLD_EXCEL = (".xls", ".xlsb", ".ods", ".numbers")
_SEARCHED_ROWS = 30


def read_sheet(path: Path, known: frozenset[str] = frozenset()) -> Sheet:
    """Read a table as text.

    Args:
        path: of the table.
        known: names of columns, after `plain_name`: where lines or sheets without a table come
            first, they tell the header.

    Raises:
        TableError: no such file, not a table, no rows, a column named twice, or too many cells.
    """
    if path.is_dir():
        raise TableError(f"{path} is a folder: give the table (CSV, TSV or XLSX) inside it")
    if not path.exists():
        raise TableError(f"{path}: no such table")
    if not path.is_file():
        raise TableError(f"{path} is no file: give a table (CSV, TSV or XLSX)")
    try:
        excel = path.suffix.lower() in _EXCEL or _is_zip(path)
        frame, notes = _excel(path, known) if excel else _text(path, known)
    except OSError as error:
        raise TableError(f"{path}: cannot be read ({error.strerror or 'no answer'})") from error
    frame = _stripped(frame)
    if frame.empty:
        raise TableError(f"{path} is empty: it needs a header with at least a path column")
    start, _ = _header(frame, known)
    if start:
        above = clean(" ".join(frame.iloc[0]))[:60]
        notes.append(f"{start} rows above the header skipped: '{above}'")
    return _as_sheet(path, frame.iloc[start:], notes)


def _text(path: Path, known: frozenset[str]) -> tuple[pd.DataFrame, list[str]]:
    if path.suffix.lower() in _OLD_EXCEL:
        raise TableError(f"{path}: tables of this kind are not read; save it as XLSX or CSV")
    return read_text(path, known)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\3\4" and path.suffix.lower() not in _OLD_EXCEL


def _excel(path: Path, known: frozenset[str]) -> tuple[pd.DataFrame, list[str]]:
    """The sheet that holds a table of images: the first with a header, else the first filled."""
    with Workbook(path) as book:
        heads = {name: _stripped(book.cells(name, _SEARCHED_ROWS)) for name in book.names}
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


def _stripped(frame: pd.DataFrame) -> pd.DataFrame:
    """Without blanks around cells, and without empty rows."""
    frame = frame.map(lambda cell: unguarded(str(cell).strip("\ufeff\u200b").strip()))
    return frame.loc[(frame != "").any(axis=1)] if len(frame.columns) else frame


def _header(frame: pd.DataFrame, known: frozenset[str]) -> tuple[int, int]:
    """Which row holds the names of columns, and how many of these are known.

    A later row is the header only if it holds two known names, or one and more cells than any row
    above it, which are titles then.
    """
    counts, filled = [], []
    for cells in frame.head(_SEARCHED_ROWS).itertuples(index=False):
        counts.append(len({plain_name(str(c)) for c in cells if c} & known))
        filled.append(_filled(cells))
    best = max(counts, default=0)
    start = counts.index(best) if counts else 0
    if start and best < 2 and filled[start] <= max(filled[:start]):
        start = 0
    return start, counts[start] if counts else 0


def _as_sheet(path: Path, frame: pd.DataFrame, notes: list[str]) -> Sheet:
    columns = _columns(path, int(frame.index[0]), [clean(name) for name in frame.iloc[0]])
    body = frame.iloc[1:].to_numpy(dtype=object)
    numbers = [int(n) for n in frame.index[1:]]
    comment = [
        cells[0].startswith("#") and not _is_error(cells[0]) and _filled(cells) != len(columns)
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
        raise TableError(f"{path} has a header but no rows")
    if errors:
        notes.append(
            f"{len(errors)} cells hold an error of the spreadsheet ('{errors[0][1]}') and count "
            f"as empty (first: row {errors[0][0]})"
        )
    return Sheet(path, tuple(c for c in columns if c), rows, tuple(notes))


def _filled(cells: Iterable[object]) -> int:
    return sum(cell != "" for cell in cells)


def _value(cell: str, number: int, errors: list[tuple[int, str]]) -> str:
    """The text of a cell, empty where it says that a value is missing; `errors` are noted."""
    if _is_error(cell):
        errors.append((number, cell))
        return ""
    return "" if cell in _MISSING else cell


def _is_error(cell: str) -> bool:
    return cell.startswith("#") and _ERROR.fullmatch(cell) is not None


def _columns(path: Path, row: int, header: Sequence[str]) -> list[str]:
    """Names in order; a nameless column (an index that was written along) stays nameless."""
    columns = ["" if name.startswith("Unnamed:") else name for name in header]
    while columns and not columns[-1]:
        columns.pop()
    for name, n in Counter(columns).items():
        if name and n > 1:
            raise TableError(f"{path}: two columns are named '{name}'; rename one")
    if not any(columns):
        raise TableError(f"{path}, row {row}: no column has a name")
    return columns


def _row(path: Path, columns: list[str], number: int, cells: list[str]) -> Row:
    beyond = [cell for cell in cells[len(columns) :] if cell]
    if beyond:
        filled = max(i for i, cell in enumerate(cells, 1) if cell)
        raise TableError(
            f"{path}, row {number}: {filled} cells for {len(columns)} columns; "
            f"quote values that hold the delimiter. The last cell is '{beyond[-1]}'"
        )
    return Row(number, {c: cell for c, cell in zip(columns, cells, strict=False) if c})
