"""Join the images of each patient to one case (``--bag patient``)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from foveate.errors import TableError
from foveate.table.files import safe_id
from foveate.table.folds import Fold, Splits, split_hash
from foveate.table.types import Case, CaseTable
from foveate.wording import several


def bag_by_patient(table: CaseTable) -> CaseTable:
    """Return a table with one case for each patient, which holds all images of the patient.

    The id of a case is that of its patient, with digits added where an image of another case, or
    one of several images, has the same id. An image without a label says nothing about that of its
    patient.

    Args:
        table: the table, with one case for each image.

    Raises:
        TableError: images of a patient have different labels or sites; the message names them.
    """
    groups: dict[str, list[Case]] = {}
    for case in table.cases:
        groups.setdefault(case.patient_id, []).append(case)
    _check_agreement(groups, "label", "labels")
    _check_agreement(groups, "site", "sites")
    ids = _name_cases(groups)
    cases = tuple(_join_images(ids[patient], images) for patient, images in groups.items())
    numbers = [len(images) for images in groups.values() if len(images) > 1]
    many = "one each, since no two images name the same patient"
    if numbers:
        many = f"{len(numbers)} of them with several (up to {max(numbers)})"
    note = f"one answer for each of {len(cases)} patients, from {len(table.cases)} images: {many}"
    return replace(table, cases=cases, notes=(*table.notes, note))


def _join_images(name: str, images: Sequence[Case]) -> Case:
    """Return one case of the images of a patient, who agree in label and site."""
    label = next((image.label for image in images if image.label is not None), None)
    return Case(
        name,
        images[0].patient_id,
        images[0].path,
        label=label,
        site=next((image.site for image in images if image.site is not None), None),
        images=tuple(replace(image, label=label) for image in images),
    )


def _check_agreement(groups: Mapping[str, Sequence[Case]], key: str, words: str) -> None:
    """Raise `TableError` if the images of a patient differ in an attribute."""
    known = {
        patient: sorted({str(getattr(i, key)) for i in images if getattr(i, key) is not None})
        for patient, images in groups.items()
    }
    mixed = [f"'{p}' ({', '.join(found)})" for p, found in known.items() if len(found) > 1]
    if mixed:
        raise TableError(
            f"--bag patient gives each patient one answer, but {len(mixed)} have images of several "
            f"{words}: {several(mixed)}. Correct the table, or leave --bag out"
        )


def _name_cases(groups: Mapping[str, Sequence[Case]]) -> dict[str, str]:
    """Return the id of the case of each patient: no id of an image, but that of its only one."""
    of_images = Counter(image.image_id.casefold() for images in groups.values() for image in images)
    plain = {patient: safe_id(patient) for patient in groups}
    count = Counter(name.casefold() for name in plain.values())
    ids = {}
    for patient, images in groups.items():
        name = plain[patient]
        own = len(images) == 1 and images[0].image_id == name
        clashes = count[name.casefold()] > 1 or (of_images[name.casefold()] > 0 and not own)
        digest = hashlib.sha256(patient.encode("utf-8", "surrogateescape")).hexdigest()
        ids[patient] = f"{name}-{digest[:8]}" if clashes else name
    return ids


def gather_splits(splits: Splits, cases: Sequence[Case]) -> Splits:
    """Return a split of single images as one of the cases that hold them.

    Args:
        splits: the split, in which all images of a patient lie in one part.
        cases: the cases; images that the split leaves out may be among theirs.
    """
    case_of = {image.image_id: case for case in cases for image in case.list_images()}

    def gather(image_ids: Sequence[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(case_of[i].image_id for i in image_ids))

    folds = tuple(Fold(gather(f.train), gather(f.val), gather(f.test)) for f in splits.folds)
    patients = {case_of[i].image_id: patient for i, patient in splits.patients.items()}
    seed = splits.seed
    return replace(splits, folds=folds, patients=patients, hash=split_hash(folds, patients, seed))
