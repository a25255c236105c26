"""Doubtful values of tables are read and counted, or refused with a remedy; never guessed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from foveate.errors import OptionError, TableError
from foveate.files.numerals import parse_number, parse_numbers
from foveate.files.sentinels import find_sentinels
from foveate.parts.options import parse_pairs
from foveate.runs.config import build_config
from foveate.table import CaseTable, LabelRules, NamedColumns, read_cases
from foveate.table.renaming import check_new_names
from foveate.tasks import build_task
from foveate.tasks.binary import BinaryTask
from foveate.tasks.multiclass import MulticlassTask
from foveate.tasks.regression import RegressionTask

NUMBERS = LabelRules(task="regression")


def write(folder: Path, column: str, values: list[str], labels: list[str] | None = None) -> Path:
    """Write a table with one column beside the paths, or with further labels, and its images."""
    rows = [f"path;{column}{';label' if labels else ''}"]
    for i, value in enumerate(values):
        (folder / f"i{i}.png").write_text(f"image {i}")
        rows.append(f"i{i}.png;{value}{f';{labels[i]}' if labels else ''}")
    (folder / "t.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "t.csv"


def read_labels(folder: Path, values: list[str], rules: LabelRules) -> CaseTable:
    """Read a table with these labels."""
    path = write(folder, "size", values)
    return read_cases(path, columns=NamedColumns(label="size"), labels=rules)


def read_values(folder: Path, values: list[str], rules: LabelRules = NUMBERS) -> list[float]:
    return [float(str(case.label)) for case in read_labels(folder, values, rules).cases]


def count_labels(table: CaseTable) -> Counter[str | None]:
    return Counter(case.label for case in table.cases)


def has_note(table: CaseTable, text: str) -> bool:
    return any(text in note for note in table.notes)


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["1,200", "12,5"], [1.2, 12.5]),
        (["1,200", "12.5"], [1200, 12.5]),
        (["1,200", "0,300"], [1.2, 0.3]),
        (["1,234.5", "2,000"], [1234.5, 2000]),
        (["1.234,5", "2.000"], [1234.5, 2000]),
        (["1,234,567", "1,200"], [1234567, 1200]),
        (["1 200", "1\u202f300", "1\u00a0400"], [1200, 1300, 1400]),
        (["1'200", "1\u2019300.5"], [1200, 1300.5]),
        (["12,5", "20.0", "\u22123"], [12.5, 20, -3]),
        (["1.250", "2.345"], [1.25, 2.345]),
        (["\uff11\uff12", "1e3", "1,234e2"], [12, 1000, 123.4]),
    ],
)
def test_a_column_decides_what_points_and_commas_mean(
    texts: list[str], values: list[float], tmp_path: Path
) -> None:
    assert [parse_numbers(texts).values[text] for text in texts] == values
    assert read_values(tmp_path, texts) == values


@pytest.mark.parametrize("text", ["1_0", "1,2,3", "10\u00b2", "nan", "", "-", "12 mm", "1 20"])
def test_other_texts_are_no_numbers(text: str) -> None:
    assert parse_numbers([text]) == parse_numbers([])


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["850", "1,200", "2,300"], "'1,200' can be 1200 or 1.2, and no other value"),
        (["850", "1.200"], "write one value as '1.200,0' or as '1.2000'"),
        (["1,200", "12.5", "12,5"], "say --map '1,200=1,200.0' or --map '1,200=1,2000'"),
    ],
)
def test_a_column_with_two_readings_is_refused(
    texts: list[str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(TableError, match=r"t\.csv, row \d, column 'size': ") as caught:
        read_values(tmp_path, texts)
    assert words in str(caught.value)


def test_one_value_that_is_clear_decides_for_all(tmp_path: Path) -> None:
    for new, values in (("1,200.0", [850, 1200, 2300]), ("1,2000", [850, 1.2, 2.3])):
        rules = LabelRules(task="regression", renamed={"1,200": new})
        assert read_values(tmp_path, ["850", "1,200", "2,300"], rules) == values


def test_numbers_that_were_not_plain_are_counted(tmp_path: Path) -> None:
    table = read_labels(tmp_path, ["1,200.5", "3", "2,000"], NUMBERS)
    assert has_note(table, "2 rows hold a number with a decimal comma or with separators of")
    assert has_note(table, "such as '2,000', read as 2000")
    table = read_labels(tmp_path, ["1.250", "2.345"], NUMBERS)
    assert has_note(table, "every number has a point before three digits, which is read as a dec")
    assert not has_note(read_labels(tmp_path, ["1.5", "2.345"], NUMBERS), "read as")


def test_a_single_label_with_two_readings_has_no_target() -> None:
    task = RegressionTask(mean=0.0, spread=1.0)
    assert parse_number("1,200") is None
    assert [task.understands(label) for label in ("1,200", "1,20", "1e16")] == [False, True, False]


def test_a_thousand_is_no_one(tmp_path: Path) -> None:
    """Zeros after a comma are decimals only where they are not three."""
    rules = LabelRules(task="multiclass")
    table = read_labels(tmp_path, ["1,000", "1", "1,0"], rules)
    assert len(count_labels(table)) == 2


def test_thousands_that_are_measured_are_no_classes(tmp_path: Path) -> None:
    values = [f"{n:,}" for n in range(1100, 3100, 50)]
    with pytest.raises(TableError, match=r"40 different numbers .*which --task regression lea"):
        read_labels(tmp_path, values, LabelRules())


def test_survival_times_may_have_separators(tmp_path: Path) -> None:
    path = write(tmp_path, "os_days", ["1,200", "1,350", "900.5"], ["0", "1", "0"])
    path.write_text(path.read_text().replace("label", "os_event"))
    with pytest.raises(TableError, match="'os_days' and 'os_event' are a label together"):
        read_cases(path, columns=NamedColumns(label="os_event"))


@pytest.mark.parametrize("value", ["1e300", "-1e16", "1e400"])
def test_a_number_beyond_the_limit_is_refused(value: str, tmp_path: Path) -> None:
    words = f"row 3, column 'size': '{value}' lies beyond 1e"
    with pytest.raises(TableError) as caught:
        read_values(tmp_path, ["1.5", value, "2.5"])
    assert words in str(caught.value)
    assert "the limit for labels; correct it, or say --map" in str(caught.value)
    rules = LabelRules(task="regression", renamed={value: ""})
    assert read_values(tmp_path, ["1.5", value, "2.5"], rules) == [1.5, 2.5]


# -- codes for a missing value ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        ([0, 1, -999], [-999]),
        ([0, 1, -1], [-1]),
        ([0, 1, 9, 99], [9, 99]),
        ([0.5, 3.25, 999], [999]),
        ([-2.5, 3, -1, -9], [-9]),
        ([-2.5, 3, -1], []),
        ([5, 80, 99, 120], []),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], []),
        ([9, 99], []),
    ],
)
def test_sentinels_lie_far_from_other_numbers(values: list[float], codes: list[float]) -> None:
    assert find_sentinels(values) == codes


@pytest.mark.parametrize("training", [True, False])
def test_a_code_among_numbers_is_refused(training: bool, tmp_path: Path) -> None:
    values = ["1.5", "-999", "2.5", "-999"]
    rules = LabelRules(task="regression", for_training=training)
    with pytest.raises(
        TableError, match=r"'-999' in 2 rows, while all other numbers lie from 1\.5"
    ):
        read_values(tmp_path, values, rules)
    for new, left in (("", [1.5, 2.5]), ("-999", [1.5, -999, 2.5, -999])):
        confirmed = LabelRules(task="regression", for_training=training, renamed={"-999": new})
        assert read_values(tmp_path, values, confirmed) == left


@pytest.mark.parametrize(
    ("labels", "code"),
    [
        (["0", "1", "9"], "9"),
        (["0", "1", "-1"], "-1"),
        (["0", "1", "99"], "99"),
        (["0", "999"], "999"),
        (["benign", "malignant", "-999"], "-999"),
    ],
)
@pytest.mark.parametrize("task", ["auto", "multiclass"])
def test_a_code_among_classes_is_refused(
    labels: list[str], code: str, task: str, tmp_path: Path
) -> None:
    with pytest.raises(TableError, match=f"'{code}' in 2 rows beside .*: often a code") as caught:
        read_labels(tmp_path, labels * 2, LabelRules(task=task))
    assert f"Say --map '{code}=' if it is one" in str(caught.value)
    if len(labels) > 2:
        table = read_labels(tmp_path, labels * 2, LabelRules(task=task, renamed={code: ""}))
        assert code not in count_labels(table)
        assert has_note(table, f"2 rows with renamed labels: '{code}' to no label")
    table = read_labels(tmp_path, labels * 2, LabelRules(task=task, wanted=labels))
    assert count_labels(table) == dict.fromkeys(labels, 2)


@pytest.mark.parametrize("labels", [["-1", "1"], ["0", "9"], ["1", "2", "3"], [*"0123456789"]])
def test_numbers_that_are_classes_are_accepted(labels: list[str], tmp_path: Path) -> None:
    table = read_labels(tmp_path, labels * 2, LabelRules())
    assert count_labels(table) == dict.fromkeys(labels, 2)


# -- one label in several spellings ----------------------------------------------------------------


@pytest.mark.parametrize("task", ["auto", "multiclass"])
def test_labels_that_differ_in_capitals_are_refused(task: str, tmp_path: Path) -> None:
    labels = ["benign", "benign", "BENIGN", "malignant", "malignant"]
    with pytest.raises(TableError, match="writes one label in several ways") as caught:
        read_labels(tmp_path, labels, LabelRules(task=task))
    assert "('benign' in 2 rows and 'BENIGN' in 1 rows)" in str(caught.value)
    assert "Say --map 'BENIGN=benign' if they mean the same" in str(caught.value)
    table = read_labels(tmp_path, labels, LabelRules(task=task, renamed={"BENIGN": "benign"}))
    assert count_labels(table) == {"benign": 3, "malignant": 2}
    assert has_note(table, "1 rows with renamed labels: 'BENIGN' to 'benign'")
    kept = LabelRules(task="multiclass", renamed={"BENIGN": "BENIGN", "benign": "benign"})
    assert len(count_labels(read_labels(tmp_path, labels, kept))) == 3


def test_a_label_that_lost_a_letter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="Say --map 'm\ufffdglich=möglich' if they mean"):
        read_labels(tmp_path, ["möglich", "m\ufffdglich", "m\ufffdglich", "nein"], LabelRules())


@pytest.mark.parametrize("garbled", ["mÃ¶glich", "m√∂glich", "mÃƒÂ¶glich"])
def test_labels_and_patients_in_a_wrong_encoding_are_mended(garbled: str, tmp_path: Path) -> None:
    labels = ["möglich", garbled, garbled, "nein"]
    table = read_labels(tmp_path, labels, LabelRules())
    assert count_labels(table) == {"möglich": 3, "nein": 1}
    assert has_note(table, f"label 'möglich' is also written '{garbled}' (2 rows): one class")
    path = write(tmp_path, "patient", labels, ["a", "b", "a", "b"])
    assert len({case.patient_id for case in read_cases(path).cases}) == 2


def test_numbers_beside_words_are_refused(tmp_path: Path) -> None:
    labels = ["0", "1", "benign", "malignant"] * 2
    with pytest.raises(TableError, match=r"holds 0 and 1 .* beside words") as caught:
        read_labels(tmp_path, labels, LabelRules())
    assert "Rename the words with --map 'benign=1' or --map 'benign=0'" in str(caught.value)
    renamed = {"benign": "0", "malignant": "1"}
    table = read_labels(tmp_path, labels, LabelRules(renamed=renamed))
    assert count_labels(table) == {"0": 4, "1": 4}
    answers = ["1", "positive", "0", "negative", "positive"]
    with pytest.raises(TableError, match="or say --map '1=positive' --map 'negative=0'; where"):
        read_labels(tmp_path, answers, LabelRules())


# -- renaming --------------------------------------------------------------------------------------


def test_labels_are_renamed_once_with_all_their_spellings(tmp_path: Path) -> None:
    rules = LabelRules(renamed={"1": "0", "0": "1"})
    table = read_labels(tmp_path, ["1", "1.0", "0", "2", "2"], rules)
    assert count_labels(table) == {"0": 2, "1": 1, "2": 2}


def test_a_word_for_missing_can_be_renamed(tmp_path: Path) -> None:
    rules = LabelRules(renamed={"?": "unclear"})
    table = read_labels(tmp_path, ["?", "yes", "no", "unknown"], rules)
    assert count_labels(table) == {"unclear": 1, "yes": 1, "no": 1}


def test_renaming_of_the_training_may_be_absent(tmp_path: Path) -> None:
    rules = LabelRules(for_training=False, renamed_in_training={"x": "a", "-999": ""})
    table = read_labels(tmp_path, ["x", "b"], rules)
    assert count_labels(table) == {"a": 1, "b": 1}
    with pytest.raises(OptionError, match="--map z=a: the table has no label 'z'"):
        read_labels(tmp_path, ["x", "b"], LabelRules(renamed={"z": "a"}))


def test_new_names_are_those_of_the_model() -> None:
    task = MulticlassTask(classes=("a", "b"))
    check_new_names({"x": "a", "-999": ""}, task)
    with pytest.raises(OptionError, match="but 'a' is one, which comes second"):
        check_new_names({"a": "x"}, task)


def test_pairs_are_read_alike_from_flags_and_configs() -> None:
    assert parse_pairs(["a=b", "-999="], "--map") == {"a": "b", "-999": ""}
    for texts, words in ((["a"], "expected OLD=NEW"), (["a=b", "a=c"], "got two new names of 'a'")):
        with pytest.raises(OptionError, match=words):
            parse_pairs(texts, "--map")
    section = {"path": "t.csv", "renamed": {-999: None, "a": 0}}
    assert build_config({"table": section}).table.renamed == {"-999": "", "a": "0"}
    for renamed, read in (("a=b", {"a": "b"}), (None, None)):
        assert build_config({"table": section | {"renamed": renamed}}).table.renamed == read
    with pytest.raises(OptionError, match="expected a section of labels and new names"):
        build_config({"table": section | {"renamed": [1]}})


# -- the positive class ----------------------------------------------------------------------------


def test_a_positive_class_by_the_alphabet_is_stated() -> None:
    (sentence,) = build_task("auto", ["serous", "clear", "serous"], {}).assumptions
    assert "The positive class is 'serous', only because it comes after 'clear'" in sentence
    assert "To make 'clear' the positive class, train with --task.positive 'clear'" in sentence
    for labels in (["benign", "other"], ["0", "1"], ["9", "10"]):
        assert build_task("auto", labels, {}).assumptions == ()
    assert build_task("auto", ["a", "b"], {"positive": "b"}).assumptions == ()
    assert BinaryTask(classes=["10", "9"]).classes == ("9", "10")


# -- spacings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "spacing_um"),
    [
        ("0.5 um", (0.5, 0.5)),
        ("0,25 \u00b5m", (0.25, 0.25)),
        ("0.25\u03bcm/px", (0.25, 0.25)),
        ("0.0005 mm", (0.5, 0.5)),
        ("250 nm", (0.25, 0.25)),
        ("0.5 um x 0.25 um", (0.5, 0.25)),
        ("1,250", (1.25, 1.25)),
    ],
)
def test_a_spacing_may_state_its_unit(
    cell: str, spacing_um: tuple[float, ...], tmp_path: Path
) -> None:
    table = read_cases(write(tmp_path, "mpp", [cell, ""], ["x", "y"]))
    assert table.cases[0].spacing_um == pytest.approx(spacing_um)
    assert has_note(table, "1 pixel sizes state a unit") == cell.endswith(("m", "px"))


def test_a_spacing_with_two_readings_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "mpp", ["1,250", ""], ["x", "y"])
    (tmp_path / "i0.nii").write_text("volume")
    path.write_text(path.read_text().replace("i0.png", "i0.nii"))
    words = r"row 2, column 'mpp': got '1,250', which can be 1250 or 1\.25; write '1,250\.0'"
    with pytest.raises(TableError, match=words):
        read_cases(path)


# -- files that are no tables ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"path": "a.png"}]', 'is JSON, not a table: row 1 begins with \'[{"path": "a.png"}]\''),
        ('\n\n{"path": ["a.png"]}', "is JSON, not a table: row 3 begins with"),
        ("<!DOCTYPE html>\n<p>Log in", "is HTML, not a table: row 1 begins with '<!DOCTYPE html>"),
        ("<?xml version='1.0'?>", "is XML, not a table"),
        (
            "path,label\na.png,x\nb\0.png,y\n",
            "is no table: row 3 holds a NUL byte ('b\ufffd.png,y')",
        ),
        ("path\0,label\na.png,x\n", "is no table: give a CSV, TSV or XLSX file"),
    ],
)
def test_other_files_named_csv_are_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(TableError) as caught:
        read_cases(tmp_path / "t.csv")
    assert words in str(caught.value)
    assert (
        "save the data as CSV, TSV or XLSX" in str(caught.value)
        or "NUL" in words
        or "give" in words
    )
