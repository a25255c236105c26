"""NIfTI volumes are trained on, predicted and drawn; impossible requests are refused."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from foveate.runs.folder import read_json, read_rows
from helpers.commands import Completed

Command = Callable[..., Completed]
RUN = (
    *("--method", "streaming_cnn", "--encoder", "small3d", "--encoder.width", "4"),
    *("--method.scratch", "none", "--epochs", "1", "--heatmaps", "2"),
)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write sixteen heads with a bright ball or cube, and one truncated file."""
    folder, rng = tmp_path_factory.mktemp("heads"), np.random.default_rng(0)
    rows = []
    for i in range(16):
        shape = rng.integers(24, 40, 3)
        values = rng.normal(300, 20, shape)
        away = np.abs(np.indices(shape) - (shape // 2)[:, None, None, None])
        inside = away.max(0) < 7 if i % 2 else np.sqrt((away**2).sum(0)) < 8
        values[inside] += 200
        path = folder / f"head_{i}.nii.gz"
        affine = np.diag([-1.0, 1.0, 1.5, 1.0])
        nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), affine), path)
        rows.append({"path": path.name, "label": "cube" if i % 2 else "ball"})
    path.write_bytes(path.read_bytes()[:900])
    with (folder / "labels.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["path", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "labels.csv"


def test_volumes_are_trained_predicted_and_drawn(
    volumes: Path, tmp_path: Path, foveate: Command
) -> None:
    run = tmp_path / "run"
    trained = foveate("train", volumes, "--out", run, *RUN)
    assert trained.returncode == 2, trained.stderr  # one file cannot be read
    assert "cubes of 32 voxels of 1.145 mm" in trained.stdout + trained.stderr
    assert [row["image_id"] for row in read_rows(run / "quarantine.csv")] == ["head_15"]
    assert read_json(run / "plan.json")["view"]["axes"] == 3
    pictures = sorted((run / "heatmaps").glob("*.png"))
    assert len(pictures) == 2
    assert Image.open(pictures[0]).size[0] > 600
    assert (run / "report.html").stat().st_size > 50_000
    predicted = foveate("predict", run, volumes.parent / "head_3.nii.gz", "--out", tmp_path / "out")
    assert predicted.returncode == 0, predicted.stderr
    (row,) = read_rows(tmp_path / "out" / "predictions.csv")
    assert float(row["prob_ball"]) + float(row["prob_cube"]) == pytest.approx(1, abs=1e-3)
    flat = tmp_path / "flat.png"
    Image.fromarray(np.zeros((30, 30), np.uint8)).save(flat)
    refused = foveate("predict", run, flat, "--out", tmp_path / "none")
    assert refused.returncode != 0
    assert "flat.png: has 2 axes, but the model reads images of 3" in refused.stderr


def test_a_picture_encoder_is_refused_for_volumes(
    volumes: Path, tmp_path: Path, foveate: Command
) -> None:
    result = foveate("train", volumes, "--out", tmp_path / "run", "--encoder", "small")
    assert result.returncode == 1
    assert (
        "'small' reads images of 2 axes, these have 3: take --encoder slices or small3d"
        in result.stderr
    )


def test_a_method_without_volume_support_is_refused(
    volumes: Path, tmp_path: Path, foveate: Command
) -> None:
    flags = ("--encoder", "small3d", "--method", "tnet")
    result = foveate("train", volumes, "--out", tmp_path / "run", *flags)
    assert result.returncode == 1
    assert "'tnet' takes no images of 3 axes" in result.stderr


def test_warping_volumes_is_refused(volumes: Path, tmp_path: Path, foveate: Command) -> None:
    result = foveate("train", volumes, "--out", tmp_path / "run", *RUN, "--train.augment", "warp")
    assert result.returncode == 1
    assert "volumes take auto" in result.stderr


def test_a_volume_model_refuses_pictures(volumes: Path, tmp_path: Path, foveate: Command) -> None:
    """A picture among volumes is refused before training."""
    Image.fromarray(np.zeros((30, 30), np.uint8)).save(volumes.parent / "flat.png")
    table = volumes.parent / "mixed.csv"
    rows = volumes.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join([*rows, "flat.png,ball"]), encoding="utf-8")
    result = foveate("train", table, "--out", tmp_path / "run", *RUN)
    assert result.returncode == 1
    assert "mixed" in result.stderr
