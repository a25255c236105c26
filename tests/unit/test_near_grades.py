"""Grades in other spellings keep their order; where it is doubtful, a line says what to type."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveate.errors import TableError
from foveate.table import LabelRules, read_cases
from foveate.tasks import build_task, suggest_tasks
from foveate.tasks.classes.grades import are_grades, sort_grades
from unit.test_tables import read_labels

CERTAIN = [
    ("label", ["3 + 3", "3 + 4", "4 + 3"]),
    ("label", ["Gleason 3+3=6", "Gleason 3+4=7", "Gleason 4+3=7"]),
    ("label", ["Gleason 6", "Gleason 7", "Gleason 10"]),
    ("label", ["ISUP 1", "ISUP 2", "ISUP 3"]),
    ("label", ["ISUP grade group 1", "ISUP grade group 2", "ISUP grade group 3"]),
    ("label", ["GG1", "GG2", "GG3"]),
    ("label", ["BI-RADS 1", "BI-RADS 3", "BI-RADS 4a", "BI-RADS 4b", "BI-RADS 5", "BI-RADS 6"]),
    ("BI-RADS", ["1", "3", "4a", "4b", "4c", "5"]),
    ("label", ["PI-RADS 2", "PI-RADS 3", "PI-RADS 4"]),
    ("label", ["0", "I", "II", "III"]),
    ("label", ["\u2160", "\u2161", "\u2162"]),
    ("label", ["IA1", "IA2", "IB1", "IIA"]),
    ("label", ["T1", "T2", "T3"]),
    ("label", ["pTis", "pT1mi", "pT1a", "pT2a", "pT2b"]),
    ("label", ["ypT0", "ypT1", "ypT2"]),
    ("label", ["mild", "moderate", "severe"]),
    ("label", ["absent", "mild", "severe"]),
    ("label", ["negative", "1+", "2+", "3+"]),
    ("label", ["negative", "1 +", "2 +"]),
    ("label", ["\u2212", "+", "++"]),
    ("label", ["well", "moderate", "poor"]),
]


@pytest.mark.parametrize(("column", "grades"), CERTAIN)
def test_spellings_with_a_certain_order_are_grades(column: str, grades: list[str]) -> None:
    assert are_grades(grades[::-1], column)
    assert sort_grades(grades[::-1]) == grades
    task = build_task("auto", grades[::-1] * 4, {}, column)
    assert task.describe() == f"grades {' < '.join(grades)}"
    (sentence,) = task.assumptions
    assert "arms, sites or scanners, train with --task multiclass" in sentence
    assert not suggest_tasks("auto", grades, column)


@pytest.mark.parametrize(
    ("column", "labels", "words"),
    [
        ("label", ["T1", "T2", "T3", "TX"], "say --map 'TX='"),
        ("label", ["pN0", "pN1", "pNX"], "say --map 'pNX='"),
        ("label", ["G1", "GX"], "say --map 'GX='"),
        ("label", ["I", "II", "X"], "say --map 'X='"),
        ("label", ["BI-RADS 0", "BI-RADS 1", "BI-RADS 2"], "say --map 'BI-RADS 0='"),
        ("birads", ["0", "1", "2", "3"], "say --map '0='"),
        ("label", ["low", "normal", "high"], "--task ordinal --task.order low,normal,high"),
        ("label", ["High", "Low", "Normal"], "--task ordinal --task.order Low,Normal,High"),
        ("label", ["cT1", "cT2", "cT3"], "--task ordinal --task.order cT1,cT2,cT3"),
        ("label", ["M0", "M1a", "M1b"], "--task ordinal --task.order M0,M1a,M1b"),
        ("label", ["normal", "G1", "G2"], "beside 'normal', whose rank among them is not known"),
        ("label", ["Ta", "T1", "T2", "T3"], "beside 'Ta', whose rank among them is not known"),
        ("label", ["low grade", "high grade", "benign"], "beside 'benign', whose rank"),
    ],
)
def test_a_doubtful_order_is_not_trained_but_a_line_says_how(
    column: str, labels: list[str], words: str
) -> None:
    (line,) = suggest_tasks("auto", labels * 4, column)
    assert words in line
    assert "--task ordinal" in line
    assert not suggest_tasks("multiclass", labels * 4, column), "the user has decided"
    assert "grades" not in build_task("auto", labels * 4, {}, column).describe()


@pytest.mark.parametrize(
    ("column", "labels"),
    [
        ("label", ["A", "B", "C"]),
        ("arm", ["x", "y", "z"]),
        ("site", ["1", "2", "3", "x"]),
        ("label", ["CD3+", "CD8+", "CD20+"]),
        ("label", ["tumour", "stroma", "normal"]),
        ("label", ["benign", "malignant"]),
        ("label", ["absent", "present"]),
        ("label", ["T1", "T2", "FLAIR"]),
        ("label", ["IV", "oral", "none"]),
        ("label", ["malignant", "metastasis", "melanoma"]),
    ],
)
def test_names_cause_no_line_about_grades(column: str, labels: list[str]) -> None:
    assert not suggest_tasks("auto", labels * 4, column)
    assert "grades" not in build_task("auto", labels * 4, {}, column).describe()


def test_a_stated_order_needs_no_sentence() -> None:
    task = build_task("ordinal", ["I", "II", "III"], {"order": "III,II,I"})
    assert task.assumptions == ()


def test_a_grade_that_could_not_be_judged_gets_no_rank() -> None:
    with pytest.raises(TableError, match="holds 'TX', which says that a grade could not be judged"):
        build_task("ordinal", ["T1", "T2", "TX"], {})
    with pytest.raises(TableError, match="Say --map 'BI-RADS 0=' to leave these images out"):
        build_task("ordinal", ["BI-RADS 0", "BI-RADS 1", "BI-RADS 2"], {})
    task = build_task("ordinal", ["T1", "T2", "TX"], {"order": "TX,T1,T2"})
    assert task.settled == {"classes": ["TX", "T1", "T2"]}


@pytest.mark.parametrize("same", [["3+4", "3 + 4"], ["BI-RADS 2", "BIRADS 2"], ["III", "\u2162"]])
def test_spellings_of_one_grade_are_refused(same: list[str]) -> None:
    others = {"3": ["3+3", "4+4"], "B": ["BI-RADS 3", "BI-RADS 4"], "I": ["I", "II"]}[same[0][0]]
    with pytest.raises(TableError, match=r"have the same rank\. Write one word"):
        build_task("auto", [*same, *others], {})


def test_the_line_is_a_note_of_the_table(tmp_path: Path) -> None:
    path = read_labels(tmp_path, ["T1", "T2", "T3", "TX"] * 3)
    assert any("could not be judged" in note for note in read_cases(path).notes)
    renamed = read_cases(path, labels=LabelRules(renamed={"TX": ""}))
    assert not any("could not be judged" in note for note in renamed.notes)
    assert len(renamed.cases) == 9
