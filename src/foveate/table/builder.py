"""From a sheet and its recognised columns to cases: files found, duplicates dropped, all told."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from foveate.errors import TableError, did_you_mean, several
from foveate.table.columns import Columns
from foveate.table.files import (
    Finder,
    ends_with,
    file_ids,
    image_files,
    safe_id,
    stem,
    value_folders,
)
from foveate.table.same import clean, label_key, one_spelling, patient_key, respelt
from foveate.table.spacing import believed_um
from foveate.table.types import Case, Row, SetAside, Sheet


class CaseBuilder:
    """Builds the cases of a sheet step by step; `notes` and `set_aside` gather what is said."""

    def __init__(self, sheet: Sheet, columns: Columns, finder: Finder) -> None:
        self.sheet = sheet
        self.columns = columns
        self.finder = finder
        self.notes: list[str] = []
        self.set_aside: list[SetAside] = []

    def build(
        self,
        labels_wanted: Sequence[str] | None,
        *,
        need_labels: bool,
        need_patients: bool,
        known_labels: Sequence[str] = (),
    ) -> tuple[Case, ...]:
        """The cases in the table's order.

        Args:
            labels_wanted: keep only rows with these labels.
            need_labels: leave rows without a label out.
            need_patients: refuse rows without a patient where others have one.
            known_labels: labels of a model, whose spelling is taken.

        Raises:
            TableError: no file is found, a value is impossible, or rows contradict each other.
        """
        rows = self._with_label(self.sheet.rows) if need_labels else list(self.sheet.rows)
        if self.columns.label:
            rows = self._one_label_each(rows, known_labels)
        if labels_wanted is not None:
            rows = self._wanted(rows, labels_wanted)
        if self.columns.patient_id:
            rows = self._one_patient_each(rows, all_known=need_patients)
        found = self._with_file(rows)
        cases = self._without_duplicates([(row, self._case(row, path)) for row, path in found])
        self._note_patients(cases)
        self._note_unlisted(found)
        return tuple(cases)

    def _with_label(self, rows: Iterable[Row]) -> list[Row]:
        column = str(self.columns.label)
        kept = [row for row in rows if row.cells[column]]
        empty = len(self.sheet.rows) - len(kept)
        if not kept:
            raise TableError(f"{self.sheet.path}: column '{column}' is empty in every row")
        if empty:
            first = next(row.number for row in self.sheet.rows if not row.cells[column])
            self.notes.append(f"{empty} rows without a '{column}' left out (first: row {first})")
        return kept

    def _one_label_each(self, rows: list[Row], known: Sequence[str]) -> list[Row]:
        """Rows in which every class is spelt in one way: the model's, else the most frequent."""
        column = str(self.columns.label)
        spelling = one_spelling([r.cells[column] for r in rows if r.cells[column]], label_key)
        models = {label_key(label): label for label in known}
        spelling = {word: models.get(label_key(word), text) for word, text in spelling.items()}
        for chosen, *others in respelt(spelling):
            n = sum(row.cells[column] in others for row in rows)
            said = several([shown(word) for word in others])
            self.notes.append(f"label '{chosen}' is also written {said} ({n} rows): one class")
        return [_with_cell(row, column, spelling) for row in rows]

    def _one_patient_each(self, rows: list[Row], *, all_known: bool) -> list[Row]:
        """Rows in which every patient is spelt in one way.

        Raises:
            TableError: `all_known`, and some rows have no patient.
        """
        column = str(self.columns.patient_id)
        empty = [row.number for row in rows if not row.cells[column]]
        if empty and all_known:
            raise TableError(
                f"{self.sheet.path}: {len(empty)} of {len(rows)} rows have no '{column}' (first: "
                f"row {empty[0]}), so images of one patient could lie on both sides of a split. "
                "Fill the column, or name another with --patient (that of the path, if each image "
                "is a patient of its own)"
            )
        if empty:
            self.notes.append(
                f"warning: {len(empty)} of {len(rows)} rows have no '{column}' (first: row "
                f"{empty[0]}); each counts as a patient of its own"
            )
        spelling = one_spelling([r.cells[column] for r in rows if r.cells[column]], patient_key)
        groups = respelt(spelling)
        if groups:
            many = f"{len(groups)} patients are" if groups[1:] else "1 patient is"
            said = ", ".join(shown(word) for word in groups[0])
            self.notes.append(f"warning: {many} written in several ways ({said}): one patient each")
        return [_with_cell(row, column, spelling) for row in rows]

    def _wanted(self, rows: list[Row], wanted: Sequence[str]) -> list[Row]:
        column = str(self.columns.label)
        present = {row.cells[column] for row in rows}
        keys = {label_key(label) for label in present}
        for label in wanted:
            if label_key(label) not in keys:
                raise TableError(
                    f"{self.sheet.path}: no row has the label '{label}' in column '{column}'."
                    f"{did_you_mean(label, present)}"
                )
        wanted_keys = {label_key(label) for label in wanted}
        kept = [row for row in rows if label_key(row.cells[column]) in wanted_keys]
        if len(kept) < len(rows):
            others = several(sorted(present - {row.cells[column] for row in kept}))
            self.notes.append(f"{len(rows) - len(kept)} rows with other labels left out: {others}")
        return kept

    def _with_file(self, rows: list[Row]) -> list[tuple[Row, Path]]:
        """Rows whose file exists; the others are set aside, unless they are all."""
        column = self.columns.path
        found: list[tuple[Row, Path]] = []
        for row in rows:
            value = row.cells[column]
            try:
                path = self.finder.find(value) if value else None
            except TableError as error:
                raise TableError(f"{self.sheet.where(row, column)}: {error}") from None
            if path is not None:
                found.append((row, path))
                continue
            self._put_aside(row, self._reason(value))
        found = self._without_ambiguous(found)
        if not found:
            raise TableError(self._no_file(rows))
        self.notes.append(f"{len(found)} of {len(rows)} rows have their file")
        if self.set_aside:
            missing = several([f"row {s.row} '{s.path}'" for s in self.set_aside])
            self.notes.append(f"warning: {len(self.set_aside)} files not found: {missing}")
        return found

    def _put_aside(self, row: Row, reason: str) -> None:
        value = row.cells[self.columns.path]
        self.set_aside.append(SetAside(row.number, self._image_id(row, None), value, reason))

    def _reason(self, value: str) -> str:
        if not value:
            return "no path in the table"
        other = self.finder.beside(value)
        hint = f"; {other.relative_to(self.finder.base)} is another file" if other else ""
        return f"no file '{value}' in {self.finder.base}{hint}"

    def _without_ambiguous(self, found: list[tuple[Row, Path]]) -> list[tuple[Row, Path]]:
        """Without rows that name files in different folders, of which one file only is there."""
        column = self.columns.path
        values: dict[Path, set[str]] = defaultdict(set)
        for row, path in found:
            values[path].add(row.cells[column])
        kept = []
        for row, path in found:
            own = value_folders(row.cells[column])
            others = [v for v in sorted(values[path]) if _elsewhere(own, value_folders(v))]
            if others:
                self._put_aside(row, f"{path} could be '{row.cells[column]}' or '{others[0]}'")
            else:
                kept.append((row, path))
        return kept

    def _no_file(self, rows: list[Row]) -> str:
        column, label = self.columns.path, self.columns.label
        value = rows[0].cells[column]
        what = f"no file '{value}' in {self.finder.base}" if value else "no path"
        many = f"; none of the {len(rows)} files is there" if rows[1:] else ""
        labels = {row.cells[label] for row in rows} if label else set()
        one = (
            f" Besides, '{label}' holds one label only, '{min(labels)}'."
            if len(labels) == 1
            else ""
        )
        return (
            f"{self.sheet.where(rows[0], column)}: {what}{many}. Paths are relative to the table's "
            "folder: name the images' folder with --images, or another column with --path."
            f"{one}"
        )

    def _case(self, row: Row, path: Path) -> Case:
        columns = self.columns
        image_id = self._image_id(row, path)
        patient = row.cells[columns.patient_id] if columns.patient_id else ""
        return Case(
            image_id=image_id,
            patient_id=patient or image_id,
            path=path,
            label=(row.cells[columns.label] or None) if columns.label else None,
            spacing_um=self._spacing_um(row, path),
        )

    def _image_id(self, row: Row, path: Path | None) -> str:
        given = row.cells[self.columns.image_id] if self.columns.image_id else ""
        if self.columns.image_id == self.columns.path or not given:
            value = given or row.cells[self.columns.path]
            given = stem(path.name if path else Path(value.replace("\\", "/")).name)
        return safe_id(given) or f"row_{row.number}"

    def _spacing_um(self, row: Row, path: Path) -> tuple[float, ...] | None:
        texts = [row.cells[column] for column in self.columns.spacing]
        if not any(texts):
            return None
        values: list[float] = []
        for column, text in zip(self.columns.spacing, texts, strict=True):
            where = self.sheet.where(row, column)
            parts = re.split(r"\s*[x×;\s]\s*", text)
            values.extend(believed_um(part, where, path) for part in parts)
        return tuple(values) if len(values) > 1 else (values[0], values[0])

    def _without_duplicates(self, pairs: list[tuple[Row, Case]]) -> list[Case]:
        pairs = self._unique_default_ids(pairs)
        by_path: dict[Path, tuple[Row, Case]] = {}
        by_id: dict[str, tuple[Row, Case]] = {}
        repeated: list[int] = []
        for row, case in pairs:
            earlier = by_path.get(case.path.resolve())
            if earlier is not None:
                self._same_or_raise(earlier, (row, case))
                repeated.append(row.number)
                continue
            same_id = by_id.get(case.image_id)
            if same_id is not None:
                raise TableError(
                    f"{self.sheet.path}, row {row.number}: image '{case.image_id}' is "
                    f"{case.path}, but row {same_id[0].number} says {same_id[1].path}; "
                    "an image_id must be unique"
                )
            by_path[case.path.resolve()] = by_id[case.image_id] = (row, case)
        if repeated:
            rows = several([f"row {number}" for number in repeated])
            self.notes.append(f"{len(repeated)} repeated rows dropped: {rows}")
        return [case for _, case in by_path.values()]

    def _same_or_raise(self, earlier: tuple[Row, Case], later: tuple[Row, Case]) -> None:
        (first, a), (second, b) = earlier, later
        for what, was, now in (
            ("label", a.label, b.label),
            ("patient", self._patient(first), self._patient(second)),
        ):
            if was != now:
                raise TableError(
                    f"{self.sheet.path}, row {second.number}: {b.path.name} has the {what} "
                    f"'{now}', but '{was}' in row {first.number}; keep one of the two"
                )

    def _patient(self, row: Row) -> str | None:
        return row.cells[self.columns.patient_id] if self.columns.patient_id else None

    def _unique_default_ids(self, pairs: list[tuple[Row, Case]]) -> list[tuple[Row, Case]]:
        """Ids made from file names get their folder in front where two would be the same."""
        if self.columns.image_id and self.columns.image_id != self.columns.path:
            return pairs
        paths = sorted({case.path for _, case in pairs})
        ids = dict(zip(paths, file_ids(paths, self.finder.base), strict=True))
        renamed = sorted({c.image_id for _, c in pairs if ids[c.path] != c.image_id})
        if renamed:
            self.notes.append(f"file names repeat ({several(renamed)}): ids hold the folder")
        return [(row, _renamed(case, ids[case.path])) for row, case in pairs]

    def _note_patients(self, cases: list[Case]) -> None:
        labels = defaultdict(set)
        for case in cases:
            if case.label is not None:
                labels[case.patient_id].add(case.label)
        mixed = sorted(p for p, found in labels.items() if len(found) > 1)
        if mixed:
            many = f"{len(mixed)} patients have" if mixed[1:] else "1 patient has"
            self.notes.append(f"{many} images of several classes: {several(mixed)}")
        counts = Counter(case.label for case in cases if case.label is not None)
        if 0 < len(counts) <= 20:
            said = ", ".join(f"{label} {n}" for label, n in sorted(counts.items()))
            patients = len({case.patient_id for case in cases})
            self.notes.append(f"{len(cases)} images of {patients} patients: {said}")
        alike = Counter(map(_alike, counts))
        for label in sorted(counts):
            if alike[_alike(label)] > 1:
                self.notes.append(
                    f"warning: label '{label}' differs from another in capitals, blanks or dashes "
                    "only, and is a class of its own"
                )

    def _note_unlisted(self, found: list[tuple[Row, Path]]) -> None:
        """Files beside the images that no row names, whether or not the row was kept."""
        values = [row.cells[self.columns.path] for row in self.sheet.rows]
        listed = {stem(Path(value.replace("\\", "/")).name) for value in values if value}
        listed |= {stem(path.name) for _, path in found}
        folders = {path.parent for _, path in found}
        files = sorted(p.name for folder in folders for p in image_files(folder, deep=False))
        unlisted = [name for name in files if stem(name) not in listed]
        if unlisted:
            beside = f"{len(unlisted)} files beside the images are not in the table"
            self.notes.append(f"{beside}: {several(unlisted)}")


def _renamed(case: Case, image_id: str) -> Case:
    patient = image_id if case.patient_id == case.image_id else case.patient_id
    return replace(case, image_id=image_id, patient_id=patient)


def _with_cell(row: Row, column: str, spelling: Mapping[str, str]) -> Row:
    word = row.cells[column]
    return replace(row, cells={**row.cells, column: spelling.get(word, word)})


def shown(word: str) -> str:
    """A word in quotation marks, in which what cannot be seen is written out."""
    return ascii(word) if word != clean(word) else f"'{word}'"


def _alike(label: str) -> str:
    """The label without capitals, and without what divides its words."""
    return re.sub(r"(?<=\w)[ _-](?=\w)", "", label.casefold())


def _elsewhere(own: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether two values name folders that contradict each other."""
    return not (ends_with(own, other) or ends_with(other, own))
