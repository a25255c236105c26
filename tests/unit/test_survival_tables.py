"""Survival in tables: which columns are recognised, what is an event, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from foveate.errors import OptionError, TableError
from foveate.table import CaseTable, LabelRules, NamedColumns, make_splits, read_cases
from foveate.tasks import build_task
from foveate.tasks.survival import SurvivalTask
from helpers.squares import write_table

TIMES = ("10.5", "13.5", "16.5", "19.5", "22.5", "25.5")


def read(
    folder: Path,
    columns: dict[str, Sequence[object]],
    label: str | None = None,
    **rules: object,
) -> CaseTable:
    """Read a table of these columns, whose images are files of different bytes."""
    n = len(next(iter(columns.values())))
    for i in range(n):
        (folder / f"{i}.tif").write_bytes(bytes([i]))
    rows = [(f"{i}.tif", *(values[i] for values in columns.values())) for i in range(n)]
    path = write_table(folder / "t.csv", ("path", *columns), rows)
    return read_cases(path, columns=NamedColumns(label=label), labels=LabelRules(**rules))


def labels_of(table: CaseTable) -> list[str | None]:
    return [case.label for case in table.cases]


EXPECTED = [f"{'event at' if i % 2 else 'no event until'} {time}" for i, time in enumerate(TIMES)]


@pytest.mark.parametrize(
    ("time", "event"),
    [
        ("time", "event"),
        ("os_months", "os_status"),
        ("OS.time", "OS"),
        ("futime", "fustat"),
        ("time", "status"),
        ("survival_days", "dead"),
    ],
)
def test_pairs_are_recognised_and_the_event_is_said(tmp_path: Path, time: str, event: str) -> None:
    table = read(tmp_path, {time: TIMES, event: "010101"})
    assert table.task == "survival"
    assert labels_of(table) == EXPECTED
    (note,) = [note for note in table.notes if note.startswith("survival:")]
    assert f"'{event}' = 1 is an event (3 of 6 rows), 0 is censored; '{time}'" in note
    assert table.columns["label"] == f"{time},{event}"
    task = build_task(table.task, [str(label) for label in labels_of(table)], {})
    assert isinstance(task, SurvivalTask)


@pytest.mark.parametrize(
    "words",
    [
        ("alive", "dead"),
        ("0:LIVING", "1:DECEASED"),
        ("Censored", "Event"),
        ("no", "yes"),
        ("FALSE", "TRUE"),
        ("0.0", "1.0"),
    ],
)
def test_words_say_what_an_event_is(tmp_path: Path, words: tuple[str, str]) -> None:
    table = read(tmp_path, {"OS_STATUS": words * 3, "OS_MONTHS": TIMES})
    assert labels_of(table) == EXPECTED


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ("censored", "01"),
        ("censorship", "01"),
        ("OS_censor", "01"),
        ("vital_status", "01"),
        ("status", "12"),
        ("status", "AB"),
        ("event", ("dead", "1")),
        ("status", "012"),
    ],
)
def test_a_doubtful_event_is_refused_until_it_is_named(
    tmp_path: Path, event: str, words: Sequence[str]
) -> None:
    cells = (list(words) * 3)[:6]
    with pytest.raises(TableError, match=r"not clear which of them is an event.*--task\.event"):
        read(tmp_path, {"time": TIMES, event: cells}, task="survival")
    options = {"event": words[-1]}
    table = read(tmp_path, {"time": TIMES, event: cells}, task="survival", task_options=options)
    expected = ["event at" if cell == words[-1] else "no event until" for cell in cells]
    assert [str(label).rsplit(" ", 1)[0] for label in labels_of(table)] == expected


def test_an_event_that_does_not_occur_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"hold no 'dead' in 'event', .*one of its values, 0, 1"):
        read(tmp_path, {"time": TIMES, "event": "010101"}, task_options={"event": "dead"},
             task="survival")  # fmt: skip


@pytest.mark.parametrize("label", ["time,event", "event, time", "Event,Time"])
def test_named_columns_in_either_order(tmp_path: Path, label: str) -> None:
    table = read(tmp_path, {"time": TIMES, "event": "010101", "gene": "xyxyxy"}, label)
    assert labels_of(table) == EXPECTED


def test_rows_without_a_time_or_an_event_are_left_out(tmp_path: Path) -> None:
    times = ["NA", *TIMES[1:]]
    table = read(tmp_path, {"time": times, "event": ["0", "1", "0", "?", "0", "1"]})
    assert labels_of(table) == [EXPECTED[i] for i in (1, 2, 4, 5)]
    assert any("2 rows without a 'time,event' left out" in note for note in table.notes)


@pytest.mark.parametrize("bad", ["-3", "soon", "inf"])
def test_a_cell_that_is_no_time_is_refused(tmp_path: Path, bad: str) -> None:
    times = [*TIMES[:5], bad]
    with pytest.raises(TableError, match="which is no time"):
        read(tmp_path, {"time": times, "event": "010101"}, "time,event", task="survival")


def test_times_have_one_decimal_mark(tmp_path: Path) -> None:
    times = ["1,200", "1,300", "913,5", "20,5", "30,5", "40"]
    table = read(tmp_path, {"time": times, "event": "010101"})
    assert labels_of(table)[:3] == ["no event until 1.2", "event at 1.3", "no event until 913.5"]
    with pytest.raises(TableError, match=r"row 2, column 'time': got '1,200', which is 1200 or"):
        read(tmp_path, {"time": ["1,200", *"23456"], "event": "010101"})


def test_another_possible_label_makes_the_choice_unclear(tmp_path: Path) -> None:
    columns = {"time": TIMES, "event": "010101", "grade": "ababab"}
    with pytest.raises(TableError, match=r"another column could be the label.*'time,event'"):
        read(tmp_path, columns)
    assert read(tmp_path, columns, task="survival").task == "survival"
    assert read(tmp_path, columns, "grade").task == "auto"
    labelled = {"time": TIMES, "event": "010101", "label": "ababab"}
    assert labels_of(read(tmp_path, labelled)) == list("ababab")


def test_an_event_alone_is_no_class_beside_its_time(tmp_path: Path) -> None:
    columns = {"time": TIMES, "event": "010101"}
    with pytest.raises(TableError, match=r"'event' alone says less.*--label 'time,event'"):
        read(tmp_path, columns, "event")
    assert labels_of(read(tmp_path, columns, "event", task="binary")) == list("010101")
    assert labels_of(read(tmp_path, {"event": "010101"}, "event")) == list("010101")


def test_two_pairs_are_refused_and_one_is_named(tmp_path: Path) -> None:
    columns = {"OS": "010101", "OS.time": TIMES, "PFI": "111000", "PFI.time": TIMES[::-1]}
    with pytest.raises(TableError, match=r"several pairs.*'OS\.time,OS'.*'PFI\.time,PFI'"):
        read(tmp_path, columns)
    assert labels_of(read(tmp_path, columns, "OS.time,OS")) == EXPECTED


@pytest.mark.parametrize(
    ("label", "rules", "message"),
    [
        ("time,evnt", {}, "no column 'evnt'.*Did you mean 'event'"),
        ("time,time", {}, "names a column twice"),
        ("time,site", {}, "'time' and 'site' are no label together"),
        ("time,site", {"task": "survival"}, "not a column of times"),
        ("time,event", {"task": "multiclass"}, "task 'multiclass' takes one column"),
        ("time,event", {"task": "regression"}, "task 'regression' takes one column"),
    ],
)
def test_columns_that_are_no_label_together(
    tmp_path: Path, label: str, rules: dict[str, object], message: str
) -> None:
    columns = {"time": TIMES, "event": "010101", "site": "abcdef"}
    with pytest.raises(TableError, match=message):
        read(tmp_path, columns, label, **rules)


@pytest.mark.parametrize("label", ["event at", "event at -3", "12", "event at 1e", "", "no event"])
def test_other_texts_have_no_target(label: str) -> None:
    with pytest.raises(TableError, match="is no survival time"):
        SurvivalTask(edges=[1.0], horizons=[1.0]).parse(label)


def test_bins_hold_equal_numbers_of_events_and_folds_share_the_horizons() -> None:
    labels = [f"event at {t}" for t in range(1, 13)] + ["no event until 40"] * 3
    whole = SurvivalTask.settle(labels)
    assert whole == {"edges": [3.75, 6.5, 9.25, 40.0], "horizons": [3.75, 6.5, 9.25]}
    part = SurvivalTask.settle(labels[4:], whole, {"bins": 2})
    assert part == {"edges": [8.5, 40.0], "horizons": [3.75, 6.5, 9.25]}
    with pytest.raises(TableError, match="events at 1 different times in 4 usable rows"):
        SurvivalTask.settle(["event at 3", *["no event until 9"] * 3])
    with pytest.raises(OptionError, match="edges: got"):
        SurvivalTask(edges=[3.0, 3.0], horizons=[1.0])


def test_parts_of_a_split_have_alike_shares_of_events_and_times(tmp_path: Path) -> None:
    n = 60
    events, times = [int(i % 3 == 0) for i in range(n)], [10 + i for i in range(n)]
    table = read(tmp_path, {"time": times, "event": events})
    labels = [str(label) for label in labels_of(table)]
    task = build_task("survival", labels, {})
    strata = task.strata(labels, [case.patient_id for case in table.cases])
    assert len(set(strata)) == 5, "two ranges of 20 events, three of 40 without"
    splits = make_splits(table.cases, folds=5, strata=strata)
    for fold in splits.folds:
        assert sum(events[int(i)] for i in fold.test) == 4
    assert task.tally(labels) == {"events": "20", "censored": "40", "median time": "39.5"}
