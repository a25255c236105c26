"""Labels that lists or several columns hold: chosen, renamed, and refused with the bad cell."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from foveate.errors import OptionError, TableError
from foveate.loading.gather import gather_cases
from foveate.table import LabelRules, check_new_names, read_cases
from foveate.tasks.multilabel import MultilabelTask
from foveate.tasks.survival import SurvivalTask
from unit.test_survival_tables import TIMES, labels_of, read
from unit.test_tables import read_labels

LISTS = ["a|b", "a", "b", "c", "none"] * 3


def read_lists(folder: Path, labels: list[str] = LISTS, **rules: object) -> list[str | None]:
    return labels_of(read_cases(read_labels(folder, labels), labels=LabelRules(**rules)))


# -- --classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["auto", "multilabel"])
def test_classes_do_not_choose_among_cells_with_several_labels(tmp_path: Path, task: str) -> None:
    words = r"row 2, column 'label': --classes a,b keeps whole cells, and 'a\|b' names several"
    with pytest.raises(TableError, match=words) as caught:
        read_lists(tmp_path, wanted=("a", "b"), task=task)
    assert "say --task multiclass too" in str(caught.value)


def test_whole_cells_are_chosen_where_the_user_names_them(tmp_path: Path) -> None:
    labels = read_lists(tmp_path, wanted=("a|b", "a", "b"), task="multilabel")
    assert sorted(map(str, labels)) == ["a"] * 3 + ["a|b"] * 3 + ["b"] * 3
    assert set(read_lists(tmp_path, wanted=("a", "b"), task="multiclass")) == {"a", "b"}
    others = read_lists(tmp_path, ["a", "b", "c|d", "c"] * 3, wanted=("a", "b"))
    assert set(others) == {"a", "b"}, "no list names a label that is wanted"


@pytest.mark.parametrize(
    ("columns", "label"),
    [({"a": "0101", "b": "0110"}, "a,b"), ({"time": TIMES, "event": "010101"}, "time,event")],
)
def test_classes_do_not_choose_among_columns(
    tmp_path: Path, columns: dict[str, str], label: str
) -> None:
    with pytest.raises(TableError, match=r"hold no classes but a label together. Leave --classes"):
        read(tmp_path, columns, label, wanted=("a",))


# -- --map -----------------------------------------------------------------------------------------


def test_a_label_is_renamed_within_lists(tmp_path: Path) -> None:
    def rename(labels: list[str], renamed: dict[str, str], task: str = "auto") -> list[str | None]:
        rules = LabelRules(renamed=renamed, task=task, for_training=False)
        return labels_of(read_cases(read_labels(tmp_path, labels), labels=rules))

    assert rename(["a|b", "a", "b", "c"], {"b": "c"}) == ["a|c", "a", "c", "c"]
    assert rename(["a|b", "a", "c|d"], {"b": "a", "c": "b"}) == ["a", "a", "b|d"]
    assert rename(["a|b", "a|c", "c"], {"a|b": "c", "a": "d"}) == ["c", "d|c", "c"]
    assert rename(["a|b", "b", "c"], {"b": "d"}, "multiclass") == ["a|b", "d", "c"]
    stated = ["a=1|b=0", "a=0|b=1", "a=?|b=1"]
    assert rename(stated, {"b": "c"}) == ["a=1|c=0", "a=0|c=1", "a=?|c=1"]


def test_a_label_within_a_list_cannot_be_missing(tmp_path: Path) -> None:
    words = r"row 2, column 'label': --map b=: 'a\|b' names 'b' beside other labels, and a list"
    with pytest.raises(OptionError, match=words):
        read_lists(tmp_path, renamed={"b": ""})
    assert "a|b" not in read_lists(tmp_path, renamed={"a|b": ""})


def test_words_of_columns_of_labels_are_renamed(tmp_path: Path) -> None:
    columns = {"a": ["ja", "nein", "ja", "-1"], "b": ["nein", "ja", "", "ja"]}
    renamed = {"ja": "1", "nein": "0", "-1": ""}
    table = read(tmp_path, columns, "a,b", renamed=renamed)
    assert labels_of(table) == ["a=1|b=0", "a=0|b=1", "a=1|b=?", "a=?|b=1"]
    assert any(
        note.startswith("'a': 4 rows with renamed labels: '-1' to no") for note in table.notes
    )
    stored = read(tmp_path, columns, "a,b", renamed_in_training=renamed | {"oui": "1"})
    assert labels_of(stored) == labels_of(table)
    with pytest.raises(
        OptionError, match=r"--map jaa=1: the table has no label 'jaa'. Did you mean"
    ):
        read(tmp_path, columns, "a,b", renamed={"jaa": "1"})


def test_words_of_events_are_renamed_and_times_are_not(tmp_path: Path) -> None:
    times = ["0", "1", "2.5", "3.5", "4.5", "999"]
    columns = {"time": times, "event": ["1", "2", "1", "2", "1", "2"]}
    table = read(tmp_path, columns, "time,event", renamed={"1": "0", "2": "1"})
    assert labels_of(table)[:3] == ["no event until 0", "event at 1", "no event until 2.5"]
    missing = read(tmp_path, columns, "time,event", renamed={"1": "0", "2": "1", "999": ""})
    assert len(missing.cases) == 5
    words = {"time": times, "event": ["alive", "dead"] * 3}
    other = read(tmp_path, words, "time,event", renamed_in_training={"1": "0", "999": ""})
    assert labels_of(other)[1] == "event at 1"
    assert len(other.cases) == 5


def test_a_model_of_survival_reads_other_words_of_events(tmp_path: Path) -> None:
    """`evaluate` has no --task.event: --map renames the words of the other table."""
    columns = {"time": TIMES, "state": ["lebt", "tot"] * 3}
    rules = {"task": "survival", "task_options": {"event": "dead"}, "for_training": False}
    with pytest.raises(TableError, match=r"hold no 'dead' in 'state'.*--map 'lebt=dead'"):
        read(tmp_path, columns, "time,state", **rules)
    renamed = {"tot": "dead", "lebt": "alive"}
    check_new_names(renamed, SurvivalTask(edges=[1.0], horizons=[1.0]))
    table = read(tmp_path, columns, "time,state", renamed=renamed, **rules)
    assert [str(label).split()[0] for label in labels_of(table)] == ["no", "event"] * 3


def test_one_word_that_may_be_the_event_is_not_taken_for_censored(tmp_path: Path) -> None:
    columns = {"time": TIMES, "event": ["deceased"] * 6}
    rules = {"task": "survival", "task_options": {"event": "1"}, "for_training": False}
    with pytest.raises(TableError, match="hold no '1' in 'event', the value that means"):
        read(tmp_path, columns, **rules)
    alive = read(tmp_path, columns | {"event": ["alive"] * 6}, **rules)
    assert all(str(label).startswith("no event until") for label in labels_of(alive))


def test_predict_shows_labels_as_training_named_them(tmp_path: Path) -> None:
    path = read_labels(tmp_path, ["tumor", "Tumour ", "normal", ""])
    rules = LabelRules(
        needed=False, for_training=False, known=("normal", "Tumour"), task="binary",
        renamed_in_training={"tumor": "Tumour", "other": ""},
    )  # fmt: skip
    assert labels_of(gather_cases([path], rules)) == ["Tumour", "Tumour", "normal", None]


def test_new_names_in_lists_are_checked_with_their_cells() -> None:
    check_new_names({"ja": "1"}, MultilabelTask(classes=["a", "b"], none="none"))


# -- bad cells -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["auto", "multilabel"])
@pytest.mark.parametrize("cell", ["2", "-1", "maybe"])
def test_a_cell_that_says_neither_yes_nor_no_is_named(tmp_path: Path, task: str, cell: str) -> None:
    columns = {"a": ["1", "0", "1", cell], "b": list("0110")}
    words = rf"t\.csv, row 5, column 'a': got '{cell}', which is neither 1 .* --map '{cell}='"
    with pytest.raises(TableError, match=words):
        read(tmp_path, columns, "a,b", task=task)


@pytest.mark.parametrize("cell", ["-3", "soon", "inf"])
@pytest.mark.parametrize("label", [None, "time,event"])
def test_a_cell_that_is_no_time_is_named(tmp_path: Path, cell: str, label: str | None) -> None:
    columns = {"time": [*TIMES[:4], cell, TIMES[5]], "event": "010101"}
    words = rf"t\.csv, row 6, column 'time': got '{cell}', which is no time.*--map '{cell}='"
    with pytest.raises(TableError, match=words):
        read(tmp_path, columns, label)
    assert len(read(tmp_path, columns, label, renamed={cell: ""}).cases) == 5


def test_an_event_beside_times_with_a_bad_cell_is_not_trained_alone(tmp_path: Path) -> None:
    columns = {"time": [*TIMES[:5], "soon"], "event": "010101"}
    with pytest.raises(TableError, match="'event' alone says less"):
        read(tmp_path, columns, "event")


def test_an_event_of_many_values_is_refused_with_their_number(tmp_path: Path) -> None:
    columns = {"time": TIMES, "event": "abcdab"}
    with pytest.raises(TableError, match=r"the event \('time' 6, 'event' 4 different values\)"):
        read(tmp_path, columns, "time,event", task="survival")
    renamed = {"a": "1", "b": "0", "c": "1", "d": ""}
    assert len(read(tmp_path, columns, "time,event", renamed=renamed).cases) == 5


def test_labels_that_differ_in_marks_are_refused_in_lists() -> None:
    words = r"writes one label in several ways \(edema = edema\?\), here in 'a\|edema\?'"
    with pytest.raises(TableError, match=words):
        MultilabelTask.settle(["a|edema?", "edema", "a", "b"])


@pytest.mark.parametrize(
    ("labels", "task", "words"),
    [
        ([*LISTS, "a|b;c", "a"], "auto", "row 17: column 'label' holds 'a|b;c', with both"),
        ([*LISTS, "a|B", "c"], "multilabel", "(B = b), here in 'a|b'"),
        (["a|c", *LISTS, "none|c"], "auto", "row 18: column 'label' holds 'none' beside"),
        ([*"abab" * 6, "a|b"], "auto", "row 26: column 'label' holds several labels in 1 of 25"),
    ],
)
def test_refusals_name_the_row_of_a_cell(
    tmp_path: Path, labels: list[str], task: str, words: str
) -> None:
    with pytest.raises(TableError, match=re.escape(words)):
        read_lists(tmp_path, labels, task=task)
