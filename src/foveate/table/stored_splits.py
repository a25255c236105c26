"""Read splits that other programs or runs have written, and apply them to the images of a table.

- CLAM: ``splits_0.csv`` … with columns ``train``, ``val``, ``test`` of slides.
- STAMP: ``splits.json`` with lists of patients.
- Patho-Bench: columns ``fold_0`` … of a table, with ``train``, ``val`` or ``test`` in each row; a
  single column, such as ``split``, is one fold.
- foveate: ``splits.json`` of a run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.errors import SplitError, explain_os_error
from foveate.files.csvtext import parse_csv
from foveate.files.run_layout import RunLayout
from foveate.table.choice import first_filled
from foveate.table.columns import IMAGE_ID, PATH, PATIENT, NamedColumns, header_names
from foveate.table.folds import load_splits
from foveate.table.same import clean, plain_name
from foveate.table.sheet import read_sheet
from foveate.table.types import TableSheet
from foveate.table.unused import PART_WORDS

PARTS = tuple(PART_WORDS)
"""Names of the parts of a fold."""

_CLAM_FILE = re.compile(r"splits?_(\d+)\.csv")
_FOLD_COLUMN = re.compile(r"(?:fold|split)_?(\d+)")
_ONE_COLUMN = ("split", "fold", "set", "subset", "partition", "train_val_test", "train_test")
_PART_OF = {word: part for part, words in PART_WORDS.items() for word in words}

_REMEDY = (
    "give a folder or file of CLAM (splits_0.csv with columns train, val and test), "
    "splits.json of STAMP or of a run, or a table with a column of train, val and test for each "
    "fold"
)


@dataclass(frozen=True)
class StoredSplits:
    """Folds as they were written, before their names are looked up.

    Attributes:
        dialect: name of the program that writes such splits.
        path: the file or folder.
        folds: names of images or patients, by part.
        are_patients: whether the names are patients.
    """

    dialect: str
    path: Path
    folds: tuple[Mapping[str, tuple[str, ...]], ...]
    are_patients: bool = False


def read_stored_splits(path: Path) -> StoredSplits:
    """Read splits, whose dialect is recognised.

    Args:
        path: a folder or a file.

    Raises:
        SplitError: there is no such file, or it holds no splits.
        TableError: the table cannot be read.
    """
    if path.is_dir():
        files = sorted(
            (int(match[1]), file)
            for file in path.iterdir()
            if (match := _CLAM_FILE.fullmatch(file.name))
        )
        if files:
            folds = tuple(_read_clam(file) for _, file in files)
            return StoredSplits("CLAM", path, folds)
        path = path / RunLayout.splits
    if not path.is_file():
        raise SplitError(f"--split.from {path}: no such file; {_REMEDY}")
    if path.suffix.lower() == ".json":
        return _read_json(path)
    if path.suffix.lower() == ".csv" and _is_clam(path):
        return StoredSplits("CLAM", path, (_read_clam(path),))
    return _read_columns(read_sheet(path, header_names(NamedColumns())))


def _read_text(path: Path) -> str:
    """Read a text file; raise `SplitError` if it is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise SplitError(f"{path} is no text in UTF-8: save it as such") from None
    except OSError as error:
        raise SplitError(f"{path} cannot be read: {explain_os_error(error)}") from error


def _is_clam(path: Path) -> bool:
    """Return whether the header of a CSV file is that of CLAM's splits."""
    header = _read_text(path).partition("\n")[0].strip().split(",")
    return {"train", "test"} <= {plain_name(name) for name in header}


def _read_clam(path: Path) -> dict[str, tuple[str, ...]]:
    """Read the columns ``train``, ``val`` and ``test`` of a file; each has a length of its own."""
    rows = [{plain_name(key): v for key, v in row.items()} for row in parse_csv(_read_text(path))]
    if not rows or not {"train", "test"} <= rows[0].keys():
        raise SplitError(f"{path} has no columns 'train' and 'test'; {_REMEDY}")
    parts = {part: [clean(row.get(part, "")) for row in rows] for part in PARTS}
    words = {name.lower() for names in parts.values() for name in names if name}
    if words <= {"true", "false"}:
        raise SplitError(
            f"{path} holds True and False for slides; give the file of the same split with their "
            "names, splits_0.csv"
        )
    return {part: tuple(name for name in names if name) for part, names in parts.items()}


def _read_json(path: Path) -> StoredSplits:
    """Read ``splits.json`` of STAMP or of a run."""
    try:
        content = json.loads(_read_text(path))
    except (ValueError, RecursionError):
        raise SplitError(f"{path} is damaged: it is no JSON; fetch it again") from None
    if isinstance(content, dict) and "folds" in content:
        folds = tuple(fold.parts() for fold in load_splits(path).folds)
        return StoredSplits("foveate", path, folds)
    entries = content.get("splits") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise SplitError(f"{path} holds no list 'splits' of folds; {_REMEDY}")
    return StoredSplits("STAMP", path, tuple(_read_stamp(e, path) for e in entries), True)


def _read_stamp(entry: Any, path: Path) -> dict[str, tuple[str, ...]]:
    """Read one fold of STAMP: lists of the patients of its parts."""
    parts = {}
    for part in PARTS:
        names = entry.get(f"{part}_patients", []) if isinstance(entry, dict) else None
        if not isinstance(names, list) or not all(isinstance(n, str | int) for n in names):
            raise SplitError(f"{path}: a fold holds no list '{part}_patients' of names; {_REMEDY}")
        parts[part] = tuple(str(name) for name in names)
    return parts


def _read_columns(sheet: TableSheet) -> StoredSplits:
    """Read the folds from columns of a table with a row for each image or patient."""
    columns = sorted(
        (int(match[1]), column)
        for column in sheet.columns
        if (match := _FOLD_COLUMN.fullmatch(plain_name(column))) and _holds_parts(sheet, column)
    )
    dialect = "Patho-Bench" if columns else "table"
    names = [column for _, column in columns]
    if not names:
        one = [c for c in sheet.columns if plain_name(c) in _ONE_COLUMN and _holds_parts(sheet, c)]
        names = one[:1]
    if not names:
        raise SplitError(f"--split.from {sheet.path}: no column holds a split; {_REMEDY}")
    image = first_filled(sheet, (*IMAGE_ID, *PATH))
    name = image or first_filled(sheet, PATIENT)
    if name is None:
        raise SplitError(
            f"--split.from {sheet.path}: no column names the images or patients; name one "
            "'image_id' or 'patient_id'"
        )
    folds = tuple(_read_column(sheet, column, name) for column in names)
    return StoredSplits(dialect, sheet.path, folds, are_patients=image is None)


def _holds_parts(sheet: TableSheet, column: str) -> bool:
    """Return whether a column holds words for the parts of a split, at least two."""
    words = {row.cells[column].casefold() for row in sheet.rows} - {""}
    return words <= _PART_OF.keys() and len({_PART_OF[word] for word in words}) > 1


def _read_column(sheet: TableSheet, column: str, name: str) -> dict[str, tuple[str, ...]]:
    """Read one fold; rows without a word are in no part of it."""
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for row in sheet.rows:
        word = row.cells[column].casefold()
        if word:
            parts[_PART_OF[word]].append(row.cells[name])
    return {part: tuple(dict.fromkeys(names)) for part, names in parts.items()}
