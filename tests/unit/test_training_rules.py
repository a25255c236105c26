"""Rules of training: modes, schedule, accumulation, stopping, refusals, bad images."""

from __future__ import annotations

import csv
import json
import logging
import math
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

from conftest import SMALL_RUN
from foveate import parts
from foveate.batch import View
from foveate.errors import CheckpointError, TrainingError
from foveate.loading.loader import CaseLoader
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import Model, build_model, read_tensors
from foveate.runs.folder import read_rows
from foveate.runs.schedule import TrainOptions, settle_schedule
from foveate.table import Case, load_splits, make_splits, read_cases
from foveate.tasks.base import AbstractTask
from foveate.tasks.binary import BinaryTask
from foveate.tasks.multiclass import MulticlassTask
from foveate.training.loop import Trainer
from foveate.training.notice import describe_chance_plateau
from foveate.training.state import Progress
from helpers.commands import Completed
from helpers.progress import Recorder

VIEW = View(spacing_um=0.5, patch_px=64, glimpse_spacing_um=16.0)
PLAIN = TrainOptions(epochs=2, batch_size=4, warmup=0.25, augment="none", device="cpu")


def build(method: str = "downsampled", **options: Any) -> Model:
    torch.manual_seed(0)
    size = {"width": 8, "dim": 16}
    settled = {"classes": ["normal", "tumour"]}
    card = ModelCard(method, options, "small", size, "binary", {}, settled, VIEW)
    return build_model(card, pretrained=False)


@pytest.fixture(scope="module")
def cases(tiny_cohort: Path) -> list[Case]:
    """Return eight cases of each class, alternating."""
    table = read_cases(tiny_cohort).cases
    by_label = ([c for c in table if c.label == label][:8] for label in ("normal", "tumour"))
    return [case for pair in zip(*by_label, strict=True) for case in pair]


# -- modes and gradients ---------------------------------------------------------------------------

PROBE = '''
"""A method that notes in which mode each image reaches it."""
import torch
from foveate.methods.downsampled import Downsampled

SEEN = []

class Probe(Downsampled):
    """Downsampled, watched."""
    summary = "a probe"

    def forward(self, batch):
        modes = {m.training for m in self.modules()}
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        SEEN.extend((item.image_id, modes, grad, inference) for item in batch.items)
        return super().forward(batch)
'''


