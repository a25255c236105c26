"""Messages about tables, splits and run folders: each names the file, the place and the remedy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import openpyxl
import pytest

from foveate.errors import CheckpointError, FoveateError, SplitError, TableError
from foveate.runs.card import read_card
from foveate.runs.folder import read_json
from foveate.table import Case, Splits, load_splits, make_splits, read_cases, save_splits
from foveate.table.folds import split_hash
from foveate.table.sheet import read_sheet
from foveate.yamltext import read_yaml


def written(folder: Path, text: str, name: str = "table.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("is empty: it needs a header with at least a path column", ""),
        ("two columns are named 'label'; rename one", "path,label,label\na.tif,x,y\n"),
        (
            "row 1: no column has a name; write names such as path and label there",
            "Unnamed: 0,Unnamed: 1\na,b\n",
        ),
    ],
)
def test_tables(words: str, text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TableError) as caught:
        read_sheet(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_tables_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="is a folder: give the table"):
        read_sheet(tmp_path)
    with pytest.raises(TableError, match="no such table; check the name"):
        read_sheet(tmp_path / "none.csv")
    with pytest.raises(TableError, match=r"is no file: give a table \(CSV, TSV or XLSX\)"):
        read_sheet(Path("/dev/null"))


def test_workbooks_that_are_far_too_wide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = openpyxl.Workbook()
    book.active.append(["path", "label", *map(str, range(40))])
    book.save(tmp_path / "wide.xlsx")
    monkeypatch.setattr("foveate.table.workbook.MAX_CELLS", 20)
    with pytest.raises(TableError, match=r"1 rows of up to 42 columns, which is no table"):
        read_sheet(tmp_path / "wide.xlsx")


def test_images_with_one_id(tmp_path: Path) -> None:
    for name in ("a.tif", "b.tif", "c.tif", "d.tif"):
        (tmp_path / name).write_bytes(name.encode())
    rows = "image_id,path,label\n" + "".join(
        f"{i},{name}.tif,{label}\n" for i, name, label in ("1ax", "1by", "3cx", "4dy")
    )
    with pytest.raises(TableError, match="an image_id must be unique: rename one") as caught:
        read_cases(written(tmp_path, rows))
    assert "row 3: image '1' is" in str(caught.value)


@pytest.mark.parametrize(
    ("words", "patients", "files"),
    [
        ("no column names the patient; say which with --patient", "name,label\np,x\n", "path\na\n"),
        (
            "patient 'p' is there twice; keep one row of each patient",
            "patient_id,label\np,x\np,y\n",
            "patient_id,path\np,a\n",
        ),
        (
            "column that both tables share with --patient, or spell patients alike",
            "patient_id,label\np,x\n",
            "patient_id,path\nq,a\n",
        ),
    ],
)
def test_two_tables(words: str, patients: str, files: str, tmp_path: Path) -> None:
    with pytest.raises(TableError) as caught:
        read_cases(written(tmp_path, patients), files=written(tmp_path, files, "files.csv"))
    assert words in str(caught.value)


CASES = [
    Case(f"{label}{i}", f"p{label}{i}", Path(f"{label}{i}.tif"), label)
    for label in "ab"
    for i in range(8)
]


def test_cases_that_cannot_be_split() -> None:
    with pytest.raises(SplitError, match="there are no cases to split"):
        make_splits([])
    with pytest.raises(SplitError, match="'a0' has no label, so it cannot be split by label"):
        make_splits([replace(CASES[0], label=None), *CASES[1:]])
    with pytest.raises(SplitError, match="an image_id occurs twice among the cases"):
        make_splits([*CASES, CASES[0]])


def test_splits_that_were_changed(tmp_path: Path) -> None:
    splits = make_splits(CASES)
    (fold,) = splits.folds
    path = tmp_path / "splits.json"
    for words, folds in {
        "the split has no folds": (),
        "nothing is left to train on; add images, or make smaller parts": (
            replace(fold, train=(), val=(*fold.train, *fold.val)),
        ),
    }.items():
        wrong = Splits(folds, splits.patients, 0, split_hash(folds, splits.patients, 0))
        with pytest.raises(SplitError, match=words):
            wrong.check()
    patients = splits.patients | {fold.train[0]: splits.patients[fold.test[0]]}
    leak = Splits((fold,), patients, 0, split_hash((fold,), patients, 0))
    with pytest.raises(SplitError, match="is in train and in test"):
        leak.check()
    save_splits(splits, path)
    content = json.loads(path.read_text()) | {"schema": 99}
    path.write_text(json.dumps(content))
    with pytest.raises(SplitError, match=r"schema 99, this version reads \d"):
        load_splits(path)


@pytest.mark.parametrize(
    ("words", "name", "text", "read"),
    [
        ("is damaged: it is no JSON. Restore it from a copy", "a.json", "{", read_json),
        ("is damaged: it is not YAML. Restore it from a copy", "a.yaml", "{", read_yaml),
        ("is damaged: it holds no keys and values", "a.yaml", "[1]", read_yaml),
        ("was written by a newer foveate; upgrade", "model.json", '{"schema": 999}', read_card),
    ],
)
def test_files_of_runs(words, name, text, read, tmp_path) -> None:
    path = written(tmp_path, text, name)
    with pytest.raises(CheckpointError) as caught:
        read(path)
    assert f"{path} {words}" in str(caught.value)


def test_files_of_runs_that_are_missing(tmp_path: Path) -> None:
    for read in (read_json, read_yaml):
        with pytest.raises(FoveateError, match="cannot be read: the system says"):
            read(tmp_path / "none")
    with pytest.raises(CheckpointError, match="is missing: give a run folder whose training has"):
        read_card(tmp_path / "model.json")
