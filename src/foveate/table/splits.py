"""Draw splits by patient, stratified by label; the order of the rows has no influence."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from foveate.errors import SplitError
from foveate.table.folds import Fold, Splits, split_hash
from foveate.table.sites import deal_sites, group_sites
from foveate.table.types import Case


def make_splits(
    cases: Sequence[Case],
    *,
    folds: int = 1,
    test_fraction: float = 0.25,
    val_fraction: float = 0.2,
    seed: int = 0,
    strata: Sequence[str] | None = None,
    by_site: bool = False,
    repeats: int = 1,
) -> Splits:
    """Split patients, stratified by their label (the most frequent one of their images).

    The order of `cases` has no influence.

    Args:
        cases: the cases, with labels.
        folds: 1 for a hold-out; more for cross-validation, where each patient is tested once.
        test_fraction: share of the patients to test on, with one fold.
        val_fraction: share of the other patients to validate on.
        seed: seed of the shuffling.
        strata: the stratum of each image; by default its label.
        by_site: whether all patients of a site are tested together. Validation parts are drawn
            from the patients of the other sites.
        repeats: number of cross-validations, each shuffled anew.

    Raises:
        SplitError: a class has too few patients, or there are too few sites.
    """
    _check_sizes(folds, test_fraction, val_fraction)
    grouped = _group_by_label(cases if strata is None else _with_strata(cases, strata))
    if folds > 1:
        _check_enough(
            grouped, _patients_needed(folds, val_fraction), f"{folds} folds", "fewer folds"
        )
    else:
        need = 1 + (test_fraction > 0) + (val_fraction > 0)
        _check_enough(grouped, need, "train, val and test parts", "smaller parts")
    sites = group_sites(cases) if by_site else {}
    pairs = []
    for repeat in range(repeats):
        order = _shuffle(grouped, seed, repeat)
        if by_site:
            tests = deal_sites(sites, order, folds, test_fraction)
            _check_rest(order, tests, 1 + (val_fraction > 0))
        elif folds > 1:
            tests = _deal(order, folds)
        else:
            tests = [_take_share(order, test_fraction, spare=1 + (val_fraction > 0))]
        pairs += [_add_val(order, test, val_fraction) for test in tests]
    return _build_splits(cases, pairs, seed, repeats)


def draw_val(
    cases: Sequence[Case], *, val_fraction: float, seed: int, strata: Sequence[str]
) -> set[str]:
    """Draw the patients of a validation part from a training part, stratified by label.

    Args:
        cases: the images of the training part.
        val_fraction: share of the patients to validate on.
        seed: seed of the shuffling.
        strata: the stratum of each image.

    Raises:
        SplitError: a class has too few patients.
    """
    grouped = _group_by_label(_with_strata(cases, strata))
    _check_enough(grouped, 2, "train and val parts", "a split with a validation part")
    return _take_share(_shuffle(grouped, seed, 0), val_fraction, spare=1)


# -- assigning patients to parts --------------------------------------------------------------


def _with_strata(cases: Sequence[Case], strata: Sequence[str]) -> list[Case]:
    """Replace the labels of cases by their strata."""
    return [replace(case, label=label) for case, label in zip(cases, strata, strict=True)]


def _group_by_label(cases: Sequence[Case]) -> dict[str, list[str]]:
    """Group patients by their most frequent label; labels and patients are sorted.

    Where two labels of a patient are equally frequent, the label with fewer images counts, since a
    rare class has few patients.
    """
    if not cases:
        raise SplitError("there are no cases to split: give some")
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        if case.label is None:
            raise SplitError(
                f"'{case.image_id}' has no label, so it cannot be split by label; give it one"
            )
        votes[case.patient_id][case.label] += 1
    images = Counter(case.label for case in cases)
    strata: dict[str, list[str]] = defaultdict(list)
    for patient in sorted(votes):
        counts = votes[patient]
        label = min(counts, key=lambda word: (-counts[word], images[word], word))
        strata[label].append(patient)
    return {label: strata[label] for label in sorted(strata)}


def _shuffle(strata: dict[str, list[str]], seed: int, repeat: int) -> dict[str, list[str]]:
    """Shuffle the patients of each label; each repetition has an order of its own."""
    rng = np.random.default_rng((seed, 0x5EED, repeat) if repeat else (seed, 0x5EED))
    return {label: [p[i] for i in rng.permutation(len(p))] for label, p in strata.items()}


def _check_sizes(folds: int, test_fraction: float, val_fraction: float) -> None:
    """Raise `SplitError` if the number of folds or a share is out of range."""
    if folds < 1:
        raise SplitError(f"folds: got {folds}, expected at least 1")
    for name, value in (("test_fraction", test_fraction), ("val_fraction", val_fraction)):
        if not 0 <= value < 1:
            raise SplitError(f"{name}: got {value}, expected at least 0 and below 1")


def _patients_needed(folds: int, val_fraction: float) -> int:
    """Compute how many patients a class needs so that all parts of all folds have one."""
    left = 1 + (val_fraction > 0)
    return next(n for n in range(folds, folds + 4) if n - math.ceil(n / folds) >= left)


def _check_enough(strata: dict[str, list[str]], need: int, parts: str, remedy: str) -> None:
    """Raise `SplitError` if a label has fewer patients than the parts need."""
    few = {label: len(patients) for label, patients in strata.items() if len(patients) < need}
    if few:
        label, n = min(few.items(), key=lambda item: item[1])
        raise SplitError(
            f"label '{label}' has {n} patient{'' if n == 1 else 's'}, {parts} need at least {need} "
            f"of each class: use {remedy}, add patients, or leave the class out"
        )


def _check_rest(order: dict[str, list[str]], tests: Sequence[set[str]], need: int) -> None:
    """Raise `SplitError` if a label has too few patients outside of some test part."""
    for test in tests:
        for label, patients in order.items():
            left = sum(patient not in test for patient in patients)
            if left < need:
                raise SplitError(
                    f"label '{label}' has {left} patients outside of the sites of a test part, "
                    f"and training needs {need}: use fewer folds, add sites, or leave --split.site "
                    "out"
                )


def _deal(order: dict[str, list[str]], folds: int) -> list[set[str]]:
    """Deal patients to folds in turn, class after class, so that sizes differ by one at most."""
    tests: list[set[str]] = [set() for _ in range(folds)]
    for n, patient in enumerate(p for patients in order.values() for p in patients):
        tests[n % folds].add(patient)
    return tests


def _take_share(order: dict[str, list[str]], fraction: float, spare: int) -> set[str]:
    """Take a share of the patients of each class: the first, at least one, leaving `spare`."""
    if fraction == 0:
        return set()
    return {
        patient
        for patients in order.values()
        for patient in patients[
            : max(0, min(max(1, round(len(patients) * fraction)), len(patients) - spare))
        ]
    }


def _add_val(
    order: dict[str, list[str]], test: set[str], fraction: float
) -> tuple[set[str], set[str]]:
    """Take the validation part from the patients that are not tested; return it and the test."""
    left = {label: [p for p in patients if p not in test] for label, patients in order.items()}
    return _take_share(left, fraction, spare=1), test


def _build_splits(
    cases: Sequence[Case], pairs: Iterable[tuple[set[str], set[str]]], seed: int, repeats: int
) -> Splits:
    patients = {c.image_id: c.patient_id for c in sorted(cases, key=lambda c: c.image_id)}
    if len(patients) < len(cases):
        raise SplitError("an image_id occurs twice among the cases: rename one")
    folds = []
    for val, test in pairs:
        parts: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for image_id, patient in patients.items():
            parts["test" if patient in test else "val" if patient in val else "train"].append(
                image_id
            )
        folds.append(Fold(tuple(parts["train"]), tuple(parts["val"]), tuple(parts["test"])))
    splits = Splits(tuple(folds), patients, seed, split_hash(folds, patients, seed), repeats)
    splits.check()
    return splits
