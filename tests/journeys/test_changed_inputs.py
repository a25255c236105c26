"""The same command after its inputs were changed: refused in one line that names the change."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from conftest import SMALL_RUN, Ended, one_thread
from foveate.runs.folder import read_rows

Command = Callable[..., Ended]
LABELS = ("benign", "malignant")
SMALL = SMALL_RUN[: SMALL_RUN.index("--view.patch-px")]
QUICK = (*SMALL, "--method", "downsampled", "--epochs", "1", "--view.glimpse-px", "64")
WORDS = (*QUICK, "--view.patch-px", "32", "--heatmaps", "0")


def write_slide(path: Path, seed: int, um: float = 0.5) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(90, 200, (256, 256, 3)).astype(np.uint8)
    tifffile.imwrite(
        path,
        pixels,
        tile=(128, 128),
        photometric="rgb",
        compression="deflate",
        metadata=None,
        resolution=(1e4 / um, 1e4 / um),
        resolutionunit="CENTIMETER",
    )


def write_table(path: Path, rows: Sequence[Sequence[str]], *header: str) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header or ("path", "label"))
        writer.writerows(rows)
    return path


ROWS = [(f"slides/S{i:03d}.tif", LABELS[i % 2]) for i in range(12)]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with slides, a table and a finished run of own weights."""
    folder = tmp_path_factory.mktemp("begun")
    for i, (name, _) in enumerate(ROWS):
        write_slide(folder / name, i)
    write_table(folder / "labels.csv", ROWS)
    words = [sys.executable, "-m", "foveate.cli", "train", "labels.csv", "--out", "run", *WORDS]
    subprocess.run(words, check=True, capture_output=True, cwd=folder, env=one_thread())
    return folder


