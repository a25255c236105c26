"""The findings of a check go into the report of a run only while the table is the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foveate.checks.stored import compute_source_digest, read_stored_check


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table with a check beside it."""
    path = tmp_path / "labels.csv"
    path.write_text("path,label\na.png,x\nb.png,y\n", encoding="utf-8")
    stored = {"source_sha256": compute_source_digest(path), "verdict": "Fine.", "findings": []}
    (tmp_path / "check").mkdir()
    (tmp_path / "check" / "check.json").write_text(json.dumps(stored), encoding="utf-8")
    return path


def test_the_check_of_the_same_table_is_taken(table: Path) -> None:
    stored, sentence = read_stored_check(table)
    assert stored["verdict"] == "Fine."
    assert sentence.endswith("check/check.json): Fine.")


def test_the_check_of_other_content_is_not_taken(table: Path) -> None:
    table.write_text("path,label\na.png,x\nb.png,x\n", encoding="utf-8")
    stored, sentence = read_stored_check(table)
    assert stored == {}
    assert f"is about other content of a table; give `foveate check {table}` again" in sentence


@pytest.mark.parametrize("text", ["", "{", "[]", '{"source_sha256": 1}'])
def test_a_damaged_check_is_not_taken(table: Path, text: str) -> None:
    (table.parent / "check" / "check.json").write_text(text, encoding="utf-8")
    stored, sentence = read_stored_check(table)
    assert stored == {}
    assert f"give `foveate check {table}` again" in sentence


def test_a_table_that_was_not_checked_is_said(tmp_path: Path) -> None:
    stored, sentence = read_stored_check(tmp_path / "labels.csv")
    assert stored == {}
    assert sentence.startswith("this table was not checked; `foveate check ")


def test_a_folder_of_images_has_no_digest(tmp_path: Path) -> None:
    assert compute_source_digest(tmp_path) == ""
