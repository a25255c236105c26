"""Labels whose plain reading would be the opposite, or a code, or a slip of a few rows."""

from __future__ import annotations

import pytest

from foveate.errors import TableError
from foveate.files.sentinels import find_sentinels
from foveate.table.files import safe_id
from foveate.tasks import build_task, explain_unfit, join_columns


def join(time: list[str], event: list[str], name: str) -> tuple[str, ...]:
    return join_columns("survival", {"time": time, name: event}, {})[1].labels


@pytest.mark.parametrize(
    "name", ["event_free", "non_event", "no_event", "not_dead", "survival", "survival_status"]
)
def test_an_event_that_the_name_denies_is_asked_for(name: str) -> None:
    with pytest.raises(TableError, match="Say which value means that the event was seen with"):
        join(["3", "5", "8"], ["1", "0", "1"], name)


def test_a_plain_event_is_taken() -> None:
    labels = join(["3", "5", "8"], ["1", "0", "1"], "survival_event")
    assert labels == ("event at 3", "no event until 5", "event at 8")


def test_times_without_any_censored_row_are_refused() -> None:
    with pytest.raises(TableError, match="2 rows with a time say nothing in 'status'"):
        join(["3", "5", "8", "9"], ["1", "", "1", ""], "status")
    assert join(["3", "5", "8"], ["1", "0", ""], "status")[2] == ""


def test_a_code_among_times_is_named() -> None:
    cells = {"time": ["3", "5", "9999"], "status": ["1", "0", "1"]}
    notes = join_columns("survival", cells, {})[1].notes
    assert any("'time' holds 9999, far from all other times" in note for note in notes)


@pytest.mark.parametrize(
    ("values", "codes"),
    [([1, 2, 3, 5, 9], [9]), ([0, 1, 9], [9]), ([7, 8, 9], []), ([0.5, 2.5, 9], [9]),
     ([3, 6, 8, 9], []), ([1, 5.5, 9], [])],
)  # fmt: skip
def test_nine_beside_grades_is_a_code(values: list[float], codes: list[float]) -> None:
    assert find_sentinels(values) == codes


@pytest.mark.parametrize(
    ("labels", "positive"),
    [
        (["metastasis", "no metastasis"], "metastasis"),
        (["MSIH", "nonMSIH"], "MSIH"),
        (["responder", "non-responder"], "responder"),
        (["ER+", "ER-"], "ER+"),
        (["tumour", "Not tumour"], "tumour"),
    ],
)
def test_a_denied_class_is_the_negative_one(labels: list[str], positive: str) -> None:
    for order in (labels, labels[::-1]):
        task = build_task("auto", order * 5, {}, "y")
        assert task.resolved["positive"] == positive
        assert not task.assumptions


def test_one_cell_of_several_labels_does_not_change_the_task() -> None:
    labels = ["benign", "tumor"] * 12 + ["tumor|benign"]
    reason = explain_unfit("auto", labels, "y")
    assert reason is not None
    assert "several labels in 1 of 25 rows only, such as 'tumor|benign'" in reason
    assert explain_unfit("multilabel", labels, "y") is None
    assert explain_unfit("auto", ["a|b", "a", "b", "none"] * 5, "y") is None


def test_a_word_for_none_beside_labels_is_refused() -> None:
    with pytest.raises(
        TableError, match=r"'none' beside another label, here in 'a.none', and alone"
    ):
        build_task("multilabel", ["a|none", "none", "b", "a|b"], {}, "y")


def test_letters_that_turn_the_text_are_no_part_of_an_id() -> None:
    assert safe_id("\u202etxt.png") == "_txt.png"
