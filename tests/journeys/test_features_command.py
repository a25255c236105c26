"""``foveate features``: the files hold what a training by the frozen encoder would compute."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import foveate as fv
from conftest import picture
from foveate.encoders import build_encoder
from foveate.files.csvtext import parse_csv
from foveate.geometry import Box, Frame
from foveate.loading.scan import ViewOptions, choose_view, scan_cases
from foveate.prediction.predict import predict_one
from foveate.readers import open_image
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import Model, build_model
from foveate.runs.models import Ensemble
from foveate.table import Case, read_cases
from helpers.commands import Completed, assert_refused

Command = Callable[..., Completed]

OPTIONS = fv.FeatureOptions(spacing_um=2.0, patch_px=64, number="float32", chunk=8)


def read_rows(path: Path) -> list[dict[str, str]]:
    return parse_csv(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def slides(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of three slides with labels."""
    cohort = read_rows(tiny_cohort)
    rows = [*cohort[:2], next(row for row in cohort if row["label"] != cohort[0]["label"])]
    table = tmp_path_factory.mktemp("three") / "labels.csv"
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"file": str(tiny_cohort.parent / row["file"])} for row in rows)
    return table


@pytest.fixture(scope="module")
def embedded(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of ``features`` of the three slides."""
    out = tmp_path_factory.mktemp("embedded") / "out"
    result = fv.extract_features(slides, out, OPTIONS)
    assert len(result.rows) == 3
    assert not result.failed
    return out


def test_vectors_are_those_of_the_encoder_and_places_are_level_0_pixels(embedded: Path) -> None:
    encoder = build_encoder("lite0").eval()
    row = read_rows(embedded / "features.csv")[0]
    with h5py.File(embedded / row["path"]) as file, open_image(row["image"]) as image:
        coords, vectors = file["coords"][()], file["features"][()]
        assert vectors.shape == (int(row["n_patches"]), encoder.n_features)
        assert file["coords"].attrs["patch_size_level0"] == 256, "64 px of 2 um at 0.5 um"
        assert (file["coords"].attrs["level0_width"], file.attrs["mpp_x"]) == (3072, 0.5)
        assert (coords % 256 == 0).all()
        n_lattice = (image.shape[0] // 256) * (image.shape[1] // 256)
        assert 0 < len(coords) < n_lattice, "glass is left out"
        for i in (0, len(coords) - 1):
            x, y = coords[i] * 0.5
            pixels = image.read_at(Box((y, x), (128.0, 128.0), Frame.UM), (64, 64))
            rgb = torch.from_numpy(pixels / 255.0).float().permute(2, 0, 1)[None]
            with torch.no_grad():
                expected = encoder.features(encoder.maps((rgb - 0.5) / 0.5))[0]
            np.testing.assert_allclose(vectors[i], expected, rtol=1e-3, atol=1e-4)


def test_the_same_command_computes_nothing_again(slides: Path, embedded: Path) -> None:
    files = sorted((embedded / "features").iterdir())
    before = [path.stat().st_mtime_ns for path in files]
    fv.extract_features(slides, embedded, OPTIONS)
    assert [path.stat().st_mtime_ns for path in files] == before
    files[1].unlink()
    fv.extract_features(slides, embedded, replace(OPTIONS, chunk=5))
    after = [path.stat().st_mtime_ns for path in files]
    assert (after[0], after[2]) == (before[0], before[2])
    assert after[1] > before[1]


def test_a_stop_between_two_files_is_continued(slides: Path, embedded: Path) -> None:
    """As after a kill behind the renaming of a file, before it was noted as complete."""
    journal, files = embedded / "features.jsonl", sorted((embedded / "features").iterdir())
    lines = journal.read_text().splitlines(keepends=True)
    noted = max(i for i, line in enumerate(lines) if "n_patches" in line)
    journal.write_text("".join(lines[:noted]))
    before = files[0].stat().st_mtime_ns
    result = fv.extract_features(slides, embedded, OPTIONS)
    assert len(result.rows) == 3
    assert files[0].stat().st_mtime_ns >= before


def test_other_settings_and_files_of_others_are_refused(
    slides: Path, embedded: Path, tmp_path: Path, foveate: Command
) -> None:
    flags = ("--view.spacing-um", "2", "--view.patch-px", "64", "--number", "float32")
    words = ("features", slides, "--out", embedded, *flags)
    assert foveate(*words).returncode == 0
    refused = foveate(*words, "--layout", "clam")
    assert_refused(refused, "its layout was trident, now it is clam")
    refused = foveate(*words[:4], "--view.spacing-um", "1", *flags[2:])
    assert_refused(refused, "its spacing_um was 2.0, now it is 1.0")
    name = read_rows(embedded / "features.csv")[1]["path"]
    (tmp_path / "features").mkdir()
    (tmp_path / name).write_bytes((embedded / name).read_bytes())
    refused = foveate(*words[:3], tmp_path, *flags)
    assert_refused(refused, f"{tmp_path / name} was not written by this command: move it away")


def build_models(embedded: Path, slides: Path) -> tuple[Model, Model]:
    """Build `abmil` for slides by a frozen encoder and for files of features, of equal weights."""
    wanted = ViewOptions(spacing_um=2.0, patch_px=64)
    tables = (slides, embedded / "features.csv")
    views = []
    for table, options in zip(tables, (wanted, ViewOptions()), strict=True):
        views.append(
            choose_view(scan_cases(read_cases(table).cases, options).facts.values(), options)
        )
    settled = {"classes": ["normal", "tumour"]}
    card = ModelCard("abmil", {}, "lite0", {"dim": 16}, "binary", {}, settled, views[0])
    torch.manual_seed(3)
    one = build_model(card, pretrained=True)
    length = one.method.encoder.n_features
    options = {"dim": 16, "stored_dim": length}
    other = build_model(
        replace(card, encoder="stored", encoder_options=options, view=views[1]), pretrained=True
    )
    weights = one.method.state_dict()
    shared = {name: weights[name] for name in other.method.state_dict()}
    other.method.load_state_dict(shared)
    return one, other


def test_answers_are_those_from_slides_by_the_frozen_encoder(
    embedded: Path, slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foveate.prediction.predict.computes_in_bf16", lambda: False)
    one, other = (Ensemble((m,), (embedded,)) for m in build_models(embedded, slides))
    for row in read_rows(embedded / "features.csv")[:2]:
        from_slide = predict_one(one, Path(row["image"]))
        case = Case(row["image_id"], row["image_id"], embedded / row["path"])
        from_file = predict_one(other, case)
        np.testing.assert_allclose(from_file.logits, from_slide.logits, atol=1e-3)
        np.testing.assert_allclose(
            from_file.evidence.origin_um, from_slide.evidence.origin_um, atol=1e-6
        )
        np.testing.assert_allclose(from_file.evidence.weight, from_slide.evidence.weight, atol=1e-3)
        assert from_file.decoded_px == 0


def test_a_bad_image_is_set_aside_and_the_others_train(tmp_path: Path, foveate: Command) -> None:
    for i in range(16):
        picture(tmp_path / "in" / ("dark" if i % 2 else "plain") / f"P{i:02}.png", i)
    cut = tmp_path / "in" / "dark" / "P03.png"
    cut.write_bytes(cut.read_bytes()[:2000])
    table = tmp_path / "labels.csv"
    rows = [f"{p},{p.parent.name}" for p in sorted((tmp_path / "in").rglob("*.png"))]
    table.write_text("\n".join(["path,label", *rows]))
    out = tmp_path / "out"
    result = foveate("features", table, "--out", out, "--layout", "clam", "--view.patch-px", "32")
    assert result.returncode == 2, result.stderr
    assert "135 patches of 15 images embedded, 1 failed" in result.stdout
    assert "embedding patches: 16/16" in result.stderr
    (bad,) = read_rows(out / "quarantine.csv")
    assert (bad["image_id"], bad["stage"]) == ("P03", "features")
    words = ("train", out / "features.csv", "--out", tmp_path / "run", "--heatmaps", "1")
    result = foveate(*words, "--train.frozen-epochs", "2")
    assert result.returncode == 0, result.stderr
    assert "2304 numbers of 'lite0' for each patch of 32 px" in result.stderr
    result = foveate("features", out / "features", "--out", tmp_path / "twice")
    assert_refused(result, "features: these are files of features already; give slides or pictures")


def test_what_has_no_meaning_is_refused(
    picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    words = ("features", picture_table, "--out", tmp_path / "out")
    refused = foveate(*words, "--encoder", "small")
    assert_refused(refused, "'small' has no pretrained weights, so that its vectors mean nothing")
    refused = foveate(*words, "--encoder", "slices")
    assert_refused(refused, "'slices' does not read pictures or slides, whose patches are embedded")
    refused = foveate(*words, "--layout", "stamp")
    assert_refused(refused, "'stamp' counts in micrometres, but the images state no pixel size")
    refused = foveate(*words, "--train.lr", "1")
    assert_refused(refused, "no section 'train' here: see `foveate features --help`")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("method: abmil\n")
    refused = foveate("features", picture_table, "--out", tmp_path / "run")
    assert_refused(refused, "is the folder of a run: give another --out")
