"""``--bag patient``: one answer for each patient from all images, from the table to the report."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from safetensors.torch import load_file

from conftest import PICTURE_RUN
from foveate.files.csvtext import parse_csv
from foveate.images.evidence import Evidence
from foveate.runs.folder import read_json, read_rows
from helpers.commands import (
    Completed,
    assert_refused,
    command_words,
    one_thread_environment,
    run_child,
)
from helpers.feature_files import write_trident

Command = Callable[..., Completed]

N_PATIENTS = 24
NO_PICTURES = ("--heatmaps", "0")
OPTIONS = (*PICTURE_RUN, "--bag", "patient", "--heatmaps", "4")


def write_patients(folder: Path, n: int = N_PATIENTS, seed: int = 0) -> Path:
    """Write one to three pictures of each patient, of which one shows a dark square if ill.

    The first image of patient P00 has the id of patient P01.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for p in range(n):
        count = 1 + p % 3
        sick = int(rng.integers(count)) if p // 3 % 2 else -1
        for k in range(count):
            height, width = rng.integers(70, 130, 2)
            pixels = rng.integers(150, 200, (height, width, 3), dtype=np.uint8)
            if k == sick:
                pixels[20:52, 30:62] //= 4
            name = "P01" if (p, k) == (0, 0) else f"S{p:02d}_{k}"
            Image.fromarray(pixels).save(folder / f"{name}.png")
            rows.append((f"{name}.png", f"P{p:02d}", "ill" if sick >= 0 else "well"))
    table = folder / "labels.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "patient_id", "label"), *rows])
    return table


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patients(tmp_path_factory.mktemp("patients") / "in")


