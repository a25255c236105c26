"""A missing file of a folder that is on this machine is not replaced by a namesake."""

from __future__ import annotations

from pathlib import Path

import pytest

from foveate.table import LabelRules, read_cases


@pytest.mark.parametrize("absolute", [False, True])
def test_a_missing_file_of_an_existing_folder_is_set_aside(tmp_path: Path, absolute: bool) -> None:
    for site in ("siteA", "siteB"):
        (tmp_path / site).mkdir()
        for i in range(3):
            (tmp_path / site / f"{i}.png").write_text(f"{site} {i}")
    (tmp_path / "siteA" / "1.png").unlink()
    folder = tmp_path / "siteA" if absolute else Path("../siteA")
    table = tmp_path / "siteB" / "t.csv"
    table.write_text("path,label\n" + "".join(f"{folder / f'{i}.png'},a\n" for i in range(3)))
    read = read_cases(table, labels=LabelRules(needed=False))
    assert [case.path.resolve().parent.name for case in read.cases] == ["siteA", "siteA"]
    assert [row.row for row in read.set_aside] == [3]


def test_paths_of_another_machine_are_matched_by_their_end_and_named(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_text(f"image {i}")
    table = tmp_path / "t.csv"
    table.write_text(f"path,label\n{tmp_path / '0.png'},a\n/no/such/1.png,a\nD:\\x\\2.png,b\n")
    read = read_cases(table, labels=LabelRules(needed=False))
    assert len(read.cases) == 3
    (note,) = [n for n in read.notes if "not on this machine" in n]
    assert note.startswith("warning: 2 paths name folders")
    assert "row 3 '/no/such/1.png' is 1.png" in note
