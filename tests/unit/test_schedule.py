"""The schedule of training: stages, rates, selection, averaged weights, temperature."""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from foveate.encoders.lite0 import Lite0Encoder
from foveate.errors import OptionError
from foveate.methods.downsampled import Downsampled
from foveate.nn.heads import Head
from foveate.runs.checkpoint import read_tensors
from foveate.runs.schedule import (
    Schedule,
    TrainOptions,
    learning_rate,
    parameter_groups,
    settle_schedule,
)
from foveate.tasks.binary import BinaryTask
from foveate.training.state import Checkpoints, Progress, WeightAverage

TWO = Schedule(
    frozen_epochs=4,
    epochs=6,
    frozen_batch=8,
    batch_size=4,
    frozen_lr=1e-3,
    lr=1e-4,
    average=0.2,
    warmup=0.25,
)
"""A schedule of two stages."""


# -- stages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_images", [1, 6, 40, 300, 5000])
def test_the_number_of_epochs_follows_the_number_of_images(n_images: int) -> None:
    """Pretrained: fixed updates on cached features, then few epochs; from scratch: many epochs."""
    schedule = settle_schedule(TrainOptions(), n_images, pretrained=True)
    steps = math.ceil(n_images / schedule.frozen_batch)
    assert schedule.frozen_epochs in (8, 40) or abs(schedule.frozen_epochs * steps - 240) < steps
    assert 8 <= schedule.frozen_epochs <= 40
    assert 1 <= schedule.epochs <= 6
    assert schedule.lr < schedule.frozen_lr
    scratch = settle_schedule(TrainOptions(), n_images, pretrained=False)
    assert (scratch.frozen_epochs, scratch.epochs, scratch.average) == (0, 30, 0.0)


def test_user_options_take_precedence() -> None:
    options = TrainOptions(epochs=3, frozen_epochs=5, batch_size=7, lr=2e-3, average=0.5)
    schedule = settle_schedule(options, 100, pretrained=True)
    assert (schedule.frozen_epochs, schedule.epochs, schedule.batch_size) == (5, 3, 7)
    assert (schedule.lr, schedule.average) == (2e-3, 0.5)
    assert settle_schedule(options, 100, pretrained=False).frozen_epochs == 0
    nothing = settle_schedule(options, 100, pretrained=True, learns_frozen=False)
    assert nothing.frozen_epochs == 0
    none = settle_schedule(replace(options, epochs=0, frozen_epochs=0), 9, pretrained=True)
    assert none.total_epochs == 0


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": -1},
        {"frozen_epochs": -1},
        {"encoder_lr": -0.1},
        {"average": 1.0},
        {"warmup": 1.0},
        {"batch_size": 0},
        {"lr": 0.0},
    ],
)
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=rf"train\.{next(iter(options))}: got "):
        TrainOptions(**options)


def test_each_stage_warms_up_and_cools_down() -> None:
    rates = [learning_rate(TWO, e / 4) for e in range(40)]
    frozen, later = rates[:16], rates[16:]
    assert frozen.index(max(frozen)) == 4
    assert later.index(max(later)) == 6
    assert max(frozen) == pytest.approx(1e-3)
    assert max(later) == pytest.approx(1e-4)
    for stage in (frozen, later):
        top = stage.index(max(stage))
        assert stage[:top] == sorted(stage[:top])
        assert stage[top:] == sorted(stage[top:], reverse=True)
        assert stage[0] == pytest.approx(1e-3 * max(stage))
        assert stage[-1] < 0.05 * max(stage)


def test_stages_have_names_and_ranges() -> None:
    assert [TWO.stage(e) for e in (0, 3.9, 4, 9)] == ["frozen start"] * 2 + ["end to end"] * 2
    assert [TWO.span(e) for e in (0, 3.9, 4, 9)] == [(0, 4)] * 2 + [(4, 6)] * 2
    assert [TWO.done(e) for e in (0, 1, 4, 7)] == [0, 0.25, 0, 0.5]


def test_weights_are_averaged_over_a_share_of_the_stage() -> None:
    assert TWO.horizon(0, 16, 1) == pytest.approx(0.2 * 4 * 16 / 8)
    assert TWO.horizon(3, 16, 2) == pytest.approx(0.2 * 4 * 16 / 8), "no accumulation there"
    assert TWO.horizon(4, 16, 1) == pytest.approx(0.2 * 6 * 16 / 4)
    assert TWO.horizon(4, 16, 2) == pytest.approx(0.2 * 6 * 16 / 8)