@pytest.fixture(scope="module")
def trained(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train for a few seconds on all patients with two folds; returns the run folder."""
    run = tmp_path_factory.mktemp("trained") / "run"
    result = run_child("train", table, "--out", run, *OPTIONS, "--folds", 2)
    assert result.returncode == 0, result.stderr
    assert "one answer for each of 24 patients, from 48 images: 16 of them with several" in (
        result.stderr + result.stdout
    )
    return run


def images_of(table: Path) -> dict[str, list[str]]:
    """The ids of the images of each patient."""
    images: dict[str, list[str]] = {}
    for row in parse_csv(table.read_text(encoding="utf-8")):
        images.setdefault(row["patient_id"], []).append(Path(row["path"]).stem)
    return images


def test_each_patient_has_one_answer_from_all_images(trained: Path, table: Path) -> None:
    rows, images = read_rows(trained / "predictions_oof.csv"), images_of(table)
    assert sorted(row["patient_id"] for row in rows) == sorted(images)
    for row in rows:
        assert row["images"].split("|") == images[row["patient_id"]]
        assert row["path"].split("|") == [str(table.parent / f"{i}.png") for i in images[
            row["patient_id"]]]  # fmt: skip
        shares = [float(share) for share in row["shares"].split("|")]
        assert sum(shares) == pytest.approx(1, abs=1e-3)
        assert row["left_out"] == ""
    by_patient = {row["patient_id"]: row["image_id"] for row in rows}
    assert by_patient["P02"] == "P02"
    assert by_patient["P01"].startswith("P01-"), "an image of another patient has this name"
    splits = read_json(trained / "splits.json")
    assert splits["images"][by_patient["P01"]] == images["P01"]
    metrics = read_json(trained / "metrics.json")
    assert (metrics["n_images"], metrics["n_patients"]) == (48, 24)


def test_evidence_is_in_the_frame_of_each_image(trained: Path, table: Path) -> None:
    index = read_json(trained / "heatmaps" / "index.json")
    images = images_of(table)
    assert sorted(entry["image_id"] for entry in index) == sorted(
        i for ids in images.values() for i in ids
    )
    rows = {row["image_id"]: row for row in read_rows(trained / "predictions_oof.csv")}
    for entry in index:
        row, name = rows[entry["case"]], entry["image_id"]
        evidence = Evidence.load(trained / "heatmaps" / f"{name}.npz")
        with Image.open(table.parent / f"{name}.png") as picture:
            extent = np.array(picture.size[::-1], float)
        assert evidence.extent_um is not None
        np.testing.assert_array_equal(evidence.extent_um, extent)
        low, high = evidence.origin_um, evidence.origin_um + evidence.size_um
        assert ((low < extent) & (high > 0)).all(), "every box touches its image"
        share = dict(zip(row["images"].split("|"), row["shares"].split("|"), strict=True))[name]
        assert float(share) == pytest.approx(entry["share"], abs=1e-3)
        if entry["geojson"]:
            shapes = json.loads((trained / "heatmaps" / entry["geojson"]).read_text("utf-8"))
            corners = {
                tuple(feature["geometry"]["coordinates"][0][0][::-1])
                for feature in shapes["features"]
            }
            wanted = {tuple(corner) for corner in np.round(evidence.origin_um, 2).tolist()}
            assert corners == wanted
    assert sum(entry["png"] is not None for entry in index) >= 4


def test_the_report_counts_images_and_shows_each(trained: Path) -> None:
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "<b>48</b>images of 24 patients divided" in page
    shown = [entry for entry in read_json(trained / "heatmaps" / "index.json") if entry["png"]]
    for entry in shown:
        assert f"Heatmap of {entry['image_id']}:" in page


@pytest.fixture
def others(tmp_path: Path) -> Path:
    """Return the table of six other patients, whose pictures a test may damage."""
    return write_patients(tmp_path / "others", n=6, seed=9)


def test_a_patient_is_answered_without_an_unreadable_image(
    trained: Path, others: Path, tmp_path: Path, foveate: Command
) -> None:
    folder, out = others.parent, tmp_path / "out"
    whole = foveate("predict", trained, others, "--out", tmp_path / "whole", *NO_PICTURES)
    assert whole.returncode == 0, whole.stderr
    (folder / "S02_1.png").write_bytes(b"no picture")
    for k in range(3):  # the pixels of these are cut off, which shows when they are read
        path = folder / f"S05_{k}.png"
        path.write_bytes(path.read_bytes()[:2000])
    result = foveate("predict", trained, others, "--out", out, *NO_PICTURES)
    assert result.returncode == 2, result.stderr
    rows = {row["patient_id"]: row for row in read_rows(out / "predictions.csv")}
    assert sorted(rows) == ["P00", "P01", "P02", "P03", "P04"]
    assert rows["P02"]["images"] == "S02_0|S02_2"
    assert rows["P02"]["left_out"] == "S02_1"
    aside = {row["image_id"]: row["reason"] for row in read_rows(out / "quarantine.csv")}
    assert set(aside) == {"S02_1", "P05"}
    assert "S02_1.png" in aside["S02_1"]
    before = {row["patient_id"]: row for row in read_rows(tmp_path / "whole" / "predictions.csv")}
    for patient in ("P00", "P01", "P03", "P04"):
        assert rows[patient]["prob_ill"] == before[patient]["prob_ill"]

    lines = [line for line in others.read_text("utf-8").splitlines() if "S02_1" not in line]
    (folder / "rest.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rest = foveate(
        "predict", trained, folder / "rest.csv", "--out", tmp_path / "rest", *NO_PICTURES
    )
    assert rest.returncode == 2, rest.stderr
    alone = {row["patient_id"]: row for row in read_rows(tmp_path / "rest" / "predictions.csv")}
    assert alone["P02"]["prob_ill"] == rows["P02"]["prob_ill"]


def test_a_prediction_continues_where_it_was_stopped(
    trained: Path, others: Path, tmp_path: Path, foveate: Command
) -> None:
    out = tmp_path / "out"
    first = foveate("predict", trained, others, "--out", out, "--heatmaps", 1)
    assert first.returncode == 0, first.stderr
    table = (out / "predictions.csv").read_text("utf-8")
    journal = out / "answers.jsonl"
    journal.write_text("".join(journal.read_text("utf-8").splitlines(keepends=True)[:4]), "utf-8")
    again = foveate("predict", trained, others, "--out", out, "--heatmaps", 1)
    assert again.returncode == 0, again.stderr
    assert "3 of 6 images are answered already" in again.stdout + again.stderr
    without_time = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in parse_csv(text)]
        for text in (table, (out / "predictions.csv").read_text("utf-8"))
    ]
    assert without_time[0] == without_time[1]


def test_patients_of_training_are_recognised(
    trained: Path, table: Path, others: Path, tmp_path: Path, foveate: Command
) -> None:
    result = foveate("evaluate", trained, table, "--out", tmp_path / "same")
    assert result.returncode == 0, result.stderr
    rows = read_rows(tmp_path / "same" / "predictions.csv")
    assert {row["in_training"] for row in rows} <= {"training", "validation"}
    assert read_json(tmp_path / "same" / "metrics.json")["n_seen_in_training"] == N_PATIENTS
    folder = foveate("predict", trained, others.parent, "--out", tmp_path / "folder", *NO_PICTURES)
    assert folder.returncode == 0, folder.stderr
    assert len(read_rows(tmp_path / "folder" / "predictions.csv")) == 12, "no table, no patients"


@pytest.mark.slow
def test_a_run_that_is_continued_ends_alike(trained: Path, table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for name in ("fold_1", "heatmaps", "predictions_oof.csv", "metrics.json"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    result = run_child("train", table, "--out", run, *OPTIONS, "--folds", 2)
    assert result.returncode == 0, result.stderr
    assert read_json(run / "metrics.json") == read_json(trained / "metrics.json")
    answers = [
        [(row["image_id"], row["prob_ill"], row["shares"]) for row in read_rows(path)]
        for path in (run / "predictions_oof.csv", trained / "predictions_oof.csv")
    ]
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_an_unreadable_image_is_set_aside_before_training(
    table: Path, tmp_path: Path, foveate: Command
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(table.parent, folder)
    for name in ("S02_1", "S03_0"):
        (folder / f"{name}.png").write_bytes(f"no picture {name}".encode())
    run = tmp_path / "run"
    result = foveate("train", folder / "labels.csv", "--out", run, *OPTIONS, "--refit")
    assert result.returncode == 2, result.stderr
    aside = {row["image_id"]: row["stage"] for row in read_rows(run / "quarantine.csv")}
    assert aside == {"S02_1": "open", "S03_0": "open"}
    images = read_json(run / "splits.json")["images"]
    assert images["P02"] == ["S02_0", "S02_2"]
    assert "P03" not in images, "its only image cannot be read"
    left_out = {row["patient_id"]: row["left_out"] for row in read_rows(
        run / "predictions_oof.csv")}  # fmt: skip
    assert {p: text for p, text in left_out.items() if text} == (
        {"P02": "S02_1"} if "P02" in left_out else {}
    )
    answer = foveate("predict", run, folder / "labels.csv", "--out", tmp_path / "out", *NO_PICTURES)
    assert answer.returncode == 2, answer.stderr
    rows = {row["patient_id"]: row for row in read_rows(tmp_path / "out" / "predictions.csv")}
    assert rows["P02"]["left_out"] == "S02_1"
    assert rows["P02"]["models"] == "1"


@pytest.mark.slow
def test_methods_are_compared_on_patients(table: Path, tmp_path: Path, foveate: Command) -> None:
    options = [word for word in OPTIONS if word not in ("--method", "mil_mean")]
    study = tmp_path / "study"
    words = ("compare", table, "--methods", "mil_mean,downsampled", "--out", study, *options)
    result = foveate(*words)
    assert result.returncode == 0, result.stderr
    rows = [read_rows(study / name / "predictions_oof.csv") for name in ("mil_mean", "downsampled")]
    assert [row["image_id"] for row in rows[0]] == [row["image_id"] for row in rows[1]]
    page = foveate(
        "report", study / "mil_mean", study / "downsampled", "--out", tmp_path / "all.html"
    )
    assert page.returncode == 0, page.stderr
    audit = foveate("audit", study / "mil_mean", "--images", 2)
    assert audit.returncode == 0, audit.stderr


@pytest.mark.slow
def test_files_of_features_of_a_patient_are_joined(tmp_path: Path, foveate: Command) -> None:
    rng, rows = np.random.default_rng(0), ["case_id,slide_id,label"]
    (tmp_path / "h5").mkdir()
    for p in range(16):
        for k in range(1 + p % 2):
            vectors = rng.normal(size=(5, 12)).astype(np.float16)
            if p // 2 % 2 and k == p % 2:
                vectors[3, ::3] += 5
            write_trident(tmp_path / "h5" / f"S{p}_{k}.h5", vectors)
            rows.append(f"P{p},S{p}_{k},{'ill' if p // 2 % 2 else 'well'}")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    run = tmp_path / "run"
    result = foveate("train", table, "--out", run, "--bag", "patient", "--heatmaps", 2,
                     "--epochs", 2, "--images", tmp_path / "h5")  # fmt: skip
    assert result.returncode == 0, result.stderr
    for row in read_rows(run / "predictions_oof.csv"):
        for name in row["images"].split("|"):
            evidence = Evidence.load(run / "heatmaps" / f"{name}.npz")
            assert len(evidence) == 5
            assert (evidence.origin_um.min(0) == 0).all(), "places of the slide, not of the canvas"


def test_what_cannot_be_joined_is_refused(table: Path, tmp_path: Path, foveate: Command) -> None:
    text = table.read_text("utf-8")
    mixed = tmp_path / "mixed.csv"
    mixed.write_text(text.replace("S02_1.png,P02,well", "S02_1.png,P02,ill"), "utf-8")
    words = ("--out", tmp_path / "run", "--images", table.parent, *OPTIONS)
    assert_refused(foveate("train", mixed, *words), "'P02' (ill, well)", "--bag patient")
    nobody = tmp_path / "nobody.csv"
    rows = [(row["path"], row["label"]) for row in parse_csv(text)]
    nobody.write_text("path,label\n" + "".join(f"{p},{label}\n" for p, label in rows), "utf-8")
    assert_refused(foveate("train", nobody, *words), "--patient")
    folder = tmp_path / "in"
    shutil.copytree(table.parent, folder)
    Image.new("L", (100, 90), 120).save(folder / "S02_1.png")
    grey = foveate("train", folder / "labels.csv", "--out", tmp_path / "grey", *OPTIONS)
    assert_refused(grey, "'P02'", "picture of 1 channels, picture of 3 channels")


def test_check_hints_at_patients_with_several_images(
    table: Path, tmp_path: Path, foveate: Command
) -> None:
    result = foveate("check", table, "--out", tmp_path / "check")
    assert "--bag patient" in result.stdout, result.stdout
    findings = read_json(tmp_path / "check" / "check.json")["findings"]
    (finding,) = (f for f in findings if f["kind"] == "patients")
    assert finding["severity"] == "note"
    assert "16 of 24 patients have several images (2 to 3)" in finding["text"]


# -- learning, and kills (slow) -------------------------------------------------------------------


def write_slide(path: Path, rng: np.random.Generator, sign: bool) -> tuple[int, int] | None:
    """Write tissue on glass as a tiled TIFF of 0.5 um; returns the corner of the sign, if any."""
    height, width = (int(side) for side in rng.integers(500, 700, 2))
    y, x = np.mgrid[:height, :width]
    tissue = ((y - height / 2) / (0.4 * height)) ** 2 + ((x - width / 2) / (0.4 * width)) ** 2 < 1
    pixels = np.full((height, width, 3), 240.0)
    pixels[tissue] = (215, 150, 185)
    pixels += rng.normal(0, 6, pixels.shape) + tissue[..., None] * rng.normal(0, 14, pixels.shape)
    corner = None
    if sign:
        corner = (int(height / 2 + rng.integers(-90, 30)), int(width / 2 + rng.integers(-90, 30)))
        part = pixels[corner[0] : corner[0] + 56, corner[1] : corner[1] + 56]
        part[...] = rng.normal((90, 60, 150), 10, part.shape)
    tifffile.imwrite(path, pixels.clip(0, 255).astype(np.uint8), tile=(128, 128),
                     photometric="rgb", resolution=(20_000, 20_000), resolutionunit=3)  # fmt: skip
    return corner


@pytest.mark.slow
def test_a_sign_on_one_slide_of_a_patient_is_learnt(tmp_path: Path, foveate: Command) -> None:
    """The sign decides, so that the best possible AUROC of patients is 1."""
    rng, rows, signs = np.random.default_rng(4), [], {}
    for p in range(28):
        count = 2 + p % 2
        sick = int(rng.integers(count)) if p // 2 % 2 else -1
        for k in range(count):
            name = f"S{p:02d}_{k}"
            corner = write_slide(tmp_path / f"{name}.tif", rng, k == sick)
            if corner is not None:
                signs[f"P{p:02d}"] = (name, corner)
            rows.append(f"{name}.tif,P{p:02d},{'ill' if sick >= 0 else 'well'}")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(["path,patient_id,label", *rows]) + "\n", encoding="utf-8")
    run = tmp_path / "run"
    result = foveate("train", table, "--out", run, "--bag", "patient", "--method", "abmil",
                     "--epochs", 0, "--train.frozen-epochs", 15, "--heatmaps", 0,
                     "--view.patch-px", 64, "--split.test-fraction", 0.5,
                     "--task.positive", "ill")  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert read_json(run / "metrics.json")["metrics"]["auroc"]["value"] >= 0.95
    found, ill = 0, 0
    for row in read_rows(run / "predictions_oof.csv"):
        if row["patient_id"] in signs:
            ill += 1
            name, corner = signs[row["patient_id"]]
            shares = dict(zip(row["images"].split("|"), map(float, row["shares"].split("|")),
                              strict=True))  # fmt: skip
            evidence = Evidence.load(run / "heatmaps" / f"{name}.npz")
            middle = evidence.origin_um + evidence.size_um / 2
            sign_um = 0.5 * (np.asarray(corner) + 28)
            near = np.abs(middle - sign_um).max(1) < 32
            at_sign = evidence.weight[near].sum() / max(evidence.weight.sum(), 1e-12)
            found += shares[name] == max(shares.values()) and at_sign > near.mean()
    assert found >= 0.8 * ill > 0, "the weight lies on the slide with the sign, and there at it"


@pytest.mark.slow
def test_a_killed_training_ends_as_an_undisturbed_one(table: Path, tmp_path: Path) -> None:
    options = (*PICTURE_RUN, "--bag", "patient", "--epochs", 3, "--heatmaps", 0)
    words = [*options, "--train.batch-size", 4, "--train.checkpoint-seconds", 0.05]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_child("train", table, "--out", whole, *words).returncode == 0
    child = subprocess.Popen(
        command_words("train", table, "--out", killed, *words),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=one_thread_environment(),
    )
    while not (killed / "fold_0" / "metrics.csv").is_file():
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    assert child.wait() != 0
    assert not (killed / "metrics.json").exists(), "it was killed in training"
    assert run_child("train", table, "--out", killed, *words).returncode == 0
    model = "fold_0/model/model.safetensors"
    weights, expected = (load_file(run / model) for run in (killed, whole))
    assert all(weights[name].equal(expected[name]) for name in expected)
    assert read_json(killed / "metrics.json") == read_json(whole / "metrics.json")
