from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import SplitError
from foveate.table import (
    Case,
    Splits,
    load_splits,
    make_splits,
    save_splits,
)


def cohort(*sizes: int, images: int = 1) -> list[Case]:
    """Return cases of `sizes` patients per class."""
    return [
        Case(f"i{c}_{p}_{i}", f"p{c}_{p}", Path("x.tif"), f"class{c}")
        for c, n in enumerate(sizes)
        for p in range(n)
        for i in range(images)
    ]


@st.composite
def cohorts(draw: st.DrawFn) -> list[Case]:
    cases = []
    for c in range(draw(st.integers(2, 4))):
        for p in range(draw(st.integers(5, 15))):
            cases += [
                Case(f"i{c}_{p}_{i}", f"p{c}_{p}", Path("x.tif"), f"class{c}")
                for i in range(draw(st.integers(1, 3)))
            ]
    return cases


@settings(max_examples=60, deadline=None)
@given(
    cases=cohorts(),
    folds=st.integers(1, 5),
    seed=st.integers(0, 9),
    test=st.floats(0.05, 0.9),
    val=st.floats(0.05, 0.9),
)
def test_splits_have_no_leak_and_all_classes_in_any_order(
    cases: list[Case], folds: int, seed: int, test: float, val: float
) -> None:
    options = {"folds": folds, "seed": seed, "test_fraction": test, "val_fraction": val}
    splits = make_splits(cases, **options)  # type: ignore[arg-type]
    label = {case.image_id: case.label for case in cases}
    owner = {case.image_id: case.patient_id for case in cases}
    for fold in splits.folds:
        patients = [{owner[i] for i in part} for part in fold.parts().values()]
        assert sum(map(len, patients)) == len(set.union(*patients)) == len(set(owner.values()))
        assert sorted(i for part in fold.parts().values() for i in part) == sorted(label)
        for part in fold.parts().values():
            assert {label[i] for i in part} == set(label.values())
    if folds > 1:
        assert sorted(i for fold in splits.folds for i in fold.test) == sorted(label)
    shuffled = random.Random(seed).sample(cases, len(cases))
    assert make_splits(shuffled, **options) == splits  # type: ignore[arg-type]


def test_split_fractions_are_met() -> None:
    fold = make_splits(cohort(40, 20), test_fraction=0.25, val_fraction=0.2).folds[0]
    assert [len(part) for part in fold.parts().values()] == [36, 9, 15]


def test_folds_differ_by_one_patient_of_a_class_at_most() -> None:
    folds = make_splits(cohort(13, 12), folds=5).folds
    assert [len(fold.test) for fold in folds] == [5, 5, 5, 5, 5]


def test_seeds_give_different_splits() -> None:
    cases = cohort(20, 20)
    assert make_splits(cases, seed=0).folds != make_splits(cases, seed=1).folds
    assert make_splits(cases, seed=0).hash != make_splits(cases, seed=1).hash


def test_a_patient_counts_for_its_most_frequent_label() -> None:
    cases = [*cohort(6, 6), Case("odd", "p0_0", Path("x"), "class1")]
    splits = make_splits(cases, folds=3)
    splits.check(cases)


def test_test_and_validation_parts_are_optional() -> None:
    fold = make_splits(cohort(2, 2), test_fraction=0, val_fraction=0.5).folds[0]
    assert fold.test == ()
    assert len(fold.val) == len(fold.train) == 2
    fold = make_splits(cohort(2, 2), test_fraction=0.5, val_fraction=0).folds[0]
    assert fold.val == ()


@pytest.mark.parametrize(
    ("sizes", "folds", "need"),
    [((9, 2), 1, 3), ((9, 4), 5, 5), ((9, 3), 2, 4), ((9, 2), 3, 3), ((9, 1), 1, 3)],
)
def test_too_few_patients_says_how_many_are_needed(
    sizes: tuple[int, ...], folds: int, need: int
) -> None:
    with pytest.raises(SplitError, match=f"label 'class1' has {sizes[1]} .* at least {need} of"):
        make_splits(cohort(*sizes), folds=folds)
    make_splits(cohort(sizes[0], need), folds=folds)


