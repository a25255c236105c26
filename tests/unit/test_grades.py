"""Grades: which words are known, in which order, and what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.errors import OptionError, TableError
from foveate.metrics import score_grades
from foveate.parts import find
from foveate.parts.options import parse_options
from foveate.table import LabelRules, NamedColumns, read_cases
from foveate.tasks import build_task, restore_task
from foveate.tasks.classes.grades import are_grades, sort_grades
from foveate.tasks.ordinal import OrdinalTask
from unit.test_tables import read_labels

KNOWN = [
    ("label", ["I", "II", "III"]),
    ("label", ["ii", "iii", "iv", "v"]),
    ("label", ["IA", "IIB", "IIIC"]),
    ("label", ["stage I", "stage II", "stage III"]),
    ("label", ["Stage IA", "Stage IIB", "Stage IV"]),
    ("label", ["T1", "T1a", "T2", "T3b", "T4"]),
    ("label", ["G1", "G2", "G3"]),
    ("label", ["Grade group 1", "Grade group 2", "Grade group 5"]),
    ("gleason", ["0+0", "3+3", "3+4", "4+3", "4+4", "4+5"]),
    ("gleason", ["3+3=6", "3+4=7", "4+3=7"]),
    ("label", ["0", "1+", "2+", "3+"]),
    ("label", ["-", "+", "++"]),
    ("label", ["neg", "+", "++", "+++"]),
    ("label", ["low", "intermediate", "high"]),
    ("label", ["low grade", "medium grade", "high grade"]),
    ("label", ["normal", "mild", "moderate", "severe"]),
    ("label", ["well differentiated", "moderately differentiated", "poorly differentiated"]),
    *((name, list("01234")) for name in ("kl", "KL grade", "dr_level", "icdr", "her2 score")),
    ("isup", ["1.0", "2.0", "3.0"]),
    *((name, list("1234")) for name in ("figo", "pT", "fibrosis.stage", "severity", "isup_grade")),
]


@pytest.mark.parametrize(("column", "grades"), KNOWN)
def test_grades_are_inferred_in_their_order(column: str, grades: list[str]) -> None:
    shuffled = sorted(grades, key=lambda grade: (len(grade), grade[::-1]))
    assert are_grades(shuffled, column)
    assert sort_grades(shuffled * 2) == grades
    task = build_task("auto", shuffled * 4, {}, column)
    assert isinstance(task, OrdinalTask)
    assert task.describe() == f"grades {' < '.join(grades)}"
    assert task.targets(grades).tolist() == list(range(len(grades)))


@pytest.mark.parametrize(
    ("column", "labels"),
    [
        ("label", ["CD3+", "CD8+", "CD20+"]),
        ("label", ["I", "II"]),
        ("label", ["-", "+"]),
        ("label", ["A+", "B+", "0+"]),
        ("label", list("0123")),
        ("site", list("1234")),
        ("label", ["IV", "oral", "none"]),
        ("label", ["class1", "class2", "class3"]),
        ("label", ["Barrett, low grade", "Barrett, high grade", "Barrett"]),
    ],
)
def test_names_that_only_resemble_grades_are_classes(column: str, labels: list[str]) -> None:
    assert not are_grades(labels, column)
    assert not isinstance(build_task("auto", labels * 4, {}, column), OrdinalTask)


@pytest.mark.parametrize(
    ("labels", "same"),
    [
        (["3+5", "4+4", "3+3"], "3+5, 4+4"),
        (["4+5", "5+4", "3+4"], "4+5, 5+4"),
        (["grade 1", "grade I", "grade 2"], "grade 1, grade I"),
        (["low", "moderate", "medium"], "medium, moderate"),
    ],
)
def test_grades_of_one_rank_are_refused(tmp_path: Path, labels: list[str], same: str) -> None:
    with pytest.raises(TableError, match=f"column 'label' holds grades of which {re.escape(same)}"):
        read_cases(read_labels(tmp_path, labels * 4))
    order = tuple(reversed(labels))
    rules = LabelRules(task="ordinal", task_options={"order": order})
    assert len(read_cases(tmp_path / "t.csv", labels=rules).cases) == 12
    assert build_task("ordinal", labels * 4, {"order": order}).settled == {"classes": list(order)}


@pytest.mark.parametrize("labels", [["T1", "N1", "N2"], ["0", "negative", "1+"]])
def test_grades_of_several_kinds_or_spellings_are_refused(labels: list[str]) -> None:
    with pytest.raises(TableError, match=r"--task\.order"):
        build_task("ordinal", labels * 4, {})


def test_numbers_are_grades_where_the_user_says_so() -> None:
    task = build_task("ordinal", ["10", "2", "2.5", "1"] * 3, {}, "size")
    assert task.settled == {"classes": ["1", "2", "2.5", "10"]}
    with pytest.raises(TableError, match="30 different labels, more than grades have"):
        build_task("ordinal", [str(i) for i in range(30)], {})


def test_words_without_a_known_order_need_one() -> None:
    labels = ["hot", "cold", "warm"] * 2
    with pytest.raises(
        TableError, match=r"cold, hot, warm, whose order is not known.*--task.order"
    ):
        build_task("ordinal", labels, {})
    task = build_task("ordinal", labels, {"order": "cold, warm,hot"})
    assert task.settled == {"classes": ["cold", "warm", "hot"]}
    assert task.resolved == {"order": ["cold", "warm", "hot"]}
    again = restore_task("ordinal", task.settled, task.resolved)
    assert again.describe() == "grades cold < warm < hot"


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ("cold,warm", "hot of the labels not listed"),
        ("cold,warm,hut", "no label 'hut'. Did you mean 'hot'"),
        ("cold,warm,hot,cold", "give each grade once"),
    ],
)
def test_an_order_names_every_grade_once(order: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        build_task("ordinal", ["hot", "cold", "warm"], {"order": order})


def test_a_stored_order_must_be_the_settled_one() -> None:
    with pytest.raises(OptionError, match="that was settled, a, b, c"):
        OrdinalTask(classes=["a", "b", "c"], order=("a", "c", "b"))


def test_words_with_an_x_are_not_split() -> None:
    parsed = parse_options(find("tasks", "ordinal"), {"order": "simple,complex"}, "task")
    assert parsed == {"order": ("simple", "complex")}


def test_the_median_grade_is_predicted() -> None:
    task = OrdinalTask(classes=["a", "b", "c"])
    assert task.predict([0.4, 0.25, 0.35, 0.95], {}) == "b", "neither the most probable nor a mean"
    assert task.predict([0.5, 0.0, 0.5, 1.0], {}) == "a"
    assert task.predict([0.0, 0.0, 1.0, 2.0], {}) == "c"


def test_one_logit_moves_the_grades_above_and_below_only() -> None:
    task = OrdinalTask(classes=["a", "b", "c"], smoothing=0.0)
    target = task.targets(["a", "b", "c"])
    logits = torch.tensor([[0.3, -0.4]] * 3)
    first, second = torch.sigmoid(logits[0]).double().tolist()
    shares = [1 - first, first * (1 - second), first * second]
    torch.testing.assert_close(
        task.probabilities(logits)[0], torch.tensor(shares, dtype=torch.float64),
        rtol=0, atol=1e-7,
    )  # fmt: skip
    surprise = -torch.tensor(shares, dtype=torch.float64).log()
    torch.testing.assert_close(task.each_loss(logits, target).double(), surprise, rtol=0, atol=1e-6)


def test_scores_of_grades_worked_by_hand() -> None:
    """Squared disagreements 1, 1 and 4; by chance (12 + 8 + 28) / 6, from 2 2 2 and 3 2 1."""
    target, predicted = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 0, 2, 0])
    prob = np.eye(3)[predicted]
    scores = score_grades(prob, target, predicted, [f"p{i}" for i in range(6)], [""] * 6)
    values = {name: measured.score.value for name, measured in scores.items()}
    assert values["kappa_quadratic"] == pytest.approx(1 - 6 / (48 / 6))
    assert values["within_one"] == pytest.approx(5 / 6)
    assert values["mae"] == pytest.approx(4 / 6)
    assert values["accuracy"] == pytest.approx(3 / 6)
    pairs = [(i, j) for i in range(6) for j in range(6) if target[i] > target[j]]
    right = [(predicted[i] > predicted[j]) + 0.5 * (predicted[i] == predicted[j]) for i, j in pairs]
    assert values["concordance"] == pytest.approx(np.mean(right))


def test_a_named_column_of_grades_is_read_and_trained_as_such(tmp_path: Path) -> None:
    path = read_labels(tmp_path, ["1", "2", "3", "4"] * 4, "isup_grade")
    read = read_cases(path, columns=NamedColumns(label="isup_grade"))
    assert len(read.cases) == 16
