"""Training and prediction from files of features that other programs wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import foveate as fv
from foveate.files.csvtext import parse_csv
from foveate.messages.display import Silent
from foveate.runs import default_method, labels, plan
from helpers.commands import Completed, assert_refused
from helpers.feature_files import SIDE_PX0, lattice, write_clam, write_stamp, write_trident

Command = Callable[..., Completed]

N_IMAGES, LENGTH = 24, 12
TRAINING = fv.RunOptions(heatmaps=6)


@dataclass(frozen=True)
class Cohort:
    """Files of features, and the patch of each positive image that decides."""

    folder: Path
    table: Path
    deciding: dict[str, int]


class Lines(Silent):
    """A display that remembers its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def draw_vectors(rng: np.random.Generator, deciding: int | None) -> NDArray[np.float16]:
    """Noise for 6 to 9 patches; a third of the numbers of the deciding patch are large."""
    vectors = rng.normal(size=(int(rng.integers(6, 10)), LENGTH))
    if deciding is not None:
        vectors[deciding, ::3] += 5.0
    return vectors.astype(np.float16)


def write_cohort(
    folder: Path, write: Callable[[Path, NDArray[np.float16]], object], n: int = N_IMAGES
) -> Cohort:
    """Write files of n patients, half of them positive, and a table in the dialect of CLAM."""
    rng, deciding, rows = np.random.default_rng(1), {}, ["case_id,slide_id,label"]
    (folder / "h5").mkdir(parents=True)
    for i in range(n):
        name = f"TCGA-{i:02}.F6E9"
        if i % 2:
            deciding[name] = int(rng.integers(6))
        write(folder / "h5" / f"{name}.h5", draw_vectors(rng, deciding.get(name)))
        rows.append(f"P{i},{name},{'tumour' if i % 2 else 'normal'}")
    table = folder / "labels.csv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return Cohort(folder / "h5", table, deciding)


@dataclass(frozen=True)
class Trained:
    """A run that was trained on the files of a cohort, and what it said."""

    cohort: Cohort
    run: Path
    said: str