@pytest.mark.parametrize("options", [{"folds": 0}, {"test_fraction": 1.0}, {"val_fraction": -0.1}])
def test_impossible_sizes_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(SplitError, match="got"):
        make_splits(cohort(9, 9), **options)  # type: ignore[arg-type]


def test_missing_labels_and_empty_tables_are_refused() -> None:
    with pytest.raises(SplitError, match="no cases"):
        make_splits([])
    with pytest.raises(SplitError, match="'a' has no label"):
        make_splits([Case("a", "a", Path("x"))])


def test_saved_and_loaded_are_the_same(tmp_path: Path) -> None:
    splits = make_splits(cohort(7, 8, images=2), folds=3, seed=4)
    save_splits(splits, tmp_path / "splits.json")
    assert load_splits(tmp_path / "splits.json") == splits
    stored = json.loads((tmp_path / "splits.json").read_text())
    assert set(stored) == {"schema", "hash", "seed", "repeats", "source", "columns", "patients",
                           "labels", "folds"}  # fmt: skip
    assert set(stored["folds"][0]) == {"train", "val", "test"}


def change_key(path: Path, key: str) -> None:
    stored = json.loads(path.read_text())
    first = stored["folds"][0]
    if key == "moved":
        first["test"].append(first["train"].pop())
    elif key == "seed":
        stored["seed"] = 9
    elif key == "schema":
        stored["schema"] = 99
    elif key == "not text":
        first["test"] = "abc"
    else:
        del stored[key]
    path.write_text(json.dumps(stored))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("moved", "changed after it was written"),
        ("seed", "changed after it was written"),
        ("schema", "schema 99"),
        ("patients", "'patients' is missing"),
        ("not text", "'test' is 'abc', expected a list"),
    ],
)
def test_a_changed_file_is_refused(tmp_path: Path, key: str, message: str) -> None:
    path = tmp_path / "splits.json"
    save_splits(make_splits(cohort(5, 5)), path)
    change_key(path, key)
    with pytest.raises(SplitError, match=message) as caught:
        load_splits(path)
    assert str(path) in str(caught.value)


def test_missing_and_truncated_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="no such split"):
        load_splits(tmp_path / "no.json")
    (tmp_path / "half.json").write_text('{"schema": 1, "fol')
    with pytest.raises(SplitError, match="damaged"):
        load_splits(tmp_path / "half.json")


def write_with_new_hash(splits: Splits, **changes: object) -> Splits:
    """Write inconsistent splits with a matching hash."""
    from foveate.table.folds import split_hash

    wrong = replace(splits, **changes)  # type: ignore[arg-type]
    return replace(wrong, hash=split_hash(wrong.folds, wrong.patients, wrong.seed))


def test_check_detects_leaks_gaps_and_repetition() -> None:
    splits = make_splits(cohort(5, 5, images=2))
    fold = splits.folds[0]
    leak = replace(fold, train=fold.train[1:], val=(*fold.val, fold.train[0]))
    with pytest.raises(SplitError, match="is in train and in val"):
        write_with_new_hash(splits, folds=(leak,)).check()
    with pytest.raises(SplitError, match="missing"):
        write_with_new_hash(splits, folds=(replace(fold, train=fold.train[2:]),)).check()
    with pytest.raises(SplitError, match="more than once"):
        write_with_new_hash(splits, folds=(replace(fold, val=(*fold.val, fold.test[0])),)).check()
    with pytest.raises(SplitError, match="tested 0 times, expected once"):
        write_with_new_hash(splits, folds=(fold, fold)).check()
    with pytest.raises(SplitError, match="not of this table"):
        splits.check(cohort(5, 4, images=2))
