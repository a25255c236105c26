"""Images with the same bytes under several names neither contradict nor leak without a word."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from foveate.errors import TableError
from foveate.files.identical import group_identical, image_state
from foveate.table import CaseTable, LabelRules, make_splits, read_cases
from foveate.table.identical import join_patients, patient_names

Row = tuple[str, str, str, str]


def read(folder: Path, rows: Sequence[Row], rules: LabelRules | None = None) -> CaseTable:
    """Write images and a table of (name, content, patient, label), and read it."""
    for name, content, *_ in rows:
        (folder / name).write_text(content)
    lines = [f"{name},{patient},{label}" for name, _, patient, label in rows]
    (folder / "t.csv").write_text("\n".join(["path,patient_id,label", *lines]) + "\n")
    return read_cases(folder / "t.csv", labels=rules)


def cohort(n: int = 12) -> list[Row]:
    return [
        (f"i{i:02d}.png", f"image {i}", f"P{i}", ("benign", "malignant")[i % 2]) for i in range(n)
    ]


# -- the same bytes -------------------------------------------------------------------------------


def test_contradicting_labels_are_set_aside_with_both_names(tmp_path: Path) -> None:
    table = read(tmp_path, [*cohort(), ("copy.png", "image 0", "P90", "malignant")])
    assert {case.image_id for case in table.cases} == {f"i{i:02d}" for i in range(1, 12)}
    first, second = table.set_aside
    assert (first.row, first.image_id) == (2, "i00")
    assert f"{tmp_path / 'copy.png'} holds the same bytes and has the label 'mal" in first.reason
    assert (second.row, second.image_id) == (14, "copy")
    assert f"{tmp_path / 'i00.png'} holds the same bytes and has the label 'ben" in second.reason
    (note,) = [n for n in table.notes if "set aside" in n]
    assert "2 images set aside" in note
    assert "row 2 i00.png ('benign', patient 'P0') = row 14 copy.png ('malignant'" in note


def test_a_table_of_contradictions_only_is_refused(tmp_path: Path) -> None:
    rows = [(f"{c}.png", "one", c, label) for c, label in (("a", "benign"), ("b", "malignant"))]
    with pytest.raises(
        TableError, match=r"t\.csv: 2 images set aside, .*a\.png \('benign'\) = row 3 b\.png"
    ):
        read(tmp_path, rows)


def test_patients_of_one_image_never_lie_on_both_sides(tmp_path: Path) -> None:
    copies = [
        (f"c{i:02d}.png", f"image {i}", f"Q{i}", ("benign", "malignant")[i % 2]) for i in range(12)
    ]
    table = read(tmp_path, [*cohort(), *copies])
    assert len(table.cases) == 24
    assert len({case.patient_id for case in table.cases}) == 12
    note = "\n".join(table.notes)
    assert "24 images hold the bytes of another one and count as different patients" in note
    assert "These 24 patients are joined to 12" in note
    for seed in range(5):
        for fold in make_splits(table.cases, folds=3, seed=seed).folds:
            for part in fold.parts().values():
                numbers = [image_id[1:] for image_id in part]
                assert all(numbers.count(number) == 2 for number in numbers)


def test_copies_in_a_table_without_patients_are_joined(tmp_path: Path) -> None:
    for i in range(6):
        (tmp_path / f"{i}.png").write_text(f"image {i % 4}")
    lines = "".join(f"{i}.png,{'benign' if i % 2 else 'malignant'}\n" for i in range(6))
    (tmp_path / "t.csv").write_text("path,label\n" + lines)
    patients = [case.patient_id for case in read_cases(tmp_path / "t.csv").cases]
    assert patients == ["0 + 4", "1 + 5", "2", "3", "0 + 4", "1 + 5"]


def test_a_chain_of_shared_images_is_one_patient(tmp_path: Path) -> None:
    """Copies join P0 with P1, and P1 with P2; then all images of the three are one patient's."""
    chain = [
        ("x.png", "image 0", "P2", "benign"),
        ("y.png", "shared", "P2", "malignant"),
        ("z.png", "shared", "P4", "malignant"),
    ]
    table = read(tmp_path, [*cohort(), *chain])
    joined = {case.image_id for case in table.cases if case.patient_id == "P0 + P2 + P4"}
    assert joined == {"i00", "i02", "i04", "x", "y", "z"}


def test_copies_of_one_patient_are_counted(tmp_path: Path) -> None:
    table = read(tmp_path, [*cohort(), ("copy.png", "image 3", "P3", "malignant")])
    assert len(table.cases) == 13
    (note,) = [n for n in table.notes if "of the same patient" in n]
    assert note.startswith("warning: 1 images hold the bytes of another one of the same patient")
    assert "row 5 i03.png" in note
    assert "row 14 copy.png" in note


