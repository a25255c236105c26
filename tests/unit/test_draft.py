"""A table drafted from a folder: labels and patients only where names say them for certain."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

import foveate as fv
from conftest import picture
from foveate.table.draft import draft_rows
from helpers.commands import Completed

Command = Callable[..., Completed]


def write_images(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        picture(folder / name, i)
    return folder


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_folders_of_classes_become_labels(tmp_path: Path, foveate: Command) -> None:
    write_images(tmp_path / "set", "normal/a.png", "normal/b.png", "tumour/c.png", "tumour/d.png")
    (tmp_path / "set" / "readme.txt").write_text("about", encoding="utf-8")
    out = tmp_path / "labels.csv"
    ended = foveate("init", tmp_path / "set", "--out", out)
    assert ended.returncode == 0
    assert "labels: from the folders (normal 2, tumour 2)" in ended.stdout
    assert f"foveate check {out}" in ended.stdout
    rows = read_table(out)
    assert [row["label"] for row in rows] == ["normal", "normal", "tumour", "tumour"]
    assert rows[0] == {"path": "set/normal/a.png", "patient_id": "", "label": "normal"}
    assert fv.check(out).n_images == 4


@pytest.mark.parametrize(
    "names",
    [
        ("train/a.png", "train/b.png", "test/c.png", "test/d.png"),
        ("a.png", "b.png"),
        ("tumour/a.png", "normal/b.png", "normal/c.png"),
        ("tumour/a.png", "tumour/b.png", "c.png", "normal/d.png", "normal/e.png"),
        ("images/a.png", "images/b.png", "masks/a.png", "masks/b.png"),
        ("case_01/a.png", "case_01/b.png", "case_02/a.png", "case_02/b.png"),
    ],
)
def test_labels_that_folders_do_not_say_stay_empty(tmp_path: Path, names: tuple[str, ...]) -> None:
    draft = draft_rows(write_images(tmp_path, *names))
    assert {row.label for row in draft.rows} == {""}
    assert "fill in the column 'label'" in draft.notes[1]


@pytest.mark.parametrize(
    ("names", "patients"),
    [
        (
            ("TCGA-AA-0001-01Z-00-DX1.F6E9.png", "TCGA-AA-0001-01Z-00-DX2.png", "TCGA-BB-0002.png"),
            {"TCGA-AA-0001", "TCGA-BB-0002"},
        ),
        (
            ("case_01/a.png", "case_01/b.png", "case_02/a.png", "case_02/b.png"),
            {"case_01", "case_02"},
        ),
        (("tumour/a.png", "tumour/b.png", "normal/c.png", "normal/d.png"), {""}),
        (("P1_a.png", "P1_b.png", "P2_a.png"), {""}),
        (("TCGA-AA-0001-01Z.png", "other.png"), {""}),
    ],
)
def test_patients_are_guessed_only_where_names_say_them(
    tmp_path: Path, names: tuple[str, ...], patients: set[str]
) -> None:
    draft = draft_rows(write_images(tmp_path, *names))
    assert {row.patient_id for row in draft.rows} == patients


def test_a_table_that_exists_is_left_as_it_is(tmp_path: Path, foveate: Command) -> None:
    write_images(tmp_path / "set", "a.png")
    out = tmp_path / "labels.csv"
    out.write_text("mine", encoding="utf-8")
    ended = foveate("init", tmp_path / "set", "--out", out)
    assert ended.returncode == 1
    assert "exists already, and is left as it is" in ended.stderr
    assert out.read_text(encoding="utf-8") == "mine"


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fv.FoveateError, match="holds no file that could be an image"):
        draft_rows(tmp_path)
    with pytest.raises(fv.FoveateError, match="no such folder; give the folder of the images"):
        draft_rows(tmp_path / "none")
