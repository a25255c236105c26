"""Impossible requests are refused in one line that says what to do."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from conftest import PICTURE_RUN, picture
from foveate import parts as registry
from foveate.runs.folder import read_json, read_rows
from helpers.commands import Completed, read_refusal

Command = Callable[..., Completed]

SLOW = '''
"""Takes a second to open, and another to read."""

import time
from pathlib import Path

import numpy as np

from foveate.images.level import Level
from foveate.readers.base import AbstractReader


class SlowReader(AbstractReader):
    """Takes a second to open."""

    priority = 99

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        time.sleep(1.0)
        self.kind, self.spacing_um, self.channels = "picture", None, 3
        self.levels, self.dtype = (Level((96, 96), (1.0, 1.0)),), np.dtype(np.uint8)
        self.reader = "slow"

    @classmethod
    def recognises(cls, path: Path, head: bytes) -> bool:
        return head.startswith(b"SLOW")

    def _read_level(self, level, origin_px, size_px):
        return np.full((*size_px, 3), 128, np.uint8)

    def close(self) -> None:
        pass
'''


def test_seconds_of_an_image_include_waiting_for_it(
    picture_run: Path, tmp_path: Path, foveate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_folders", [])
    (tmp_path / "plugins" / "readers").mkdir(parents=True)
    (tmp_path / "plugins" / "readers" / "slow.py").write_text(SLOW, encoding="utf-8")
    image, out = tmp_path / "a.png", tmp_path / "out"
    image.write_bytes(b"SLOW")
    words = ("predict", picture_run, image, "--out", out, "--plugins", tmp_path / "plugins")
    assert foveate(*words).returncode == 0
    (row,) = read_rows(out / "predictions.csv")
    assert 1.0 <= float(row["seconds"]) < 30
    cost = read_json(out / "cost.json")
    assert 1.0 <= cost["seconds_reading"] <= cost["seconds"]
    assert cost["seconds_computing"] == pytest.approx(cost["seconds"] - cost["seconds_reading"])


def test_a_changed_assumed_spacing_is_refused(
    picture_table: Path, picture_run: Path, tmp_path: Path, foveate: Command
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    words = (*PICTURE_RUN, "--view.assume-spacing-um", "0.5")
    assert foveate("train", picture_table, "--out", run, *words).returncode == 0
    images = picture(tmp_path / "in" / "a.png", 1).parent
    predict = ("predict", run, images, "--out", out)
    assert foveate(*predict).returncode == 0
    (row,) = read_rows(out / "predictions.csv")
    message = read_refusal(foveate(*predict, "--spacing-um", "0.25"))
    assert "its --spacing-um was none, now it is 0.25" in message
    assert "another --out" in message
    assert read_rows(out / "predictions.csv") == [row]
    other = (*predict[:-1], tmp_path / "other")
    assert foveate(*other, "--spacing-um", "0.25").returncode == 0
    assert foveate(*other, "--spacing-um", "0.25").returncode == 0
    assert "its --spacing-um was 0.25, now it is none" in read_refusal(foveate(*other))


def test_a_picture_with_a_pixel_size_is_refused_with_advice(
    picture_run: Path, tmp_path: Path, foveate: Command
) -> None:
    pixels = np.asarray(Image.open(picture(tmp_path / "a.png", 1)))
    tifffile.imwrite(
        tmp_path / "b.tif", pixels, photometric="rgb", resolution=(2e4, 2e4),
        resolutionunit="CENTIMETER",
    )  # fmt: skip
    message = read_refusal(
        foveate("predict", picture_run, tmp_path / "b.tif", "--out", tmp_path / "out")
    )
    assert "trained on pictures without one" in message
    assert "Save it without (as PNG, say)" in message


@pytest.mark.parametrize(
    ("pair", "hint"),
    [
        ("Drak=dark", "the table has no label 'Drak'. Did you mean 'darkk'?"),
        ("darkk=DARKK", "the model knows no 'DARKK'; it knows dark, plain. Did you mean 'dark'?"),
        ("darkk=pl", "the model knows no 'pl'; it knows dark, plain. Did you mean 'plain'?"),
        ("dark=darkk", "but 'dark' is one, which comes second: say --map darkk=dark"),
        ("darkk=tumour", "Allowed: dark, plain."),
    ],
)
def test_a_typo_in_a_renaming_is_refused(
    pair: str, hint: str, picture_run: Path, picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    rows = [row["path"] for row in read_rows(picture_table)]
    table = picture_table.with_name("other.csv")
    with table.open("w", encoding="utf-8", newline="") as file:
        labels = ["plain", "darkk"] * 12
        csv.writer(file).writerows([("path", "label"), *zip(rows, labels, strict=True)])
    words = ("evaluate", picture_run, table, "--out", tmp_path / "out", "--map")
    assert hint in read_refusal(foveate(*words, pair))


def test_an_impossible_out_folder_is_refused(
    picture_run: Path, picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    (tmp_path / "file").write_text("x")
    image = picture(tmp_path / "a.png", 1)
    for out, why in (
        (tmp_path / "file" / "out", "a file lies where a folder would have to be"),
        (Path("/proc/foveate"), "cannot be written"),
    ):
        for words in (
            ("predict", picture_run, image),
            ("evaluate", picture_run, picture_table),
            ("train", picture_table, *PICTURE_RUN),
        ):
            message = read_refusal(foveate(*words, "--out", out))
            assert str(out) in message
            assert why in message
            assert "give an --out where you may write" in message


def test_a_run_of_an_earlier_version_is_refused_with_advice(
    picture_run: Path, picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    run = tmp_path / "run"
    shutil.copytree(picture_run, run)
    (run / "inputs.json").unlink()
    message = read_refusal(foveate("train", picture_table, "--out", run, *PICTURE_RUN))
    assert "begun by an earlier version" in message
    assert f"foveate predict {run} IMAGES --out OTHER" in message
    assert "give another --out for a new run" in message
    image = picture(tmp_path / "a.png", 1)
    assert foveate("predict", run, image, "--out", tmp_path / "out").returncode == 0


def test_predictions_in_a_subfolder_of_a_run_stay(
    picture_run: Path, picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    run = tmp_path / "run"
    shutil.copytree(picture_run, run)
    image = picture(tmp_path / "a.png", 1)
    words = ("predict", run, image, "--out", run / "external")
    assert foveate(*words).returncode == 0
    before = {p: p.read_bytes() for p in (run / "external").rglob("*") if p.is_file()}
    assert foveate("train", picture_table, "--out", run, *PICTURE_RUN).returncode == 0
    assert {p: p.read_bytes() for p in (run / "external").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("inside", ["fold_0/x", "heatmaps/x", "fold_0/model/x", "figures"])
def test_predictions_among_files_of_another_run_are_refused(
    inside: str, picture_run: Path, tmp_path: Path, foveate: Command
) -> None:
    other = tmp_path / "other"
    shutil.copytree(picture_run, other)
    image = picture(tmp_path / "a.png", 1)
    for run in (picture_run, other / "fold_0", other / "fold_0" / "model"):
        message = read_refusal(foveate("predict", run, image, "--out", other / inside))
        assert f"among the files of the run {other}" in message


def test_hundreds_of_bad_images_are_reported_in_a_few_lines(
    tmp_path: Path, foveate: Command
) -> None:
    rows = []
    for i in range(16):
        picture(tmp_path / f"P{i:02d}.png", i)
        rows.append((f"P{i:02d}.png", ("plain", "dark")[i % 2]))
    for i in range(100):
        bytes_ = picture(tmp_path / f"B{i:02d}.png", i).read_bytes()
        (tmp_path / f"B{i:02d}.png").write_bytes(bytes_[: len(bytes_) // 2])
        rows.append((f"B{i:02d}.png", ("plain", "dark")[i % 2]))
    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    run = tmp_path / "run"
    result = foveate("train", tmp_path / "t.csv", "--out", run, *PICTURE_RUN)
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if "set aside" in line]
    assert len(lines) <= 15, lines
    assert "quarantine.csv lists them" in result.stderr
    assert len({row["image_id"] for row in read_rows(run / "quarantine.csv")}) == 100


def test_a_run_without_usable_images_lists_the_bad_ones(tmp_path: Path, foveate: Command) -> None:
    rows = []
    for i in range(16):
        content = picture(tmp_path / f"B{i:02d}.png", i).read_bytes()
        (tmp_path / f"B{i:02d}.png").write_bytes(content[: len(content) // 2])
        rows.append((f"B{i:02d}.png", ("plain", "dark")[i % 2]))
    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    run = tmp_path / "run"
    message = read_refusal(foveate("train", tmp_path / "t.csv", "--out", run, *PICTURE_RUN))
    assert "quarantine.csv" in message
    assert len(read_rows(run / "quarantine.csv")) == 16
