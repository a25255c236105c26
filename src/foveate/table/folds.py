"""Store splits as folds of image ids with a hash, and check them whenever they are loaded."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from foveate.errors import CheckpointError, SplitError
from foveate.files.atomic import write_json
from foveate.files.fields import Fields, read_fields
from foveate.table.same import patient_key
from foveate.table.types import Case
from foveate.wording import several

_SCHEMA = 1
_AGAIN = ". Restore splits.json from a copy, or give another --out for a new run"


@dataclass(frozen=True)
class Fold:
    """The image ids of the three parts of one fold.

    Attributes:
        train: images to train on.
        val: images by which training chooses weights and thresholds.
        test: images to test on.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Return the image ids by the name of the part."""
        return {"train": self.train, "val": self.val, "test": self.test}


@dataclass(frozen=True)
class Splits:
    """One or several folds over the same images.

    Attributes:
        folds: the folds.
        patients: patient id by image id.
        seed: the seed that the folds were drawn with.
        hash: hash of all of the above; a model stores it to recognise images of its training.
        repeats: in how many of several folds each image is tested.
        source: where folds that were not drawn come from; such folds may leave images out, and
            test them in any number. Empty for drawn folds.
    """

    folds: tuple[Fold, ...]
    patients: dict[str, str]
    seed: int
    hash: str
    repeats: int = 1
    source: str = ""

    def check(self, cases: Sequence[Case] | None = None) -> None:
        """Check that no patient is in two parts, and that nothing was changed or left out.

        Args:
            cases: the cases that the split must be over; None to leave this out.

        Raises:
            SplitError: a check fails; the message names images or patients.
        """
        if self.hash != split_hash(self.folds, self.patients, self.seed):
            raise SplitError(
                f"the split was changed after it was written: its hash does not fit{_AGAIN}"
            )
        if not self.folds:
            raise SplitError(f"the split has no folds{_AGAIN}")
        for i, fold in enumerate(self.folds):
            _check_fold(f"fold {i}", fold, self.patients, complete=not self.source)
        if len(self.folds) > 1 and not self.source:
            _check_outer(self.folds, self.repeats)
        if cases is not None:
            self._check_cases(cases)

    def _check_cases(self, cases: Sequence[Case]) -> None:
        """Raise `SplitError` unless the split is over exactly these images and patients."""
        patients = {case.image_id: case.patient_id for case in cases}
        other = sorted(patients.keys() ^ self.patients.keys())
        other = other or sorted(
            i for i in patients if patient_key(patients[i]) != patient_key(self.patients[i])
        )
        if other:
            raise SplitError(
                f"the split is not of this table: {several(other)} differ; use the table it was "
                "made from, or another run folder"
            )


def save_splits(
    splits: Splits,
    path: Path,
    *,
    labels: Mapping[str, str] | None = None,
    columns: Mapping[str, str] | None = None,
    images: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write splits as JSON, completely or not at all.

    Args:
        splits: the splits.
        path: the file.
        labels: labels by image, for reports only.
        columns: columns of the table that the division follows, by role, for readers only.
        images: ids of the images of each case, where these hold all images of a patient.

    Raises:
        SplitError: the splits do not pass their check.
    """
    splits.check()
    write_json(
        path,
        {
            "schema": _SCHEMA,
            "hash": splits.hash,
            "seed": splits.seed,
            "repeats": splits.repeats,
            "source": splits.source,
            "columns": dict(columns or {}),
            "patients": splits.patients,
            "labels": dict(labels or {}),
            "folds": [{k: list(v) for k, v in fold.parts().items()} for fold in splits.folds],
            **({"images": {case: list(ids) for case, ids in images.items()}} if images else {}),
        },
    )


def load_splits(path: Path) -> Splits:
    """Read splits that `save_splits` wrote, and check them.

    Raises:
        SplitError: the file is missing, damaged, of another version, or was changed; or a patient
            is in two parts.
    """
    if not path.is_file():
        raise SplitError(f"{path}: no such split{_AGAIN}")
    try:
        fields = read_fields(path)
        schema = fields.integer("schema", 0, 1 << 30)
        if schema != _SCHEMA:
            raise SplitError(f"{path}: schema {schema}, this version reads {_SCHEMA}{_AGAIN}")
        splits = _parse_splits(fields, path)
    except CheckpointError as error:
        raise SplitError(str(error)) from error
    try:
        splits.check()
    except SplitError as error:
        raise SplitError(f"{path}: {error}") from None
    return splits


def _parse_splits(fields: Fields, path: Path) -> Splits:
    """Build splits from the fields of their file; raise `CheckpointError` for a damaged field."""
    patients = fields.part("patients")
    folds = [Fields(fold, f"{path}: folds") for fold in fields.items("folds")]
    parts = ("train", "val", "test")
    return Splits(
        tuple(Fold(*(fold.texts(part, min_n=0) for part in parts)) for fold in folds),
        {image_id: patients.text(image_id) for image_id in patients.plain()},
        fields.integer("seed", -(1 << 63), 1 << 63),
        fields.text("hash"),
        fields.integer("repeats", 1, 1 << 30) if "repeats" in fields else 1,
        fields.text("source", may_be_empty=True) if "source" in fields else "",
    )


# -- checks -----------------------------------------------------------------------------------


def split_hash(folds: Iterable[Fold], patients: dict[str, str], seed: int) -> str:
    """Compute the SHA-256 of folds, patients and seed.

    Args:
        folds: parts of every fold.
        patients: patient of each image.
        seed: seed of the split.
    """
    value = {
        "schema": _SCHEMA,
        "seed": seed,
        "patients": patients,
        "folds": [fold.parts() for fold in folds],
    }
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _check_fold(name: str, fold: Fold, patients: dict[str, str], *, complete: bool) -> None:
    """Raise `SplitError` if a fold repeats or lacks images, or has a patient in two parts."""
    ids = [*fold.train, *fold.val, *fold.test]
    twice = [i for i, n in Counter(ids).items() if n > 1]
    if twice:
        raise SplitError(f"{name}: {several(sorted(twice))} occur more than once{_AGAIN}")
    other = sorted(set(ids) ^ patients.keys() if complete else set(ids) - patients.keys())
    if other:
        raise SplitError(f"{name}: {several(other)} are missing or have no patient{_AGAIN}")
    if not fold.train:
        raise SplitError(f"{name}: nothing is left to train on; add images, or make smaller parts")
    part_of: dict[str, str] = {}
    for part, members in fold.parts().items():
        for image_id in members:
            patient = patients[image_id]
            if part_of.setdefault(patient, part) != part:
                raise SplitError(
                    f"{name}: patient '{patient}' is in {part_of[patient]} and in {part}{_AGAIN}"
                )


def _check_outer(folds: Sequence[Fold], repeats: int) -> None:
    """Raise `SplitError` unless each image is tested in one fold of each cross-validation."""
    tested = Counter(i for fold in folds for i in fold.test)
    total = {i for fold in folds for part in fold.parts().values() for i in part}
    wrong = sorted(i for i in total if tested[i] != repeats)
    if wrong:
        expected = "once" if repeats == 1 else f"{repeats} times"
        raise SplitError(
            f"{several(wrong)} are tested {tested[wrong[0]]} times, expected {expected}{_AGAIN}"
        )