# -- what is kept ----------------------------------------------------------------------------------


def kept_updates(schedule: Schedule) -> list[int]:
    return [e for e in range(1, schedule.total_epochs + 1) if schedule.may_keep(e)]


def test_no_weights_are_selected_during_warm_up() -> None:
    """Selection starts at the end of the frozen start, or after the warm-up."""
    assert kept_updates(TWO) == [4, 8, 9, 10]
    assert kept_updates(replace(TWO, average=0.0)) == [4, 6, 7, 8, 9, 10]
    assert kept_updates(replace(TWO, average=0.0, frozen_epochs=0)) == [2, 3, 4, 5, 6]
    assert kept_updates(replace(TWO, epochs=0)) == [4]
    assert kept_updates(replace(TWO, epochs=1)) == [4, 5], "the last epoch always may be"
    assert kept_updates(replace(TWO, frozen_epochs=0, epochs=1)) == [1]


def test_the_best_allowed_weights_are_selected_and_ties_go_to_later_ones(tmp_path: Path) -> None:
    """The lowest scores lie inside the warm-ups and must not be selected."""
    method, progress = nn.Linear(1, 1), Progress()
    files = Checkpoints(tmp_path, method)
    scores = [0.1, 0.1, 0.1, 0.9, 0.0, 0.0, 0.0, 0.8, 0.8, 0.85]
    for epoch, score in enumerate(scores, 1):
        nn.init.constant_(method.weight, float(epoch))
        row = {"epoch": float(epoch), "train_loss": 0.0, "val_loss": -score, "val_score": score}
        files.keep_best(progress, TWO, row)
    assert (progress.best_epoch, progress.best_score) == (9, 0.8)
    assert float(read_tensors(files.best)[0]["weight"]) == 9
    assert float(read_tensors(files.frozen)[0]["weight"]) == 4


def test_an_unbeaten_frozen_start_is_selected(tmp_path: Path) -> None:
    method, progress = nn.Linear(1, 1), Progress()
    files = Checkpoints(tmp_path, method)
    for epoch in range(1, 11):
        nn.init.constant_(method.weight, float(epoch))
        score = 0.5 if epoch == 4 else 0.6
        row = {"epoch": float(epoch), "train_loss": 0.0, "val_loss": 0.0, "val_score": score}
        files.keep_best(progress, TWO, row)
    assert (progress.best_epoch, progress.best_score) == (4, 0.5)
    for path in (files.best, files.frozen):
        assert float(read_tensors(path)[0]["weight"]) == 4


def test_without_validation_the_last_weights_are_selected(tmp_path: Path) -> None:
    method, progress = nn.Linear(1, 1), Progress()
    files = Checkpoints(tmp_path, method)
    for epoch in range(1, 11):
        nn.init.constant_(method.weight, float(epoch))
        files.keep_best(progress, TWO, {"epoch": float(epoch), "train_loss": float(epoch)})
    assert progress.best_epoch == 10
    assert float(read_tensors(files.best)[0]["weight"]) == 10


# -- the optimiser and averages --------------------------------------------------------------------


def test_earlier_tiers_have_smaller_learning_rates() -> None:
    """Only matrices have weight decay."""
    method = Downsampled(encoder=Lite0Encoder(), heads=(Head("class", 2, True, "max"),))
    options = TrainOptions(encoder_lr=0.3)
    groups = parameter_groups(method, options)
    scale = {id(p): group["scale"] for group in groups for p in group["params"]}
    assert len(scale) == sum(len(g["params"]) for g in groups) == len(list(_learnt(method)))
    tiers = [{scale[id(p)] for p in t if p.requires_grad} for t in method.encoder.tiers()]
    rates = [one.pop() for one in tiers if len(one) == 1]
    assert len(rates) >= 2
    assert rates[-1] == pytest.approx(0.3)
    for earlier, later in itertools.pairwise(rates):
        assert earlier == pytest.approx(0.75 * later)
    for group in groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"])


def _learnt(method: nn.Module) -> list[nn.Parameter]:
    return [p for p in method.parameters() if p.requires_grad]


