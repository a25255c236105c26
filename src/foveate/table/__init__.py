"""Cases: a table of labels or a folder of images in, checked cases and patient-level splits out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from foveate.errors import TableError, several
from foveate.table.builder import CaseBuilder
from foveate.table.columns import PATIENT, Asked, known_names, named, recognise
from foveate.table.files import Finder, file_ids, image_files, safe_id
from foveate.table.folds import Fold, Splits, load_splits, save_splits
from foveate.table.known import with_known_labels
from foveate.table.same import patient_key, plain_name
from foveate.table.sheet import read_sheet
from foveate.table.spacing import for_axes, said_factors, spacing_factor
from foveate.table.splits import make_splits
from foveate.table.survival import survival_columns
from foveate.table.types import Case, CaseTable, Row, SetAside, Sheet
from foveate.tasks import AUTO, why_not

__all__ = [
    "Case",
    "CaseTable",
    "Fold",
    "SetAside",
    "Splits",
    "cases_from_folder",
    "for_axes",
    "load_splits",
    "make_splits",
    "patient_key",
    "read_cases",
    "safe_id",
    "said_factors",
    "save_splits",
    "several",
    "spacing_factor",
    "with_known_labels",
]


def read_cases(
    table: Path,
    *,
    images: Path | None = None,
    files: Path | None = None,
    label: str | None = None,
    patient: str | None = None,
    path: str | None = None,
    labels_wanted: Sequence[str] | None = None,
    known_labels: Sequence[str] = (),
    need_labels: bool = True,
    for_training: bool = True,
    task: str = AUTO,
) -> CaseTable:
    """Read a CSV, TSV or XLSX table; columns of the common tools are recognised and told back.

    Rows whose file is missing are set aside. Without `images`, paths are relative to the table's
    folder. A name fits a file with or without its suffix.

    Args:
        table: one row per image; or, together with `files`, one row per patient.
        images: the folder that paths are relative to.
        files: a second table, one row per image, joined by patient (STAMP's slide table).
        label: the label's column, where it is not recognised.
        patient: the patient's column.
        path: the path's column.
        labels_wanted: keep only rows with these labels.
        need_labels: leave rows without a label out.
        known_labels: labels of a model: a label that means one of them is spelt like it.
        for_training: the labels must be such that the task can be trained on them, and patients
            known where there is a column of them.
        task: that is trained; where none is named, labels that are hardly classes are refused.

    Raises:
        TableError: the table cannot be used; the message names file, row, value and remedy.
    """
    if images is not None and not images.is_dir():
        raise TableError(f"--images {images}: no such folder")
    asked = Asked(path=path, patient=patient, label=label)
    sheet = _sheet(table, files, asked)
    columns = recognise(sheet, asked, need_label=need_labels or labels_wanted is not None)
    to_train = need_labels and for_training
    if to_train and task == AUTO and (survival := survival_columns(sheet, [str(columns.label)])):
        raise TableError(f"{sheet.path}: {survival}")
    builder = CaseBuilder(sheet, columns, Finder(images or (files or table).parent))
    cases = builder.build(
        labels_wanted, need_labels=need_labels, need_patients=to_train, known_labels=known_labels
    )
    if to_train:
        _check_labels(sheet, str(columns.label), builder, cases, task)
    return CaseTable(
        cases=cases,
        label_column=columns.label,
        columns=columns.by_role(),
        notes=(*sheet.notes, *columns.notes, *builder.notes),
        set_aside=tuple(builder.set_aside),
    )


def _check_labels(
    sheet: Sheet, column: str, builder: CaseBuilder, cases: Sequence[Case], task: str
) -> None:
    """Refuse labels that the task cannot be trained on."""
    if reason := why_not(task, [str(case.label) for case in cases], column):
        missing = f" ({len(builder.set_aside)} rows lack their file)" if builder.set_aside else ""
        raise TableError(f"{sheet.path}: {reason}{missing}")


def cases_from_folder(folder: Path) -> CaseTable:
    """Every file below a folder that could be an image, as a case without a label.

    Hidden files, sidecars (JSON, CSV, XML …) and the companion folders of slides are skipped. One
    image file instead of a folder is one case.

    Raises:
        TableError: no such folder, or no image in it.
    """
    if not folder.exists() and not folder.is_symlink():
        raise TableError(f"{folder}: no such folder or image")
    paths = list(image_files(folder)) if folder.is_dir() else [folder]
    if not paths:
        raise TableError(f"{folder} holds no file that could be an image")
    ids = file_ids(paths, folder)
    cases = tuple(Case(i, i, path) for i, path in zip(ids, paths, strict=True))
    notes = (f"{len(cases)} files in {folder}",) if folder.is_dir() else ()
    return CaseTable(cases, notes=notes)


def _sheet(table: Path, files: Path | None, asked: Asked) -> Sheet:
    known = known_names(asked)
    sheet = read_sheet(table, known)
    return sheet if files is None else _joined(sheet, read_sheet(files, known), asked.patient)


def _joined(patients: Sheet, files: Sheet, patient: str | None) -> Sheet:
    """One row per file, with the columns of its patient; who lacks a partner is told."""
    keys = [named(sheet, patient, "patient") or _key(sheet) for sheet in (patients, files)]
    by_patient: dict[str, Row] = {}
    for row in patients.rows:
        name = row.cells[keys[0]]
        if name and patient_key(name) in by_patient:
            raise TableError(f"{patients.where(row, keys[0])}: patient '{name}' is there twice")
        if name:
            by_patient[patient_key(name)] = row
    rows, alone, found = [], [], set()
    for row in files.rows:
        name = row.cells[keys[1]]
        partner = by_patient.get(patient_key(name))
        if partner is None:
            alone.append(name or f"row {row.number}")
            continue
        found.add(patient_key(name))
        rows.append(replace(row, cells={**partner.cells, **row.cells}))
    if not rows:
        raise TableError(
            f"{files.path}: no '{keys[1]}' is among the '{keys[0]}' of {patients.path}"
        )
    notes = [f"{len(rows)} rows of {files.path.name} joined to {patients.path.name} by patient"]
    if alone:
        notes.append(f"{len(alone)} files of patients without a label left out: {several(alone)}")
    idle = sorted(by_patient[key].cells[keys[0]] for key in by_patient.keys() - found)
    if idle:
        notes.append(f"{len(idle)} patients have no file: {several(idle)}")
    columns = tuple(dict.fromkeys((*patients.columns, *files.columns)))
    return Sheet(files.path, columns, tuple(rows), (*patients.notes, *files.notes, *notes))


def _key(sheet: Sheet) -> str:
    for candidate in PATIENT:
        for column in sheet.columns:
            if plain_name(column) == candidate:
                return column
    raise TableError(f"{sheet.path}: no column names the patient; say which with --patient")
