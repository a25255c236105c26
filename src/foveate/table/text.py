"""Read the cells of a CSV or TSV file: find encoding, comments and delimiter; pandas splits it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path

import pandas as pd

from foveate.errors import TableError
from foveate.table.same import plain_name
from foveate.wording import one_line

DELIMITERS = (",", "\t", ";", "|")
MAX_CELLS = 5_000_000
"""The largest number of cells of a table, empty ones included; more is no table of images."""

_MAX_BYTES = 1 << 26
_MAX_COLUMNS = 16384
_MAX_DELIMITER_LINES, _MAX_DELIMITER_LETTERS = 200, 100_000
"""Lines, and letters of a line, from which the delimiter is recognised."""
_HEAD_BYTES = 65536
_SEP = re.compile(r"""\s*["']?sep=(.)["']?\s*""", re.IGNORECASE)
_LINE = re.compile(r"\r\n|\r|\n")
_NO_CELLS = {
    "JSON": re.compile(r"\s*(?:\{\s*[\"}]|\[\s*[\[{\"])"),
    "HTML": re.compile(r"\s*<(?:!doctype html|html|head|body)\b", re.IGNORECASE),
    "XML": re.compile(r"\s*<\?xml\b", re.IGNORECASE),
}
"""The first letters of files that are often called CSV, by their kind."""
_SHOWN_LETTERS = 40
_WESTERN_MARKS = frozenset("°±²³µ§©®«»–—‘’“”…€œŒ")


def read_text(path: Path, known: frozenset[str]) -> tuple[pd.DataFrame, list[str]]:
    """Read the cells of a text file.

    Args:
        path: the file.
        known: names of columns, after `plain_name`, that distinguish a header from a comment.

    Returns:
        cells as text, indexed by the line in the file, and notes for the user.

    Raises:
        TableError: the file is no text, is too large, has an unknown encoding, or holds a quotation
            mark that is not closed.
    """
    text, notes = _decode(path)
    text = text.lstrip("\ufeff")
    _check_is_cells(path, text)
    lines = _LINE.split(text)
    skipped, delimiter = 0, ""
    if match := _SEP.fullmatch(lines[0]):
        skipped, delimiter = 1, match[1]
    comments = _count_comments(lines[skipped:], known)
    skipped += comments
    if comments:
        notes.append(f"{comments} comment lines above the header skipped")
    if skipped < len(lines) and lines[skipped].startswith("#"):
        lines[skipped] = lines[skipped].lstrip("# ")
    delimiter = delimiter or _delimiter(lines[skipped : skipped + _MAX_DELIMITER_LINES])
    return _split(path, lines[skipped:], delimiter, first_line=skipped + 1), notes


def _check_is_cells(path: Path, text: str) -> None:
    """Raise `TableError` for JSON, HTML and XML, whatever the file is called, and for NUL bytes."""
    kind = next((kind for kind, begins in _NO_CELLS.items() if begins.match(text)), None)
    if kind is not None:
        first = one_line(text.lstrip()[:1000], max_letters=_SHOWN_LETTERS)
        number = 1 + len(_LINE.findall(text[: len(text) - len(text.lstrip())]))
        raise TableError(
            f"{path} is {kind}, not a table: row {number} begins with '{first}'; save the data as "
            "CSV, TSV or XLSX, with a column of paths and one of labels"
        )
    if "\0" in text:
        before = text[: text.index("\0")]
        line = _LINE.split(text)[len(_LINE.findall(before))]
        shown = one_line(line.replace("\0", "\ufffd"), max_letters=_SHOWN_LETTERS)
        raise TableError(
            f"{path} is no table: row {1 + len(_LINE.findall(before))} holds a NUL byte "
            f"('{shown}'), which a damaged copy leaves; copy the file again, or save it as CSV "
            "UTF-8"
        )


def _split(path: Path, lines: list[str], delimiter: str, *, first_line: int) -> pd.DataFrame:
    """Split lines into cells, indexed by the line in the file, which begins at `first_line`."""
    width = max((line.count(delimiter) for line in lines), default=0) + 1
    if width > _MAX_COLUMNS or width * len(lines) > MAX_CELLS:
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
    # Lines are counted as in a text editor, so that users find the line of a message.
    height = 1 + frame.apply(lambda column: column.str.count("\n")).sum(axis=1)
    frame.index = pd.Index(first_line + height.cumsum() - height)
    return frame


def _decode(path: Path) -> tuple[str, list[str]]:
    """Read a file as text, and recognise its encoding; return the text and notes for the user.

    Raises:
        TableError: the file is no text, or larger than a table of images.
    """
    no_table = TableError(f"{path} is no table: give a CSV, TSV or XLSX file")
    raw = _read_bytes(path, no_table)
    encoding = json.detect_encoding(raw)
    try:
        text = raw.decode(encoding)
    except UnicodeError:
        if not encoding.startswith("utf-8"):
            raise no_table from None
        return _decode_western(path, raw)
    return text, []


def _read_bytes(path: Path, no_table: TableError) -> bytes:
    """Read a file; raise `no_table` if its head is no text, another `TableError` if it is large."""
    with path.open("rb") as file:
        raw = file.read(_HEAD_BYTES)
        if b"\0" in raw and json.detect_encoding(raw).startswith("utf-8") and _is_binary(raw):
            raise no_table
        raw += file.read(_MAX_BYTES)
    if len(raw) > _MAX_BYTES:
        raise TableError(
            f"{path}: more than {_MAX_BYTES >> 20} MiB are no table of images: give the table of "
            "labels"
        )
    return raw


def _is_binary(raw: bytes) -> bool:
    """Return whether bytes with NULs are no damaged text: their first line is not printable."""
    try:
        first = re.split(rb"[\r\n]", raw, maxsplit=1)[0].decode("utf-8-sig")
    except UnicodeError:
        return True
    return not first.replace("\t", "").isprintable()


def _decode_western(path: Path, raw: bytes) -> tuple[str, list[str]]:
    """Decode bytes as cp1252 if the result looks like words of a Western language.

    Returns:
        the text, and a note that names one of its words.

    Raises:
        TableError: the bytes have another encoding, and cp1252 would give wrong labels.
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
    """Return whether a word that was decoded as cp1252 looks like a word of a Western language.

    Such a word has at most two accented letters side by side, and others too. A word of another
    encoding, decoded as cp1252, has more.
    """
    letters = "".join(c for c in word if c not in _WESTERN_MARKS)
    runs = re.findall(r"[^\x00-\x7f]+", letters)
    if not all("À" <= c <= "ÿ" and c not in "×÷" for run in runs for c in run):
        return False
    longest = max(map(len, runs), default=0)
    return longest < 2 or (longest == 2 and bool(re.search(r"[A-Za-z]", word)))


def _count_comments(lines: list[str], known: frozenset[str]) -> int:
    """Count the lines of comments above the header; a header may begin with ``#`` too."""
    for n, line in enumerate(lines):
        if line.strip() and not line.startswith("#"):
            return n if any(above.startswith("#") for above in lines[:n]) else 0
        cells = re.split(r"[,;\t|]", line.lstrip("# "))
        if len(cells) > 1 and any(plain_name(cell) in known for cell in cells):
            return n
    return 0


def _delimiter(lines: list[str]) -> str:
    """Choose the delimiter that gives the most lines the same number of cells; by default a comma.

    Where two delimiters are equally good, the one that gives more cells is chosen.
    """

    def count_equal_lines(delimiter: str) -> tuple[int, int]:
        widths = Counter(
            len(cells)
            for line in lines
            if line.strip()
            for cells in csv.reader([line[:_MAX_DELIMITER_LETTERS]], delimiter=delimiter)
        )
        return max(((n, width) for width, n in widths.items() if width > 1), default=(0, 1))

    return max(DELIMITERS, key=count_equal_lines)
