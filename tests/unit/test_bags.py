"""The images of each patient as one case: labels that agree, ids, and splits."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveate.errors import TableError
from foveate.table import Case, CaseTable, bag_by_patient, gather_splits, make_splits


def make_table(*rows: tuple[str, str, str | None]) -> CaseTable:
    """A table of images, patients and labels."""
    return CaseTable(tuple(Case(i, p, Path(f"{i}.tif"), label) for i, p, label in rows))


def test_the_images_of_a_patient_are_one_case() -> None:
    table = bag_by_patient(make_table(("S1", "A", "ill"), ("S2", "B", "well"), ("S3", "A", None)))
    first, second = table.cases
    assert (first.image_id, first.patient_id, first.label) == ("A", "A", "ill")
    assert [image.image_id for image in first.images] == ["S1", "S3"]
    assert first.paths == "S1.tif|S3.tif"
    assert [image.image_id for image in second.images] == ["S2"]
    assert "2 patients, from 3 images: 1 of them with several (up to 2)" in table.notes[-1]


def test_patients_with_several_labels_are_named() -> None:
    table = make_table(("S1", "A", "ill"), ("S2", "A", "well"), ("S3", "B", "well"))
    with pytest.raises(TableError, match=r"1 have images of several labels: 'A' \(ill, well\)"):
        bag_by_patient(table)


def test_ids_of_patients_and_images_that_clash_are_told_apart() -> None:
    table = make_table(
        ("A", "A", "x"),  # its only image has its name
        ("B", "C", "x"),
        ("D", "B", "x"),  # its name is that of an image of another
        ("E", "E", "x"),
        ("F", "E", "x"),  # its name is that of one of its images
        ("G", "p/1", "x"),
        ("H", "p:1", "x"),  # both are p_1 as the name of a file
    )
    ids = [case.image_id for case in bag_by_patient(table).cases]
    assert ids[:2] == ["A", "C"]
    assert [i.rpartition("-")[0] for i in ids[2:]] == ["B", "E", "p_1", "p_1"]
    assert len({i.casefold() for i in ids}) == len(ids)


def test_a_case_without_some_images_names_them() -> None:
    (case,) = bag_by_patient(make_table(("A", "A", "x"), ("B", "A", "x"), ("C", "A", "x"))).cases
    rest = case.without({"A", "elsewhere"})
    assert rest is not None
    assert [image.image_id for image in rest.images] == ["B", "C"]
    assert (rest.path, rest.lacking) == (Path("B.tif"), ("A",))
    again = rest.without({"B"})
    assert again is not None
    assert again.lacking == ("A", "B")
    assert again.without({"C"}) is None
    assert case.without({"A-other"}) is case


def test_a_split_of_images_becomes_one_of_patients() -> None:
    rows = [(f"S{i}", f"P{i // 2}", "x" if i % 4 < 2 else "y") for i in range(40)]
    table = make_table(*rows)
    bags = bag_by_patient(table).cases
    splits = make_splits(table.cases, folds=4, test_fraction=0.25, val_fraction=0.2, seed=0,
                         strata=[str(case.label) for case in table.cases])  # fmt: skip
    gathered = gather_splits(splits, bags)
    gathered.check(bags)
    patient_of = {image: patient for image, patient, _ in rows}
    for fold, own in zip(splits.folds, gathered.folds, strict=True):
        for images, cases in zip(fold.parts().values(), own.parts().values(), strict=True):
            assert sorted(cases) == sorted({patient_of[image] for image in images})
