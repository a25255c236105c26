from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.files.csvtext import csv_text, guard_cell, parse_csv
from foveate.runs.folder import read_rows, write_rows


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd|' /C calc'!A0", "-rf.tif", "@SUM(A1)", "\t=1", "'=1"]
)
def test_formulas_are_escaped_and_restored(tmp_path: Path, text: str) -> None:
    write_rows(tmp_path / "a.csv", [{"id": text, "n": 1}], ["id", "n"])
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["id"] == f"'{text}"
    assert read_rows(tmp_path / "a.csv") == [{"id": text, "n": "1"}]


@pytest.mark.parametrize("value", [-1.5, "-0.25", "+3", "-1e-9", "-inf", "", "a=b", "'a", None])
def test_numbers_and_other_words_are_not_escaped(value: object) -> None:
    assert guard_cell(value) == value


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"))))
def test_written_text_is_read_back(words: list[str]) -> None:
    rows = [{"word": word, "last": "x"} for word in words]
    assert parse_csv(csv_text(rows, ["word", "last"])) == rows


def test_column_names_are_escaped_as_well() -> None:
    text = csv_text([{"=x": "1", "more": "2"}], ["=x"])
    assert next(csv.reader(io.StringIO(text))) == ["'=x"]
    assert parse_csv(text) == [{"=x": "1"}]