def test_the_average_matches_a_plain_loop() -> None:
    """The weights are a random walk; integer buffers take their last value."""
    torch.manual_seed(0)
    method = nn.BatchNorm1d(3)
    average = WeightAverage(method)
    average.begin()
    walk = {name: value.clone().double() for name, value in method.named_parameters()}
    for update in range(1, 41):
        with torch.no_grad():
            for p in method.parameters():
                p.add_(torch.randn(3))
            method.num_batches_tracked.fill_(update)
        average.update(12.0)
        keep = min(1 - 1 / 12, update / (update + 9))
        for name, value in method.named_parameters():
            walk[name] = keep * walk[name] + (1 - keep) * value.detach().double()
    for name, value in walk.items():
        torch.testing.assert_close(average.weights[name].double(), value, rtol=1e-5, atol=1e-5)
    assert int(average.weights["num_batches_tracked"]) == 40
    assert average.updates == 40


def test_averaged_weights_are_swapped_in_and_out() -> None:
    method = nn.Linear(2, 1)
    average = WeightAverage(method)
    weights = {k: v.clone() for k, v in method.state_dict().items()}
    with average.applied():
        assert torch.equal(method.weight, weights["weight"]), "there is no average yet"
    average.begin()
    with torch.no_grad():
        method.weight.add_(1.0)
    with average.applied():
        assert torch.equal(method.weight, weights["weight"])
    assert torch.equal(method.weight, weights["weight"] + 1.0)


def test_waits_within_a_timed_block_count_once() -> None:
    progress = Progress()
    begun = time.perf_counter()
    with progress.timed():
        progress.add(seconds=1000.0, seconds_reading=1000.0)
        time.sleep(0.01)
    elapsed = time.perf_counter() - begun
    assert 0 <= progress.sums["seconds"] <= elapsed, "a wait of 1000 s lies in a block of less"
    assert progress.sums["seconds_reading"] == 1000.0


def test_the_average_is_saved_in_checkpoints(tmp_path: Path) -> None:
    torch.manual_seed(0)
    method = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(method.parameters())
    average = WeightAverage(method)
    average.begin()
    method(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    average.update(10.0)
    progress = Progress(epoch=3, stage="frozen start", left_out_folds={"a": 3})
    Checkpoints(tmp_path, method).save(optimizer, progress, average)

    other = nn.Linear(3, 2)
    again = WeightAverage(other)
    moments = torch.optim.AdamW(other.parameters())
    restored = Progress()
    Checkpoints(tmp_path, other).load(moments, restored, again)
    assert restored == progress
    assert again.updates == 1
    for name, value in average.weights.items():
        assert torch.equal(again.weights[name], value)
        assert torch.equal(other.state_dict()[name], method.state_dict()[name])


# -- temperature -----------------------------------------------------------------------------------


def binary() -> BinaryTask:
    return BinaryTask(classes=("no", "yes"))


@pytest.mark.parametrize("known", [0.4, 1.0, 3.0])
def test_a_known_temperature_is_recovered(known: float) -> None:
    generator = torch.Generator().manual_seed(0)
    k = sum(head.size for head in binary().heads)
    exact = 2 * torch.randn(2000, k, generator=generator)
    share = binary().probabilities(exact)[:, 1]
    target = (torch.rand(2000, generator=generator) < share).long()
    temperature = binary().temperature(known * exact, target)
    assert temperature == pytest.approx(known, rel=0.13), "to a step of those that are tried"


def test_the_temperature_of_six_images_stays_near_one() -> None:
    """Average over draws of calibrated logits."""
    k = sum(head.size for head in binary().heads)
    temperatures = []
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(6, k, generator=generator)
        share = binary().probabilities(logits)[:, 1]
        target = (torch.rand(6, generator=generator) < share).long()
        temperatures.append(binary().temperature(logits, target))
    assert min(temperatures) > 0.5, temperatures
    assert max(temperatures) < 2.0, temperatures


def test_the_score_barely_depends_on_confidence() -> None:
    """The score uses the loss at the best temperature, and the ranking stays the same."""
    target, task = torch.tensor([0, 1] * 50), binary()
    noise = torch.randn(100, 1, generator=torch.Generator().manual_seed(0))
    logits = noise + 1.5 * (target[:, None] - 0.5)
    scores = [task.validate(f * logits, target, math.log(2))["val_score"] for f in (0.5, 1.0, 4.0)]
    losses = [float(task.loss(f * logits, target)) for f in (0.5, 1.0, 4.0)]
    assert max(losses) - min(losses) > 0.1
    assert max(scores) - min(scores) < 0.03
