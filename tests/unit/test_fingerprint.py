from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from foveate.errors import CheckpointError
from foveate.runs.fingerprint import (
    Inputs,
    check_unchanged,
    file_print,
    list_files,
    load_inputs,
    note_inputs,
    save_inputs,
)
from foveate.table import Case

BIG = 9 << 20


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    cases_made = []
    for i in range(6):
        path = tmp_path / f"S{i}.tif"
        path.write_bytes(bytes([i]) * 1000)
        cases_made.append(Case(f"S{i}", f"P{i // 2}", path, "ab"[i % 2], (0.5, 0.5)))
    return cases_made


def refuse_change(before: Inputs, after: Inputs) -> str:
    with pytest.raises(CheckpointError, match="another --out for a new run") as caught:
        check_unchanged(before, after, Path("run"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_same_inputs_in_another_order_are_the_same(cases: list[Case], tmp_path: Path) -> None:
    before = note_inputs(cases, {})
    save_inputs(before, tmp_path / "inputs.json")
    assert load_inputs(tmp_path / "inputs.json") == before
    check_unchanged(before, note_inputs(cases[::-1], {}, before), Path("run"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "c"}, "labels of S0 differ from those the run was begun with ('a', now 'c')"),
        ({"patient_id": "P9"}, "patients of S0 differ"),
        ({"spacing_um": (0.25, 0.25)}, "spacings of S0 differ"),
        ({"spacing_um": None}, "(0.5 x 0.5 um, now none)"),
        ({"image_id": "T0"}, "images that the run was begun with are missing: S0"),
    ],
)
def test_a_change_is_named(cases: list[Case], changes: dict[str, object], message: str) -> None:
    before = note_inputs(cases, {})
    other = [replace(cases[0], **changes), *cases[1:]]  # type: ignore[arg-type]
    assert message in refuse_change(before, note_inputs(other, {}, before))


def test_new_images_are_named(cases: list[Case]) -> None:
    before = note_inputs(cases[1:], {})
    assert "not begun with are in the table: S0" in refuse_change(
        before, note_inputs(cases, {}, before)
    )


def test_many_changes_are_counted(cases: list[Case]) -> None:
    before = note_inputs(cases, {})
    swapped = [replace(case, label="ba"["ab".index(str(case.label))]) for case in cases]
    assert "labels of S0, S1, S2 and 3 more differ" in refuse_change(
        before, note_inputs(swapped, {}, before)
    )


def touch(path: Path) -> None:
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))


@pytest.mark.parametrize("size", [1000, BIG])
def test_changed_pixels_of_equal_file_size_are_detected(cases: list[Case], size: int) -> None:
    cases[2].path.write_bytes(bytes(size))
    before = note_inputs(cases, {})
    touch(cases[2].path)
    check_unchanged(before, note_inputs(cases, {}, before), Path("run"))
    cases[2].path.write_bytes(bytes(size - 1) + b"x")
    touch(cases[2].path)
    message = refuse_change(before, note_inputs(cases, {}, before))
    assert "image files of S2 were changed since the run was begun" in message


def test_small_files_are_hashed_completely(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(7 << 20))
    before = file_print(tmp_path / "a")["sha256"]
    for at in range(0, 7 << 20, 1 << 20):
        content = bytearray(7 << 20)
        content[at] = 1
        (tmp_path / "a").write_bytes(content)
        assert file_print(tmp_path / "a")["sha256"] != before


def test_an_unchanged_file_is_not_read_again(cases: list[Case]) -> None:
    known = file_print(cases[0].path) | {"sha256": "of before"}
    assert file_print(cases[0].path, known) is known
    touch(cases[0].path)
    assert file_print(cases[0].path, known)["sha256"] != "of before"


def test_folders_as_images_are_hashed(tmp_path: Path) -> None:
    (tmp_path / "z.zarr").mkdir()
    (tmp_path / "z.zarr" / "0").write_bytes(b"1234")
    before = file_print(tmp_path / "z.zarr")
    (tmp_path / "z.zarr" / "1").write_bytes(b"")
    assert file_print(tmp_path / "z.zarr")["sha256"] != before["sha256"]
    assert file_print(tmp_path / "gone")["size"] == -1
    (tmp_path / "m.mrxs").write_bytes(b"head")
    (tmp_path / "m").mkdir()
    before = file_print(tmp_path / "m.mrxs")
    (tmp_path / "m" / "Data0000.dat").write_bytes(b"pixels")
    assert file_print(tmp_path / "m.mrxs", before)["sha256"] != before["sha256"]


def test_weight_files_are_hashed_completely(cases: list[Case], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(bytes(BIG))
    files = list_files({"weights": str(path)})
    assert files == {"weights of the encoder": path}
    assert list_files({"weights": ""}) == {}
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert "config.json beside the weights" in list_files({"weights": str(path)})
    before = note_inputs(cases, files)
    content = bytearray(BIG)
    content[BIG // 2 + 100_000] = 1
    path.write_bytes(content)
    touch(path)
    message = refuse_change(before, note_inputs(cases, files, before))
    assert f"the weights of the encoder ({path}) is not the one" in message
    assert "weights of the encoder" in refuse_change(before, note_inputs(cases, {}, before))


@pytest.mark.parametrize("content", ["{}", "[]", '{"schema": 9}', '{"schema": 1, "images": 3}'])
def test_damaged_notes_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "inputs.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"inputs\.json"):
        load_inputs(tmp_path / "inputs.json")
    with pytest.raises(CheckpointError, match="is missing"):
        load_inputs(tmp_path / "none.json")


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tif")
    assert file_print(tmp_path / "a.tif")["size"] == -1


def test_every_byte_of_a_slice_counts_in_the_fingerprint_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.dcm").write_bytes(bytes([i]) * 300_000)
    before = file_print(folder)
    assert before["size"] == 900_000
    assert file_print(folder, before) is before
    with (folder / "1.dcm").open("r+b") as file:
        file.seek(200_000)
        file.write(b"x")
    touch(folder / "1.dcm")
    assert file_print(folder, before)["sha256"] != before["sha256"]