def test_only_training_updates_the_model(
    tiny_cohort: Path,
    tmp_path: Path,
    foveate: Callable[..., Completed],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Validation, threshold and test run in evaluation mode without gradients."""
    monkeypatch.setattr(parts, "_folders", [])
    part = tmp_path / "parts" / "methods" / "probe.py"
    part.parent.mkdir(parents=True)
    part.write_text(PROBE, encoding="utf-8")
    run, folder = tmp_path / "run", tmp_path / "parts"
    words = ("train", tiny_cohort, "--out", run, "--plugins", folder, "--method", "probe")
    result = foveate(*words, *SMALL_RUN, "--epochs", "2")
    assert result.returncode == 0, result.stderr

    calls = sys.modules["foveate_plugins.methods.probe"].SEEN
    fold = load_splits(run / "splits.json").folds[0]
    times = dict.fromkeys(fold.parts(), 0)
    for image_id, modes, grad, inference in calls:
        part_name = next(name for name, ids in fold.parts().items() if image_id in ids)
        times[part_name] += 1
        if part_name == "train":
            assert (modes, grad, inference) == ({True}, True, False)
        else:
            assert (modes, grad, inference) == ({False}, False, True), part_name
    assert times["train"] == 2 * len(fold.train)
    assert times["val"] == 3 * len(fold.val), "after each epoch, and for the threshold"
    assert times["test"] == len(fold.test), "the test part is touched once"


# -- patients --------------------------------------------------------------------------------------


def test_a_patient_on_both_sides_stops_the_run(
    tiny_cohort: Path, tmp_path: Path, foveate: Callable[..., Completed]
) -> None:
    run = tmp_path / "run"
    words = ("train", tiny_cohort, "--out", run, *SMALL_RUN)
    words = (*words, "--method", "downsampled", "--epochs", "1")
    assert foveate(*words).returncode == 0
    path = run / "splits.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    patients, fold = stored["patients"], stored["folds"][0]
    twice = [p for p in patients.values() if list(patients.values()).count(p) > 1]
    moved = next(i for i in fold["train"] if patients[i] in twice)
    fold["train"].remove(moved)
    fold["test"].append(moved)

    path.write_text(json.dumps(stored), encoding="utf-8")
    result = foveate(*words)
    assert result.returncode == 1
    assert f"error: {path}: the split was changed" in result.stderr

    from foveate.table.folds import Fold, split_hash

    folds = [Fold(tuple(fold["train"]), tuple(fold["val"]), tuple(fold["test"]))]
    stored["hash"] = split_hash(folds, patients, stored["seed"])
    path.write_text(json.dumps(stored), encoding="utf-8")
    result = foveate(*words)
    assert result.returncode == 1
    assert f"error: {path}: fold 0: patient '{patients[moved]}' is in" in result.stderr


@pytest.mark.slow
def test_other_patients_in_the_table_stop_the_run(
    tiny_cohort: Path, tmp_path: Path, foveate: Callable[..., Completed]
) -> None:
    run, table = tmp_path / "run", tmp_path / "labels.csv"
    text = tiny_cohort.read_text(encoding="utf-8")
    table.write_text(text, encoding="utf-8")
    images = ("--images", tiny_cohort.parent)
    words = ("train", table, *images, "--out", run, *SMALL_RUN)
    words = (*words, "--method", "downsampled", "--epochs", "1")
    assert foveate(*words).returncode == 0
    table.write_text(text.replace("P001", "P002"), encoding="utf-8")
    result = foveate(*words)
    assert result.returncode == 1
    assert "patients of " in result.stderr
    assert "differ from those the run was begun with ('P001', now 'P002')" in result.stderr


# -- schedule, accumulation, stopping --------------------------------------------------------------


@pytest.mark.slow
def test_every_group_follows_the_schedule(
    cases: list[Case], loader: CaseLoader, tmp_path: Path
) -> None:
    options = replace(PLAIN, epochs=4, lr=1e-3, patience=0, batch_size=2)
    rates: list[list[float]] = []
    trainer: Trainer

    def note(*_: object) -> None:
        rates.append([group["lr"] for group in trainer.optimizer.optimizer.param_groups])

    trainer = Trainer(build(), loader, tmp_path, options, display=Recorder(note))
    trainer.fit(cases[:8], [])
    assert len(rates) == 16
    assert len(rates[0]) == 2, "matrices, and the rest without weight decay"
    learnt = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert sorted(learnt) == sorted(id(p) for p in trainer.model.method.parameters())
    for i, step_rates in enumerate(rates):
        progress = i / 16
        rising = 1e-3 * max(progress / 0.25, 1e-3)
        falling = 1e-3 * max(0.5 * (1 + math.cos(math.pi * (progress - 0.25) / 0.75)), 1e-3)
        assert step_rates == pytest.approx([rising if progress < 0.25 else falling] * 2), (
            f"step {i}"
        )
    peak = [rate[0] for rate in rates]
    assert peak.index(max(peak)) == 4, "warm-up ends after a quarter"
    assert max(peak) == pytest.approx(1e-3)
    assert peak[-1] < 0.02 * max(peak)


def test_validation_progress_is_reported_per_image(
    cases: list[Case], loader: CaseLoader, tmp_path: Path
) -> None:
    display = Recorder()
    options = replace(PLAIN, epochs=2, patience=0, batch_size=4)
    Trainer(build(), loader, tmp_path, options, display=display).fit(cases[:8], cases[8:10])
    shown_rows = [
        (title, note.partition("  ")[0], done, total, re.findall(r"validating (\d+)%", note))
        for title, done, total, note in display.updates
    ]
    assert len(cases[8:10]) == 2
    once = [(1, []), (2, []), (2, ["0"]), (2, ["50"])]
    assert shown_rows == [
        ("training: end to end", f"epoch {epoch}", 2 * (epoch - 1) + step, 4, share)
        for epoch in (1, 2)
        for step, share in once
    ]


def trained(
    cases: list[Case], loader: CaseLoader, folder: Path, **changed: Any
) -> dict[str, torch.Tensor]:
    options = replace(PLAIN, **changed)
    trainer = Trainer(build(dropout=0.0), loader, folder, options)
    trainer.fit(cases[:8], [])
    return read_tensors(trainer.checkpoints.latest)[0]


@pytest.mark.slow
def test_accumulated_batches_equal_one_batch(
    cases: list[Case], loader: CaseLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two accumulated batches of two give the gradients of one batch of four."""
    monkeypatch.setattr("foveate.training.loop.learning_rate", lambda options, _: options.lr)
    undivided = trained(cases, loader, tmp_path / "whole", batch_size=4)
    halves = trained(cases, loader, tmp_path / "halves", batch_size=2, accumulate=2)
    unlike = trained(cases, loader, tmp_path / "unlike", batch_size=2)
    far = 0.0
    for name, weights in undivided.items():
        if name.startswith("method."):
            torch.testing.assert_close(halves[name], weights, atol=1e-5, rtol=1e-5)
            far = max(far, float((unlike[name] - weights).abs().max()))
    assert far > 1e-4, "twice as many updates end elsewhere, so the comparison can fail"


@pytest.mark.slow
def test_accumulated_batches_follow_the_same_schedule(
    cases: list[Case], loader: CaseLoader, tmp_path: Path
) -> None:
    undivided = trained(cases, loader, tmp_path / "whole", batch_size=4)
    halves = trained(cases, loader, tmp_path / "halves", batch_size=2, accumulate=2)
    for name, weights in undivided.items():
        if name.startswith("method."):
            torch.testing.assert_close(halves[name], weights, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_training_stops_early_and_keeps_the_best(
    cases: list[Case], loader: CaseLoader, tmp_path: Path
) -> None:
    """The learning rate is so large that later epochs are not always better."""
    options = replace(PLAIN, epochs=30, lr=0.3, warmup=0.0, patience=2, min_epochs=1)
    trainer = Trainer(build(), loader, tmp_path, options)
    progress = trainer.fit(cases[:8], cases[8:])
    assert progress.epoch < 30
    assert progress.epoch == max(progress.best_epoch + 2, 1)
    scores = [row["val_score"] for row in progress.history]
    assert scores[progress.best_epoch - 1] == min(scores) == progress.best_score
    assert min(scores) not in scores[progress.best_epoch :], "later epochs win ties"
    best, _ = read_tensors(trainer.checkpoints.best)
    latest, _ = read_tensors(trainer.checkpoints.latest)
    weights = trainer.model.method.state_dict()
    assert all(torch.equal(weights[name], best[name]) for name in best)
    assert any(not torch.equal(weights[name], latest[f"method.{name}"]) for name in best)


@pytest.mark.parametrize(
    ("epoch", "best", "changed", "ends"),
    [
        (5, 4, {}, False),
        (14, 4, {}, True),
        (13, 4, {}, False),
        (30, 30, {}, True),
        (4, 1, {"patience": 2}, False),
        (5, 1, {"patience": 2}, True),
        (29, 1, {"patience": 0}, False),
    ],
)
def test_early_stopping_follows_patience(
    epoch: int, best: int, changed: dict[str, int], ends: bool
) -> None:
    progress = Progress(epoch=epoch, best_epoch=best)
    options = TrainOptions(**changed)
    schedule = settle_schedule(options, 20, pretrained=False)
    assert progress.finished(options, schedule, math.nan) is ends


def test_averaged_weights_are_never_stopped_early() -> None:
    """Averaged weights improve until the end, where the learning rate is nearly 0."""
    options = TrainOptions(epochs=30, average=0.2)
    schedule = settle_schedule(options, 20, pretrained=False)
    assert not Progress(epoch=29, best_epoch=1).finished(options, schedule, math.nan)
    assert Progress(epoch=30, best_epoch=1).finished(options, schedule, math.nan)


@pytest.mark.parametrize(
    ("losses", "best", "ends"),
    [
        ([0.70] * 9, 1, False),
        ([0.70] * 6 + [0.60] * 2, 1, False),
        ([0.70] * 6 + [0.60] * 3, 1, True),
        ([0.60] * 6 + [0.70], 1, False),
        ([0.70] * 3 + [0.60] * 3, 5, False),
        ([0.70] * 30, 1, True),
    ],
)
def test_epochs_at_chance_do_not_use_up_patience(
    losses: list[float], best: int, ends: bool
) -> None:
    rows = [{"train_loss": loss} for loss in losses]
    progress = Progress(epoch=len(losses), best_epoch=best, history=rows)
    options = TrainOptions(epochs=30, patience=3, min_epochs=1)
    schedule = settle_schedule(options, 20, pretrained=False)
    assert progress.finished(options, schedule, 0.693) is ends


# -- at chance -------------------------------------------------------------------------------------


def entropy(*counts: float) -> float:
    shares = [n / sum(counts) for n in counts if n]
    return -sum(p * math.log(p) for p in shares)


def labels(*counts: int) -> torch.Tensor:
    return torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])