@pytest.fixture
def mine(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working folder."""
    copy = tmp_path / "mine"
    shutil.copytree(begun, copy)
    monkeypatch.chdir(copy)
    return copy


def refusal(foveate: Command, *more: object) -> str:
    ended = foveate("train", "labels.csv", "--out", "run", *WORDS, *more)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert "auroc" not in ended.stdout, "no old scores beside a refusal"
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert "another --out for a new run" in line
    return line


def swapped(label: str) -> str:
    return LABELS[1 - LABELS.index(label)]


def test_changed_labels_are_refused(mine: Path, foveate: Command) -> None:
    rows = [(name, swapped(label) if i < 2 else label) for i, (name, label) in enumerate(ROWS)]
    write_table(mine / "labels.csv", rows)
    assert "labels of S000, S001 differ from those the run was begun with" in refusal(foveate)


def test_a_renamed_class_is_refused(mine: Path, foveate: Command) -> None:
    write_table(mine / "labels.csv", [(n, label.replace("benign", "normal")) for n, label in ROWS])
    said = refusal(foveate)
    assert "labels of S000, S002, S004 and 3 more differ" in said
    assert "('benign', now 'normal')" in said


def test_changed_spacing_is_refused(mine: Path, foveate: Command) -> None:
    rows = [(*row, "0.25" if i == 3 else "") for i, row in enumerate(ROWS)]
    write_table(mine / "labels.csv", rows, "path", "label", "mpp")
    assert "spacings of S003 differ from those the run was begun with" in refusal(foveate)


def test_a_changed_image_is_refused(mine: Path, foveate: Command) -> None:
    write_slide(mine / ROWS[5][0], 99)
    assert "image files of S005 were changed since the run was begun" in refusal(foveate)


def test_a_missing_and_a_new_image_are_refused(mine: Path, foveate: Command) -> None:
    (mine / ROWS[5][0]).rename(mine / "S005.kept")
    assert "images that the run was begun with are missing: S005" in refusal(foveate)
    (mine / "S005.kept").rename(mine / ROWS[5][0])
    write_slide(mine / "slides" / "S012.tif", 12)
    write_table(mine / "labels.csv", [*ROWS, ("slides/S012.tif", "benign")])
    assert "not begun with are in the table: S012" in refusal(foveate)


def test_other_order_and_other_file_times_go_on(mine: Path, foveate: Command) -> None:
    write_table(mine / "labels.csv", ROWS[::-1])
    for name, _ in ROWS:
        (mine / name).touch()
    before = read_rows(mine / "run" / "predictions_oof.csv")
    ended = foveate("train", "labels.csv", "--out", "run", *WORDS)
    assert ended.returncode == 0, ended.stderr
    assert read_rows(mine / "run" / "predictions_oof.csv") == before


def test_changed_weights_are_refused(mine: Path, foveate: Command) -> None:
    import timm

    net = timm.create_model("resnet18", pretrained=False, num_classes=0)
    torch.save(net.state_dict(), mine / "w.pth")
    words = ("train", "labels.csv", "--out", "own", *WORDS[4:], "--encoder", "resnet18")
    words = (*words, "--encoder.weights", "w.pth", "--epochs", "0")
    words = tuple(w for i, w in enumerate(words) if w != "--encoder.width")
    ended = foveate(*words)
    assert ended.returncode == 0, ended.stderr
    torch.save({k: v + 1 for k, v in net.state_dict().items()}, mine / "w.pth")
    ended = foveate(*words)
    assert ended.returncode == 1
    assert "error: own: the weights of the encoder" in ended.stderr
    assert "w.pth) is not the one the run was begun with" in ended.stderr


def test_a_table_that_contradicts_the_files_is_said(mine: Path, foveate: Command) -> None:
    rows = [(*row, "5" if i < 3 else "0.5") for i, row in enumerate(ROWS)]
    table = write_table(mine / "wrong.csv", rows, "path", "label", "mpp")
    ended = foveate("train", table, "--out", "other", *WORDS)
    assert ended.returncode == 0, ended.stderr
    said = "the table's pixel size of 3 images is 10 times what the file says (S000, S001, S002)"
    assert said in ended.stderr
    one = write_table(mine / "one.csv", [(ROWS[0][0], "2.0")], "path", "mpp")
    ended = foveate("predict", "run", one, "--out", "p", "--heatmaps", "0")
    assert "the table's pixel size of 1 image is 4 times what the file says" in ended.stderr


def test_two_tables_are_joined_as_the_message_says(mine: Path, foveate: Command) -> None:
    patients = [(f"P{i:02d}", label) for i, (_, label) in enumerate(ROWS)]
    files = [(f"P{i:02d}", Path(name).name) for i, (name, _) in enumerate(ROWS)]
    write_table(mine / "clini.csv", patients, "PATIENT", "isMSIH")
    write_table(mine / "slide.csv", files, "PATIENT", "FILENAME")
    ended = foveate("train", "clini.csv", "--out", "two", *WORDS)
    assert ended.returncode == 1
    assert "--files slide.csv" in ended.stderr
    ended = foveate("train", "slide.csv", "--out", "two", *WORDS)
    assert "--files slide.csv" in ended.stderr
    ended = foveate("train", "clini.csv", "--files", "slide.csv", "--out", "two", *WORDS)
    assert ended.returncode == 0, ended.stderr
    assert "12 rows of slide.csv joined to clini.csv by patient" in ended.stderr
    ended = foveate("evaluate", "two", "clini.csv", "--files", "slide.csv", "--out", "e")
    assert ended.returncode == 0, ended.stderr


def test_names_that_begin_like_formulas_are_guarded(mine: Path, foveate: Command) -> None:
    for name in ("=1+1.tif", "-rf.tif", "@a.tif"):
        shutil.copy(mine / ROWS[0][0], mine / name)
    ended = foveate("predict", "run", *(mine / n for n in ("=1+1.tif", "-rf.tif", "@a.tif")),
                    "--out", "p", "--heatmaps", "0")  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    with (mine / "p" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        ids = [row["image_id"] for row in csv.DictReader(file)]
    assert sorted(ids) == ["'-rf", "'=1+1", "'@a"]
    assert sorted(r["image_id"] for r in read_rows(mine / "p" / "predictions.csv")) == [
        "-rf",
        "=1+1",
        "@a",
    ]


def test_numbers_as_labels_need_a_word(mine: Path, foveate: Command) -> None:
    rows = [(name, f"{i / 7:.3f}") for i, (name, _) in enumerate(ROWS)]
    table = write_table(mine / "numbers.csv", rows, "path", "score")
    ended = foveate("train", table, "--out", "n", *WORDS)
    assert ended.returncode == 1
    assert "'score' holds 12 different numbers" in ended.stderr
    assert "--task multiclass" in ended.stderr


def test_evaluation_knows_its_classes_in_other_spellings(mine: Path, foveate: Command) -> None:
    rows = [(name, label.replace("benign", "be\u200bnign\u00a0")) for name, label in ROWS]
    table = write_table(mine / "spelt.csv", rows)
    ended = foveate("evaluate", "run", table, "--out", "e")
    assert ended.returncode == 0, ended.stderr


def test_a_row_without_a_path_is_set_aside_each_time(mine: Path, foveate: Command) -> None:
    write_table(mine / "gap.csv", [*ROWS, ("", "benign")])
    for _ in range(2):
        ended = foveate("train", "gap.csv", "--out", "gap", *WORDS)
        assert ended.returncode == 2, ended.stderr
        rows = read_rows(mine / "gap" / "quarantine.csv")
        assert [(row["path"], row["stage"]) for row in rows] == [("", "table")]


def test_one_size_in_pixels_and_a_pixel_size_exclude_each_other(
    mine: Path, foveate: Command
) -> None:
    rows = [(name, label, "0.5") for name, label in ROWS]
    write_table(mine / "sized.csv", rows, "path", "label", "mpp")
    ended = foveate("train", "sized.csv", "--out", "sized", *WORDS, "--view.fit", "128x128")
    assert ended.returncode == 1
    assert "view.fit: brings pictures to one size in pixels, but the table gives" in ended.stderr


def test_spellings_of_a_patient_are_no_change(mine: Path, foveate: Command) -> None:
    rows = [(name, label, f"P{i // 2:02d}") for i, (name, label) in enumerate(ROWS)]
    table = write_table(mine / "p.csv", rows, "path", "label", "patient_id")
    assert foveate("train", table, "--out", "p", *WORDS).returncode == 0
    write_table(table, [(*row[:2], row[2].lower()) for row in rows], "path", "label", "patient_id")
    assert foveate("train", table, "--out", "p", *WORDS).returncode == 0
    # Other images of patients that trained, spelt in another way.
    other = []
    for i, (name, label, patient) in enumerate(rows):
        write_slide(mine / "other" / name, 100 + i)
        other.append((f"other/{name}", label, f"{patient[0]} {patient[1:]}"))
    table = write_table(mine / "other.csv", other, "path", "label", "patient_id")
    ended = foveate("evaluate", "p", table, "--out", "scores")
    assert ended.returncode == 0, ended.stderr
    marks = [row["in_training"] for row in read_rows(mine / "scores" / "predictions.csv")]
    n = marks.count("patient")
    assert 0 < n < len(marks), "not those of the test part"
    assert f"warning: {n} of 12 images are other images of patients that trained" in ended.stderr
    assert "never saw" not in ended.stdout


def test_a_contradiction_is_said_each_time(mine: Path, foveate: Command) -> None:
    rows = [(name, label, "1.0") for name, label in ROWS[:3]]
    table = write_table(mine / "odd.csv", rows, "path", "label", "mpp")
    for _ in range(2):
        ended = foveate("predict", "run", table, "--out", "again")
        assert ended.returncode == 0, ended.stderr
        assert "the table's pixel size of 3 images is 2 times what the file says" in ended.stderr
