"""Look up the names of stored splits among the images of a table, and check what comes of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from foveate.errors import SplitError
from foveate.table.files import safe_id, stem
from foveate.table.folds import Fold, Splits, split_hash
from foveate.table.identical import patient_names
from foveate.table.same import clean, patient_key
from foveate.table.splits import draw_val
from foveate.table.stored_splits import PARTS, StoredSplits
from foveate.table.types import Case
from foveate.wording import several

Lookup = Callable[[str], frozenset[str]]


@dataclass(frozen=True)
class JoinedSplits:
    """Stored splits over the images of a table.

    Attributes:
        splits: the splits.
        notes: lines to show to the user.
        left_out: ids of the images that are in no part of any fold.
    """

    splits: Splits
    notes: tuple[str, ...]
    left_out: frozenset[str]


def join_splits(
    stored: StoredSplits,
    cases: Sequence[Case],
    *,
    val_fraction: float,
    seed: int,
    strata: Sequence[str],
) -> JoinedSplits:
    """Look up the names of stored splits among images.

    Where a fold has no validation part, one is drawn from its training part.

    Args:
        stored: the splits as they were written.
        cases: the images.
        val_fraction: share of the training patients to validate on, where one is drawn.
        seed: seed of that draw.
        strata: the stratum of each image.

    Raises:
        SplitError: no name is an image; a name could be two images; an image or a patient is in
            two parts of a fold; or a fold has nothing to train on or to test on.
    """
    lookup = _index_patients(cases) if stored.are_patients else _index_images(cases)
    names = {name for fold in stored.folds for part in PARTS for name in fold.get(part, ())}
    ids_of = {name: lookup(name) for name in sorted(names)}
    missing = [name for name, ids in ids_of.items() if not ids]
    if len(missing) == len(names):
        kind = "patient" if stored.are_patients else "image"
        example = cases[0].patient_id if stored.are_patients else cases[0].image_id
        raise SplitError(
            f"{stored.path}: no name of the split is {kind} of the table (the first is "
            f"'{missing[0] if missing else ''}', the table's '{example}'); give the split of this "
            "table, or write the names alike"
        )
    notes = [_describe_source(stored), _describe_names(len(names), missing)]
    owner = {case.image_id: case.patient_id for case in cases}
    parts = [_assign_parts(stored, k, ids_of, owner) for k in range(len(stored.folds))]
    lacking = [k for k, part_of in enumerate(parts) if "val" not in part_of.values()]
    for k in lacking:
        _draw_validation(parts[k], cases, strata, val_fraction, seed)
    if lacking:
        notes.append(
            f"{len(lacking)} of {len(parts)} folds have no validation part: a share of "
            f"{val_fraction:g} of the training patients, stratified, takes its place"
        )
    return _finish(stored, parts, owner, seed, notes)


def _finish(
    stored: StoredSplits,
    parts: Sequence[Mapping[str, str]],
    owner: Mapping[str, str],
    seed: int,
    notes: list[str],
) -> JoinedSplits:
    """Build the splits from the part of each image in each fold, and describe who is left out."""
    divided = {image_id for part_of in parts for image_id in part_of}
    left_out = frozenset(owner.keys() - divided)
    if left_out:
        notes.append(
            f"warning: {len(left_out)} images are in no part of the split and are left out: "
            f"{several(sorted(left_out))}"
        )
    tested = Counter(i for part_of in parts for i, part in part_of.items() if part == "test")
    repeated = sorted(i for i, n in tested.items() if n > 1)
    if repeated:
        notes.append(
            f"{len(repeated)} images are tested in several folds, and count as often: "
            f"{several(repeated)}"
        )
    patients = {image_id: owner[image_id] for image_id in sorted(divided)}
    folds = tuple(
        Fold(*(tuple(sorted(i for i, p in part_of.items() if p == part)) for part in PARTS))
        for part_of in parts
    )
    source = f"{stored.dialect}: {stored.path}"
    splits = Splits(folds, patients, seed, split_hash(folds, patients, seed), source=source)
    splits.check()
    return JoinedSplits(splits, tuple(notes), left_out)


def _describe_source(stored: StoredSplits) -> str:
    n = len(stored.folds)
    kind = "patients" if stored.are_patients else "images"
    whose = "a column of the table" if stored.dialect == "table" else f"as {stored.dialect} writes"
    return f"split ({whose}): {n} fold{'' if n == 1 else 's'} of {kind} from {stored.path}"


def _describe_names(n: int, missing: list[str]) -> str:
    if not missing:
        return f"all {n} names of the split are in the table"
    return (
        f"warning: {len(missing)} of {n} names of the split have no usable image: "
        f"{several(missing)}"
    )


# -- names ----------------------------------------------------------------------------------------


def _index_images(cases: Sequence[Case]) -> Lookup:
    """Return a function from a name to the images that it means, by id, file name or path."""
    exact: dict[str, set[str]] = defaultdict(set)
    loose: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        file = case.path.name
        for name in (case.image_id, file, stem(file), str(case.path)):
            exact[name].add(case.image_id)
        for name in (case.image_id, stem(file)):
            loose[patient_key(name)].add(case.image_id)
    return lambda name: _choose_image(name, exact, loose)


def _choose_image(
    name: str, exact: Mapping[str, set[str]], loose: Mapping[str, set[str]]
) -> frozenset[str]:
    """Return the image that a name means, or none.

    Raises:
        SplitError: it could be several.
    """
    file = PurePosixPath(clean(name).replace("\\", "/")).name
    keys = (name, clean(name), file, stem(file), safe_id(stem(file)))
    for ids in (*(exact.get(key) for key in keys), loose.get(patient_key(stem(file)))):
        if ids and len(ids) > 1:
            raise SplitError(
                f"'{name}' of the split could be {several(sorted(ids))}: name the images of the "
                "split as in the table's column of ids"
            )
        if ids:
            return frozenset(ids)
    return frozenset()


def _index_patients(cases: Sequence[Case]) -> Lookup:
    """Return a function from the name of a patient to the images of the patient."""
    images: dict[str, set[str]] = defaultdict(set)
    for case in cases:
        for name in patient_names(case.patient_id):
            images[patient_key(name)].add(case.image_id)
    return lambda name: frozenset(images.get(patient_key(name), ()))


# -- parts ----------------------------------------------------------------------------------------


def _assign_parts(
    stored: StoredSplits, k: int, ids_of: Mapping[str, Iterable[str]], owner: Mapping[str, str]
) -> dict[str, str]:
    """Return the part of each image in fold k.

    Raises:
        SplitError: an image or a patient is in two parts, or a part is empty.
    """
    where, part_of = f"{stored.path}, fold {k}", dict[str, str]()
    for part in PARTS:
        for image_id in (i for name in stored.folds[k].get(part, ()) for i in ids_of[name]):
            other = part_of.setdefault(image_id, part)
            if other != part:
                raise SplitError(
                    f"{where}: image '{image_id}' is in {other} and in {part}: take it out of one"
                )
    _check_patients(where, part_of, owner)
    for part in ("train", "test"):
        if part not in part_of.values():
            raise SplitError(
                f"{where}: the {part} part holds no image of the table: give a split with images "
                "to train on and to test on"
            )
    return part_of


def _check_patients(where: str, part_of: Mapping[str, str], owner: Mapping[str, str]) -> None:
    """Raise `SplitError` if patients are in two parts; the message names them."""
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    for image_id in sorted(part_of):
        parts[owner[image_id]].setdefault(part_of[image_id], image_id)
    crossing = sorted(patient for patient, images in parts.items() if len(images) > 1)
    if crossing:
        (a, first), (b, second), *_ = parts[crossing[0]].items()
        raise SplitError(
            f"{where}: {len(crossing)} patients are in two parts: {several(crossing)}. Image "
            f"'{first}' of '{crossing[0]}' is in {a}, '{second}' in {b}: scores would be too good. "
            "Put all images of a patient into one part"
        )


def _draw_validation(
    part_of: dict[str, str],
    cases: Sequence[Case],
    strata: Sequence[str],
    val_fraction: float,
    seed: int,
) -> None:
    """Move a share of the training patients of a fold to its validation part."""
    pairs = [
        (c, s) for c, s in zip(cases, strata, strict=True) if part_of.get(c.image_id) == "train"
    ]
    train = [case for case, _ in pairs]
    chosen = draw_val(
        train, val_fraction=val_fraction, seed=seed, strata=[stratum for _, stratum in pairs]
    )
    part_of.update({case.image_id: "val" for case in train if case.patient_id in chosen})