def binary_task(smoothing: float = 0.0) -> AbstractTask:
    return BinaryTask(classes=("a", "b"), smoothing=smoothing)


def softmax_task(k: int, smoothing: float = 0.0) -> AbstractTask:
    return MulticlassTask(classes=[str(i) for i in range(k)], smoothing=smoothing)


@pytest.mark.parametrize("counts", [(50, 50), (90, 10), (10, 90), (397, 3), (1, 1)])
def test_chance_is_the_entropy_of_two_classes(counts: tuple[int, int]) -> None:
    assert binary_task().chance_loss(labels(*counts)) == pytest.approx(entropy(*counts), abs=1e-5)
    n, share = sum(counts), counts[1] / sum(counts)
    soft = 0.9 * share + 0.05
    chance = binary_task(smoothing=0.1).chance_loss(labels(*counts))
    assert chance == pytest.approx(entropy(n * (1 - soft), n * soft), abs=1e-5)


@pytest.mark.parametrize("counts", [(20, 20, 20), (50, 30, 20), (970, 20, 7, 3), (60, 40, 0)])
def test_chance_is_the_entropy_of_several_classes(counts: tuple[int, ...]) -> None:
    task = softmax_task(len(counts))
    assert task.chance_loss(labels(*counts)) == pytest.approx(entropy(*counts), abs=1e-4)


