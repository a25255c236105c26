"""Recognise the role of each column, also in the tables of other tools."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from foveate.errors import TableError
from foveate.table.choice import Role, choose_column, find_named, first_filled
from foveate.table.joined import describe_parts, find_parts, name_joined, named_parts
from foveate.table.same import label_key, patient_key, plain_name
from foveate.table.types import TableSheet
from foveate.table.unused import describe_unused
from foveate.tasks import AUTO

PATH = (
    *("path", "image_path", "file", "filename", "file_name", "filepath", "file_path"),
    *("wsi_path", "slide_path", "image_file", "wsi", "image", "img", "image_index", "origin"),
    *("slide_id", "slide", "image_id", "sample_id", "wsi_id"),
)
IMAGE_ID = ("image_id", "sample_id", "slide_id", "wsi_id")
PATIENT = (
    *("patient_id", "patient", "patientid", "case_id", "case", "caseid", "subject_id", "subject"),
    "slide",
)
LABEL = ("label", "labels", "class", "target", "category", "diagnosis_label", "outcome", "y")
_PATIENT_ROLE = Role(
    "patient",
    "patients",
    tuple(name for name in PATIENT if name != "slide"),
    frozenset({"patient_id", "patient", "patientid"}),
    patient_key,
)
_LABEL_ROLE = Role(
    "label",
    "labels",
    tuple(name for name in LABEL if name != "y"),
    frozenset({"label", "labels"}),
    label_key,
)
SITE = ("site", "center", "centre", "hospital", "institution", "site_id", "tissue_source_site")
SPACING_Y = ("mpp_y", "spacing_y", "spacing_um_y")
SPACING_X = ("mpp_x", "spacing_x", "spacing_um_x")
SPACING = (
    *("mpp", "spacing", "spacing_um", "spacing_at_level_0"),
    *("um_per_px", "microns_per_pixel", "pixel_size_um"),
)
_MASK = ("mask", "mask_path")
_NO_LABEL = (
    *_MASK,
    *("site", "center", "centre", "split", "fold", "note", "notes", "comment"),
    *("width", "height", "stain", "scanner", "source", "age", "sex", "gender", "series", "time"),
    *("embeddings", "objective", "magnification", "status", "dataset", "cohort", "project_id"),
    *("index", "id", "shape", "dtype", "full_width", "full_height", "full_mpp"),
)
_DIALECTS = (
    ("slide2vec", {"sample_id", "image_path"}),
    ("eva", {"origin", "embeddings"}),
    ("Patho-Bench", {"case_id", "slide_id", "fold_0"}),
    ("CLAM", {"case_id", "slide_id"}),
    ("STAMP", {"patient", "filename"}),
    ("slideflow", {"patient", "slide"}),
    ("TRIDENT", {"wsi"}),
)


def header_names(names: NamedColumns) -> frozenset[str]:
    """Return the names, after `plain_name`, by which the header of a table is recognised."""
    labels = (names.label, *(names.label or "").split(","))
    named_ones = (names.path, names.patient, *labels)
    return frozenset({*PATH, *PATIENT, *LABEL, *SPACING, *(plain_name(n) for n in named_ones if n)})


@dataclass(frozen=True)
class Columns:
    """The column of each role.

    Attributes:
        path: column of the images' paths.
        image_id: column of the images' names, or None.
        patient_id: column of the patients' names, or None.
        label: column of the labels, or None.
        spacing: columns of the spacing: one, one each for y and x, or none.
        notes: lines to show to the user.
        parts: the columns that hold the label together, and are joined to `label`; none where
            `label` is a column of the table.
        site: column of the sites, where splits hold sites out.
        mask: column of files of masks, or None.
    """

    path: str
    image_id: str | None
    patient_id: str | None
    label: str | None
    spacing: tuple[str, ...]
    notes: tuple[str, ...]
    parts: tuple[str, ...] = ()
    site: str | None = None
    mask: str | None = None

    def by_role(self) -> dict[str, str]:
        """Return the columns by their role, without those that do not exist."""
        columns = {
            "path": self.path,
            "image_id": self.image_id,
            "patient_id": self.patient_id,
            "label": self.label,
            "spacing": ", ".join(self.spacing),
            "site": self.site,
        }
        return {role: column for role, column in columns.items() if column}


@dataclass(frozen=True)
class NamedColumns:
    """The columns that the user names; None for those to be recognised.

    Attributes:
        path: column of the images' paths.
        patient: column of the patients.
        label: column of the labels.
        site: column of the sites; one of the usual names stands for any of them.
    """

    path: str | None = None
    patient: str | None = None
    label: str | None = None
    site: str | None = None


def recognise(
    sheet: TableSheet,
    names: NamedColumns,
    *,
    need_label: bool,
    to_train: bool = True,
    task: str = AUTO,
) -> Columns:
    """Find the column of each role.

    Args:
        sheet: the table.
        names: the columns that the user names.
        need_label: whether there must be a column of labels.
        to_train: whether it must be clear which column names the patients.
        task: name of the task, which may recognise columns that hold the label together.

    Raises:
        TableError: a named column does not exist, or there is none for the path or the label.
    """
    path = find_named(sheet, names.path, "path") or first_filled(sheet, PATH)
    if path is None:
        raise TableError(_no_path_message(sheet))
    patient, patient_notes = choose_patient(
        sheet, names.patient, {path, names.label}, strict=to_train
    )
    image_id = first_filled(sheet, IMAGE_ID, {names.patient, names.label})
    spacing, site = _spacing_columns(sheet), _find_site(sheet, names.site)
    parts = named_parts(sheet, names.label)
    label = None if parts else find_named(sheet, names.label, "label")
    label_notes: tuple[str, ...] = ()
    if label is None and not parts:
        taken = {t for t in (path, patient, image_id, site, *spacing) if t}
        parts = _find_label_parts(sheet, task, taken) if need_label else ()
        if not parts:
            label, label_notes = _label_column(sheet, taken, need=need_label)
    label = name_joined(parts) if parts else label
    mask = first_filled(sheet, _MASK, {names.path, names.label, names.patient})
    columns = Columns(path, image_id, patient, label, spacing, (), parts, site, mask)
    roles = ", ".join(f"{role} = '{column}'" for role, column in columns.by_role().items())
    used = {path, image_id, patient, label, site, *spacing, *parts}
    notes = (
        f"columns ({_dialect(sheet)}): {roles}",
        *patient_notes,
        *_patient_notes(columns),
        *label_notes,
        *describe_unused(sheet, {column for column in used if column}),
    )
    return replace(columns, notes=notes)


def choose_patient(
    sheet: TableSheet, named: str | None, but: set[str | None], *, strict: bool
) -> tuple[str | None, tuple[str, ...]]:
    """Choose the column of the patients; return it, or None, and notes for the user.

    Args:
        sheet: the table.
        named: the column that the user names, or None.
        but: columns that are left out.
        strict: whether it is refused that several columns could be meant.

    Raises:
        TableError: the named column does not exist, or it is unclear which one is meant.
    """
    if column := find_named(sheet, named, "patient"):
        return column, ()
    column, notes = choose_column(sheet, _PATIENT_ROLE, but, strict=strict)
    return column or first_filled(sheet, ("slide",), but), notes


def _find_site(sheet: TableSheet, named: str | None) -> str | None:
    """Find the column of the sites that the user names; a usual name stands for the others."""
    if named is None:
        return None
    is_there = any(plain_name(column) == plain_name(named) for column in sheet.columns)
    usual = first_filled(sheet, SITE) if plain_name(named) in SITE and not is_there else None
    return usual or find_named(sheet, named, "split.site")


def _spacing_columns(sheet: TableSheet) -> tuple[str, ...]:
    """Return the columns of the spacing: y and x, one for both, or none."""
    y, x = first_filled(sheet, SPACING_Y), first_filled(sheet, SPACING_X)
    if y and x:
        return (y, x)
    if y or x:
        raise TableError(
            f"{sheet.path}: column '{y or x}' needs one for the other axis as well: add it, or "
            "give one pixel size in a column 'mpp'"
        )
    one = first_filled(sheet, SPACING)
    return (one,) if one else ()


def _label_column(
    sheet: TableSheet, taken: set[str], *, need: bool
) -> tuple[str | None, tuple[str, ...]]:
    """Return the column of labels among those that are not taken, and notes.

    Raises:
        TableError: a label is needed, and it is unclear which column is meant.
    """
    if need:
        known, notes = choose_column(sheet, _LABEL_ROLE, taken)
    else:
        known, notes = first_filled(sheet, LABEL, taken), ()
    known = known or first_filled(sheet, ("y",), taken)
    if known or not need:
        return known, notes
    left = _list_candidates(sheet, taken)
    by_name = [c for c in left if plain_name(c).endswith(("_label", "_class"))]
    for choice in (left, by_name):
        if len(choice) == 1:
            return choice[0], ()
    raise TableError(f"{sheet.path}: {_describe_unclear_label(sheet, taken, left)}")


def _list_candidates(sheet: TableSheet, taken: Collection[str]) -> list[str]:
    """Return the columns that are not taken and whose names do not say that they hold no label."""
    no_label = {*PATH, *IMAGE_ID, *PATIENT, *SPACING, *SPACING_X, *SPACING_Y, *_NO_LABEL}
    return [
        c
        for c in sheet.columns
        if c not in taken
        and plain_name(c) not in no_label
        and not plain_name(c).startswith("fold_")
    ]


def _find_label_parts(sheet: TableSheet, task: str, taken: set[str]) -> tuple[str, ...]:
    """Return the columns that hold the label together, if no other column could be the label.

    Where the task is named, it decides.
    """
    if task != AUTO:
        return find_parts(sheet, task, taken)
    if any(plain_name(column) in LABEL for column in sheet.columns if column not in taken):
        return ()
    parts = find_parts(sheet, task, taken)
    return parts if set(_list_candidates(sheet, taken)) <= set(parts) else ()


def _describe_unclear_label(sheet: TableSheet, taken: set[str], candidates: list[str]) -> str:
    """Describe why none or several of the candidates hold the labels, and what to do."""
    if parts := find_parts(sheet, AUTO, taken):
        return describe_parts(parts)
    if not candidates and first_filled(sheet, PATIENT):
        return (
            "no column holds the label. If the labels of patients stand in a second table, give "
            f"that as the table, and this one with --files {sheet.path.name}"
        )
    named = f"; it could be one of: {', '.join(candidates)}" if candidates else ""
    return f"which column holds the label? Name it with --label{named}"


def _no_path_message(sheet: TableSheet) -> str:
    """Write the message for a table without a column of paths."""
    message = (
        f"{sheet.path}: no column holds the images' paths (columns: {', '.join(sheet.columns)}). "
        "Name it 'path', or say which with --path"
    )
    if first_filled(sheet, PATIENT):
        message += (
            ". If the files stand in a second table (as STAMP's), give that with --files, such as "
            "--files slide.csv"
        )
    return message


def _dialect(sheet: TableSheet) -> str:
    """Name the tool that writes tables with these columns."""
    columns = {plain_name(c) for c in sheet.columns}
    return next((f"as {name} writes" for name, need in _DIALECTS if need <= columns), "recognised")


def _patient_notes(columns: Columns) -> tuple[str, ...]:
    """Return a note if no column names the patient."""
    if columns.patient_id is None:
        return (
            "warning: patient_id defaults to image_id. If a patient has several images, name the "
            "patient's column with --patient, or the scores will look better than they are",
        )
    if plain_name(columns.patient_id) == "slide":
        return ("images are grouped by 'slide': no column names the patient",)
    return ()
