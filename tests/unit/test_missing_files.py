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