def test_there_is_no_chance_loss_for_one_class() -> None:
    assert binary_task().chance_loss(labels(0, 30)) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_no_constant_prediction_beats_chance(smoothing: float) -> None:
    task, target = softmax_task(4, smoothing), labels(31, 5, 13, 1)
    chance = task.chance_loss(target)
    torch.manual_seed(0)
    for _ in range(50):
        constant = 2 * torch.randn(1, 4)
        assert float(task.loss(constant.expand(len(target), -1), target)) >= chance - 1e-6


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([0.7] * 30, [4, 14, 24]),
        ([0.7] * 3, []),
        ([0.72, 0.68, 0.7, 0.68], [4]),
        ([0.73, 0.7, 0.7, 0.7, 0.7, 0.7], [5]),
        ([0.7, 0.7, 0.7, 0.6, 0.7, 0.7, 0.7], []),
        ([0.7] * 6 + [0.5] + [0.7] * 14, [4, 11, 21]),
        ([0.9, 0.8, 0.6, 0.5], []),
    ],
)
def test_a_plateau_at_chance_is_reported(losses: list[float], expected: list[int]) -> None:
    """The notice comes at epoch 4 and every tenth epoch after; within 3 % counts as chance."""
    progress, epochs = Progress(), []
    for epoch, loss in enumerate(losses, 1):
        progress.history.append({"epoch": epoch, "train_loss": loss})
        if progress.rests_at(0.7, binary_task().learnt):
            epochs.append(epoch)
    assert epochs == expected


@pytest.mark.parametrize(("auroc", "expected"), [(0.6, True), (0.7, False)])
def test_no_plateau_is_reported_when_validation_improves(auroc: float, expected: bool) -> None:
    progress = Progress(history=[{"train_loss": 0.7, "val_auroc": auroc}] * 4)
    assert progress.rests_at(0.7, binary_task().learnt) is expected


@pytest.mark.parametrize("chance", [math.nan, 0.0])
def test_no_plateau_is_reported_without_a_chance_loss(chance: float) -> None:
    progress = Progress(history=[{"train_loss": 1e-6}] * 4)
    assert not progress.rests_at(chance, binary_task().learnt)


