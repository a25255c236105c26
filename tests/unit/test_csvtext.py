from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.files.csvtext import csv_text, guarded, rows_of
from foveate.runs.folder import read_rows, write_rows


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd|' /C calc'!A0", "-rf.tif", "@SUM(A1)", "\t=1", "'=1"]
)
def test_formulas_are_guarded_and_come_back(tmp_path: Path, text: str) -> None:
    write_rows(tmp_path / "a.csv", [{"id": text, "n": 1}], ["id", "n"])
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["id"] == f"'{text}"
    assert read_rows(tmp_path / "a.csv") == [{"id": text, "n": "1"}]


@pytest.mark.parametrize("value", [-1.5, "-0.25", "+3", "-1e-9", "-inf", "", "a=b", "'a", None])
def test_numbers_and_other_words_are_left_alone(value: object) -> None:
    assert guarded(value) == value


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"))))
def test_whatever_is_written_is_read_again(words: list[str]) -> None:
    rows = [{"word": word, "last": "x"} for word in words]
    assert rows_of(csv_text(rows, ["word", "last"])) == rows


def test_columns_are_guarded_as_well() -> None:
    text = csv_text([{"=x": "1", "more": "2"}], ["=x"])
    assert next(csv.reader(io.StringIO(text))) == ["'=x"]
    assert rows_of(text) == [{"=x": "1"}]
