"""Labels that are not what they seem: twins by marks, codes for missing, dates, minus signs."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveate.errors import TableError
from foveate.files.numerals import parse_number
from foveate.files.sentinels import find_repeated_outliers, find_sentinels
from foveate.table import LabelRules
from foveate.tasks import build_task, explain_unfit, join_columns
from unit.test_doubtful_values import count_labels, has_note, read_labels, read_values

# -- twins -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "label"),
    [
        ("tumor.", "tumor"), ("a?", "a"), ("a (?)", "a"), ("(a)", "a"), ("'a'", "a"), ("a*", "a"),
        ("Tumor ,", "tumor"), ("\u201ca\u201d", "a"),
    ],
)  # fmt: skip
def test_labels_that_differ_in_marks_are_refused(tmp_path: Path, other: str, label: str) -> None:
    labels = [label, label, other, "normal", "normal"]
    with pytest.raises(TableError, match="writes one label in several ways") as caught:
        read_labels(tmp_path, labels, LabelRules())
    assert f"Say --map '{other}={label}' if they mean the same" in str(caught.value)
    table = read_labels(tmp_path, labels, LabelRules(renamed={other: label}))
    assert count_labels(table) == {label: 3, "normal": 2}
    apart = LabelRules(task="multiclass", wanted=[label, other, "normal"])
    assert len(count_labels(read_labels(tmp_path, labels, apart))) == 3


@pytest.mark.parametrize(
    "labels",
    [["A+", "A-", "A"], ["<1", ">1", "1"], ["3+", "2+", "3"], ["CIN (1)", "CIN (2)"], [".5", "5"]],
)
def test_signs_that_change_the_meaning_make_no_twins(tmp_path: Path, labels: list[str]) -> None:
    table = read_labels(tmp_path, labels * 2, LabelRules(task="multiclass"))
    assert count_labels(table) == dict.fromkeys(labels, 2)


@pytest.mark.parametrize("word", ["None", "none"])
@pytest.mark.parametrize("empty", ["", "NaN", "?"])
def test_none_beside_empty_cells_is_asked_for(tmp_path: Path, word: str, empty: str) -> None:
    labels = ["tumour", "tumour", word, word, empty]
    with pytest.raises(TableError, match=f"'{word}' in 2 rows beside 1 empty ones") as caught:
        read_labels(tmp_path, labels, LabelRules())
    assert f"Say --map '{word}=' if it is missing there" in str(caught.value)
    table = read_labels(tmp_path, labels, LabelRules(renamed={word: word}))
    assert count_labels(table) == {"tumour": 2, word: 2}
    assert count_labels(read_labels(tmp_path, labels[:4], LabelRules()))[word] == 2


@pytest.mark.parametrize("labels", [["none", "mild", "severe", ""], ["a|b", "a", "b", "none", ""]])
def test_none_is_a_grade_and_a_word_for_no_label(tmp_path: Path, labels: list[str]) -> None:
    assert count_labels(read_labels(tmp_path, labels * 2, LabelRules()))["none"] == 2


def test_minus_signs_of_other_code_points_are_one_label(tmp_path: Path) -> None:
    table = read_labels(tmp_path, ["\u22121", "-1", "1", "1"], LabelRules())
    assert sorted(count_labels(table).values()) == [2, 2]
    for minus in "\u2212\u2013":
        assert build_task("auto", ["+", minus] * 3, {}).resolved == {"positive": "+"}


# -- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("minus", ["\u2212", "\u2013", "\u2011", "\ufe63", "\uff0d"])
def test_minus_signs_of_other_code_points_are_read(tmp_path: Path, minus: str) -> None:
    assert parse_number(f"{minus}1.5") == -1.5
    rules = LabelRules(task="regression")
    texts = [f"{minus}1.5", "2.5", "-3"]
    assert read_values(tmp_path, texts, rules) == [-1.5, 2.5, -3]
    assert has_note(read_labels(tmp_path, texts, rules), "or another minus sign than that of a key")


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        ([0.5, 3.25, -99.99], [-99.99]),
        ([0.5, 3.25, 99999], [99999]),
        ([0.5, 3.25, 8888, 8888], [8888]),
        ([0.5, 3.25, 7777, 7777, -888, -888], [-888, 7777]),
        ([0.5, 3.25, 99.9, 99.9], [99.9]),
        ([0.5, 3.25, 8888], []),
        ([0.5, 3.25, 99.9], []),
        ([500.5, 900, 777, 777], []),
        ([1, 2, 88, 88], []),
    ],
)
def test_codes_of_sevens_eights_and_decimals(values: list[float], codes: list[float]) -> None:
    assert find_sentinels(values) == codes


MEASURED = [1.5, 2.25, 3.0, 4.75, 5.5, 6.25, 7.0]


@pytest.mark.parametrize(
    ("more", "outliers"),
    [
        ([-50.0] * 3, [-50.0]),
        ([12345.0] * 4, [12345.0]),
        ([-50.0] * 3 + [500.0] * 3, []),
        ([-50.0] * 2, []),
        ([20.0] * 3, []),
        ([0.0] * 5, []),
        ([500.0, 501.0, 502.0], []),
    ],
)
def test_a_number_that_repeats_far_outside_is_an_outlier(
    more: list[float], outliers: list[float]
) -> None:
    assert find_repeated_outliers([*MEASURED, *more]) == outliers


@pytest.mark.parametrize("code", ["-99.99", "8888", "-50", "1e6"])
def test_a_code_among_measured_numbers_is_asked_for(tmp_path: Path, code: str) -> None:
    texts = [*map(str, MEASURED), *[code] * 3]
    with pytest.raises(TableError, match=f"holds '{code}' in 3 rows, while all other numbers"):
        read_values(tmp_path, texts)
    for new, n in (("", 7), (code, 10)):
        rules = LabelRules(task="regression", renamed={code: new})
        assert len(read_values(tmp_path, texts, rules)) == n


def test_a_code_that_repeats_among_times_is_named() -> None:
    cells = {"time": ["3", "5", "8", "8888", "8888"], "status": list("10101")}
    notes = join_columns("survival", cells, {})[1].notes
    assert any(
        "'time' holds 8888, far from all" in note and "--map '8888='" in note for note in notes
    )


# -- dates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dates",
    [
        ["2021-03-05", "2021-04-01", "2022-12-31"],
        ["05.03.2021", "01.04.2021", "31.12.2022"],
        ["3/5/21", "4/1/21", "12/31/22"],
        ["20210305", "20210401", "20221231"],
        ["5-Mar-2021", "1-Apr-2021", "31-Dec-2022"],
        ["March 5, 2021", "April 1, 2021", "December 31, 2022"],
        ["2021-03-05 00:00:00", "2021-04-01T12:30", "2022-12-31 23:59:59.5"],
    ],
)
def test_dates_are_no_classes(dates: list[str]) -> None:
    reason = explain_unfit("auto", [*dates, "unclear"] * 2, "seen")
    assert reason is not None
    assert "column 'seen' holds 3 different dates" in reason
    assert "--label" in reason
    assert explain_unfit("multiclass", dates * 2, "seen") is None


@pytest.mark.parametrize(
    "labels",
    [["2021-03-05", "2021-04-01"], ["1-2", "1-3", "2-3"], ["a", "b", "c", "2021-03-05"],
     ["1.2.3", "1.2.4", "1.3.0"]],
)  # fmt: skip
def test_other_labels_are_no_dates(labels: list[str]) -> None:
    assert "dates" not in (explain_unfit("auto", labels * 3, "y") or "")