@pytest.fixture(scope="module")
def trident(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Train without a method on files of TRIDENT, named as CLAM's tables name them."""
    folder = tmp_path_factory.mktemp("trident")
    cohort, display = write_cohort(folder, write_trident), Lines()
    fv.train(cohort.table, folder / "run", TRAINING, on_progress=display, images=cohort.folder)
    return Trained(cohort, folder / "run", "\n".join(display.lines))


def read_rows(path: Path) -> list[dict[str, str]]:
    return parse_csv(path.read_text(encoding="utf-8"))


def test_abmil_is_chosen_and_learns(trident: Trained) -> None:
    assert "method: abmil, because the table names files of features" in trident.said
    assert "files of features: 12 numbers of 'uni_v1' for each patch of 256 px" in trident.said
    assert "no spacing: the files state no pixel size, so places count in level-0" in trident.said
    metrics = json.loads((trident.run / "metrics.json").read_text())
    assert metrics["metrics"]["auroc"]["value"] > 0.9
    assert metrics["n_images"] == N_IMAGES // 4
    card = json.loads((trident.run / "fold_0/model/model.json").read_text())
    assert (card["method"], card["encoder"]) == ("abmil", "stored")
    assert card["view"]["recipe"]["encoder"] == "uni_v1"
    assert "warning" not in trident.said


def test_weights_lie_where_the_files_say(trident: Trained) -> None:
    """The heaviest box of a positive image is that of its deciding patch, in level-0 pixels."""
    rows = read_rows(trident.run / "predictions_oof.csv")
    found, seen = 0, 0
    for row in rows:
        name = row["image_id"]
        shapes = json.loads((trident.run / "heatmaps" / f"{name}.geojson").read_text())
        with Image.open(trident.run / "heatmaps" / f"{name}.png") as picture:
            assert min(picture.size) > 50
        assert row["unlike"] == ""
        if name not in trident.cohort.deciding:
            continue
        ring = shapes["features"][0]["geometry"]["coordinates"][0]
        patch = trident.cohort.deciding[name]
        corner = [patch % 4 * SIDE_PX0, patch // 4 * SIDE_PX0]
        found += ring[0] == corner
        assert ring[2] == [ring[0][0] + SIDE_PX0, ring[0][1] + SIDE_PX0]
        seen += 1
    assert seen >= 2
    assert found >= 0.75 * seen


@pytest.mark.slow
def test_a_run_that_is_repeated_is_continued(trident: Trained) -> None:
    display = Lines()
    images = trident.cohort.folder
    fv.train(trident.cohort.table, trident.run, TRAINING, on_progress=display, images=images)
    assert any("holds this run already" in line for line in display.lines)


def test_a_folder_of_features_is_predicted_and_bad_files_are_set_aside(
    trident: Trained, tmp_path: Path, foveate: Command
) -> None:
    rng, new = np.random.default_rng(7), tmp_path / "new"
    new.mkdir()
    good, bad = draw_vectors(rng, 2), draw_vectors(rng, None)
    bad[1, 1] = np.inf
    write_trident(new / "good.h5", good)
    write_trident(new / "old.h5", good[None], lattice(len(good))[None])
    write_trident(new / "infinite.h5", bad)
    write_trident(new / "short.h5", good[:, :7])
    write_trident(new / "virchow.h5", good, encoder="virchow")
    Image.fromarray(np.full((99, 99, 3), 200, np.uint8)).save(tmp_path / "picture.png")
    out = tmp_path / "out"
    result = foveate("predict", trident.run, new, tmp_path / "picture.png", "--out", out)
    assert result.returncode == 2, result.stderr
    rows = {row["image_id"]: row for row in read_rows(out / "predictions.csv")}
    assert set(rows) == {"good", "old"}
    assert rows["good"]["prob_tumour"] == rows["old"]["prob_tumour"]
    reasons = {row["image_id"]: row["reason"] for row in read_rows(out / "quarantine.csv")}
    assert "patch 1 are no finite numbers" in reasons["infinite"]
    assert "holds vectors of length 7, not 12 as the model reads: make" in reasons["short"]
    assert "holds vectors of encoder 'virchow', not 'uni_v1'" in reasons["virchow"]
    assert "has pixels, but the model reads files of features" in reasons["picture"]


def test_a_method_that_reads_pixels_is_refused(
    trident: Trained, tmp_path: Path, foveate: Command
) -> None:
    words = ("train", trident.cohort.table, "--images", trident.cohort.folder)
    refused = foveate(*words, "--out", tmp_path / "a", "--method", "glimpse")
    assert_refused(refused, "method: 'glimpse' reads pixels", "take --method abmil (or ")
    refused = foveate(*words, "--out", tmp_path / "b", "--encoder", "lite0")
    assert_refused(refused, "encoder: 'lite0' reads pixels, but the table names files of features")
    refused = foveate(*words, "--out", tmp_path / "c", "--view.patch-px", "224")
    assert_refused(refused, "view.patch_px: files of features have the patches that they were made")


def test_a_comparison_names_its_own_option(
    trident: Trained, tmp_path: Path, foveate: Command
) -> None:
    words = ("compare", trident.cohort.table, "--images", trident.cohort.folder)
    refused = foveate(*words, "--out", tmp_path / "a")
    assert_refused(refused, "methods: glimpse, downsampled read pixels", "take --methods abmil,")
    assert not (tmp_path / "a" / "glimpse").exists(), "before the first method is trained"


def test_the_table_is_read_once(
    trident: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    for module in (default_method, plan):
        monkeypatch.setattr(
            module, "read_table", lambda config: read.append(config) or labels.read_table(config)
        )
    options = fv.RunOptions(images=trident.cohort.folder, heatmaps=0, epochs=1)
    fv.train(trident.cohort.table, tmp_path / "run", options)
    assert len(read) == 1


def test_images_do_not_take_the_encoder_of_features(
    picture_table: Path, tmp_path: Path, foveate: Command
) -> None:
    words = ("train", picture_table, "--out", tmp_path / "a", "--method", "abmil")
    refused = foveate(*words, "--encoder", "stored")
    assert_refused(refused, "'stored' is for files of features, these are images with pixels")


def test_a_model_of_pixels_refuses_features(
    picture_run: Path, trident: Trained, tmp_path: Path, foveate: Command
) -> None:
    file = next(trident.cohort.folder.iterdir())
    refused = foveate("predict", picture_run, file, "--out", tmp_path / "out")
    assert_refused(refused, f"{file}: holds features, but the model reads pixels: give images")


@pytest.fixture(scope="module")
def clam(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Train on files of CLAM, whose paths stand in the table, and which state no attributes."""
    folder = tmp_path_factory.mktemp("clam")
    cohort, display = write_cohort(folder, write_clam, 24), Lines()
    lines = cohort.table.read_text().splitlines()
    cells = [line.split(",") for line in lines[1:]]
    rows = ["path,patient_id,label", *(f"h5/{name}.h5,{p},{label}" for p, name, label in cells)]
    cohort.table.write_text("\n".join(rows) + "\n")
    fv.train(cohort.table, folder / "run", on_progress=display, heatmaps=0, train__frozen_epochs=3)
    return Trained(cohort, folder / "run", "\n".join(display.lines))


def test_files_of_clam_train(clam: Trained) -> None:
    assert "warning: the files do not name their encoder" in clam.said
    assert "method: abmil, because" in clam.said
    assert len(read_rows(clam.run / "predictions_oof.csv")) == 6


@pytest.mark.slow
def test_stamp_places_are_micrometres_in_a_run(tmp_path: Path, foveate: Command) -> None:
    """No GeoJSON is written, because nobody knows the level-0 pixels of the slide."""
    rng = np.random.default_rng(3)

    def write(path: Path, vectors: NDArray[np.float16]) -> None:
        corners_um = rng.permutation(20)[: len(vectors), None] * [256.0, 512.0]
        write_stamp(path, vectors, corners_um)

    cohort = write_cohort(tmp_path, write, 16)
    words = ("train", cohort.table, "--images", cohort.folder, "--out", tmp_path / "run")
    result = foveate(*words, "--train.frozen-epochs", "1", "--method", "mil_mean")
    assert result.returncode == 0, result.stderr
    assert "no spacing" not in result.stderr
    assert "counts in micrometres and states no pixel size of the slide" in result.stderr
    heatmaps = {path.suffix for path in (tmp_path / "run" / "heatmaps").iterdir()}
    assert heatmaps == {".png", ".npz", ".json"}


@pytest.mark.slow
def test_check_finds_what_training_would_refuse(
    trident: Trained, tmp_path: Path, foveate: Command
) -> None:
    rng, folder = np.random.default_rng(5), tmp_path / "h5"
    folder.mkdir()
    rows = ["path,label"]
    for i in range(12):
        vectors = draw_vectors(rng, None)
        if i == 3:
            vectors[0, 0] = np.nan
        encoder = "virchow" if i == 5 else "uni_v1"
        write_trident(folder / f"s{i}.h5", vectors, encoder=encoder)
        rows.append(f"h5/s{i}.h5,{'ab'[i % 2]}")
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(rows))
    result = fv.check(table, tmp_path / "check")
    texts = {finding.kind: finding for finding in result.findings}
    assert "blank" not in texts
    unreadable = next(f for f in result.findings if "s3" in f.images)
    assert "no finite numbers" in str(unreadable.images["s3"])
    plan = next(f for f in result.findings if f.kind == "plan")
    assert "1 of 11 files of features hold vectors of encoder 'virchow', not 'uni_v1'" in plan.text
