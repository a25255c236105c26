"""Messages about labels of grades, survival times and several labels at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

# ruff: noqa: E501
from foveate.errors import FoveateError, OptionError, TableError
from foveate.table import LabelRules, NamedColumns, read_cases
from foveate.tasks import build_task, join_columns, restore_task
from foveate.tasks.regression import RegressionTask

TIMES = ["event at 3", "no event until 5", "event at 8", "event at 9"]


def build(name: str, labels: Sequence[str], **options: Any) -> Callable[[], object]:
    return lambda: build_task(name, labels, options, "y")


def restore(name: str, settled: Mapping[str, Any], **options: Any) -> Callable[[], object]:
    return lambda: restore_task(name, settled, options)


def parse(name: str, labels: Sequence[str], label: str) -> Callable[[], object]:
    return lambda: build_task(name, labels, {}, "y").parse(label)


def join(name: str, **options: Any) -> Callable[..., Callable[[], object]]:
    return lambda cells: lambda: join_columns(name, cells, options)


SURVIVAL, SEVERAL = join("survival"), join("multilabel")
GRADES = {"classes": ["low", "high"]}


@pytest.mark.parametrize(
    ("message", "refused"),
    [
        ("more than grades have; take --task regression", build("ordinal", list(map(str, range(99))))),
        ("whose order is not known; state it with", build("ordinal", ["cat", "dog", "cow"])),
        ("holds grades of which 1, 1.0 have the same rank. Write one word",
         build("ordinal", ["1", "1.0", "2"])),
        ("task.order: got low,high,low; give each grade once",
         build("ordinal", ["low", "high"], order="low, high, low")),
        ("task.order: no label 'hi'", build("ordinal", ["low", "high"], order="low,hi")),
        ("got high, low, expected the order that was settled, low, high",
         restore("ordinal", GRADES, order="high,low")),
        ("holds 1 survival times in 3 usable rows; name both columns with --label TIME,EVENT",
         build("survival", ["event at 3", "4", "5"])),
        ("holds events at 1 different times in 2 usable rows; add patients with events",
         build("survival", ["event at 3", "no event until 4"])),
        ("'12' is no survival time; write one such as", parse("survival", TIMES, "12")),
        ("edges: got [3, 2], expected rising numbers above 0",
         restore("survival", {"edges": [3, 2], "horizons": [1]})),
        ("got '1,200', which is 1200 or 1.2. Write times without separators",
         SURVIVAL({"t": ["1,200", "850", "900"], "event": ["1", "0", "1"]})),
        ("hold no 'gone' in 'event', the value that means that the event was seen (--task.event, ",
         join("survival", event="gone")({"t": ["1", "2", "3"], "event": ["1", "0", "1"]})),
        ("holds no several labels of an image; give cells such as", build("multilabel", ["a", "b"])),
        ("holds several words for none of the labels (normal, none); write one",
         build("multilabel", ["a|b", "a", "b", "normal", "none"])),
        ("holds 'a|b;c', with both '|' and ';' between labels", build("multilabel", ["a|b;c", "a"])),
        ("holds 'b' for every image, from which nothing can be learnt",
         build("multilabel", ["a|b", "b", "b"])),
        ("'z' names no known labels. Allowed: a, b",
         parse("multilabel", ["a|b", "a", "b", "none"], "z")),
        ("have a name with |, ; or =: rename 'a|b'", SEVERAL({"a|b": ["0", "1"], "c": ["1", "0"]})),
        ("none: got '', expected a word", restore("multilabel", {"classes": ["a", "b"], "none": ""})),
        ("are 2 columns, and task 'binary' takes one column of labels. Name one",
         join("binary")({"a": ["0", "1"], "b": ["1", "0"]})),
        ("are no label together that a task is known to take; name the task with --task",
         join("auto")({"a": ["x", "y"], "b": ["u", "v"]})),
        ("'soon' is no number: write one such as 1.5", parse("regression", ["1", "2.5", "3"], "soon")),
    ],
)  # fmt: skip
def test_labels(message: str, refused: Callable[[], object]) -> None:
    with pytest.raises((TableError, OptionError)) as error_info:
        refused()
    assert message in str(error_info.value)
    assert isinstance(error_info.value, FoveateError)


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("file,a,b\nx.png,1,0\n", encoding="utf-8")
    with pytest.raises(TableError, match="--label a,a names a column twice; give each once"):
        read_cases(table, columns=NamedColumns(label="a,a"), labels=LabelRules())


def test_regression_takes_numbers() -> None:
    assert RegressionTask.takes_numbers
