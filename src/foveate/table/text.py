"""The text of a CSV or TSV file as cells: code page, delimiter, comments. pandas splits it."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from pathlib import Path

import pandas as pd

from foveate.errors import TableError
from foveate.table.same import plain_name

DELIMITERS = (",", "\t", ";", "|")
MOST_CELLS = 5_000_000
"""Of a table, empty ones included: more is no table of images."""

_MOST_BYTES = 1 << 26
_MOST_COLUMNS = 16384
_MOST_SNIFFED, _MOST_LETTERS = 200, 100_000
_HEAD_BYTES = 65536
_SEP = re.compile(r"""\s*["']?sep=(.)["']?\s*""", re.IGNORECASE)
_LINE = re.compile(r"\r\n|\r|\n")
_WESTERN_MARKS = frozenset("°±²³µ§©®«»–—‘’“”…€œŒ")


def read_text(path: Path, known: frozenset[str]) -> tuple[pd.DataFrame, list[str]]:
    """The cells of a text file, and what is worth saying about how they were read.

    Args:
        path: of the file.
        known: names of columns, after `plain_name`, that tell a header from a comment.

    Returns:
        cells as text, one column a place, the index being the line in the file; and notes.

    Raises:
        TableError: no text, an unknown code page, a quotation mark that is not closed, too large.
    """
    text, notes = _decode(path)
    text = text.lstrip("\ufeff")
    lines = _LINE.split(text)
    skipped, delimiter = 0, ""
    if found := _SEP.fullmatch(lines[0]):
        skipped, delimiter = 1, found[1]
    comments = _leading_comments(lines[skipped:], known)
    skipped += comments
    if comments:
        notes.append(f"{comments} comment lines above the header skipped")
    if skipped < len(lines) and lines[skipped].startswith("#"):
        lines[skipped] = lines[skipped].lstrip("# ")
    delimiter = delimiter or _delimiter(lines[skipped : skipped + _MOST_SNIFFED])
    return _split(path, lines[skipped:], delimiter, first_line=skipped + 1), notes


def _split(path: Path, lines: list[str], delimiter: str, *, first_line: int) -> pd.DataFrame:
    width = max((line.count(delimiter) for line in lines), default=0) + 1
    if width > _MOST_COLUMNS or width * len(lines) > MOST_CELLS:
        raise TableError(
            f"{path}: {len(lines)} lines of up to {width} cells are no table of images: "
            "give the table of labels"
        )
    try:
        frame = pd.read_csv(
            io.StringIO("\n".join(lines)),
            sep=delimiter,
            header=None,
            names=list(range(width)),
            index_col=False,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
        ).fillna("")
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except pd.errors.ParserError as error:
        row = re.search(r"row (\d+)", str(error))
        where = f", row {int(row[1]) + first_line}" if row else ""
        raise TableError(
            f"{path}{where}: a quotation mark is opened and not closed; the table ends inside "
            "it: close it, or take it out"
        ) from error
    # Lines are counted as a text editor does, so that a message leads to the line.
    height = 1 + frame.apply(lambda column: column.str.count("\n")).sum(axis=1)
    frame.index = pd.Index(first_line + height.cumsum() - height)
    return frame


def _decode(path: Path) -> tuple[str, list[str]]:
    no_table = TableError(f"{path} is no table: give a CSV, TSV or XLSX file")
    with path.open("rb") as file:
        raw = file.read(_HEAD_BYTES)
        if b"\0" in raw and _wide(raw) is None:
            raise no_table
        raw += file.read(_MOST_BYTES)
    if len(raw) > _MOST_BYTES:
        raise TableError(
            f"{path}: more than {_MOST_BYTES >> 20} MiB are no table of images: give the table of "
            "labels"
        )
    while raw.startswith(b"\xef\xbb\xbf"):
        raw = raw[3:]
    wide = _wide(raw)
    try:
        text = raw.decode(wide or "utf-8")
    except UnicodeError:
        if wide:
            raise no_table from None
        return _western(path, raw)
    if "\0" in text:
        raise no_table
    return text, []


def _wide(raw: bytes) -> str | None:
    """The name of an encoding of two or four bytes a letter."""
    if raw[:4] in (b"\xff\xfe\0\0", b"\0\0\xfe\xff"):
        return "utf-32"
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    return _wide_without_mark(raw)


def _wide_without_mark(raw: bytes) -> str | None:
    """UTF-16 of which the byte-order mark is missing: every second byte of a header is 0."""
    head = raw[:512]
    low, high = head[0::2], head[1::2]
    if len(head) >= 4:
        if high.count(0) > len(high) // 2 and not low.count(0):
            return "utf-16-le"
        if low.count(0) > len(low) // 2 and not high.count(0):
            return "utf-16-be"
    return None


def _western(path: Path, raw: bytes) -> tuple[str, list[str]]:
    """Text of cp1252, if its letters stand as those of a Western language do.

    Raises:
        TableError: bytes of another code page; read as cp1252 they would make classes of nonsense.
    """
    refused = TableError(
        f"{path} is not UTF-8, and its code page is unknown (GB18030, Shift-JIS, Windows-1251 …): "
        "save it as UTF-8, in Excel as 'CSV UTF-8' or as XLSX"
    )
    try:
        text = raw.decode("cp1252")
    except UnicodeError:
        raise refused from None
    words = {word for word in re.split(r"[\s,;|\"/\\.]+", text) if not word.isascii()}
    if not words or not all(map(_is_western, words)):
        raise refused
    shown = min(words, key=lambda word: (len(word) < 3, word))
    return text, [
        f"{path.name} is not UTF-8 and was read as cp1252 (Western Europe), such as '{shown}'; if "
        "that is wrong, save it as UTF-8"
    ]


def _is_western(word: str) -> bool:
    """At most two accented letters in a row, and not alone: others are two-byte characters."""
    letters = "".join(c for c in word if c not in _WESTERN_MARKS)
    runs = re.findall(r"[^\x00-\x7f]+", letters)
    if not all("À" <= c <= "ÿ" and c not in "×÷" for run in runs for c in run):
        return False
    longest = max(map(len, runs), default=0)
    return longest < 2 or (longest == 2 and bool(re.search(r"[A-Za-z]", word)))


def _leading_comments(lines: list[str], known: frozenset[str]) -> int:
    """How many lines above the header begin with ``#``; a header may begin so as well."""
    for n, line in enumerate(lines):
        if line.strip() and not line.startswith("#"):
            return n if any(above.startswith("#") for above in lines[:n]) else 0
        cells = re.split(r"[,;\t|]", line.lstrip("# "))
        if len(cells) > 1 and any(plain_name(cell) in known for cell in cells):
            return n
    return 0


def _delimiter(lines: list[str]) -> str:
    """The delimiter that divides most lines alike, and them into most cells; else a comma."""

    def agreement(delimiter: str) -> tuple[int, int]:
        widths = Counter(
            len(cells)
            for line in lines
            if line.strip()
            for cells in csv.reader([line[:_MOST_LETTERS]], delimiter=delimiter)
        )
        return max(((n, width) for width, n in widths.items() if width > 1), default=(0, 1))

    return max(DELIMITERS, key=agreement)
