"""The same command after its inputs were changed: refused in one line that names the change."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from conftest import SMALL_RUN
from foveate.runs.folder import read_rows
from helpers.commands import Completed, run_child

Command = Callable[..., Completed]
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
def finished_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write slides and a table, and train a run with weights from a file."""
    folder = tmp_path_factory.mktemp("begun")
    for i, (name, _) in enumerate(ROWS):
        write_slide(folder / name, i)
    write_table(folder / "labels.csv", ROWS)
    run_child("train", "labels.csv", "--out", "run", *WORDS, cwd=folder).check_returncode()
    return folder


@pytest.fixture
def working_copy(finished_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the finished folder and make the copy the working folder."""
    copy = tmp_path / "mine"
    shutil.copytree(finished_folder, copy)
    monkeypatch.chdir(copy)
    return copy


def refuse_resuming(foveate: Command, *more: object) -> str:
    result = foveate("train", "labels.csv", "--out", "run", *WORDS, *more)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert "auroc" not in result.stdout, "no old scores beside a refusal"
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "another --out for a new run" in line
    return line


def swapped(label: str) -> str:
    return LABELS[1 - LABELS.index(label)]


def test_changed_labels_are_refused(working_copy: Path, foveate: Command) -> None:
    rows = [(name, swapped(label) if i < 2 else label) for i, (name, label) in enumerate(ROWS)]
    write_table(working_copy / "labels.csv", rows)
    assert "labels of S000, S001 differ from those the run was begun with" in refuse_resuming(
        foveate
    )


def test_a_renamed_class_is_refused(working_copy: Path, foveate: Command) -> None:
    write_table(
        working_copy / "labels.csv", [(n, label.replace("benign", "normal")) for n, label in ROWS]
    )
    message = refuse_resuming(foveate)
    assert "labels of S000, S002, S004 and 3 more differ" in message
    assert "('benign', now 'normal')" in message


def test_changed_spacing_is_refused(working_copy: Path, foveate: Command) -> None:
    rows = [(*row, "0.25" if i == 3 else "") for i, row in enumerate(ROWS)]
    write_table(working_copy / "labels.csv", rows, "path", "label", "mpp")
    assert "spacings of S003 differ from those the run was begun with" in refuse_resuming(foveate)


def test_a_changed_image_is_refused(working_copy: Path, foveate: Command) -> None:
    write_slide(working_copy / ROWS[5][0], 99)
    assert "image files of S005 were changed since the run was begun" in refuse_resuming(foveate)


def test_a_missing_and_a_new_image_are_refused(working_copy: Path, foveate: Command) -> None:
    (working_copy / ROWS[5][0]).rename(working_copy / "S005.kept")
    assert "images that the run was begun with are missing: S005" in refuse_resuming(foveate)
    (working_copy / "S005.kept").rename(working_copy / ROWS[5][0])
    write_slide(working_copy / "slides" / "S012.tif", 12)
    write_table(working_copy / "labels.csv", [*ROWS, ("slides/S012.tif", "benign")])
    assert "not begun with are in the table: S012" in refuse_resuming(foveate)


def test_row_order_and_file_times_may_change(working_copy: Path, foveate: Command) -> None:
    write_table(working_copy / "labels.csv", ROWS[::-1])
    for name, _ in ROWS:
        (working_copy / name).touch()
    before = read_rows(working_copy / "run" / "predictions_oof.csv")
    result = foveate("train", "labels.csv", "--out", "run", *WORDS)
    assert result.returncode == 0, result.stderr
    assert read_rows(working_copy / "run" / "predictions_oof.csv") == before


@pytest.mark.slow
def test_changed_weights_are_refused(working_copy: Path, foveate: Command) -> None:
    import timm

    net = timm.create_model("resnet18", pretrained=False, num_classes=0)
    torch.save(net.state_dict(), working_copy / "w.pth")
    words = ("train", "labels.csv", "--out", "own", *WORDS[4:], "--encoder", "resnet18")
    words = (*words, "--encoder.weights", "w.pth", "--epochs", "0")
    words = tuple(w for i, w in enumerate(words) if w != "--encoder.width")
    result = foveate(*words)
    assert result.returncode == 0, result.stderr
    torch.save({k: v + 1 for k, v in net.state_dict().items()}, working_copy / "w.pth")
    result = foveate(*words)
    assert result.returncode == 1
    assert "error: own: the weights of the encoder" in result.stderr
    assert "w.pth) is not the one the run was begun with" in result.stderr


def test_a_table_that_contradicts_the_files_is_reported(
    working_copy: Path, foveate: Command
) -> None:
    rows = [(*row, "5" if i < 3 else "0.5") for i, row in enumerate(ROWS)]
    table = write_table(working_copy / "wrong.csv", rows, "path", "label", "mpp")
    result = foveate("train", table, "--out", "other", *WORDS)
    assert result.returncode == 0, result.stderr
    message = "the table's pixel size of 3 images is 10 times what the file says (S000, S001, S002)"
    assert message in result.stderr
    one = write_table(working_copy / "one.csv", [(ROWS[0][0], "2.0")], "path", "mpp")
    result = foveate("predict", "run", one, "--out", "p", "--heatmaps", "0")
    assert "the table's pixel size of 1 image is 4 times what the file says" in result.stderr


def test_two_tables_are_joined_as_the_message_advises(working_copy: Path, foveate: Command) -> None:
    patients = [(f"P{i:02d}", label) for i, (_, label) in enumerate(ROWS)]
    files = [(f"P{i:02d}", Path(name).name) for i, (name, _) in enumerate(ROWS)]
    write_table(working_copy / "clini.csv", patients, "PATIENT", "isMSIH")
    write_table(working_copy / "slide.csv", files, "PATIENT", "FILENAME")
    result = foveate("train", "clini.csv", "--out", "two", *WORDS)
    assert result.returncode == 1
    assert "--files slide.csv" in result.stderr
    result = foveate("train", "slide.csv", "--out", "two", *WORDS)
    assert "--files slide.csv" in result.stderr
    result = foveate("train", "clini.csv", "--files", "slide.csv", "--out", "two", *WORDS)
    assert result.returncode == 0, result.stderr
    assert "12 rows of slide.csv joined to clini.csv by patient" in result.stderr
    result = foveate("evaluate", "two", "clini.csv", "--files", "slide.csv", "--out", "e")
    assert result.returncode == 0, result.stderr


def test_names_that_begin_like_formulas_are_guarded(working_copy: Path, foveate: Command) -> None:
    for name in ("=1+1.tif", "-rf.tif", "@a.tif"):
        shutil.copy(working_copy / ROWS[0][0], working_copy / name)
    paths = [working_copy / name for name in ("=1+1.tif", "-rf.tif", "@a.tif")]
    result = foveate("predict", "run", *paths, "--out", "p", "--heatmaps", "0")
    assert result.returncode == 0, result.stderr
    with (working_copy / "p" / "predictions.csv").open(encoding="utf-8", newline="") as file:
        ids = [row["image_id"] for row in csv.DictReader(file)]
    assert sorted(ids) == ["'-rf", "'=1+1", "'@a"]
    assert sorted(r["image_id"] for r in read_rows(working_copy / "p" / "predictions.csv")) == [
        "-rf",
        "=1+1",
        "@a",
    ]


def test_numeric_labels_need_an_explicit_task(working_copy: Path, foveate: Command) -> None:
    rows = [(name, f"{i / 7:.3f}") for i, (name, _) in enumerate(ROWS)]
    table = write_table(working_copy / "numbers.csv", rows, "path", "score")
    result = foveate("train", table, "--out", "n", *WORDS)
    assert result.returncode == 1
    assert "'score' holds 12 different numbers" in result.stderr
    assert "--task multiclass" in result.stderr


def test_evaluation_accepts_other_spellings_of_classes(
    working_copy: Path, foveate: Command
) -> None:
    rows = [(name, label.replace("benign", "be\u200bnign\u00a0")) for name, label in ROWS]
    table = write_table(working_copy / "spelt.csv", rows)
    result = foveate("evaluate", "run", table, "--out", "e")
    assert result.returncode == 0, result.stderr


def test_a_row_without_a_path_is_reported_each_time(working_copy: Path, foveate: Command) -> None:
    write_table(working_copy / "gap.csv", [*ROWS, ("", "benign")])
    for _ in range(2):
        result = foveate("train", "gap.csv", "--out", "gap", *WORDS)
        assert result.returncode == 2, result.stderr
        rows = read_rows(working_copy / "gap" / "quarantine.csv")
        assert [(row["path"], row["stage"]) for row in rows] == [("", "table")]


def test_a_fixed_size_and_a_pixel_size_exclude_each_other(
    working_copy: Path, foveate: Command
) -> None:
    rows = [(name, label, "0.5") for name, label in ROWS]
    write_table(working_copy / "sized.csv", rows, "path", "label", "mpp")
    result = foveate("train", "sized.csv", "--out", "sized", *WORDS, "--view.fit", "128x128")
    assert result.returncode == 1
    assert "view.fit: brings pictures to one size in pixels, but the table gives" in result.stderr


@pytest.mark.slow
def test_other_spellings_of_a_patient_are_accepted(working_copy: Path, foveate: Command) -> None:
    rows = [(name, label, f"P{i // 2:02d}") for i, (name, label) in enumerate(ROWS)]
    table = write_table(working_copy / "p.csv", rows, "path", "label", "patient_id")
    assert foveate("train", table, "--out", "p", *WORDS).returncode == 0
    write_table(table, [(*row[:2], row[2].lower()) for row in rows], "path", "label", "patient_id")
    assert foveate("train", table, "--out", "p", *WORDS).returncode == 0
    # Other images of patients that trained, spelt in another way.
    other = []
    for i, (name, label, patient) in enumerate(rows):
        write_slide(working_copy / "other" / name, 100 + i)
        other.append((f"other/{name}", label, f"{patient[0]} {patient[1:]}"))
    table = write_table(working_copy / "other.csv", other, "path", "label", "patient_id")
    result = foveate("evaluate", "p", table, "--out", "scores")
    assert result.returncode == 0, result.stderr
    marks = [row["in_training"] for row in read_rows(working_copy / "scores" / "predictions.csv")]
    n = marks.count("patient")
    assert 0 < n < len(marks), "not those of the test part"
    assert f"warning: {n} of 12 images are other images of patients that trained" in result.stderr
    assert "never saw" not in result.stdout


def test_a_contradiction_is_reported_each_time(working_copy: Path, foveate: Command) -> None:
    rows = [(name, label, "1.0") for name, label in ROWS[:3]]
    table = write_table(working_copy / "odd.csv", rows, "path", "label", "mpp")
    for _ in range(2):
        result = foveate("predict", "run", table, "--out", "again")
        assert result.returncode == 0, result.stderr
        assert "the table's pixel size of 3 images is 2 times what the file says" in result.stderr
