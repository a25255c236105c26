"""What training promises: modes, schedule, accumulation, stopping, refusals, images set aside."""

from __future__ import annotations

import csv
import json
import logging
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn

from conftest import SMALL_RUN, Ended
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
from foveate.training.state import Progress, Status

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
    """Eight of each class, in turn."""
    table = read_cases(tiny_cohort).cases
    by_label = ([c for c in table if c.label == label][:8] for label in ("normal", "tumour"))
    return [case for pair in zip(*by_label, strict=True) for case in pair]


@pytest.fixture(scope="module")
def loader() -> Iterator[CaseLoader]:
    loader = CaseLoader(VIEW)
    yield loader
    loader.close()


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


def test_only_training_trains(
    tiny_cohort: Path,
    tmp_path: Path,
    foveate: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Validation, threshold and test run in evaluation mode, without gradients; steps do not."""
    monkeypatch.setattr(parts, "_folders", [])
    part = tmp_path / "parts" / "methods" / "probe.py"
    part.parent.mkdir(parents=True)
    part.write_text(PROBE, encoding="utf-8")
    run, folder = tmp_path / "run", tmp_path / "parts"
    words = ("train", tiny_cohort, "--out", run, "--plugins", folder, "--method", "probe")
    ended = foveate(*words, *SMALL_RUN, "--epochs", "2")
    assert ended.returncode == 0, ended.stderr

    seen = sys.modules["foveate_plugins.methods.probe"].SEEN
    fold = load_splits(run / "splits.json").folds[0]
    times = dict.fromkeys(fold.parts(), 0)
    for image_id, modes, grad, inference in seen:
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
    tiny_cohort: Path, tmp_path: Path, foveate: Callable[..., Ended]
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
    ended = foveate(*words)
    assert ended.returncode == 1
    assert f"error: {path}: the split was changed" in ended.stderr

    from foveate.table.folds import Fold, split_hash

    folds = [Fold(tuple(fold["train"]), tuple(fold["val"]), tuple(fold["test"]))]
    stored["hash"] = split_hash(folds, patients, stored["seed"])
    path.write_text(json.dumps(stored), encoding="utf-8")
    ended = foveate(*words)
    assert ended.returncode == 1
    assert f"error: {path}: fold 0: patient '{patients[moved]}' is in" in ended.stderr


def test_other_patients_in_the_table_stop_the_run(
    tiny_cohort: Path, tmp_path: Path, foveate: Callable[..., Ended]
) -> None:
    run, table = tmp_path / "run", tmp_path / "labels.csv"
    text = tiny_cohort.read_text(encoding="utf-8")
    table.write_text(text, encoding="utf-8")
    images = ("--images", tiny_cohort.parent)
    words = ("train", table, *images, "--out", run, *SMALL_RUN)
    words = (*words, "--method", "downsampled", "--epochs", "1")
    assert foveate(*words).returncode == 0
    table.write_text(text.replace("P001", "P002"), encoding="utf-8")
    ended = foveate(*words)
    assert ended.returncode == 1
    assert "patients of " in ended.stderr
    assert "differ from those the run was begun with ('P001', now 'P002')" in ended.stderr


# -- schedule, accumulation, stopping --------------------------------------------------------------


def test_every_group_follows_the_schedule(
    cases: list[Case], loader: CaseLoader, tmp_path: Path
) -> None:
    options = replace(PLAIN, epochs=4, lr=1e-3, patience=0, batch_size=2)
    rates: list[list[float]] = []
    trainer: Trainer

    def note(*_: object) -> None:
        rates.append([group["lr"] for group in trainer.optimizer.optimizer.param_groups])

    trainer = Trainer(build(), loader, tmp_path, options, on_progress=note)
    trainer.fit(cases[:8], [])
    assert len(rates) == 16
    assert len(rates[0]) == 2, "matrices, and the rest without weight decay"
    learnt = [id(p) for group in trainer.optimizer.param_groups for p in group["params"]]
    assert sorted(learnt) == sorted(id(p) for p in trainer.model.method.parameters())
    for i, found in enumerate(rates):
        done = i / 16
        rising = 1e-3 * max(done / 0.25, 1e-3)
        falling = 1e-3 * max(0.5 * (1 + math.cos(math.pi * (done - 0.25) / 0.75)), 1e-3)
        assert found == pytest.approx([rising if done < 0.25 else falling] * 2), f"step {i}"
    peak = [rate[0] for rate in rates]
    assert peak.index(max(peak)) == 4, "warm-up ends after a quarter"
    assert max(peak) == pytest.approx(1e-3)
    assert peak[-1] < 0.02 * max(peak)


def test_validation_is_shown_image_by_image(
    cases: list[Case], loader: CaseLoader, tmp_path: Path
) -> None:
    said: list[tuple[str, int, float, float, float | None]] = []

    def note(at: Status) -> None:
        said.append((at.stage, at.epoch, at.done, at.total, at.running.get("validated")))

    options = replace(PLAIN, epochs=2, patience=0, batch_size=4)
    Trainer(build(), loader, tmp_path, options, on_progress=note).fit(cases[:8], cases[8:10])
    assert len(cases[8:10]) == 2
    once = [(1, None), (2, None), (2, 0.0), (2, 0.5)]
    assert said == [
        ("end to end", epoch, 2 * (epoch - 1) + step, 4, share)
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


def test_two_halves_are_one_whole(
    cases: list[Case], loader: CaseLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of two batches of two are those of one batch of four."""
    monkeypatch.setattr("foveate.training.loop.learning_rate", lambda options, _: options.lr)
    whole = trained(cases, loader, tmp_path / "whole", batch_size=4)
    halves = trained(cases, loader, tmp_path / "halves", batch_size=2, accumulate=2)
    unlike = trained(cases, loader, tmp_path / "unlike", batch_size=2)
    far = 0.0
    for name, weights in whole.items():
        if name.startswith("method."):
            torch.testing.assert_close(halves[name], weights, atol=1e-5, rtol=1e-5)
            far = max(far, float((unlike[name] - weights).abs().max()))
    assert far > 1e-4, "twice as many updates end elsewhere, so the comparison can fail"


def test_two_halves_are_one_whole_on_the_schedule(
    cases: list[Case], loader: CaseLoader, tmp_path: Path
) -> None:
    whole = trained(cases, loader, tmp_path / "whole", batch_size=4)
    halves = trained(cases, loader, tmp_path / "halves", batch_size=2, accumulate=2)
    for name, weights in whole.items():
        if name.startswith("method."):
            torch.testing.assert_close(halves[name], weights, atol=1e-5, rtol=1e-5)


def test_training_stops_early_and_keeps_the_best(
    cases: list[Case], loader: CaseLoader, tmp_path: Path
) -> None:
    """A rate that throws the weights about, so that a later epoch is not always better."""
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
def test_when_training_ends(epoch: int, best: int, changed: dict[str, int], ends: bool) -> None:
    progress = Progress(epoch=epoch, best_epoch=best)
    options = TrainOptions(**changed)
    schedule = settle_schedule(options, 20, pretrained=False)
    assert progress.finished(options, schedule, math.nan) is ends


def test_averaged_weights_are_never_stopped_early() -> None:
    """They improve to the end of the schedule, where the learning rate is nearly 0."""
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
def test_epochs_at_chance_do_not_wear_out_patience(
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


def binary(smoothing: float = 0.0) -> AbstractTask:
    return BinaryTask(classes=("a", "b"), smoothing=smoothing)


def several(k: int, smoothing: float = 0.0) -> AbstractTask:
    return MulticlassTask(classes=[str(i) for i in range(k)], smoothing=smoothing)


@pytest.mark.parametrize("counts", [(50, 50), (90, 10), (10, 90), (397, 3), (1, 1)])
def test_chance_is_the_entropy_of_two_classes(counts: tuple[int, int]) -> None:
    assert binary().chance_loss(labels(*counts)) == pytest.approx(entropy(*counts), abs=1e-5)
    n, share = sum(counts), counts[1] / sum(counts)
    soft = 0.9 * share + 0.05
    told = binary(smoothing=0.1).chance_loss(labels(*counts))
    assert told == pytest.approx(entropy(n * (1 - soft), n * soft), abs=1e-5)


@pytest.mark.parametrize("counts", [(20, 20, 20), (50, 30, 20), (970, 20, 7, 3), (60, 40, 0)])
def test_chance_is_the_entropy_of_several_classes(counts: tuple[int, ...]) -> None:
    task = several(len(counts))
    assert task.chance_loss(labels(*counts)) == pytest.approx(entropy(*counts), abs=1e-4)


def test_chance_is_nothing_where_there_is_one_class() -> None:
    assert binary().chance_loss(labels(0, 30)) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_no_answer_that_is_the_same_for_all_beats_chance(smoothing: float) -> None:
    task, target = several(4, smoothing), labels(31, 5, 13, 1)
    chance = task.chance_loss(target)
    torch.manual_seed(0)
    for _ in range(50):
        constant = 2 * torch.randn(1, 4)
        assert float(task.loss(constant.expand(len(target), -1), target)) >= chance - 1e-6


@pytest.mark.parametrize(
    ("losses", "said"),
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
def test_when_a_plateau_at_chance_is_told(losses: list[float], said: list[int]) -> None:
    """At its fourth epoch and every tenth after that; 3 % to either side count as chance."""
    progress, found = Progress(), []
    for epoch, loss in enumerate(losses, 1):
        progress.history.append({"epoch": epoch, "train_loss": loss})
        if progress.rests_at(0.7, binary().learnt):
            found.append(epoch)
    assert found == said


@pytest.mark.parametrize(("auroc", "told"), [(0.6, True), (0.7, False)])
def test_no_plateau_is_told_where_validation_is_ranked(auroc: float, told: bool) -> None:
    progress = Progress(history=[{"train_loss": 0.7, "val_auroc": auroc}] * 4)
    assert progress.rests_at(0.7, binary().learnt) is told


@pytest.mark.parametrize("chance", [math.nan, 0.0])
def test_no_plateau_is_told_where_there_is_no_chance(chance: float) -> None:
    progress = Progress(history=[{"train_loss": 1e-6}] * 4)
    assert not progress.rests_at(chance, binary().learnt)


def warned(
    model: Model, cases: list[Case], loader: CaseLoader, folder: Path, log: Any, **changed: Any
) -> dict[int, str]:
    """Notices of a training run, by the epochs that they name."""
    options = replace(PLAIN, patience=0, warmup=0.0, **changed)
    with log.at_level(logging.WARNING, logger="foveate"):
        progress = Trainer(model, loader, folder, options).fit(cases, [])
    told = [r.getMessage() for r in log.records if "rests at" in r.getMessage()]
    chance = progress.history[-1]["chance_loss"]
    assert chance == pytest.approx(math.log(2), abs=1e-4), "as many of each class"
    return {int(text.split(" after ")[1].split(" epochs")[0]): text for text in told}


def test_a_run_that_learns_nothing_is_told_at_its_fourth_epoch_and_ten_later(
    cases: list[Case], loader: CaseLoader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build()
    nn.init.zeros_(model.method.head[-1].weight)
    nn.init.zeros_(model.method.head[-1].bias)
    told = warned(model, cases[:4], loader, tmp_path, caplog, epochs=15, lr=1e-9)
    assert list(told) == [4, 14]
    assert "the training loss rests at 0.693 after 4 epochs" in told[4]
    assert "--train.batch-size" in told[4]
    assert "--method." not in told[4], "downsampled has none of the options that help"


def test_a_run_that_learns_is_not_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Pictures of two colours, four of each."""
    easy, rng = [], np.random.default_rng(0)
    for k, label in enumerate(["normal", "tumour"] * 4):
        colour = (200, 80, 60) if label == "normal" else (60, 80, 200)
        pixels = rng.normal(colour, 20, (64, 64, 3)).clip(0, 255).astype(np.uint8)
        path = tmp_path / f"{k}.png"
        Image.fromarray(pixels).save(path)
        easy.append(Case(str(k), str(k), path, label))
    loader = CaseLoader(View(1.0, 16, 1.0, unit="px"))
    try:
        told = warned(build(), easy, loader, tmp_path / "run", caplog, epochs=15, lr=3e-3)
    finally:
        loader.close()
    losses = [float(row["train_loss"]) for row in read_rows(tmp_path / "run" / "metrics.csv")]
    assert losses[-1] < 0.5 < losses[0]
    assert told == {}


def test_the_notice_names_options_that_the_method_has() -> None:
    """And not those that are set already."""
    row, off = {"train_loss": 0.69, "epoch": 4.0}, {"instance": 0.0, "jitter": False}
    for method, helps, lacks in (
        ("glimpse", ("instance", "jitter", "patches"), ("kept",)),
        ("ips", ("instance", "jitter", "kept"), ("patches",)),
        ("abmil", ("instance", "jitter"), ("kept", "patches")),
    ):
        told = describe_chance_plateau(build(method, **off), row, batch=2)
        assert all(f"--method.{name}" in told for name in helps), told
        assert not any(f"--method.{name}" in told for name in lacks), told
        told = describe_chance_plateau(build(method, instance=1.0, jitter=True), row, batch=1)
        assert "--method.instance" not in told
        assert "--method.jitter" not in told


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
    """A last layer whose outputs are no numbers."""

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
def test_weights_that_blow_up_stop_training(
    method: str, cases: list[Case], loader: CaseLoader, tmp_path: Path
) -> None:
    options = replace(PLAIN, lr=1e30, warmup=0.0, epochs=3)
    with pytest.raises(TrainingError, match=r"lower --train\.lr"):
        Trainer(build(method), loader, tmp_path, options).fit(cases[:8], [])


# -- images that cannot be read --------------------------------------------------------------------


def damage(slide: Path, *, levels: slice = slice(None)) -> None:
    """Noise in place of stored tiles; header and tables stay, so the slide still opens."""
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
    """A copy with a text file called ``.tif`` and an unreadable slide in each part of the split.

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
        damage(folder / "slides" / f"{part[0]}.tif")
        bad[part[0]] = "fold 0"
    return table, bad


@pytest.mark.parametrize("method", ["downsampled", "glimpse"])
def test_unreadable_images_are_set_aside(
    method: str,
    torn_cohort: tuple[Path, dict[str, str]],
    tmp_path: Path,
    foveate: Callable[..., Ended],
) -> None:
    (table, bad), run = torn_cohort, tmp_path / "run"
    words = ("train", table, "--out", run, *SMALL_RUN, "--method", method, "--epochs", "2")
    ended = foveate(*words)
    assert ended.returncode == 2, ended.stderr
    rows = {row["image_id"]: row for row in read_rows(run / "quarantine.csv")}
    assert {image_id: row["stage"] for image_id, row in rows.items()} == bad
    for image_id, row in rows.items():
        assert row["path"].endswith(f"{image_id}.tif")
        assert image_id in row["reason"]
        assert f"set aside {image_id}" in ended.stderr
    assert "set aside: 4 images" in ended.stdout
    predicted = {row["image_id"] for row in read_rows(run / "predictions_oof.csv")}
    assert predicted == set(load_splits(run / "splits.json").folds[0].test) - set(bad)
    assert foveate(*words).returncode == 2, "finished with images set aside, and still so"


def test_a_level_that_cannot_be_read_sets_its_slide_aside(
    tiny_cohort: Path, tmp_path: Path, foveate: Callable[..., Ended]
) -> None:
    """The glimpse reads well, the crops do not."""
    folder, run = tmp_path / "cohort", tmp_path / "run"
    shutil.copytree(tiny_cohort.parent, folder)
    table = folder / tiny_cohort.name
    image_id = make_splits(read_cases(table).cases).folds[0].train[0]
    damage(folder / "slides" / f"{image_id}.tif", levels=slice(1))
    words = ("train", table, "--out", run, *SMALL_RUN, "--method", "glimpse", "--epochs", "1")
    ended = foveate(*words, "--method.patches", "4")
    assert ended.returncode == 2, ended.stderr
    assert [row["image_id"] for row in read_rows(run / "quarantine.csv")] == [image_id]
