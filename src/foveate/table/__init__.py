"""Read cases from a table of labels or a folder of images, and split their patients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from foveate.errors import TableError
from foveate.table.builder import CaseBuilder
from foveate.table.columns import NamedColumns, choose_patient, header_names, recognise
from foveate.table.doubtful import doubt_missing, doubt_none, doubt_spellings
from foveate.table.files import Finder, file_ids, find_files, is_result, safe_id
from foveate.table.folds import Fold, Splits, load_splits, save_splits
from foveate.table.identical import patient_names
from foveate.table.join_splits import join_splits
from foveate.table.joined import describe_parts, find_parts, join_parts
from foveate.table.known import with_known_labels
from foveate.table.missing import is_missing, list_words
from foveate.table.renaming import check_new_names, list_confirmed
from foveate.table.same import patient_key
from foveate.table.sheet import read_sheet
from foveate.table.spacing import describe_factors, spacing_factor, spacing_for_axes
from foveate.table.splits import make_splits
from foveate.table.stored_splits import read_stored_splits
from foveate.table.types import Case, CaseTable, LabelRules, Row, SetAside, TableSheet
from foveate.tasks import AUTO, explain_unfit, learns_numbers, suggest_tasks
from foveate.tasks.several.labels import is_list
from foveate.wording import several

__all__ = [
    "Case",
    "CaseTable",
    "Fold",
    "LabelRules",
    "NamedColumns",
    "SetAside",
    "Splits",
    "cases_from_folder",
    "check_new_names",
    "describe_factors",
    "describe_results",
    "is_result",
    "join_splits",
    "load_splits",
    "make_splits",
    "patient_key",
    "patient_names",
    "read_cases",
    "read_stored_splits",
    "read_tables",
    "safe_id",
    "save_splits",
    "spacing_factor",
    "spacing_for_axes",
    "with_known_labels",
]


def read_cases(
    table: Path,
    *,
    images: Path | None = None,
    files: Path | None = None,
    columns: NamedColumns | None = None,
    labels: LabelRules | None = None,
    is_image: Callable[[Path], bool] = lambda _: False,
) -> CaseTable:
    """Read cases from a CSV, TSV or XLSX table; columns of common tools are recognised.

    Rows whose file is missing are set aside, and images with the same bytes and different labels.
    Patients of images with the same bytes are joined to one. A name matches a file with or without
    its suffix.

    Args:
        table: a table with one row per image; or, together with `files`, with one per patient.
        images: the folder that paths are relative to; by default that of the table.
        files: a second table, with one row per image, joined by patient (STAMP's slide table).
        columns: the columns that the user names; by default all are recognised.
        labels: rules for the labels; by default those of a table to train on.
        is_image: returns whether a folder that a row names is one image.

    Raises:
        OptionError: a label that is to be renamed does not occur.
        TableError: the table cannot be used; the message names file, row, value and remedy.
    """
    if images is not None and not images.is_dir():
        raise TableError(f"--images {images}: no such folder; check the name")
    names, rules = columns or NamedColumns(), labels or LabelRules()
    sheet = read_tables(table, files, names)
    to_train = rules.needed and rules.for_training
    need_label = rules.needed or rules.wanted is not None
    roles = recognise(sheet, names, need_label=need_label, to_train=to_train, task=rules.task)
    if roles.parts:
        sheet, rules = join_parts(sheet, roles.parts, rules)
    elif to_train and rules.task == AUTO and (parts := find_parts(sheet, AUTO, named=roles.label)):
        raise TableError(f"{sheet.path}: {describe_parts(parts, roles.label)}")
    builder = CaseBuilder(sheet, roles, Finder(images or (files or table).parent, is_image))
    cases = builder.build(rules)
    hints: list[str] = []
    if to_train:
        _check_labels(sheet, str(roles.label), builder, cases, rules)
        hints = suggest_tasks(rules.task, [str(case.label) for case in cases], str(roles.label))
    return CaseTable(
        cases=cases,
        label_column=roles.label,
        columns=roles.by_role(),
        notes=(*sheet.notes, *roles.notes, *builder.notes, *hints),
        set_aside=tuple(builder.set_aside),
        task=rules.task,
    )


def _check_labels(
    sheet: TableSheet, column: str, builder: CaseBuilder, cases: Sequence[Case], rules: LabelRules
) -> None:
    """Raise `TableError` if the task cannot be trained on the labels, or if they are doubtful."""
    labels, confirmed = [str(case.label) for case in cases], list_confirmed(rules)
    numbers = learns_numbers(rules.task)
    n_empty = sum(not row.cells[column] for row in sheet.rows) + builder.missing_words.total()
    reason = None if numbers else doubt_missing(column, labels, confirmed)
    reason = reason or explain_unfit(rules.task, labels, column, rules.task_options)
    if not reason and not numbers:
        reason = doubt_spellings(column, labels, confirmed) or doubt_none(
            column, labels, n_empty, confirmed
        )
    if reason:
        aside = builder.set_aside
        left_out = [f"{len(aside)} rows set aside, the first: {aside[0].reason}"] if aside else []
        if builder.missing_words:
            left_out.append(f"counted as no label: {list_words(builder.missing_words)}")
        more = f" ({'; '.join(left_out)})" if left_out else ""
        lists = [case for case in cases if is_list(str(case.label)) and f"'{case.label}'" in reason]
        row = f", row {builder.row_numbers[lists[0].image_id]}" if lists else ""
        raise TableError(f"{sheet.path}{row}: {reason}{more}")


def cases_from_folder(
    folder: Path, is_image: Callable[[Path], bool] = lambda _: False
) -> CaseTable:
    """Make a case without a label of each file below a folder that could be an image.

    Hidden files, sidecars (JSON, CSV, XML …) and the companion folders of slides are skipped. In a
    folder without images, files of features are the cases.

    Args:
        folder: the folder, or one image file, which is one case.
        is_image: returns whether a folder is an image itself, such as a series of slices.

    Raises:
        TableError: the folder does not exist, or holds no image.
    """
    if not folder.exists() and not folder.is_symlink():
        raise TableError(f"{folder}: no such folder or image; check the name")
    one, results = not folder.is_dir() or is_image(folder), list[Path]()
    paths = [folder]
    if not one:
        paths = find_files(folder, is_image, results.append)
    if not paths:
        raise TableError(
            f"{folder} holds no file that could be an image: give the folder of the images, or a "
            "table"
        )
    ids = file_ids(paths, folder)
    cases = tuple(Case(i, i, path) for i, path in zip(ids, paths, strict=True))
    notes = [] if one else [f"{len(cases)} files in {folder}"]
    if results:
        notes.append(describe_results(results))
    return CaseTable(cases, notes=tuple(notes))


def describe_results(paths: Sequence[Path]) -> str:
    """Return the note about results of foveate that are left out."""
    return f"left out, as results of foveate: {several([str(path) for path in paths])}"


def read_tables(table: Path, files: Path | None, names: NamedColumns) -> TableSheet:
    """Read the table, joined with the table of files if there is one.

    Args:
        table: a table with one row per image; or, together with `files`, with one per patient.
        files: a second table, with one row per image; None for none.
        names: the columns that the user names.

    Raises:
        TableError: a table cannot be read, or the two have no patient in common.
    """
    known = header_names(names)
    sheet = read_sheet(table, known)
    return sheet if files is None else _join(sheet, read_sheet(files, known), names.patient)


def _join(patients: TableSheet, files: TableSheet, patient: str | None) -> TableSheet:
    """Join two tables to one row per file; notes name files and patients without a partner."""
    keys = [_patient_column(sheet, patient) for sheet in (patients, files)]
    by_patient = _index_patients(patients, keys[0])
    rows, without_patient, patients_with_file = [], [], set()
    for row in files.rows:
        name = row.cells[keys[1]]
        partner = None if is_missing(name) else by_patient.get(patient_key(name))
        if partner is None:
            without_patient.append(name or f"row {row.number}")
            continue
        patients_with_file.add(patient_key(name))
        rows.append(replace(row, cells={**partner.cells, **row.cells}))
    if not rows:
        raise TableError(
            f"{files.path}: no '{keys[1]}' is among the '{keys[0]}' of {patients.path}; name the "
            "column that both tables share with --patient, or spell patients alike"
        )
    missing = by_patient.keys() - patients_with_file
    without_file = sorted(by_patient[key].cells[keys[0]] for key in missing)
    notes = [
        f"{len(rows)} rows of {files.path.name} joined to {patients.path.name} by patient",
        *_describe_unjoined(without_patient, without_file),
    ]
    columns = tuple(dict.fromkeys((*patients.columns, *files.columns)))
    return TableSheet(files.path, columns, tuple(rows), (*patients.notes, *files.notes, *notes))


def _index_patients(patients: TableSheet, column: str) -> dict[str, Row]:
    """Return the rows by `patient_key`, without rows that name no patient.

    Raises:
        TableError: a patient has two rows.
    """
    by_patient: dict[str, Row] = {}
    for row in patients.rows:
        name = "" if is_missing(row.cells[column]) else row.cells[column]
        if name and patient_key(name) in by_patient:
            raise TableError(
                f"{patients.where(row, column)}: patient '{name}' is there twice; keep one row of "
                "each patient"
            )
        if name:
            by_patient[patient_key(name)] = row
    return by_patient


def _describe_unjoined(without_patient: list[str], without_file: list[str]) -> list[str]:
    """Describe the rows of two tables that have no partner in the other table.

    Args:
        without_patient: names of patients of files, who are not in the table of patients.
        without_file: names of patients who have no file.
    """
    notes = []
    if without_patient:
        notes.append(
            f"{len(without_patient)} files of patients without a label left out: "
            f"{several(without_patient)}"
        )
    if without_file:
        notes.append(f"{len(without_file)} patients have no file: {several(without_file)}")
    return notes


def _patient_column(sheet: TableSheet, named: str | None) -> str:
    """Return the column that names the patient, or raise `TableError`."""
    # Whether the choice is clear is judged on the joined table, whose rows are images.
    column, _ = choose_patient(sheet, named, set(), strict=False)
    if column is None:
        raise TableError(f"{sheet.path}: no column names the patient; say which with --patient")
    return column
