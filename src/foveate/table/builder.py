"""Build cases from a table and its recognised columns: find files, drop duplicates, take notes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from foveate.errors import TableError
from foveate.table.columns import Columns
from foveate.table.damage import describe_damaged, find_damaged
from foveate.table.files import (
    Finder,
    ends_with,
    file_ids,
    safe_id,
    stem,
    value_folders,
)
from foveate.table.identical import settle_identical
from foveate.table.labels import settle_labels
from foveate.table.missing import blank_missing, list_words
from foveate.table.notes import describe_cases, describe_respelt_patients, describe_unlisted
from foveate.table.same import one_spelling, patient_key, respelt_groups
from foveate.table.spacing import SpacingCells, describe_units
from foveate.table.types import Case, LabelRules, Row, SetAside, TableSheet
from foveate.wording import several


class CaseBuilder:
    """Builds the cases of a table step by step.

    Args:
        sheet: the table.
        columns: the column of each role.
        finder: finds files.

    Attributes:
        notes: lines to show to the user.
        set_aside: rows that cannot be used.
        missing_words: words that count as no label, with their numbers.
        row_numbers: lines of the cases in the table, by their image_id.
    """

    def __init__(self, sheet: TableSheet, columns: Columns, finder: Finder) -> None:
        self.sheet = sheet
        self.columns = columns
        self.finder = finder
        self.notes: list[str] = []
        self.set_aside: list[SetAside] = []
        self.missing_words: Counter[str] = Counter()
        self.row_numbers: dict[str, int] = {}

    def build(self, rules: LabelRules) -> tuple[Case, ...]:
        """Build the cases in the table's order.

        Args:
            rules: which labels the rows need.

        Raises:
            OptionError: a label that is to be renamed does not occur.
            TableError: no file is found, a value is impossible, or rows contradict each other.
        """
        rows = list(self.sheet.rows)
        if self.columns.label:
            labelled = settle_labels(self.sheet, self.columns.label, rules)
            rows, self.missing_words = labelled.rows, labelled.missing_words
            self.notes += labelled.notes
        if self.columns.patient_id:
            rows = self._unify_patients(rows, strict=rules.needed and rules.for_training)
        pairs = self._find_files(rows)
        columns = self.columns.spacing
        spacings = SpacingCells((row.cells[c], path) for row, path in pairs for c in columns)
        self.notes += describe_units(row.cells[c] for row, _ in pairs for c in columns)
        built = [(row, self._case(row, path, spacings)) for row, path in pairs]
        unique = self._drop_duplicates(built)
        self.row_numbers = {case.image_id: row.number for row, case in unique}
        cases = self._settle_identical(unique) if rules.needed else [case for _, case in unique]
        named = [row.cells[self.columns.path] for row in self.sheet.rows]
        self.notes += [
            *describe_cases(cases),
            *describe_unlisted(named, [path for _, path in pairs]),
        ]
        return tuple(cases)

    def _unify_patients(self, rows: list[Row], *, strict: bool) -> list[Row]:
        """Give all names of one patient one spelling.

        Raises:
            TableError: with `strict`, some rows have no patient, or different patients may bear one
                name that a spreadsheet has changed.
        """
        column = str(self.columns.patient_id)
        rows, words = blank_missing(rows, column)
        empty = [row.number for row in rows if not row.cells[column]]
        first = (
            f"(first: row {empty[0]}{f'; {list_words(words)}' if words else ''})" if empty else ""
        )
        if empty and strict:
            raise TableError(
                f"{self.sheet.path}: {len(empty)} of {len(rows)} rows have no '{column}' {first}, "
                "so images of one patient could lie on both sides of a split. "
                "Fill the column, or name another with --patient (that of the path, if each image "
                "is a patient of its own)"
            )
        if empty:
            self.notes.append(
                f"warning: {len(empty)} of {len(rows)} rows have no '{column}' {first}; each "
                "counts as a patient of its own"
            )
        if damaged := find_damaged(row.cells[column] for row in rows):
            text = describe_damaged(column, damaged)
            if strict and max(damaged.values()) > 1:
                raise TableError(
                    f"{self.sheet.path}: {text}, or name another column with --patient"
                )
            self.notes.append(f"warning: {text}")
        spelling = one_spelling([r.cells[column] for r in rows if r.cells[column]], patient_key)
        if groups := respelt_groups(spelling):
            self.notes.append(describe_respelt_patients(groups))
        return [_with_cell(row, column, spelling) for row in rows]

    def _find_files(self, rows: list[Row]) -> list[tuple[Row, Path]]:
        """Return the rows whose image exists, with its file; set the others aside.

        Raises:
            TableError: no row has its file, or a value fits several files.
        """
        column = self.columns.path
        pairs: list[tuple[Row, Path]] = []
        no_files: list[str] = []
        for row in rows:
            path = self._find_file(row)
            if path is not None and self.finder.could_be_image(path):
                pairs.append((row, path))
                continue
            self._set_row_aside(row, self._missing_reason(row.cells[column], path))
            if path is not None:
                no_files.append(f"row {row.number} '{row.cells[column]}'")
        pairs = self._drop_ambiguous(pairs)
        if not pairs:
            raise TableError(self._no_file_message(rows))
        self.notes.append(f"{len(pairs)} of {len(rows)} rows have their file")
        foreign = [
            f"row {row.number} '{row.cells[column]}' is {path.name}"
            for row, path in pairs
            if self.finder.is_foreign(row.cells[column])
        ]
        if foreign:
            self.notes.append(
                f"warning: {len(foreign)} paths name folders that are not on this machine; their "
                f"files are taken from {self.finder.base} by the end of the path: "
                f"{several(foreign)}"
            )
        missing = [f"row {s.row} '{s.path}'" for s in self.set_aside]
        missing = [place for place in missing if place not in no_files]
        if missing:
            self.notes.append(f"warning: {len(missing)} files not found: {several(missing)}")
        if no_files:
            self.notes.append(
                f"warning: {len(no_files)} rows name no image file, but a folder, a device or a "
                f"link to nothing: {several(no_files)}"
            )
        return pairs

    def _find_file(self, row: Row) -> Path | None:
        """Return the file of a row; None if there is none.

        Raises:
            TableError: the row's value fits several files.
        """
        value = row.cells[self.columns.path]
        try:
            return self.finder.find(value) if value else None
        except TableError as error:
            raise TableError(f"{self.sheet.where(row, self.columns.path)}: {error}") from None

    def _set_row_aside(self, row: Row, reason: str) -> None:
        """Add a row to those that cannot be used."""
        value = row.cells[self.columns.path]
        self.set_aside.append(SetAside(row.number, self._image_id(row, None), value, reason))

    def _missing_reason(self, value: str, path: Path | None) -> str:
        """Explain why a row has no file; name a similar file if there is one."""
        if not value:
            return "no path in the table"
        if path is not None:
            kind = "a pipe or a device, no file"
            if path.is_dir():
                kind = "a folder that no reader reads as one image"
            elif path.is_symlink() and not path.exists():
                kind = "a link to a file that is not there"
            return f"'{value}' is {kind}; name the image's file"
        other = self.finder.beside(value)
        hint = f"; {other.relative_to(self.finder.base)} is another file" if other else ""
        return f"no file '{value}' in {self.finder.base}{hint}"

    def _drop_ambiguous(self, pairs: list[tuple[Row, Path]]) -> list[tuple[Row, Path]]:
        """Set aside rows that name files in different folders of which only one exists."""
        column = self.columns.path
        values: dict[Path, set[str]] = defaultdict(set)
        for row, path in pairs:
            values[path].add(row.cells[column])
        clear = []
        for row, path in pairs:
            folders = value_folders(row.cells[column])
            others = [v for v in sorted(values[path]) if _contradict(folders, value_folders(v))]
            if others:
                self._set_row_aside(row, f"{path} could be '{row.cells[column]}' or '{others[0]}'")
            else:
                clear.append((row, path))
        return clear

    def _no_file_message(self, rows: list[Row]) -> str:
        column, label = self.columns.path, self.columns.label
        value = rows[0].cells[column]
        problem = self.set_aside[0].reason if value else "no path"
        many = f"; none of the {len(rows)} files is there" if rows[1:] else ""
        labels = {row.cells[label] for row in rows} if label else set()
        one = (
            f" Besides, '{label}' holds one label only, '{min(labels)}'."
            if len(labels) == 1
            else ""
        )
        return (
            f"{self.sheet.where(rows[0], column)}: {problem}{many}. Paths are relative to the "
            "table's folder: name the images' folder with --images, or another column with --path."
            f"{one}"
        )

    def _case(self, row: Row, path: Path, spacings: SpacingCells) -> Case:
        columns = self.columns
        image_id = self._image_id(row, path)
        patient = row.cells[columns.patient_id] if columns.patient_id else ""
        return Case(
            image_id=image_id,
            patient_id=patient or image_id,
            path=path,
            label=(row.cells[columns.label] or None) if columns.label else None,
            spacing_um=self._spacing_um(row, path, spacings),
            site=(row.cells[columns.site] or None) if columns.site else None,
            mask=self._mask(row),
        )

    def _mask(self, row: Row) -> Path | None:
        """Return the file of the mask that a row names, relative to the images or the table."""
        value = row.cells[self.columns.mask] if self.columns.mask else ""
        if not value:
            return None
        beside = self.finder.base / value
        return beside if beside.is_file() else self.sheet.path.parent / value

    def _image_id(self, row: Row, path: Path | None) -> str:
        name = row.cells[self.columns.image_id] if self.columns.image_id else ""
        if self.columns.image_id == self.columns.path or not name:
            value = name or row.cells[self.columns.path]
            name = stem(path.name if path else Path(value.replace("\\", "/")).name)
        return safe_id(name) or f"row_{row.number}"

    def _spacing_um(self, row: Row, path: Path, spacings: SpacingCells) -> tuple[float, ...] | None:
        texts = [row.cells[column] for column in self.columns.spacing]
        if not any(texts):
            return None
        values: list[float] = []
        for column, text in zip(self.columns.spacing, texts, strict=True):
            values.extend(spacings.parse(text, self.sheet.where(row, column), path))
        return tuple(values) if len(values) > 1 else (values[0], values[0])

    def _settle_identical(self, pairs: list[tuple[Row, Case]]) -> list[Case]:
        """Set aside images with the same bytes and different labels; join patients of the others.

        Raises:
            TableError: no image is left.
        """
        settled = settle_identical(pairs)
        if not settled.cases:
            raise TableError(f"{self.sheet.path}: {settled.notes[0].removeprefix('warning: ')}")
        self.set_aside += settled.set_aside
        self.notes += settled.notes
        return list(settled.cases)

    def _drop_duplicates(self, pairs: list[tuple[Row, Case]]) -> list[tuple[Row, Case]]:
        pairs = self._unique_default_ids(pairs)
        by_path: dict[Path, tuple[Row, Case]] = {}
        by_id: dict[str, tuple[Row, Case]] = {}
        repeated: list[int] = []
        for row, case in pairs:
            earlier = by_path.get(case.path.resolve())
            if earlier is not None:
                self._check_same(earlier, (row, case))
                repeated.append(row.number)
                continue
            same_id = by_id.get(case.image_id)
            if same_id is not None:
                raise TableError(
                    f"{self.sheet.path}, row {row.number}: image '{case.image_id}' is "
                    f"{case.path}, but row {same_id[0].number} says {same_id[1].path}; "
                    "an image_id must be unique: rename one, or leave the column out"
                )
            by_path[case.path.resolve()] = by_id[case.image_id] = (row, case)
        if repeated:
            rows = several([f"row {number}" for number in repeated])
            self.notes.append(f"{len(repeated)} repeated rows dropped: {rows}")
        return list(by_path.values())

    def _check_same(self, earlier: tuple[Row, Case], later: tuple[Row, Case]) -> None:
        (first, a), (second, b) = earlier, later
        for role, was, now in (
            ("label", a.label, b.label),
            ("patient", self._patient(first), self._patient(second)),
        ):
            if was != now:
                raise TableError(
                    f"{self.sheet.path}, row {second.number}: {b.path.name} has the {role} "
                    f"'{now}', but '{was}' in row {first.number}; keep one of the two"
                )

    def _patient(self, row: Row) -> str | None:
        return row.cells[self.columns.patient_id] if self.columns.patient_id else None

    def _unique_default_ids(self, pairs: list[tuple[Row, Case]]) -> list[tuple[Row, Case]]:
        """Put the folder before ids made from file names where two would be equal."""
        if self.columns.image_id and self.columns.image_id != self.columns.path:
            return pairs
        paths = sorted({case.path for _, case in pairs})
        named = zip(paths, file_ids(paths, self.finder.base), strict=True)
        ids = {c.path: c.image_id for _, c in pairs} | {p: name for p, name in named if name}
        renamed = sorted({c.image_id for _, c in pairs if ids[c.path] != c.image_id})
        if renamed:
            self.notes.append(f"file names repeat ({several(renamed)}): ids hold the folder")
        return [(row, _renamed(case, ids[case.path])) for row, case in pairs]


def _renamed(case: Case, image_id: str) -> Case:
    """Return a case with another id, also as its patient where that was the id."""
    patient = image_id if case.patient_id == case.image_id else case.patient_id
    return replace(case, image_id=image_id, patient_id=patient)


def _with_cell(row: Row, column: str, spelling: Mapping[str, str]) -> Row:
    """Return a row with the chosen spelling in one column."""
    word = row.cells[column]
    return replace(row, cells={**row.cells, column: spelling.get(word, word)})


def _contradict(folders: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Return whether the folders of two values cannot be those of one file."""
    return not (ends_with(folders, other) or ends_with(other, folders))
