"""Read the table that is checked: its images, and findings about rows, labels and patients.

A table that `read_cases` refuses is read row by row, so that the rest of it can be checked too.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from foveate.checks.options import CheckOptions
from foveate.checks.records import CheckFinding
from foveate.errors import TableError
from foveate.readers import check_options, is_image_folder
from foveate.table import (
    Case,
    CaseTable,
    LabelRules,
    NamedColumns,
    SetAside,
    cases_from_folder,
    read_cases,
    read_tables,
)
from foveate.table.columns import Columns, recognise
from foveate.table.draft import DraftRow, draft_rows
from foveate.table.files import Finder, file_ids
from foveate.table.missing import is_missing
from foveate.table.same import plain_name
from foveate.table.types import TableSheet
from foveate.wording import several

_BATCH_COLUMNS = frozenset(
    {"site", "center", "centre", "hospital", "clinic", "institution", "institute", "location"}
    | {"scanner", "scanner_model", "manufacturer", "vendor", "device", "machine", "model_name"}
    | {"source", "batch", "plate", "stain", "staining", "protocol", "sequence", "cohort"}
    | {"dataset", "data_set", "project", "project_id", "study", "year", "magnification"}
    | {"objective", "operator", "view_position", "position", "laterality", "series"}
)
"""Columns that name the place, device or batch of an image, which should not tell its label."""
_SAID_ELSEWHERE = re.compile(
    r"warning: (?:\d+ (?:files not found|rows name no image file)"
    r"|\d+ images (?:set aside, for files|hold the bytes))|^\d+ patients? ha(?:ve|s) images of"
)
"""Notes that other findings of the check say with more detail."""
_NO_PATIENTS = "patient_id defaults to image_id"
_RARE = 0.1
"""Share of the patients up to which those with two labels look like mistakes."""


@dataclass(frozen=True)
class JoinedTable:
    """The images of a table or folder with what the table says about them.

    Attributes:
        source: the table or folder.
        cases: the images whose file exists.
        findings: what is wrong with the table.
        notes: lines about how the table was read.
        set_aside: rows that cannot be used.
        label_column: column of the labels; None where there are none.
        batches: values of columns that name a place, a device or a batch: by column, by image id.
    """

    source: Path
    cases: tuple[Case, ...]
    findings: tuple[CheckFinding, ...] = ()
    notes: tuple[str, ...] = ()
    set_aside: tuple[SetAside, ...] = ()
    label_column: str | None = None
    batches: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def join_images(source: Path, options: CheckOptions) -> JoinedTable:
    """Read the images of a table or a folder; what is wrong with it becomes findings.

    Args:
        source: a table, or a folder of images.
        options: options of the check.

    Raises:
        TableError: there is no such table or folder, and no image to check.
    """
    if source.is_dir():
        return _join_folder(source, options)
    table, refusal = _read(source, options)
    findings = [*refusal, *_find_set_aside(table.set_aside), *_find_in_labels(table.cases)]
    findings += _find_several_images(table.cases)
    findings += _convert_notes(table.notes)
    return JoinedTable(
        source,
        table.cases,
        tuple(findings),
        table.notes,
        table.set_aside,
        table.label_column,
        _read_batches(source, options, table.cases),
    )


def _join_folder(folder: Path, options: CheckOptions) -> JoinedTable:
    """Read the images of a folder, with the labels and patients that `draft_rows` is sure of."""
    is_image = _choose_folder_rule(options)
    table = cases_from_folder(folder, is_image)
    draft = draft_rows(folder, is_image)
    rows = {row.path: row for row in draft.rows}
    cases = tuple(_add_draft(case, rows.get(case.path)) for case in table.cases)
    labelled = any(case.label for case in cases)
    notes = (*table.notes, *draft.notes)
    finding = CheckFinding(
        "note",
        "table",
        "no table",
        "a folder was checked: rows without file, files without row and patients were not",
        f"write a table with `foveate init {folder}`, fill it in, and check that",
    )
    return JoinedTable(
        folder,
        cases,
        (finding, *_find_in_labels(cases)),
        notes,
        label_column="folder" if labelled else None,
    )


def _add_draft(case: Case, row: DraftRow | None) -> Case:
    """Give a case the patient and the label of its drafted row, where these are filled in."""
    if row is None:
        return case
    return replace(case, patient_id=row.patient_id or case.patient_id, label=row.label or None)


# -- the table ------------------------------------------------------------------------------------


def _read(source: Path, options: CheckOptions) -> tuple[CaseTable, list[CheckFinding]]:
    """Read a table as training does; where that refuses it, as far as it can be read.

    Raises:
        TableError: neither the table nor a folder of images can be read.
    """
    wanted = None if options.classes is None else [w.strip() for w in options.classes.split(",")]
    renamed = options.renamed or {}
    try:
        return _read_by_rules(
            source, options, LabelRules(wanted, task=options.task, renamed=renamed)
        ), []
    except TableError as error:
        refused = error
    finding = CheckFinding(
        "unusable",
        "table",
        source.name,
        str(refused),
        "mend the table: training refuses it. The rest was checked as far as possible",
        weight=9.0,
    )
    for rules in (
        LabelRules(for_training=False, task=options.task, renamed=renamed),
        LabelRules(needed=False, for_training=False),
    ):
        try:
            return _read_by_rules(source, options, rules), [finding]
        except TableError:
            continue
    try:
        return _read_rows(source, options), [finding]
    except TableError:
        folder = Path(options.images) if options.images is not None else source.parent
    try:
        return cases_from_folder(folder, _choose_folder_rule(options)), [finding]
    except TableError:
        raise refused from None


def _read_by_rules(source: Path, options: CheckOptions, rules: LabelRules) -> CaseTable:
    return read_cases(
        source,
        images=None if options.images is None else Path(options.images),
        files=None if options.files is None else Path(options.files),
        columns=_name_columns(options),
        labels=rules,
        is_image=_choose_folder_rule(options),
    )


def _choose_folder_rule(options: CheckOptions) -> Callable[[Path], bool]:
    """Return the rule by which a folder is one image, as the options of readers say."""
    return partial(is_image_folder, options=check_options(options.reader_options or {}))


def _name_columns(options: CheckOptions) -> NamedColumns:
    return NamedColumns(options.column, options.patient, options.label)


def _open_sheet(source: Path, options: CheckOptions) -> tuple[TableSheet, Finder]:
    """Read the cells of the table, and return what finds the files of its rows."""
    files = None if options.files is None else Path(options.files)
    sheet = read_tables(source, files, _name_columns(options))
    base = Path(options.images) if options.images is not None else (files or source).parent
    return sheet, Finder(base, _choose_folder_rule(options))


def _find_rows(
    sheet: TableSheet, columns: Columns, finder: Finder
) -> Iterator[tuple[dict[str, str], int, Path | str]]:
    """Yield the cells and the number of each row with its file, or why it has none."""
    for row in sheet.rows:
        value = row.cells[columns.path]
        try:
            path = finder.find(value) if value else None
        except TableError as error:
            yield row.cells, row.number, str(error)
            continue
        if path is None or not finder.could_be_image(path):
            yield row.cells, row.number, f"no file '{value}' in {finder.base}"
        else:
            yield row.cells, row.number, path


def _read_rows(source: Path, options: CheckOptions) -> CaseTable:
    """Read a table row by row; rows that contradict each other are set aside, not refused."""
    sheet, finder = _open_sheet(source, options)
    columns = recognise(sheet, _name_columns(options), need_label=False, to_train=False)
    aside: list[SetAside] = []
    cells_of: dict[Path, tuple[dict[str, str], int]] = {}
    for cells, number, path in _find_rows(sheet, columns, finder):
        if isinstance(path, str):
            aside.append(SetAside(number, f"row_{number}", cells[columns.path], path))
        elif path in cells_of:
            before = cells_of[path][1]
            reason = f"{path.name} is in row {before} already"
            aside.append(SetAside(number, f"row_{number}", cells[columns.path], reason))
        else:
            cells_of[path] = (cells, number)
    ids = file_ids(list(cells_of), finder.base)
    cases = []
    for image_id, (path, (cells, _)) in zip(ids, cells_of.items(), strict=True):
        label = cells[columns.label] if columns.label else ""
        patient = cells[columns.patient_id] if columns.patient_id else ""
        label_or_none = None if is_missing(label) else label
        cases.append(Case(image_id, patient or image_id, path, label_or_none))
    notes = (*sheet.notes, *columns.notes)
    return CaseTable(tuple(cases), columns.label, columns.by_role(), notes, tuple(aside))


def _read_batches(
    source: Path, options: CheckOptions, cases: Sequence[Case]
) -> dict[str, dict[str, str]]:
    """Read the columns that name a place, a device or a batch, by image id."""
    try:
        sheet, finder = _open_sheet(source, options)
        columns = recognise(sheet, _name_columns(options), need_label=False, to_train=False)
    except TableError:
        return {}
    used = {columns.path, columns.patient_id, columns.label, *columns.spacing}
    names = [c for c in sheet.columns if plain_name(c) in _BATCH_COLUMNS and c not in used]
    if not names:
        return {}
    ids = {os.path.realpath(case.path): case.image_id for case in cases}
    batches: dict[str, dict[str, str]] = {name: {} for name in names}
    for cells, _, path in _find_rows(sheet, columns, finder):
        image_id = None if isinstance(path, str) else ids.get(os.path.realpath(path))
        if image_id is not None:
            for name in names:
                batches[name][image_id] = cells[name]
    return batches


# -- findings -------------------------------------------------------------------------------------


def _convert_notes(notes: Sequence[str]) -> Iterator[CheckFinding]:
    """Yield a finding for each warning of the table, and for rows and files without a partner."""
    for note in notes:
        if _SAID_ELSEWHERE.search(note):
            continue
        if note.startswith("warning: "):
            text, _, remedy = note.removeprefix("warning: ").partition("; ")
            severity = "note" if _NO_PATIENTS in note else "problem"
            yield CheckFinding("note" if severity == "note" else "problem", "table", "the table",
                               text, remedy)  # fmt: skip
        elif "beside the images are not in the table" in note:
            remedy = "add rows for them, or leave them out on purpose"
            yield CheckFinding("note", "files", "files without a row", note, remedy)
        elif "repeated rows dropped" in note or "left out" in note or "is not used" in note:
            yield CheckFinding("note", "table", "rows and columns", note)


def _find_set_aside(rows: Sequence[SetAside]) -> Iterator[CheckFinding]:
    """Yield a finding for the rows without a file, and one for the other rows set aside."""
    kinds: dict[str, dict[str, str]] = defaultdict(dict)
    for row in rows:
        missing = row.reason.startswith(("no file", "no path"))
        name = row.image_id if row.image_id not in kinds["missing"] else f"row {row.row}"
        kinds["missing" if missing else "row"][name] = row.reason
    if missing_rows := kinds["missing"]:
        yield CheckFinding(
            "problem",
            "missing",
            _count_rows(missing_rows),
            f"no file for {_count_rows(missing_rows)}: {several(list(missing_rows))}",
            "copy the files, or correct the paths; these rows would be left out",
            missing_rows,
            weight=5.0,
        )
    if others := kinds["row"]:
        yield CheckFinding(
            "problem",
            "row",
            _count_rows(others),
            f"{_count_rows(others)} of no use, the first: {next(iter(others.values()))}",
            "correct these rows; they would be left out",
            others,
            weight=4.0,
        )


def _count_rows(rows: Mapping[str, str]) -> str:
    return "1 row" if len(rows) == 1 else f"{len(rows)} rows"


def _find_several_images(cases: Sequence[Case]) -> Iterator[CheckFinding]:
    """Yield a note if patients have several images of one label, which may answer together."""
    count = Counter(case.patient_id for case in cases)
    labels = {(case.patient_id, case.label) for case in cases if case.label is not None}
    mixed = {patient for patient, n in Counter(p for p, _ in labels).items() if n > 1}
    numbers = [n for patient, n in count.items() if n > 1 and patient not in mixed]
    if numbers:
        span = str(max(numbers))
        span = f"{min(numbers)} to {span}" if min(numbers) < max(numbers) else span
        yield CheckFinding(
            "note",
            "patients",
            "patients with several images",
            f"{len(numbers)} of {len(count)} patients have several images ({span})",
            "by default each image is answered; train with --bag patient for one answer for each "
            "patient, from all images together",
        )


def _find_in_labels(cases: Sequence[Case]) -> Iterator[CheckFinding]:
    """Yield a finding about patients whose images have several labels.

    Where only few patients do, they look like mistakes.
    """
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        if case.label is not None:
            labels[case.patient_id][case.label] += 1
    with_several = [patient for patient, words in labels.items() if words.total() > 1]
    mixed = [patient for patient in with_several if len(labels[patient]) > 1]
    if not mixed:
        return
    rare = len(mixed) <= max(1, _RARE * len(with_several))
    patient = mixed[0]
    words = ", ".join(f"{label} {n}" for label, n in labels[patient].items())
    images = {
        case.image_id: f"patient {case.patient_id}: {case.label}"
        for case in cases
        if case.patient_id in set(mixed)
    }
    who = f"{len(mixed)} patients have" if mixed[1:] else "1 patient has"
    yield CheckFinding(
        "problem" if rare else "note",
        "labels",
        f"patients {several(mixed)}" if mixed[1:] else f"patient {patient}",
        f"{who} images of several labels ({patient}: {words}), of {len(with_several)} patients "
        "with several images",
        "correct the label where it is that of the patient; all images of a patient stay in one "
        "part of the split in any case",
        images,
        weight=2.0,
    )