def collect_notices(
    model: Model, cases: list[Case], loader: CaseLoader, folder: Path, log: Any, **changed: Any
) -> dict[int, str]:
    """Train and return the notices by the epochs that they name."""
    options = replace(PLAIN, patience=0, warmup=0.0, **changed)
    with log.at_level(logging.WARNING, logger="foveate"):
        progress = Trainer(model, loader, folder, options).fit(cases, [])
    messages = [r.getMessage() for r in log.records if "rests at" in r.getMessage()]
    chance = progress.history[-1]["chance_loss"]
    assert chance == pytest.approx(math.log(2), abs=1e-4), "as many of each class"
    return {int(text.split(" after ")[1].split(" epochs")[0]): text for text in messages}


@pytest.mark.slow
def test_a_run_at_chance_is_reported_at_epochs_4_and_14(
    cases: list[Case], loader: CaseLoader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build()
    nn.init.zeros_(model.method.head[-1].weight)
    nn.init.zeros_(model.method.head[-1].bias)
    notices = collect_notices(model, cases[:4], loader, tmp_path, caplog, epochs=15, lr=1e-9)
    assert list(notices) == [4, 14]
    assert "the training loss rests at 0.693 after 4 epochs" in notices[4]
    assert "--train.batch-size" in notices[4]
    assert "--method." not in notices[4], "downsampled has none of the options that help"


@pytest.mark.slow
def test_a_run_that_learns_is_not_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The pictures have two easily separated colours, four of each."""
    easy, rng = [], np.random.default_rng(0)
    for k, label in enumerate(["normal", "tumour"] * 4):
        colour = (200, 80, 60) if label == "normal" else (60, 80, 200)
        pixels = rng.normal(colour, 20, (64, 64, 3)).clip(0, 255).astype(np.uint8)
        path = tmp_path / f"{k}.png"
        Image.fromarray(pixels).save(path)
        easy.append(Case(str(k), str(k), path, label))
    loader = CaseLoader(View(1.0, 16, 1.0, unit="px"))
    try:
        notices = collect_notices(
            build(), easy, loader, tmp_path / "run", caplog, epochs=15, lr=3e-3
        )
    finally:
        loader.close()
    losses = [float(row["train_loss"]) for row in read_rows(tmp_path / "run" / "metrics.csv")]
    assert losses[-1] < 0.5 < losses[0]
    assert notices == {}


def test_the_notice_names_options_that_the_method_has() -> None:
    """The notice leaves out options that are set already."""
    row, off = {"train_loss": 0.69, "epoch": 4.0}, {"instance": 0.0, "jitter": False}
    for method, helps, lacks in (
        ("glimpse", ("instance", "jitter", "patches"), ("kept",)),
        ("ips", ("instance", "jitter", "kept"), ("patches",)),
        ("abmil", ("instance", "jitter"), ("kept", "patches")),
    ):
        notice = describe_chance_plateau(build(method, **off), row, batch=2)
        assert all(f"--method.{name}" in notice for name in helps), notice
        assert not any(f"--method.{name}" in notice for name in lacks), notice
        notice = describe_chance_plateau(build(method, instance=1.0, jitter=True), row, batch=1)
        assert "--method.instance" not in notice
        assert "--method.jitter" not in notice


# -- refusals --------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_method_is_refused(
    cases: list[Case], loader: CaseLoader, tmp_path: Path
) -> None:
    options = replace(PLAIN, epochs=1)
    Trainer(build(), loader, tmp_path, options).fit(cases[:4], [])
    other = Trainer(build("abmil"), loader, tmp_path, options)
    with pytest.raises(CheckpointError, match=r"latest\.safetensors does not fit this run"):
        other.fit(cases[:4], [])


def test_a_damaged_checkpoint_is_refused(
    cases: list[Case], loader: CaseLoader, tmp_path: Path
) -> None:
    options = replace(PLAIN, epochs=1)
    trainer = Trainer(build(), loader, tmp_path, options)
    trainer.fit(cases[:4], [])
    stored = trainer.checkpoints.latest.read_bytes()
    trainer.checkpoints.latest.write_bytes(stored[: len(stored) // 2])
    with pytest.raises(CheckpointError, match=r"latest\.safetensors is damaged"):
        Trainer(build(), loader, tmp_path, options).fit(cases[:4], [])


class Overflowing(nn.Module):
    """A last layer whose outputs are not finite."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(1, keepdim=True) * math.nan


def test_a_loss_that_is_not_finite_stops_training(
    cases: list[Case], loader: CaseLoader, tmp_path: Path
) -> None:
    model = build()
    model.method.head = Overflowing()
    with pytest.raises(TrainingError, match=r"the loss became nan in epoch 1: lower --train\.lr"):
        Trainer(model, loader, tmp_path, PLAIN).fit(cases[:4], [])


@pytest.mark.parametrize("method", ["downsampled", "glimpse"])
def test_diverging_weights_stop_training(
    method: str, cases: list[Case], loader: CaseLoader, tmp_path: Path
) -> None:
    options = replace(PLAIN, lr=1e30, warmup=0.0, epochs=3)
    with pytest.raises(TrainingError, match=r"lower --train\.lr"):
        Trainer(build(method), loader, tmp_path, options).fit(cases[:8], [])


# -- images that cannot be read --------------------------------------------------------------------


def damage_slide(slide: Path, *, levels: slice = slice(None)) -> None:
    """Overwrite stored tiles with noise; the header stays, so that the slide still opens."""
    with tifffile.TiffFile(slide) as tif:
        places = [
            (offset, count)
            for page in tif.pages[levels]
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
        ]
    with slide.open("r+b") as file:
        for offset, count in places:
            file.seek(offset)
            file.write(b"\x5a" * count)


@pytest.fixture
def torn_cohort(tiny_cohort: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Copy the cohort with a text file named ``.tif`` and a damaged slide in each part.

    Returns:
        the table, and the ids of the bad images with the stage at which they fail.
    """
    folder = tmp_path / "cohort"
    shutil.copytree(tiny_cohort.parent, folder)
    table = folder / tiny_cohort.name
    with table.open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow(["slides/text.tif", "P900", "normal", ""])
    (folder / "slides" / "text.tif").write_text("this is no slide\n", encoding="utf-8")
    usable = [case for case in read_cases(table).cases if case.image_id != "text"]
    fold = make_splits(usable).folds[0]
    bad = {"text": "open"}
    for part in (fold.train, fold.val, fold.test):
        damage_slide(folder / "slides" / f"{part[0]}.tif")
        bad[part[0]] = "fold 0"
    return table, bad


@pytest.mark.slow
@pytest.mark.parametrize("method", ["downsampled", "glimpse"])
def test_unreadable_images_are_set_aside(
    method: str,
    torn_cohort: tuple[Path, dict[str, str]],
    tmp_path: Path,
    foveate: Callable[..., Completed],
) -> None:
    (table, bad), run = torn_cohort, tmp_path / "run"
    words = ("train", table, "--out", run, *SMALL_RUN, "--method", method, "--epochs", "2")
    result = foveate(*words)
    assert result.returncode == 2, result.stderr
    rows = {row["image_id"]: row for row in read_rows(run / "quarantine.csv")}
    assert {image_id: row["stage"] for image_id, row in rows.items()} == bad
    for image_id, row in rows.items():
        assert row["path"].endswith(f"{image_id}.tif")
        assert image_id in row["reason"]
        assert f"set aside {image_id}" in result.stderr
    assert "set aside: 4 images" in result.stdout
    predicted = {row["image_id"] for row in read_rows(run / "predictions_oof.csv")}
    assert predicted == set(load_splits(run / "splits.json").folds[0].test) - set(bad)
    assert foveate(*words).returncode == 2, "finished with images set aside, and still so"


def test_a_slide_with_an_unreadable_level_is_set_aside(
    tiny_cohort: Path, tmp_path: Path, foveate: Callable[..., Completed]
) -> None:
    """The glimpse can be read, but the crops cannot."""
    folder, run = tmp_path / "cohort", tmp_path / "run"
    shutil.copytree(tiny_cohort.parent, folder)
    table = folder / tiny_cohort.name
    image_id = make_splits(read_cases(table).cases).folds[0].train[0]
    damage_slide(folder / "slides" / f"{image_id}.tif", levels=slice(1))
    words = ("train", table, "--out", run, *SMALL_RUN, "--method", "glimpse", "--epochs", "1")
    result = foveate(*words, "--method.patches", "4")
    assert result.returncode == 2, result.stderr
    assert [row["image_id"] for row in read_rows(run / "quarantine.csv")] == [image_id]