def test_different_images_say_nothing(tmp_path: Path) -> None:
    assert "bytes" not in "\n".join(read(tmp_path, cohort()).notes)


def test_evaluation_sets_contradictions_aside_and_prediction_answers_all(tmp_path: Path) -> None:
    rows = [*cohort(), ("copy.png", "image 0", "P90", "malignant")]
    assert len(read(tmp_path, rows, LabelRules(for_training=False)).cases) == 11
    assert len(read(tmp_path, rows, LabelRules(needed=False)).cases) == 13


# -- one file under several names -----------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["./i00.png", "sub/../i00.png", "link.png"])
def test_spellings_of_one_file_are_one_image(tmp_path: Path, spelling: str) -> None:
    (tmp_path / "sub").mkdir()
    read(tmp_path, cohort())
    (tmp_path / "link.png").symlink_to("i00.png")
    with (tmp_path / "t.csv").open("a") as file:
        file.write(f"{spelling},P0,benign\n")
    table = read_cases(tmp_path / "t.csv")
    assert len(table.cases) == 12
    assert "1 repeated rows dropped: row 14" in table.notes


def test_a_hard_link_of_another_patient_is_joined(tmp_path: Path) -> None:
    read(tmp_path, cohort())
    (tmp_path / "hard.png").hardlink_to(tmp_path / "i00.png")
    with (tmp_path / "t.csv").open("a") as file:
        file.write("hard.png,P77,benign\n")
    table = read_cases(tmp_path / "t.csv")
    joined = {case.image_id for case in table.cases if case.patient_id == "P0 + P77"}
    assert joined == {"i00", "hard"}


# -- the comparison of files ----------------------------------------------------------------------


def test_large_files_that_differ_in_one_byte_are_different(tmp_path: Path) -> None:
    """The byte lies outside the blocks that are compared first."""
    content = bytes(1 << 20)
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths:
        path.write_bytes(content)
    paths[1].write_bytes(content[:200_000] + b"\1" + content[200_001:])
    assert group_identical(paths) == [[paths[0], paths[2]]]


def test_files_without_own_pixels_are_never_identical(tmp_path: Path) -> None:
    names = ("empty1.png", "empty2.png", "a.mhd", "b.mhd", "missing1", "missing2")
    for name in names[:4]:
        (tmp_path / name).write_text("" if "empty" in name else "ElementDataFile = scan.raw")
    assert group_identical([tmp_path / name for name in names]) == []


@pytest.mark.parametrize(("pixels", "n_groups"), [("pixels", 1), ("others", 0)])
def test_the_folder_beside_a_slide_belongs_to_its_content(
    tmp_path: Path, pixels: str, n_groups: int
) -> None:
    for name, text in (("a", "pixels"), ("b", pixels)):
        (tmp_path / f"{name}.mrxs").write_text("preview")
        (tmp_path / name).mkdir()
        (tmp_path / name / "Data0000.dat").write_text(text)
    assert len(group_identical([tmp_path / "a.mrxs", tmp_path / "b.mrxs"])) == n_groups


def test_folders_of_slices_are_compared_by_content(tmp_path: Path) -> None:
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "slice").write_text(text)
    paths = [tmp_path / name for name in "abc"]
    assert group_identical(paths) == [paths[:2]]


def test_joint_patients_state_all_their_names() -> None:
    names = join_patients(pairwise(["c", "a", "b"]))
    assert names == dict.fromkeys("abc", "a + b + c")
    assert patient_names("a + b + c") == ("a + b + c", "a", "b", "c")
    assert patient_names("a") == ("a",)


def test_a_table_of_copies_can_be_divided_and_is_warned_of(tmp_path: Path) -> None:
    """Joined to two patients, the copies of two images could not be divided into three parts."""
    rows = [(f"i{i:02d}.png", f"image {i % 2}", f"P{i}", "ab"[i % 2]) for i in range(12)]
    table = read(tmp_path, rows)
    assert len({case.patient_id for case in table.cases}) == 12
    (note,) = [n for n in table.notes if "hold the bytes of another one" in n]
    assert note.startswith("warning: 12 images hold the bytes")
    assert "they stay apart" in note
    assert "the scores say nothing about new images" in note


def test_the_state_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    """A file that is changed in its place does not change the time of its folder."""
    series = tmp_path / "series"
    series.mkdir()
    for name, content in {"a": b"12", "b": b"345"}.items():
        (series / name).write_bytes(content)
        os.utime(series / name, ns=(1, 1))
    assert image_state(series) == [5, 1]
    os.utime(series / "a", ns=(7, 7))
    assert image_state(series) == [5, 7]
    assert image_state(series / "b") == [3, 1]
