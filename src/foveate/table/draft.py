"""Draft a table from a folder: paths, and the labels and patients that its names are sure about."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from foveate.errors import TableError
from foveate.files.atomic import write_text
from foveate.files.csvtext import csv_text
from foveate.table.files import image_files
from foveate.wording import several

COLUMNS = ("path", "patient_id", "label")
_TCGA = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?=-|\.|_|$)")
"""The barcode of a patient of The Cancer Genome Atlas, at the beginning of the names of files."""
_MIN_PER_CLASS, _MAX_CLASSES = 2, 20
_NO_CLASS = re.compile(
    r"images?|imgs?|slides?|scans?|data|raw|files?|masks?|labels?|thumbnails?|train(ing)?|val(id"
    r"ation)?|test(ing)?|fold_?\d+|batch_?\d+|part_?\d+|site_?\w{1,3}|cent(er|re)_?\w{1,3}"
    r"|patients?|case[-_ ]?\w*\d+|pat(ient)?[-_ ]?\w*\d+|p[-_ ]?\d+|sub(ject)?[-_]?\w*\d+|\d{3,}",
    re.IGNORECASE,
)
"""Names of folders that are no classes: parts of a data set, and patients."""
_PATIENT_FOLDER = re.compile(
    r"(?:p|pat|patient|case|sub|subject|id)[-_ ]?\w*\d+|[A-Za-z]{0,6}[-_]?\d{3,}", re.IGNORECASE
)
"""Names of folders that are those of one patient each."""


@dataclass(frozen=True)
class DraftRow:
    """One row of the drafted table.

    Attributes:
        path: the image's file.
        patient_id: the patient; empty where names do not say it for certain.
        label: the label; empty where folders do not say it.
    """

    path: Path
    patient_id: str
    label: str


@dataclass(frozen=True)
class Draft:
    """A drafted table.

    Attributes:
        rows: one row per image.
        notes: how patients and labels were found, and what is left to fill in.
    """

    rows: tuple[DraftRow, ...]
    notes: tuple[str, ...]


def draft_rows(folder: Path, is_image: Callable[[Path], bool] = lambda _: False) -> Draft:
    """List the images of a folder with the patients and labels that its names are sure about.

    Patients: TCGA barcodes; or folders that are named as patients and of which most hold several
    images. Labels: folders directly below `folder` that each hold several images and are not named
    as patients or parts of a data set.

    Args:
        folder: the folder, which may be one image itself.
        is_image: returns whether a folder is one image.

    Raises:
        TableError: the folder does not exist, or holds no image.
    """
    if not folder.is_dir():
        raise TableError(f"{folder}: no such folder; give the folder of the images")
    paths = [folder] if is_image(folder) else list(image_files(folder, is_image=is_image))
    if not paths:
        raise TableError(
            f"{folder} holds no file that could be an image: give the folder of the images"
        )
    labels, label_note = _find_labels(paths, folder)
    patients, patient_note = _find_patients(paths, folder)
    rows = tuple(DraftRow(path, patients.get(path, ""), labels.get(path, "")) for path in paths)
    return Draft(rows, (f"{len(paths)} images in {folder}", label_note, patient_note))


def write_draft(draft: Draft, out: Path) -> None:
    """Write a drafted table with paths relative to its own folder, where they lie below it.

    Args:
        draft: the table.
        out: the file, which must not exist.

    Raises:
        TableError: the file exists.
    """
    if out.exists() or out.is_symlink():
        raise TableError(
            f"{out} exists already, and is left as it is: give another --out, or move it away"
        )
    base = out.absolute().parent
    rows = [
        {
            "path": _shorten(row.path.absolute(), base),
            "patient_id": row.patient_id,
            "label": row.label,
        }
        for row in draft.rows
    ]
    write_text(out, csv_text(rows, COLUMNS))


def _shorten(path: Path, base: Path) -> str:
    return (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()


def _find_labels(paths: Sequence[Path], folder: Path) -> tuple[dict[Path, str], str]:
    """Return the labels that the folders name, by path, and a note about them."""
    names = {path: path.relative_to(folder).parts[:-1] for path in paths}
    counts = Counter(parts[0] for parts in names.values() if parts)
    listed = several([f"{name} {n}" for name, n in sorted(counts.items())], 6)
    fill = "fill in the column 'label': one value for each image, such as tumour or normal"
    if len(counts) < 2 or counts.total() < len(paths):
        return {}, f"labels: no folder for each class; {fill}"
    few = [name for name, n in counts.items() if n < _MIN_PER_CLASS]
    odd = [name for name in counts if _NO_CLASS.fullmatch(name)]
    if few or odd or len(counts) > _MAX_CLASSES:
        return {}, f"labels: the folders ({listed}) do not look like classes; {fill}"
    return (
        {path: parts[0] for path, parts in names.items()},
        f"labels: from the folders ({listed}); correct the column 'label' if these are no classes",
    )


def _find_patients(paths: Sequence[Path], folder: Path) -> tuple[dict[Path, str], str]:
    """Return the patients that names are sure about, by path, and a note about them."""
    barcodes = {path: found[0] for path in paths if (found := _TCGA.match(path.name))}
    if len(barcodes) == len(paths):
        n = len(set(barcodes.values()))
        return barcodes, f"patients: {n}, from the TCGA barcodes in the names"
    inner: dict[str, list[Path]] = defaultdict(list)
    for path in paths:
        if path.parent != folder:
            inner[path.parent.name].append(path)
    named = all(_PATIENT_FOLDER.fullmatch(name) for name in inner)
    several_images = sum(len(group) > 1 for group in inner.values())
    complete = sum(map(len, inner.values())) == len(paths)
    if complete and named and len(inner) > 1 and several_images > len(inner) / 2:
        return (
            {path: name for name, group in inner.items() for path in group},
            f"patients: {len(inner)}, one for each folder of images "
            f"({several(sorted(inner))}); correct the column 'patient_id' if these are none",
        )
    return {}, (
        "patients: the names do not say for certain which images are of one patient; fill in the "
        "column 'patient_id', or delete it if each image is a patient of its own"
    )
