"""Folders of DICOM are listed as images, and train and predict as their NIfTI twins do."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from foveate.checks.device import read_origin
from foveate.geometry import Box, Frame
from foveate.loading.gather import gather_cases
from foveate.readers import open_image
from foveate.runs.fingerprint import file_print
from foveate.runs.folder import read_json, read_rows
from helpers.commands import Completed
from helpers.dicom import write_dicom, write_series, write_twin

Command = Callable[..., Completed]
RUN = (
    *("--method", "streaming_cnn", "--encoder", "small3d", "--encoder.width", "4"),
    *("--method.scratch", "none", "--epochs", "1", "--heatmaps", "1"),
)
N_VOLUMES = 14


def noise(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900, (6, 12, 10)).astype(np.int16)


def write_as_dicom(source: Path, folder: Path) -> bool:
    """Write a NIfTI file as a series of MR slices; return whether DICOM can hold its values."""
    image = nibabel.as_closest_canonical(nibabel.load(source))
    values = np.asarray(image.dataobj)
    if values.min() < 0 or values.max() > 65535 or (values != np.rint(values)).any():
        return False
    sides_mm = np.linalg.norm(image.affine[:3, :3], axis=0)
    write_series(
        folder,
        np.ascontiguousarray(values[::-1, ::-1].transpose(2, 1, 0).astype(np.uint16)),
        step_mm=(0, 0, float(sides_mm[2])),
        spacing_mm=(float(sides_mm[1]), float(sides_mm[0])),
    )
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    return True


def write_table(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return path


@pytest.fixture(scope="module")
def twins(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write fourteen volumes as DICOM; return the tables of the NIfTI and of the DICOM files."""
    source = shared_data / "mri_hippocampus"
    if not source.is_dir():
        pytest.skip("no volumes are here")
    folder = tmp_path_factory.mktemp("twins")
    nifti, dicom = list[tuple[str, str]](), list[tuple[str, str]]()
    with (source / "labels.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            path = source / row["file"]
            name = path.name.removesuffix(".nii.gz")
            if len(nifti) < N_VOLUMES and write_as_dicom(path, folder / "dicom" / name):
                nifti.append((str(path), row["size_class"]))
                dicom.append((f"dicom/{name}", row["size_class"]))
    assert len(dicom) == N_VOLUMES
    return write_table(folder / "nifti.csv", nifti), write_table(folder / "dicom.csv", dicom)


def test_a_volume_and_its_dicom_series_are_the_same_array(twins: tuple[Path, Path]) -> None:
    nifti, dicom = (read_rows(table) for table in twins)
    for row, other in zip(nifti, dicom, strict=True):
        images = open_image(row["path"]), open_image(twins[1].parent / other["path"])
        assert images[0].spacing_um == pytest.approx(images[1].spacing_um)
        ours, theirs = (i.read(Box((0, 0, 0), i.shape, Frame.PX, 0)) for i in images)
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_dicom_trains_and_predicts_as_its_nifti_twins(
    twins: tuple[Path, Path], tmp_path: Path, foveate: Command
) -> None:
    answers = []
    for table in twins:
        run = tmp_path / table.stem
        trained = foveate("train", table, "--out", run, *RUN)
        assert trained.returncode == 0, trained.stderr
        answers.append(read_rows(run / "predictions_oof.csv"))
        metrics = read_json(run / "metrics.json")["metrics"]
    assert "auroc" in metrics
    for row, other in zip(*answers, strict=True):
        assert row["image_id"] == other["image_id"]
        for column in ("prob_large", "prob_small"):
            assert float(row[column]) == pytest.approx(float(other[column]), abs=1e-5)
    out = tmp_path / "out"
    predicted = foveate("predict", tmp_path / "dicom", twins[1].parent / "dicom", "--out", out)
    assert predicted.returncode == 0, predicted.stderr
    rows = read_rows(out / "predictions.csv")
    assert len(rows) == N_VOLUMES
    assert {row["unlike"] for row in rows} == {""}
    assert {row["in_training"] for row in rows} <= {"training", "validation", ""}


def test_folders_of_series_are_images_and_xrays_are_files(tmp_path: Path, foveate: Command) -> None:
    study = tmp_path / "study"
    for name in ("T1", "FLAIR"):
        write_series(study / "patient 1" / name, noise())
        (study / "patient 1" / name / ".DS_Store").write_bytes(b"Bud1")
    write_dicom(study / "patient 2" / "DX0001", noise()[0])
    write_dicom(study / "patient 2" / "DX0002", noise()[1])
    write_dicom(study / "DICOMDIR", noise()[1], "OT", Rows=None, PixelData=None)
    expected = ["patient 1/FLAIR", "patient 1/T1", "patient 2/DX0001", "patient 2/DX0002"]
    cases = gather_cases([study]).cases
    assert sorted(c.path.relative_to(study).as_posix() for c in cases) == expected
    files = gather_cases([study], readers={"dicom": {"stack": False}}).cases
    assert len(files) == 14
    assert all(case.path.is_file() for case in files)
    drafted = foveate("init", study, "--out", tmp_path / "table.csv")
    assert drafted.returncode == 0, drafted.stderr
    rows = read_rows(tmp_path / "table.csv")
    assert sorted(row["path"] for row in rows) == [f"study/{name}" for name in expected]
    one = foveate("init", study / "patient 1" / "T1", "--out", tmp_path / "one.csv")
    assert one.returncode == 0, one.stderr
    assert [row["path"] for row in read_rows(tmp_path / "one.csv")] == ["study/patient 1/T1"]
    (case,) = gather_cases([study / "patient 1" / "T1"]).cases
    assert (case.path, case.image_id) == (study / "patient 1" / "T1", "T1")


@pytest.mark.slow
def test_slices_of_a_folder_are_images_of_their_own_where_they_are_not_stacked(
    tmp_path: Path, foveate: Command
) -> None:
    for label in ("thick", "thin"):
        for i in range(3):
            values = np.random.default_rng(i).integers(0, 900, (2, 64, 64)).astype(np.int16)
            write_series(tmp_path / "study" / label / f"S{i}", values)
    slices = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("IM*"))
    rows = [f"{path},{Path(path).parts[1]}" for path in slices]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    alone = ("--reader.dicom.stack", "no")
    checked = foveate("check", tmp_path / "study", "--out", tmp_path / "check", *alone)
    assert "12 images" in checked.stdout, checked.stdout + checked.stderr
    brief = ("--method", "downsampled", "--epochs", "1", "--folds", "2", *alone)
    trained = foveate("train", table, "--out", tmp_path / "run", *brief)
    assert trained.returncode == 0, trained.stderr
    out = tmp_path / "out"
    predicted = foveate("predict", tmp_path / "run", tmp_path / "study", "--out", out)
    assert predicted.returncode == 0, predicted.stderr
    assert len(read_rows(out / "predictions.csv")) == 12


