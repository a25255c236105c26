"""Splits of sites, and splits that other programs wrote, on tables of files without content."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foveate.errors import OptionError, SplitError, TableError
from foveate.files.run_layout import RunLayout
from foveate.runs.config import build_config
from foveate.runs.division import Division, divide_images, save_division
from foveate.table import (
    Case,
    NamedColumns,
    Splits,
    load_splits,
    make_splits,
    read_cases,
    read_stored_splits,
)
from foveate.table.folds import split_hash
from foveate.table.join_splits import JoinedSplits, join_splits
from foveate.tasks import restore_task
from helpers.squares import write_table


def cases_of(n: int = 24, images: int = 1, sites: str = "") -> list[Case]:
    """Return cases of n patients with two classes; patient k is of the k-th site in turn."""
    return [
        Case(f"s{p:02d}_{i}", f"P{p:02d}", Path(f"x/s{p:02d}_{i}.svs"), "ab"[p % 2],
             site=sites[p % len(sites)] if sites else None)
        for p in range(n)
        for i in range(images)
    ]  # fmt: skip


def join(path: Path, cases: Sequence[Case], **options: float) -> JoinedSplits:
    settings = {"val_fraction": 0.25, "seed": 0, "strata": [str(c.label) for c in cases]} | options
    return join_splits(read_stored_splits(path), cases, **settings)  # type: ignore[arg-type]


def ids(numbers: Sequence[int]) -> list[str]:
    return [f"s{p:02d}_0" for p in numbers]


def write_clam(path: Path, parts: Mapping[str, Sequence[str]]) -> Path:
    """Write a split as CLAM does: an index without a name, and columns of unequal length."""
    rows = max(map(len, parts.values()))
    cells = [[i, *(p[i] if i < len(p) else "" for p in parts.values())] for i in range(rows)]
    return write_table(path, ("", *parts), cells)


# -- sites ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("folds", [1, 2, 4])
def test_sites_are_tested_together(folds: int) -> None:
    cases = cases_of(40, 2, sites="AABCDE")
    splits = make_splits(cases, folds=folds, by_site=True)
    site_of = {case.image_id: case.site for case in cases}
    for fold in splits.folds:
        tested = {site_of[i] for i in fold.test}
        assert tested
        assert tested.isdisjoint({site_of[i] for i in (*fold.train, *fold.val)})
        assert {cases[0].label, cases[2].label} == {next(c for c in cases if c.image_id == i).label
                                                   for i in fold.val}  # fmt: skip
    if folds > 1:
        assert sorted(i for fold in splits.folds for i in fold.test) == sorted(site_of)
        sizes = [len(fold.test) for fold in splits.folds]
        assert max(sizes) - min(sizes) <= 80 / 3, sizes
    assert make_splits(cases[::-1], folds=folds, by_site=True) == splits


def test_the_share_of_a_hold_out_of_sites_is_near_the_one_asked_for() -> None:
    cases = cases_of(60, sites="ABCDEFGH")
    for share in (0.15, 0.25, 0.5):
        (fold,) = make_splits(cases, test_fraction=share, by_site=True).folds
        assert abs(len(fold.test) / 60 - share) < 0.1


def test_labels_are_balanced_over_sites() -> None:
    """Two sites hold positives only, two negatives only: each test part gets one of each."""
    cases = [replace(c, site=f"{c.label}{i % 4 // 2}") for i, c in enumerate(cases_of(32))]
    for fold in make_splits(cases, folds=2, by_site=True).folds:
        label_of = {case.image_id: case.label for case in cases}
        assert {label_of[i] for i in fold.test} == {"a", "b"}


@pytest.mark.parametrize(
    ("cases", "folds", "message"),
    [
        (cases_of(24, sites="AB"), 3, r"there are 2 sites \(A, B\), and 3 folds need at least 3"),
        (cases_of(24, sites="A"), 1, "there are 1 sites .* a training and a test part need"),
        (cases_of(24), 2, r"24 images have no site \(s00_0, s01_0, s02_0 and 21 more\): fill"),
        ([*cases_of(24, sites="ABC"), Case("x", "P00", Path("x"), "a", site="B")], 2,
         "patient 'P00' has images of the sites 'A' and 'B', so these cannot be held out"),
        (cases_of(24, sites="ab"), 2, "label 'a' has 0 patients outside of the sites of a test"),
    ],
)  # fmt: skip
def test_sites_that_cannot_be_held_out_are_refused(
    cases: list[Case], folds: int, message: str
) -> None:
    with pytest.raises(SplitError, match=message):
        make_splits(cases, folds=folds, by_site=True)


def test_spellings_of_a_site_are_one_site() -> None:
    cases = cases_of(24, sites=["North 1", "north-1", "South", "East"])  # type: ignore[arg-type]
    splits = make_splits(cases, folds=3, by_site=True)
    site_of = {case.image_id: str(case.site)[:1].lower() for case in cases}
    for fold in splits.folds:
        assert len({site_of[i] for i in fold.test}) == 1


@pytest.mark.parametrize(("column", "named"), [("center", "site"), ("Site", "site"), ("ward",) * 2])
def test_the_column_of_sites_is_recognised_when_asked_for(
    tmp_path: Path, column: str, named: str
) -> None:
    for i in range(4):
        (tmp_path / f"{i}.tif").write_bytes(bytes([i]))
    rows = [(f"{i}.tif", f"p{i}", "ab"[i % 2], "XY"[i // 2]) for i in range(4)]
    path = write_table(tmp_path / "t.csv", ("path", "patient", "label", column), rows)
    table = read_cases(path, columns=NamedColumns(site=named))
    assert [case.site for case in table.cases] == ["X", "X", "Y", "Y"]
    assert table.columns["site"] == column
    assert [case.site for case in read_cases(path).cases] == [None] * 4
    with pytest.raises(TableError, match=r"no column 'clinic' \(--split.site\)"):
        read_cases(path, columns=NamedColumns(site="clinic"))


# -- repetition -----------------------------------------------------------------------------------


def test_repeated_cross_validations_test_each_patient_once_each() -> None:
    cases = cases_of(20, 2)
    splits = make_splits(cases, folds=4, repeats=3)
    assert len(splits.folds) == 12
    assert make_splits(cases, folds=4).folds == splits.folds[:4], "the first is the plain one"
    for k in range(0, 12, 4):
        tested = sorted(i for fold in splits.folds[k : k + 4] for i in fold.test)
        assert tested == sorted(case.image_id for case in cases)
    assert splits.folds[0].test != splits.folds[4].test
    cut = splits.folds[:8]
    cut_splits = replace(splits, folds=cut, hash=split_hash(cut, splits.patients, splits.seed))
    with pytest.raises(SplitError, match=r"tested 2 times, expected 3 times"):
        cut_splits.check()


# -- dialects -------------------------------------------------------------------------------------


def test_a_folder_of_clam_is_taken_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    cases = cases_of(24)
    for k in (0, 2, 10):
        test = [(k + i) % 24 for i in range(4)]
        rest = [p for p in range(24) if p not in test]
        write_clam(tmp_path / f"splits_{k}.csv",
                   {"train": ids(rest[4:]), "val": ids(rest[:4]), "test": ids(test)})  # fmt: skip
        (tmp_path / f"splits_{k}_bool.csv").write_text("ignored")
        (tmp_path / f"splits_{k}_descriptor.csv").write_text("ignored")
    joined = join(tmp_path, cases)
    assert [sorted(fold.test)[0] for fold in joined.splits.folds] == ["s00_0", "s02_0", "s10_0"]
    assert [len(fold.val) for fold in joined.splits.folds] == [4, 4, 4]
    assert joined.left_out == frozenset()
    assert joined.splits.source == f"CLAM: {tmp_path}"
    assert f"split (as CLAM writes): 3 folds of images from {tmp_path}" in joined.notes
    assert "all 24 names of the split are in the table" in joined.notes
    assert "2 images are tested in several folds, and count as often: s02_0, s03_0" in joined.notes


def test_one_file_of_clam_without_validation_gets_one_from_its_training_part(
    tmp_path: Path,
) -> None:
    cases = cases_of(24, 2)
    everything = [c.image_id for c in cases]
    path = write_clam(tmp_path / "splits_0.csv",
                      {"train": everything[:32], "val": [], "test": everything[32:40]})  # fmt: skip
    joined = join(path, cases)
    (fold,) = joined.splits.folds
    owner = {case.image_id: case.patient_id for case in cases}
    assert len(fold.val) == 8
    assert sorted((*fold.train, *fold.val)) == everything[:32]
    assert {owner[i] for i in fold.val}.isdisjoint({owner[i] for i in fold.train})
    assert {c.label for c in cases if c.image_id in fold.val} == {"a", "b"}
    assert joined.left_out == frozenset(everything[40:])
    assert any("a share of 0.25 of the training patients" in note for note in joined.notes)
    assert any("8 images are in no part of the split" in note for note in joined.notes)
    assert join(path, cases).splits == joined.splits
    assert join(path, cases, seed=1).splits.folds != joined.splits.folds


def test_splits_of_stamp_name_patients(tmp_path: Path) -> None:
    cases = [replace(c, patient_id=f"P{1 + int(c.patient_id[1:])}") for c in cases_of(12, 2)]
    folds = [
        {"train_patients": [f"P{p + 1:02d}" for p in range(12) if p % 3 != k],
         "test_patients": [f"p{p + 1}" for p in range(12) if p % 3 == k]}
        for k in range(3)
    ]  # fmt: skip
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"splits": folds}))
    joined = join(tmp_path, cases)
    assert sorted(i for fold in joined.splits.folds for i in fold.test) == sorted(
        case.image_id for case in cases
    )
    assert f"split (as STAMP writes): 3 folds of patients from {path}" in joined.notes


def test_columns_of_patho_bench_are_in_the_table_itself(tmp_path: Path) -> None:
    path = tmp_path / "task.tsv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["case_id", "slide_id", "grade", "fold_0", "fold_1"])
        for p in range(24):
            first = "test" if p < 6 else "train" if p < 22 else ""
            second = "test" if p >= 18 else "val" if p >= 12 else "train"
            writer.writerow([f"P{p:02d}", f"s{p:02d}_0", "ab"[p % 2], first, second])
    joined = join(path, cases_of(24))
    first, second = joined.splits.folds
    assert (len(first.train), len(first.val), len(first.test)) == (12, 4, 6)
    assert (len(second.train), len(second.val), len(second.test)) == (12, 6, 6)
    assert joined.left_out == frozenset()
    assert any("as Patho-Bench writes" in note for note in joined.notes)
    assert any("1 of 2 folds have no validation part" in note for note in joined.notes)
    joined.splits.check(cases_of(24))


def test_a_column_of_parts_is_one_fold(tmp_path: Path) -> None:
    words = ["Training"] * 14 + ["tuning"] * 4 + ["hold-out"] * 6
    rows = [(f"x/s{p:02d}_0.svs", words[p]) for p in range(24)]
    joined = join(write_table(tmp_path / "t.csv", ("path", "split"), rows), cases_of(24))
    (fold,) = joined.splits.folds
    assert [len(part) for part in fold.parts().values()] == [14, 4, 6]
    assert "split (a column of the table): 1 fold of images" in joined.notes[0]


def test_the_split_of_another_run_is_taken_unchanged(tmp_path: Path) -> None:
    cases = cases_of(24, 2)
    splits = make_splits(cases, folds=4, seed=3)
    run = RunLayout(tmp_path)
    save_division(Division(splits), run, cases, {"label": "grade", "site": "center", "path": "f"})
    for path in (tmp_path, run.splits, run.clam_splits):
        assert join(path, cases).splits.folds == splits.folds
        assert join(path, cases).left_out == frozenset()
    stored = json.loads(run.splits.read_text())
    assert stored["columns"] == {"label": "grade", "site": "center"}
    assert load_splits(run.splits) == splits
    header, first, *_ = (run.clam_splits / "splits_0.csv").read_text().splitlines()
    assert header == ",train,val,test"
    assert (
        first == f"0,{splits.folds[0].train[0]},{splits.folds[0].val[0]},{splits.folds[0].test[0]}"
    )


def test_names_without_an_image_are_named(tmp_path: Path) -> None:
    parts = {"train": [*ids(range(10)), "gone"], "test": [*ids(range(20, 24)), "lost"]}
    path = write_clam(tmp_path / "splits_0.csv", parts)
    notes = join(path, cases_of(24)).notes
    assert "warning: 2 of 16 names of the split have no usable image: gone, lost" in notes
    assert any("10 images are in no part of the split and are left out: s10_0" in n for n in notes)


def test_numbers_and_suffixes_are_names_of_images(tmp_path: Path) -> None:
    cases = [replace(c, image_id=str(100 + i), path=Path(f"{100 + i}.ome.tiff"))
             for i, c in enumerate(cases_of(24))]  # fmt: skip
    path = write_clam(tmp_path / "splits_0.csv",
                      {"train": [f"{100 + i}.0" for i in range(16)],
                       "val": [f"{100 + i}.ome.tiff" for i in range(16, 20)],
                       "test": [str(100 + i) for i in range(20, 24)]})  # fmt: skip
    (fold,) = join(path, cases).splits.folds
    assert [len(part) for part in fold.parts().values()] == [16, 4, 4]


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "images", "message"),
    [
        ({"train": ids(range(12)), "test": ids([11, 12])}, 1,
         "fold 0: image 's11_0' is in train and in test: take it out of one"),
        ({"train": [*ids(range(12)), "s12_1"], "test": [*ids(range(13, 20)), "s12_0", "s03_1"]}, 2,
         r"2 patients are in two parts: P03, P12. Image 's03_0' of 'P03' is in train, 's03_1' in "
         "test: scores would be too good"),
        ({"train": ["q1", "q2"], "test": ["q3"]}, 1,
         r"no name of the split is image of the table \(the first is 'q1', the table's 's00_0'\)"),
        ({"train": ids(range(12)), "val": ids([12, 13]), "test": ["gone"]}, 1,
         "fold 0: the test part holds no image of the table"),
        ({"train": ["True", "False"], "test": ["False", "True"]}, 1,
         "holds True and False for slides; give the file of the same split with their names"),
        ({"train": ids([0, 2, 4, 1]), "test": ids([3, 5])}, 1,
         "label 'b' has 1 patient, train and val parts need at least 2 of each class"),
    ],
)  # fmt: skip
def test_splits_that_do_not_hold_are_refused(
    tmp_path: Path, parts: dict[str, list[str]], images: int, message: str
) -> None:
    path = write_clam(tmp_path / "splits_0.csv", parts)
    with pytest.raises(SplitError, match=message):
        join(path, cases_of(24, images))


def test_a_name_that_could_be_two_images_is_refused(tmp_path: Path) -> None:
    cases = [Case(f"{f}_a", f"p{f}", Path(f"{f}/a.svs"), "ab"[f % 2]) for f in range(4)]
    path = write_clam(tmp_path / "splits_0.csv", {"train": ["a"], "test": ["3_a"]})
    with pytest.raises(SplitError, match=r"'a' of the split could be 0_a, 1_a, 2_a and 1 more"):
        join(path, cases)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.csv", None, r"no such file; give a folder or file of CLAM"),
        ("splits.json", "{", "is damaged: it is no JSON"),
        ("splits.json", '{"splits": []}', "holds no list 'splits' of folds"),
        ("splits.json", '{"splits": [{"train_patients": 3}]}', "holds no list 'train_patients'"),
        ("t.csv", "path,split\na,1\nb,2\n", "no column holds a split"),
        ("t.csv", "weight,split\n3,train\n4,test\n", "no column names the images or patients"),
        ("t.csv", b"train,test\n\xff\xfe,b\n", "is no text in UTF-8"),
    ],
)
def test_files_without_a_split_are_refused(
    tmp_path: Path, name: str, text: str | bytes | None, message: str
) -> None:
    path = tmp_path / name
    if isinstance(text, bytes):
        path.write_bytes(text)
    elif text is not None:
        path.write_text(text)
    with pytest.raises(SplitError, match=message):
        read_stored_splits(path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="no such file; give a folder or file of CLAM"):
        read_stored_splits(tmp_path)


# -- options --------------------------------------------------------------------------------------


def split_options(**options: object) -> Mapping[str, object]:
    return build_config({"table": {"path": "t.csv"}, "split": options}).as_dict()["split"]


def test_from_is_an_option_although_it_is_a_word_of_python() -> None:
    stored = split_options(**{"from": "old"})
    assert stored["from"] == "old"
    assert "from_" not in stored
    again = build_config({"table": {"path": "t.csv"}, "split": dict(stored)})
    assert again.split.from_ == "old"
    with pytest.raises(OptionError, match=r"no option 'split.form'. Did you mean 'from'\?"):
        split_options(form="old")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repeats": 2}, "split.repeats: got 2 with one fold; cross-validations are repeated"),
        ({"repeats": 0}, "split.repeats: got 0, expected 1 or more"),
        ({"from": "x", "site": "site"}, "leave --split.site out, or --split.from"),
        ({"from": "x", "repeats": 2, "folds": 3}, "leave --split.repeats out"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        split_options(**options)


def test_the_number_of_folds_follows_a_stored_split(tmp_path: Path) -> None:
    cases, task = cases_of(24), restore_task("binary", {"classes": ["a", "b"]}, {})
    path = write_clam(tmp_path / "splits_0.csv",
                      {"train": ids(range(16)), "test": ids(range(16, 24))})  # fmt: skip
    base = {"table": {"path": "t.csv"}}
    config = build_config(base | {"split": {"from": str(path)}})
    assert len(divide_images(config.split, task, cases).splits.folds) == 1
    config = build_config(base | {"split": {"from": str(path), "folds": 5}})
    with pytest.raises(OptionError, match=r"split.folds: got 5, but .* holds 1: leave --folds out"):
        divide_images(config.split, task, cases)


def test_the_sites_of_each_fold_are_named() -> None:
    cases, task = cases_of(24, sites="AB"), restore_task("binary", {"classes": ["a", "b"]}, {})
    cases = [replace(c, site="AB"[i % 24 // 12]) for i, c in enumerate(cases)]
    config = build_config({"table": {"path": "t.csv"}, "split": {"site": "site", "folds": 2}})
    notes = divide_images(config.split, task, cases).notes
    assert sorted(note[-27:] for note in notes) == [
        "tests the sites A (12 patients)"[-27:], "tests the sites B (12 patients)"[-27:]
    ]  # fmt: skip


# -- strata of numbers and times ------------------------------------------------------------------


def test_parts_of_numbers_and_of_times_are_alike() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.lognormal(size=90)
    labels = [f"{v:.6f}" for v in numbers]
    task = restore_task("regression", {"mean": 1.0, "spread": 1.0}, {})
    cases = [Case(f"i{i}", f"p{i}", Path("x"), label) for i, label in enumerate(labels)]
    drawn = make_splits(cases, folds=3, strata=task.strata(labels, [c.patient_id for c in cases]))
    medians = _of_tests(drawn, labels, lambda part: float(np.median([float(x) for x in part])))
    assert np.ptp(medians) < 0.35

    times = rng.exponential(100, 90)
    seen = rng.uniform(size=90) < 0.4
    labels = [
        f"{'event at' if e else 'no event until'} {t:.4f}" for e, t in zip(seen, times, strict=True)
    ]
    survival = restore_task("survival", {"edges": [50.0, 900.0], "horizons": [50.0]}, {})
    cases = [Case(f"i{i}", f"p{i}", Path("x"), label) for i, label in enumerate(labels)]
    drawn = make_splits(
        cases, folds=3, strata=survival.strata(labels, [c.patient_id for c in cases])
    )
    events = _of_tests(drawn, labels, lambda part: sum("event at" in x for x in part))
    assert np.ptp(events) <= 3, events
    early = _of_tests(
        drawn, labels, lambda p: sum("event at" in x and float(x.split()[-1]) < 60 for x in p)
    )
    assert np.ptp(early) <= 4, early


def _of_tests(splits: Splits, labels: Sequence[str], measure) -> list[float]:  # type: ignore[no-untyped-def]
    """Measure the labels of each test part."""
    return [measure([labels[int(i[1:])] for i in fold.test]) for fold in splits.folds]
