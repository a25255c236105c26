"""Tables that would train on something else than the user means are refused or say so."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import openpyxl
import pytest

from foveate.errors import TableError
from foveate.table import CaseTable, LabelRules, NamedColumns, read_cases
from foveate.table.missing import MISSING_WORDS

TWO = ("benign", "malignant")


def write(folder: Path, header: str, *columns: list[str]) -> Path:
    """Write a table whose first column names images, and the images."""
    n = len(columns[0])
    for i in range(n):
        (folder / f"i{i}.png").write_text(f"image {i}")
    lines = [",".join((f"i{i}.png", *(column[i] for column in columns))) for i in range(n)]
    (folder / "t.csv").write_text("\n".join([f"path,{header}", *lines]) + "\n")
    return folder / "t.csv"


def labels_of(table: CaseTable) -> Counter[str | None]:
    return Counter(case.label for case in table.cases)


def notes_of(table: CaseTable) -> str:
    return "\n".join(table.notes)


def classes(n: int) -> list[str]:
    return [TWO[i % 2] for i in range(n)]


# -- labels that are none -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [
        *("?", "unknown", "Unknown", "n/a", "N.A.", "-", "\u2013", "tbd", "not_labelled", "nan"),
        *("[Not Available]", "'--", "\uff1f", "Not reported", "unk"),
    ],
)
def test_words_for_a_missing_label_are_no_class(tmp_path: Path, word: str) -> None:
    table = read_cases(write(tmp_path, "label", [*TWO, *TWO, word, word]))
    assert labels_of(table) == {"benign": 2, "malignant": 2}
    assert "2 rows without a 'label' left out (first: row 6)" in notes_of(table)


def test_words_for_a_missing_label_are_listed(tmp_path: Path) -> None:
    table = read_cases(write(tmp_path, "label", [*TWO, "?", "tbd", "?"]))
    note = "3 rows without a 'label' left out (first: row 4): '?' 2, 'tbd' 1; where such a word is"
    assert note in notes_of(table)


@pytest.mark.parametrize("word", ["none", "normal", "other", "indeterminate", "negative", "0", "x"])
def test_findings_stay_classes(tmp_path: Path, word: str) -> None:
    table = read_cases(write(tmp_path, "label", ["tumour", "tumour", word, word]))
    assert labels_of(table) == {"tumour": 2, word: 2}


def test_a_minus_beside_a_plus_is_a_class(tmp_path: Path) -> None:
    table = read_cases(write(tmp_path, "label", ["+", "-", "+", "-", "?"]))
    assert labels_of(table) == {"+": 2, "-": 2}


def test_a_minus_alone_says_that_it_counts_as_no_label(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"counted as no label: '-' 2"):
        read_cases(write(tmp_path, "label", ["tumour", "-", "tumour", "-"]))


def test_named_classes_and_classes_of_the_model_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path, "label", ["known", "unknown", "known", "unknown"])
    for rules in (
        LabelRules(wanted=("known", "unknown")),
        LabelRules(known=("known", "unknown"), for_training=False),
    ):
        assert labels_of(read_cases(path, labels=rules)) == {"known": 2, "unknown": 2}


def test_only_missing_labels_are_refused_with_the_words(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"or holds a word for it \('\?' 1, 'tbd' 1\)"):
        read_cases(write(tmp_path, "label", ["?", "tbd"]))


def test_an_unknown_patient_is_nobody(tmp_path: Path) -> None:
    path = write(tmp_path, "patient_id,label", ["P1", "unknown", "P3", "unknown"], classes(4))
    with pytest.raises(TableError, match=r"2 of 4 rows have no 'patient_id' .*'unknown' 2"):
        read_cases(path)
    table = read_cases(path, labels=LabelRules(for_training=False))
    assert len({case.patient_id for case in table.cases}) == 4


def test_unknown_patients_of_two_tables_are_not_joined(tmp_path: Path) -> None:
    files = write(tmp_path, "patient", ["P1", "P2", "unknown"]).rename(tmp_path / "files.csv")
    (tmp_path / "t.csv").write_text("patient,label\nP1,benign\nP2,malignant\nunknown,malignant\n")
    table = read_cases(tmp_path / "t.csv", files=files)
    assert [case.image_id for case in table.cases] == ["i0", "i1"]


def test_the_documentation_lists_the_words() -> None:
    text = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    assert [word for word in sorted(MISSING_WORDS) if f"`{word}`" not in text] == []


# -- labels that mean the same --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "spellings"),
    [
        (["Y", "yes", "N", "no"], "'Y' = 'yes' and 'N' = 'no'"),
        (["Y", "yes", "N", "N"], "'Y' = 'yes'"),
        (["True", "true", "False", "False"], "'True' = 'true'"),
        (["1", "yes", "0", "no"], "'1' = 'yes' and '0' = 'no'"),
        (["+", "pos", "-", "negative"], r"'+' = 'pos' and '-' = 'negative'"),
    ],
)
def test_one_answer_in_several_spellings_is_refused(
    tmp_path: Path, labels: list[str], spellings: str
) -> None:
    path = write(tmp_path, "label", labels * 2)
    with pytest.raises(TableError, match="writes one answer in several ways") as caught:
        read_cases(path)
    assert f"({spellings})" in str(caught.value)
    rules = LabelRules(wanted=tuple(dict.fromkeys(labels)), task="multiclass")
    assert len(labels_of(read_cases(path, labels=rules))) > 2 - ("N" in labels)


@pytest.mark.parametrize(
    "labels", [["yes", "no"], ["Y", "N"], ["1", "0"], ["T", "N"], ["0", "1", "2"]]
)
def test_one_spelling_of_each_answer_is_accepted(tmp_path: Path, labels: list[str]) -> None:
    table = read_cases(write(tmp_path, "label", labels * 2))
    assert labels_of(table) == dict.fromkeys(labels, 2)


@pytest.mark.parametrize(
    ("latin", "other", "escaped"),
    [
        ("Adeno", "\u0410deno", r"'\u0410deno'"),  # Cyrillic A
        ("Carcinoma", "C\u0430rcin\u043em\u0430", r"'C\u0430rcin\u043em\u0430'"),
        ("TUMOR", "\u03a4UM\u039fR", r"'\u03a4UM\u039fR'"),  # Greek tau and omicron
        ("AB", "\uff21\uff22", "'\uff21\uff22'"),  # full width
    ],
)
def test_letters_that_look_alike_make_one_class(
    tmp_path: Path, latin: str, other: str, escaped: str
) -> None:
    table = read_cases(write(tmp_path, "label", ["rest", latin, latin, other]))
    assert labels_of(table) == {"rest": 1, latin: 3}
    assert f"label '{latin}' is also written {escaped} (1 rows): one class" in table.notes


def test_letters_that_look_alike_make_one_patient(tmp_path: Path) -> None:
    path = write(tmp_path, "patient_id,label", ["P1", "\u04201", "B2", "\u04322"], classes(4))
    assert [case.patient_id for case in read_cases(path).cases] == ["P1", "P1", "B2", "B2"]


def test_words_of_another_alphabet_stay_different(tmp_path: Path) -> None:
    words = ["\u043d\u043e\u0440\u043c\u0430", "\u0440\u0430\u043a", "\u0440\u0443\u043a\u0430"]
    table = read_cases(write(tmp_path, "label", words * 2))
    assert labels_of(table) == dict.fromkeys(words, 2)


# -- two columns for one role ---------------------------------------------------------------------


def test_two_unclear_patient_columns_are_refused(tmp_path: Path) -> None:
    columns = [f"C{i}" for i in range(8)], [f"S{i // 4}" for i in range(8)]
    path = write(tmp_path, "case,subject,label", *columns, classes(8))
    with pytest.raises(
        TableError, match=r"both 'case' and 'subject' .*\(8 and 2 patients\).*--pat"
    ):
        read_cases(path)
    table = read_cases(path, columns=NamedColumns(patient="subject"))
    assert len({case.patient_id for case in table.cases}) == 2
    table = read_cases(path, labels=LabelRules(for_training=False))  # `evaluate` has no --patient
    assert "warning: both 'case' and 'subject' could hold the patients" in notes_of(table)
    assert "'case' is used" in notes_of(table)


def test_two_clear_patient_columns_that_differ_are_refused(tmp_path: Path) -> None:
    columns = [f"C{i}" for i in range(8)], [f"S{i // 4}" for i in range(8)]
    with pytest.raises(TableError, match="both 'patient_id' and 'Patient' could hold"):
        read_cases(write(tmp_path, "Patient,patient_id,label", *columns, classes(8)))


def test_a_clear_patient_column_is_chosen_and_named(tmp_path: Path) -> None:
    ones, fours = [f"C{i}" for i in range(8)], [f"S{i // 4}" for i in range(8)]
    table = read_cases(write(tmp_path, "case,PatientID,label", ones, fours, classes(8)))
    assert table.columns["patient_id"] == "PatientID"
    assert (
        "patients are taken from 'PatientID' (2), for its name says so; 'case' divides the images "
        "differently (8) and is not used; to train with it, say --patient 'case'"
    ) in table.notes
    table = read_cases(write(tmp_path, "case,PatientID,label", fours, ones, classes(8)))
    assert "warning: patients are taken from 'PatientID' (8)" in notes_of(table)


def test_two_patient_columns_that_agree_are_named(tmp_path: Path) -> None:
    columns = [f"C{i // 2}" for i in range(8)], [f"0{i // 2}" for i in range(8)]
    table = read_cases(write(tmp_path, "case_id,subject,label", *columns, classes(8)))
    note = "patients are taken from 'case_id'; 'subject' divides the images in the same way"
    assert note in table.notes


def test_two_label_columns(tmp_path: Path) -> None:
    other = [str(i // 4) for i in range(8)]
    with pytest.raises(
        TableError, match=r"both 'class' and 'outcome' could hold the labels.*--label"
    ):
        read_cases(write(tmp_path, "outcome,class", other, classes(8)))
    with pytest.raises(TableError, match="both 'Label' and 'label' could hold the labels"):
        read_cases(write(tmp_path, "Label,label", other, classes(8)))
    table = read_cases(write(tmp_path, "outcome,label", other, classes(8)))
    assert labels_of(table) == {"benign": 4, "malignant": 4}
    assert "labels are taken from 'label' (2)" in notes_of(table)


# -- ids that a spreadsheet damaged ---------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["1.23457E+10", "1,23457E+10", "03-Jan", "3. Mrz", "Jan-03", "1234567890123450"]
)
def test_patients_that_collide_by_damage_are_refused(tmp_path: Path, name: str) -> None:
    patients = [f'"{name}"'] * 3 + [f"P{i}" for i in range(3)]
    path = write(tmp_path, "patient_id,label", patients, classes(6))
    with pytest.raises(TableError, match="3 rows hold patients that a spreadsheet") as caught:
        read_cases(path)
    assert f"'{name}' in 3 rows" in str(caught.value)
    assert "column formatted as text, or name another column with --patient" in str(caught.value)
    table = read_cases(path, labels=LabelRules(for_training=False))
    assert "warning: column 'patient_id': 3 rows hold patients that a spread" in notes_of(table)


def test_a_single_damaged_patient_is_a_warning(tmp_path: Path) -> None:
    patients = ["1.23457E+10", *(f"P{i}" for i in range(5))]
    table = read_cases(write(tmp_path, "patient_id,label", patients, classes(6)))
    assert "warning: column 'patient_id': 1 rows hold patients" in notes_of(table)


@pytest.mark.parametrize("name", ["12E4", "E10", "MAY-012", "123456789012345", "1234567890123456"])
def test_names_that_only_resemble_damage_are_accepted(tmp_path: Path, name: str) -> None:
    patients = [name] * 3 + [f"P{i}" for i in range(3)]
    table = read_cases(write(tmp_path, "patient_id,label", patients, classes(6)))
    assert "spreadsheet" not in notes_of(table)


def test_signs_of_a_narrow_cell_are_no_value(tmp_path: Path) -> None:
    path = write(tmp_path, "patient_id,label", ["P1", "#####", "P3", "######"], classes(4))
    with pytest.raises(TableError, match="2 of 4 rows have no 'patient_id'"):
        read_cases(path)
    table = read_cases(path, labels=LabelRules(for_training=False))
    assert "2 cells hold an error of the spreadsheet ('#####')" in notes_of(table)


def test_a_line_of_hashes_is_a_comment(tmp_path: Path) -> None:
    path = write(tmp_path, "label", classes(4))
    path.write_text(path.read_text().replace("i2.png", "##########\ni2.png"))
    table = read_cases(path)
    assert len(table.cases) == 4
    assert "1 comment lines skipped" in table.notes


def test_labels_that_became_dates_are_reported(tmp_path: Path) -> None:
    table = read_cases(write(tmp_path, "label", ["02-Jan", "low"] * 2))
    assert "warning: label '02-Jan' looks like a date" in notes_of(table)


# -- columns that are not used --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("split", ["train", "val", "test"]),
        ("fold", ["0", "1", "2"]),
        ("set", ["Training", "Test", "Test"]),
        ("fold_0", ["train", "test", "val"]),
    ],
)
def test_a_split_of_the_table_says_that_it_is_not_used(
    tmp_path: Path, column: str, values: list[str]
) -> None:
    table = read_cases(write(tmp_path, f"{column},label", values * 2, classes(6)))
    (note,) = [n for n in table.notes if f"column '{column}'" in n]
    assert "is not used: training divides the patients itself" in note
    assert f"{values[0]} 2" in note


@pytest.mark.parametrize(("column", "value"), [("set", "A"), ("dataset", "TCGA"), ("group", "old")])
def test_other_columns_are_no_split(tmp_path: Path, column: str, value: str) -> None:
    path = write(tmp_path, f"{column},label", [value] * 6, classes(6))
    assert "not used" not in notes_of(read_cases(path))


def test_a_nameless_column_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path, ",label", ["P1", "P1", "P2", "P2"], classes(4))
    (note,) = [n for n in read_cases(path).notes if "no name" in n]
    assert note.startswith(
        "warning: 1 columns have no name and are not read (number 2 from the left"
    )
    assert "begins with 'P1'" in note


def test_a_merged_header_is_reported(tmp_path: Path) -> None:
    write(tmp_path, "label", classes(4))
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(["path", "label", None, "note"])
    for i in range(4):
        sheet.append([f"i{i}.png", TWO[i % 2], f"stage {i}", "x"])
    sheet.merge_cells("B1:C1")
    book.save(tmp_path / "t.xlsx")
    table = read_cases(tmp_path / "t.xlsx")
    assert "number 3 from the left, which begins with 'stage 0'" in notes_of(table)


@pytest.mark.parametrize("start", [0, 1])
def test_an_index_without_a_name_is_not_reported(tmp_path: Path, start: int) -> None:
    path = write(tmp_path, "Unnamed: 0,label", [str(i + start) for i in range(4)], classes(4))
    assert "no name" not in notes_of(read_cases(path))


def test_a_repeated_header_is_reported(tmp_path: Path) -> None:
    """Data frames number repeated names, so that the second becomes ``label.1``."""
    path = write(tmp_path, "label,label.1", classes(4), ["a", "a", "b", "b"])
    note = "warning: column 'label.1' repeats the name of 'label' and is not used"
    assert note in read_cases(path).notes


def test_path_columns_that_differ_in_capitals_only_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "Path,label", [f"j{i}.png" for i in range(4)], classes(4))
    with pytest.raises(TableError, match="'path' and 'Path' differ in name by capitals"):
        read_cases(path)


# -- rows without an image ------------------------------------------------------------------------


def test_a_folder_is_no_file_of_a_row(tmp_path: Path) -> None:
    path = write(tmp_path, "label", classes(5))
    (tmp_path / "i4.png").unlink()
    (tmp_path / "i4.png").mkdir()
    table = read_cases(path)
    assert len(table.cases) == 4
    assert "4 of 5 rows have their file" in table.notes
    foreign = "1 rows name no image file, but a folder, a device or a link to nothing"
    assert f"{foreign}: row 6 'i4.png'" in notes_of(table)
    assert "is a folder that no reader reads" in table.set_aside[0].reason


def test_a_folder_that_is_one_image_is_a_row_s_image(tmp_path: Path) -> None:
    path = write(tmp_path, "label", classes(5))
    (tmp_path / "i4.png").unlink()
    (tmp_path / "i4.png").mkdir()
    table = read_cases(path, is_image=lambda folder: folder.name == "i4.png")
    assert len(table.cases) == 5
    assert "5 of 5 rows have their file" in table.notes


def test_folders_only_are_refused_as_folders(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    (tmp_path / "t.csv").write_text("path,label\na,benign\nb,malignant\n")
    with pytest.raises(
        TableError, match=r"'a' is a folder that no reader reads.*none of the 2 files"
    ):
        read_cases(tmp_path / "t.csv")
