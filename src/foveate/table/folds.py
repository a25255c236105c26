"""A split as it is kept: folds of image ids, a hash, and the checks made at every load."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from foveate.errors import CheckpointError, SplitError, several
from foveate.files.atomic import write_json
from foveate.files.fields import Fields, read_fields
from foveate.table.same import patient_key
from foveate.table.types import Case

_SCHEMA = 1


@dataclass(frozen=True)
class Fold:
    """Image ids of the three parts; `val` is the inner part that may be looked at in training."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Name of a part to its image ids."""
        return {"train": self.train, "val": self.val, "test": self.test}


@dataclass(frozen=True)
class Splits:
    """Folds over the same images.

    Attributes:
        patients: image id to patient id.
        hash: of all the rest; a model keeps it, to tell which images it has never seen.
    """

    folds: tuple[Fold, ...]
    patients: dict[str, str]
    seed: int
    hash: str

    def check(self, cases: Sequence[Case] | None = None) -> None:
        """Assert that nobody is on two sides, and nothing was changed or left out.

        Args:
            cases: if given, the split must be over exactly these images and patients.

        Raises:
            SplitError: what is wrong, and with whom.
        """
        if self.hash != split_hash(self.folds, self.patients, self.seed):
            raise SplitError("the split was changed after it was written: its hash does not fit")
        if not self.folds:
            raise SplitError("the split has no folds")
        for i, fold in enumerate(self.folds):
            _check_fold(f"fold {i}", fold, self.patients)
        if len(self.folds) > 1:
            _check_outer(self.folds)
        if cases is not None:
            self._check_cases(cases)

    def _check_cases(self, cases: Sequence[Case]) -> None:
        given = {case.image_id: case.patient_id for case in cases}
        other = sorted(given.keys() ^ self.patients.keys())
        other = other or sorted(
            i for i in given if patient_key(given[i]) != patient_key(self.patients[i])
        )
        if other:
            raise SplitError(
                f"the split is not of this table: {several(other)} differ; use the table it was "
                "made from, or another run folder"
            )


def save_splits(splits: Splits, path: Path, *, labels: Mapping[str, str] | None = None) -> None:
    """Write as JSON, whole or not at all; labels of images go beside, for reports only.

    Raises:
        SplitError: it does not pass its own check.
    """
    splits.check()
    write_json(
        path,
        {
            "schema": _SCHEMA,
            "hash": splits.hash,
            "seed": splits.seed,
            "patients": splits.patients,
            "labels": dict(labels or {}),
            "folds": [{k: list(v) for k, v in fold.parts().items()} for fold in splits.folds],
        },
    )


def load_splits(path: Path) -> Splits:
    """Read what `save_splits` wrote; hash and disjointness are asserted.

    Raises:
        SplitError: no such file, damaged, of another version, changed, or leaking.
    """
    if not path.is_file():
        raise SplitError(f"{path}: no such split")
    try:
        fields = read_fields(path)
        schema = fields.whole("schema", 0, 1 << 30)
        if schema != _SCHEMA:
            raise SplitError(f"{path}: schema {schema}, this version reads {_SCHEMA}")
        patients = fields.part("patients")
        folds = [Fields(fold, f"{path}: folds") for fold in fields.items("folds")]
        parts = ("train", "val", "test")
        splits = Splits(
            tuple(Fold(*(fold.texts(part, least=0) for part in parts)) for fold in folds),
            {image_id: patients.text(image_id) for image_id in patients.plain()},
            fields.whole("seed", -(1 << 63), 1 << 63),
            fields.text("hash"),
        )
    except CheckpointError as error:
        raise SplitError(str(error)) from error
    try:
        splits.check()
    except SplitError as error:
        raise SplitError(f"{path}: {error}") from None
    return splits


# -- checks -----------------------------------------------------------------------------------


def split_hash(folds: Iterable[Fold], patients: dict[str, str], seed: int) -> str:
    """SHA-256 of everything a split says."""
    value = {
        "schema": _SCHEMA,
        "seed": seed,
        "patients": patients,
        "folds": [fold.parts() for fold in folds],
    }
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _check_fold(name: str, fold: Fold, patients: dict[str, str]) -> None:
    ids = [*fold.train, *fold.val, *fold.test]
    twice = [i for i, n in Counter(ids).items() if n > 1]
    if twice:
        raise SplitError(f"{name}: {several(sorted(twice))} occur more than once")
    other = sorted(set(ids) ^ patients.keys())
    if other:
        raise SplitError(f"{name}: {several(other)} are missing or have no patient")
    if not fold.train:
        raise SplitError(f"{name}: nothing is left to train on")
    side: dict[str, str] = {}
    for part, members in fold.parts().items():
        for image_id in members:
            patient = patients[image_id]
            if side.setdefault(patient, part) != part:
                raise SplitError(f"{name}: patient '{patient}' is in {side[patient]} and in {part}")


def _check_outer(folds: Sequence[Fold]) -> None:
    """With several folds, every image is tested exactly once."""
    tested = Counter(i for fold in folds for i in fold.test)
    total = {i for fold in folds for part in fold.parts().values() for i in part}
    wrong = sorted(i for i in total if tested[i] != 1)
    if wrong:
        raise SplitError(f"{several(wrong)} are tested {tested[wrong[0]]} times, expected once")