def test_series_of_the_same_names_and_sizes_are_told_apart(tmp_path: Path) -> None:
    first = write_series(tmp_path / "a" / "T1", noise(1), SeriesInstanceUID="1.2.3")
    second = write_series(tmp_path / "b" / "T1", noise(2), SeriesInstanceUID="1.2.4")
    assert file_print(first)["sha256"] != file_print(second)["sha256"]
    before = file_print(first)["sha256"]
    write_twin(tmp_path / "twin.nii", noise(1))
    assert file_print(first)["sha256"] == before


def test_the_scanner_of_a_series_is_read(tmp_path: Path) -> None:
    made_by = {"Manufacturer": "Maker", "ManufacturerModelName": "Model 7"}
    series = write_series(tmp_path / "s", noise(), **made_by)
    (series / ".DS_Store").write_bytes(b"Bud1")
    (series / "A note.txt").write_bytes(b"no slice")
    with open_image(series) as image:
        assert read_origin(series, image.reader).device == "Maker · Model 7"
        assert read_origin(series / "IM0002", image.reader).device == "Maker · Model 7"


def test_check_opens_the_series_that_training_will_take(tmp_path: Path, foveate: Command) -> None:
    rows = []
    for i, label in enumerate(("ill", "well")):
        for number in (1, 2):
            folder = write_series(tmp_path / f"s{number}", noise(i), SeriesNumber=number)
            for path in folder.iterdir():
                target = tmp_path / f"P{i}" / f"{number}{path.name}"
                target.parent.mkdir(exist_ok=True)
                path.rename(target)
        rows.append((f"P{i}", label))
    table = write_table(tmp_path / "labels.csv", rows)
    words = ("check", str(table), "--out", str(tmp_path / "c"), "--workers", "1")
    chosen = foveate(*words, "--reader.dicom.series", "2")
    assert [row["kind"] for row in read_rows(tmp_path / "c" / "check.csv")] == ["volume"] * 2
    assert "2 series" not in chosen.stdout
    assert "--reader.dicom.series 2" in chosen.stdout
    refused = foveate("check", str(table), "--train.lr", "1")
    assert "no section 'train' here: see `foveate check --help`" in refused.stderr
