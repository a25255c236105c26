"""Read the sheets of an Excel workbook as cells with the text that Excel shows."""

from __future__ import annotations

import datetime
import io
import re
import warnings
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from foveate.errors import TableError, converting
from foveate.table.text import MAX_CELLS

_MAX_ROWS = 1_048_576
_MAX_BYTES = 1 << 28
_MAX_SHEETS = 100
_HEAD_ROWS = 1000
_TOKEN = re.compile(r'"([^"]*)"|\\(.)|([-/() :])|(0+|#+|General)')
_PLAIN_FORMATS = re.compile(r"(?:General|@|[#0?,.%]+|[#0?.]+E\+0+)?", re.IGNORECASE)


class Workbook:
    """An open workbook; use it in a ``with`` block.

    Attributes:
        names: names of its sheets, in order.
        notes: lines to show to the user about cells that were read.

    Raises:
        TableError: the file is no Excel file, damaged, or far larger than a table of images.
    """

    def __init__(self, path: Path) -> None:
        import openpyxl

        self.path = path
        self.notes: list[str] = []
        with converting(path, _explain_damage):
            with zipfile.ZipFile(path) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > _MAX_BYTES:
                raise TableError(
                    f"{path}: unpacks to {unpacked >> 20} MiB, which is no table of images; save "
                    "the sheet as CSV"
                )
            content = io.BytesIO(path.read_bytes())  # openpyxl refuses paths with other suffixes
            with warnings.catch_warnings(action="ignore"):
                self._book = openpyxl.load_workbook(content, read_only=True, data_only=True)
        self._sheets = {s.title: s for s in self._book.worksheets[:_MAX_SHEETS]}
        self.names = tuple(self._sheets)

    def __enter__(self) -> Workbook:
        return self

    def __exit__(self, *_: object) -> None:
        self._book.close()

    def cells(self, name: str, most_rows: int | None = None) -> pd.DataFrame:
        """Read the filled rows of a sheet as text, indexed by the row in the sheet.

        Args:
            name: name of the sheet.
            most_rows: the largest number of filled rows to read, of the first 1000 rows; None for
                all rows.

        Raises:
            TableError: the sheet is damaged, or has a cell far outside the table.
        """
        unsupported: dict[str, str] = {}
        last = _MAX_ROWS if most_rows is None else _HEAD_ROWS
        with converting(self.path, _explain_damage), warnings.catch_warnings(action="ignore"):
            rows = dict(islice(self._filled(name, last, unsupported), most_rows))
        width = max(map(len, rows.values()), default=0)
        if width * len(rows) > MAX_CELLS:
            raise self._far(name, f"{len(rows)} rows of up to {width} columns")
        if most_rows is None and unsupported:
            shape, text = next(iter(unsupported.items()))
            self.notes.append(
                f"warning: sheet '{name}' shows numbers by the format '{shape}', which is not "
                f"followed: the cell's own value was read ('{text}'). If names were meant, save "
                "the sheet as CSV"
            )
        padded = [cells + [""] * (width - len(cells)) for cells in rows.values()]
        return pd.DataFrame(padded, index=pd.Index(list(rows), dtype="int64"), dtype=object)

    def _filled(
        self, name: str, last: int, unsupported: dict[str, str]
    ) -> Iterator[tuple[int, list[str]]]:
        """Yield the rows with at least one value, with their number, up to row `last`."""
        sheet = self._sheets[name]
        # The range that a sheet states may be too small: some exporters write it wrongly.
        sheet.reset_dimensions()
        for number, cells in enumerate(sheet.iter_rows(), start=1):
            if number > last:
                if last < _MAX_ROWS:
                    return
                raise self._far(name, f"more than {_MAX_ROWS} rows")
            if any(cell.value is not None for cell in cells):
                yield number, [shown_text(cell, unsupported) for cell in cells]

    def _far(self, name: str, size: str) -> TableError:
        """Build the error for a sheet that states far too many cells."""
        return TableError(
            f"{self.path}: sheet '{name}' states {size}, which is no table of images; save it as "
            "CSV, or copy the table into a new workbook"
        )


def _explain_damage(error: Exception, path: object) -> TableError | None:
    """Build the error for a file that cannot be read; None where the system refuses it."""
    if isinstance(error, OSError) and error.errno is not None:
        return None
    return TableError(
        f"{path}: cannot be read as Excel: it is damaged, or another kind of file; save the table "
        "as CSV"
    )


def shown_text(cell: Any, unsupported: dict[str, str]) -> str:
    """Return the text that Excel shows for a cell.

    Whole numbers have no point; zeros and words of a format such as Q-000 are written.

    Args:
        cell: a cell of openpyxl.
        unsupported: receives formats that are not supported, with the first value read instead.
    """
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return value.date().isoformat()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    shape = str(cell.number_format).split(";")[0]
    if _PLAIN_FORMATS.fullmatch(shape) and set(shape) != {"0"}:
        return str(value)
    text = _format_number(value, shape)
    if text is None:
        unsupported.setdefault(shape, str(value))
    return str(value) if text is None else text


def _format_number(value: float, shape: str) -> str | None:
    """Write a whole number in a format of literal text around zeros; None for other formats."""
    if not isinstance(value, int) or value < 0:
        return None
    text, end, digits = "", 0, 0
    for token in _TOKEN.finditer(shape):
        if token.start() != end:
            return None
        end = token.end()
        if token[4]:
            digits += 1
            text += str(value).zfill(token[4].count("0"))
        else:
            text += token[1] or token[2] or token[3] or ""
    return text if digits == 1 and end == len(shape) else None
