"""Predictions use the models of all folds together, or the one refitted on all images."""

from __future__ import annotations

import csv
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from conftest import SMALL_RUN
from foveate.errors import CheckpointError
from foveate.images.evidence import Evidence, mean_evidence
from foveate.runs.checkpoint import load_model, save_model
from foveate.runs.folder import read_json, read_rows
from foveate.runs.models import Ensemble, find_models
from helpers.commands import Child, Completed, read_refusal, run_child

Command = Callable[..., Completed]
THREE = (
    *SMALL_RUN,
    *("--method", "glimpse", "--method.patches", "4", "--method.eval-patches", "6"),
    *("--folds", "3", "--epochs", "2"),
    *("--train.batch-size", "2", "--train.checkpoint-seconds", "0.05"),
)
N = 3


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tiny_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a run of three folds and return its folder."""
    run = tmp_path_factory.mktemp("ensemble") / "run"
    result = run_child("train", tiny_cohort, "--out", run, *THREE)
    assert result.returncode == 0, result.stderr
    return run


@pytest.fixture(scope="module")
def slides(tiny_cohort: Path) -> list[Path]:
    """Return the paths of three slides of the cohort."""
    with tiny_cohort.open(encoding="utf-8", newline="") as file:
        return [tiny_cohort.parent / row["file"] for row in csv.DictReader(file)][:3]


def probabilities(out: Path) -> dict[str, dict[str, float]]:
    """Read the probabilities by image and class in full precision."""
    return {e["image_id"]: e["probs"] for e in read_json(out / "heatmaps" / "index.json")}


# -- folds -----------------------------------------------------------------------------------------


def test_the_prediction_is_the_mean_of_the_folds(
    trained: Path, slides: list[Path], tmp_path: Path, foveate: Command
) -> None:
    out = tmp_path / "all"
    result = foveate("predict", trained, *slides, "--out", out)
    assert result.returncode == 0, result.stderr
    assert "3 models answer together, one of each fold" in result.stderr
    for k in range(N):
        result = foveate("predict", trained / f"fold_{k}", *slides, "--out", tmp_path / f"one_{k}")
        assert result.returncode == 0, result.stderr
        assert f"one model answers: {trained / f'fold_{k}' / 'model'}" in result.stderr
    together = probabilities(out)
    alone = [probabilities(tmp_path / f"one_{k}") for k in range(N)]
    assert len({p["tumour"] for p in (values[slides[0].stem] for values in alone)}) == N
    cards = [load_model(trained / f"fold_{k}" / "model").card for k in range(N)]
    threshold = np.mean([card.provenance["threshold"] for card in cards])
    rows = {row["image_id"]: row for row in read_rows(out / "predictions.csv")}
    assert rows.keys() == together.keys() == {slide.stem for slide in slides}
    for image_id, row in rows.items():
        assert row["models"] == "3"
        assert float(row["threshold"]) == pytest.approx(threshold, rel=1e-5)
        for name in ("normal", "tumour"):
            values = [one[image_id][name] for one in alone]
            assert together[image_id][name] == pytest.approx(np.mean(values), abs=1e-6)
            assert float(row[f"prob_{name}"]) == pytest.approx(np.mean(values), abs=1e-6)
            assert float(row[f"prob_sd_{name}"]) == pytest.approx(np.std(values, ddof=1), abs=1e-6)
        called = "tumour" if together[image_id]["tumour"] >= threshold else "normal"
        assert row["predicted"] == called
    for row in read_rows(tmp_path / "one_0" / "predictions.csv"):
        assert row["models"] == "1"
        assert not any(key.startswith("prob_sd_") for key in row), "one model has no spread"

    record = read_json(out / "answer.json")
    assert record["models"] == read_json(out / "cost.json")["models"] == 3
    assert record["how"] == "mean of the models' probabilities"
    assert [member["fold"] for member in record["members"]] == [0, 1, 2]
    assert record["threshold"] == pytest.approx(threshold)


def test_evidence_and_heatmaps_use_all_models(
    trained: Path, slides: list[Path], tmp_path: Path, foveate: Command
) -> None:
    out = tmp_path / "all"
    assert foveate("predict", trained, slides[0], "--out", out).returncode == 0
    together = Evidence.load(out / "heatmaps" / f"{slides[0].stem}.npz")
    assert together.weight.sum() == pytest.approx(1)
    boxes = {tuple(np.round(box, 3)) for box in np.hstack([together.origin_um, together.size_um])}
    assert len(boxes) == len(together), "a box that two models looked at is one box"
    weight = dict.fromkeys(boxes, 0.0)
    for k in range(N):
        one = tmp_path / f"one_{k}"
        assert foveate("predict", trained / f"fold_{k}", slides[0], "--out", one).returncode == 0
        part = Evidence.load(one / "heatmaps" / f"{slides[0].stem}.npz")
        for box, w in zip(np.hstack([part.origin_um, part.size_um]), part.weight, strict=True):
            weight[tuple(np.round(box, 3))] += w / N
    for box, w in zip(
        np.hstack([together.origin_um, together.size_um]), together.weight, strict=True
    ):
        assert w == pytest.approx(weight[tuple(np.round(box, 3))])

    with Image.open(out / "heatmaps" / f"{slides[0].stem}.png") as picture:
        picture.load()
        assert min(picture.size) > 200
    drawn = read_json(out / "heatmaps" / f"{slides[0].stem}.geojson")
    shares = [feature["properties"]["measurements"]["weight"] for feature in drawn["features"]]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)


def test_evidence_is_averaged_over_models() -> None:
    """One model has two boxes; the other only the first, shifted by a rounding error."""
    size = np.array([[8.0, 8.0], [8.0, 8.0]])
    both = Evidence(np.array([[16.0, 0.0], [4.0, 4.0]]), size, np.array([0.25, 0.75]))
    first = Evidence(np.array([[16.0 + 1e-9, 0.0]]), size[:1], np.array([1.0]))
    mean = mean_evidence([both, first])
    np.testing.assert_array_equal(mean.origin_um, both.origin_um)
    np.testing.assert_allclose(mean.weight, [0.625, 0.375])
    assert mean.peak_um().origin == (16.0, 0.0)
    assert mean_evidence([both]) is both
    none = Evidence(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0))
    assert len(mean_evidence([none, none])) == 0


def test_each_test_fold_uses_its_own_model_only(trained: Path) -> None:
    for row in read_rows(trained / "predictions_oof.csv"):
        assert row["models"] == "1"
        assert not any(key.startswith("prob_sd_") for key in row)
        provenance = load_model(trained / f"fold_{row['fold']}" / "model").card.provenance
        assert float(row["threshold"]) == pytest.approx(provenance["threshold"], rel=1e-5)
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "New images are answered by the models of all 3 folds together" in page


@pytest.mark.slow
def test_evaluation_on_training_images_is_reported(
    trained: Path, tiny_cohort: Path, tmp_path: Path, foveate: Command
) -> None:
    result = foveate("evaluate", trained, tiny_cohort, "--out", tmp_path / "all", "--audit-layout")
    assert result.returncode == 0, result.stderr
    assert "warning: 24 of 24 images trained the models that answer" in result.stderr
    assert "24 of which training saw" in result.stdout
    metrics = read_json(tmp_path / "all" / "metrics.json")
    assert metrics["n_seen_in_training"] == 24
    auroc = metrics["layout"]["scores"]["val_auroc"]
    assert auroc == pytest.approx(metrics["metrics"]["auroc"]["value"]), "the audit is of the mean"

    test = read_json(trained / "splits.json")["folds"][1]["test"]
    with tiny_cohort.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if Path(row["file"]).stem in test]
    unseen = tmp_path / "unseen.csv"
    with unseen.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "file": tiny_cohort.parent / row["file"]} for row in rows)
    result = foveate("evaluate", trained / "fold_1", unseen, "--out", tmp_path / "one")
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr
    assert f"{len(test)} images of" in result.stdout
    assert "that training never saw" in result.stdout
    recomputed = {
        row["image_id"]: row["prob_tumour"] for row in read_rows(tmp_path / "one/predictions.csv")
    }
    fold_rows = read_rows(trained / "fold_1" / "predictions.csv")
    assert recomputed == {row["image_id"]: row["prob_tumour"] for row in fold_rows}


# -- what is refused -------------------------------------------------------------------------------


def test_a_missing_fold_is_named(
    trained: Path, slides: list[Path], tmp_path: Path, foveate: Command
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    shutil.rmtree(run / "fold_1" / "model")
    message = read_refusal(foveate("predict", run, slides[0], "--out", tmp_path / "out"))
    assert "the model of fold_1 is missing; repeat the `foveate train` command" in message
    assert str(run / "fold_0") in message
    assert not (tmp_path / "out").exists()
    assert "FAIL  models" in foveate("doctor", run).stdout
    one = foveate("predict", run / "fold_2", slides[0], "--out", tmp_path / "out")
    assert one.returncode == 0, one.stderr
    result = foveate("doctor", trained)
    assert "ok    models             3 models answer together" in result.stdout


def test_models_that_do_not_agree_are_refused(trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    folder = run / "fold_1" / "model"
    model = load_model(folder)
    other = replace(model.card.view, patch_px=96)
    changes = {
        "classes": replace(model.card, settled={"classes": ["normal", "cancer"]}, task_options={}),
        "view": replace(model.card, view=other),
        "split": replace(model.card, provenance=model.card.provenance | {"split_hash": "ab"}),
    }
    for key, card in changes.items():
        save_model(folder, card, model.method.state_dict())
        with pytest.raises(CheckpointError, match=f"its {key} is .*, not ") as refused:
            find_models(run)
        assert f"{folder} cannot answer together with {run / 'fold_0' / 'model'}" in str(
            refused.value
        )
    with pytest.raises(CheckpointError, match="at least one model"):
        Ensemble(())


# -- refit -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_refit_can_be_added_later_and_predicts_alone(
    trained: Path, tiny_cohort: Path, slides: list[Path], tmp_path: Path, foveate: Command
) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(trained, run)
    folds = [(run / f"fold_{k}/model/model.safetensors").read_bytes() for k in range(N)]
    scores = read_json(run / "metrics.json")
    result = foveate("train", tiny_cohort, "--out", run, *THREE, "--refit")
    assert result.returncode == 0, result.stderr
    assert [(run / f"fold_{k}/model/model.safetensors").read_bytes() for k in range(N)] == folds
    assert read_json(run / "metrics.json") == scores, "the folds' scores stay"
    cards = [load_model(run / f"fold_{k}" / "model").card.provenance for k in range(N)]
    about = load_model(run / "refit" / "model").card.provenance
    assert about["n_train"] == 24
    assert about["threshold"] == pytest.approx(np.mean([card["threshold"] for card in cards]))
    epochs = read_rows(run / "refit" / "metrics.csv")
    assert len(epochs) == max(1, round(float(np.median([c["best_epoch"] for c in cards]))))
    assert not any(row.get("val_loss") for row in epochs)

    result = foveate("predict", run, slides[0], "--out", out)
    assert result.returncode == 0, result.stderr
    assert "one model answers, refitted on all 24 images of the run" in result.stderr
    assert read_json(out / "answer.json")["refit"] is True
    (row,) = read_rows(out / "predictions.csv")
    assert row["models"] == "1"
    direct = foveate("predict", run / "refit", slides[0], "--out", tmp_path / "direct")
    assert direct.returncode == 0, direct.stderr
    assert probabilities(out) == probabilities(tmp_path / "direct")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "one model, refitted on all 24 images" in page

    weights = load_file(run / "refit" / "model" / "model.safetensors")
    shutil.rmtree(run / "refit")
    message = read_refusal(foveate("predict", run, slides[0], "--out", tmp_path / "again"))
    assert "the model of refit is missing; repeat the `foveate train` command" in message
    kill_during_refit(run)
    words = ("train", "--config", run / "config.yaml", "--out", run)
    assert foveate(*words).returncode == 0, "goes on from its checkpoint"
    for name, tensor in load_file(run / "refit" / "model" / "model.safetensors").items():
        assert tensor.equal(weights[name])
    assert not list(run.rglob("*.part"))
    written = (run / "refit" / "model" / "model.json").stat().st_mtime_ns
    assert foveate(*words).returncode == 0
    assert (run / "refit" / "model" / "model.json").stat().st_mtime_ns == written, "done is done"
    message = read_refusal(foveate("train", tiny_cohort, "--out", run, *THREE))
    assert "refit was True and is False now" in message


def kill_during_refit(run: Path) -> None:
    """Resume a run and kill it once its refit has written the first checkpoint."""
    child = Child("train", "--config", run / "config.yaml", "--out", run)
    until = time.monotonic() + 120
    while not (run / "refit" / "checkpoints" / "latest.safetensors").is_file():
        assert child.poll() is None, "it ended before"
        assert time.monotonic() < until
        time.sleep(0.005)
    child.kill()
    assert not (run / "refit" / "model" / "model.json").is_file()
