"""Training in two stages, a frozen start on cached features and end to end, is resumable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.batch import View
from foveate.loading.loader import CaseLoader
from foveate.messages.display import ProgressUpdate
from foveate.nn.overview import N_LEFT_OUT_FOLDS
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import Model, build_model, read_tensors
from foveate.runs.schedule import TrainOptions
from foveate.table import Case, read_cases
from foveate.training.frozen_start import _divide
from foveate.training.loop import Trainer
from foveate.training.state import Progress
from helpers.progress import Recorder

VIEW = View(spacing_um=1.0, patch_px=64, glimpse_spacing_um=16.0)
OPTIONS = {"patches": 3, "eval_patches": 4, "survey": 9}
PLAIN = {"epochs": 3, "frozen_epochs": 3, "batch_size": 2, "device": "cpu"}


def build_model_for(method: str = "glimpse", **options: Any) -> Model:
    torch.manual_seed(0)
    method_options = OPTIONS if method == "glimpse" else {}
    settled = {"classes": ["normal", "tumour"]}
    card = ModelCard(
        method, method_options | options, "lite0", {"taught": 1}, "binary", {}, settled, VIEW
    )
    return build_model(card, pretrained=True)


@pytest.fixture(scope="module")
def parts(tiny_cohort: Path) -> tuple[list[Case], list[Case]]:
    """Return six training and four validation cases, with equal classes."""
    table = read_cases(tiny_cohort).cases
    by_label = [[c for c in table if c.label == label] for label in ("normal", "tumour")]
    train = [c for members in by_label for c in members[:3]]
    return train, [c for members in by_label for c in members[3:5]]


@dataclass
class Run:
    """A finished training."""

    trainer: Trainer
    progress: Progress
    began: dict[str, Tensor]
    display: Recorder

    def weights(self, name: str) -> dict[str, Tensor]:
        """Read the weights of a checkpoint file."""
        tensors: dict[str, Tensor] = read_tensors(getattr(self.trainer.checkpoints, name))[0]
        return tensors


def trained(
    parts: tuple[list[Case], list[Case]], loader: CaseLoader, folder: Path, **changed: Any
) -> Run:
    model, display = build_model_for(), Recorder()
    began = {k: v.clone() for k, v in model.method.state_dict().items()}
    options = TrainOptions(**PLAIN | changed)
    trainer = Trainer(model, loader, folder, options, display=display)
    return Run(trainer, trainer.fit(*parts), began, display)


@pytest.fixture(scope="module")
def run(
    parts: tuple[list[Case], list[Case]],
    loader: CaseLoader,
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    return trained(parts, loader, tmp_path_factory.mktemp("run"), precision="32-true")


# -- stages ----------------------------------------------------------------------------------------


def test_stages_follow_each_other(run: Run) -> None:
    stages = ["reading features", "frozen start", "end to end"]
    assert run.display.titles == [f"training: {stage}" for stage in stages]
    assert [row["epoch"] for row in run.progress.history] == [1, 2, 3, 4, 5, 6]
    read = [at.done for at in run.display.updates if at.title == "training: reading features"]
    assert read == list(range(11)), "each image of both parts once"


def test_the_encoder_is_frozen_then_trained(run: Run) -> None:
    """The projection is trained from the first step; frozen parameters never change."""
    method = run.trainer.model.method
    named = {id(p): name for name, p in method.named_parameters()}
    taught = {named[id(p)] for tier in method.encoder.tiers() for p in tier if p.requires_grad}
    stored = {
        n for n in run.began if n.startswith("encoder.") and ".mixed." not in f".{n}"
    } - taught
    assert len(taught) > 5
    assert len(stored) > 100
    frozen = run.weights("frozen")
    latest = {k.removeprefix("method."): v for k, v in run.weights("latest").items()}
    for name in taught | stored:
        assert torch.equal(frozen[name], run.began[name]), name
    for name in stored:
        assert torch.equal(latest[name], run.began[name]), name
    assert any(not torch.equal(latest[name], run.began[name]) for name in taught)
    for name in ("encoder.mixed.linear.weight", "aggregator.relate.0.out.weight"):
        assert not torch.equal(frozen[name], run.began[name]), name
        assert not torch.equal(latest[name], frozen[name]), name


def test_after_training_all_parameters_are_trainable(run: Run) -> None:
    method = run.trainer.model.method
    assert any(p.requires_grad for tier in method.encoder.tiers() for p in tier)


def score_of(
    trainer: Trainer, weights: dict[str, Tensor], cases: list[Case]
) -> tuple[float, float]:
    """Compute loss and score of stored weights without cached features."""
    previous = {k: v.clone() for k, v in trainer.model.method.state_dict().items()}
    trainer.model.method.load_state_dict(weights)
    logits, target = trainer.answer(cases)
    trainer.model.method.load_state_dict(previous)
    task, chance = trainer.model.task, trainer.progress.history[0]["chance_loss"]
    return float(task.loss(logits, target)), task.validate(logits, target, chance)["val_score"]


def test_the_frozen_row_scores_the_frozen_weights(
    run: Run, parts: tuple[list[Case], list[Case]]
) -> None:
    """The tolerance allows for cached features in half precision."""
    loss, score = score_of(run.trainer, run.weights("frozen"), parts[1])
    row = run.progress.history[2]
    assert loss == pytest.approx(row["val_loss"], abs=1e-3)
    assert score == pytest.approx(row["val_score"], abs=2e-3)


def test_the_selected_weights_are_no_worse_than_the_frozen_start(run: Run) -> None:
    progress, schedule = run.progress, run.trainer.schedule_of(6)
    scores = {int(row["epoch"]): row["val_score"] for row in progress.history}
    allowed = {epoch: s for epoch, s in scores.items() if schedule.may_keep(epoch)}
    assert 3 in allowed
    assert not {1, 2, 4} & set(allowed)
    assert progress.best_score == min(allowed.values()) <= scores[3]
    assert progress.best_epoch == max(e for e, s in allowed.items() if s == progress.best_score)
    weights = run.trainer.model.method.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in run.weights("best").items())


def test_patch_trust_is_fitted_on_the_validation_part(
    run: Run, parts: tuple[list[Case], list[Case]]
) -> None:
    """No other factor gives the frozen weights a lower penalised loss."""
    weights = run.weights("frozen")
    fitted = float(weights["trust.value"])
    n = len(parts[1])

    def cost(factor: float) -> float:
        changed = weights | {"trust.value": torch.tensor(factor)}
        return n * score_of(run.trainer, changed, parts[1])[0] + (factor - 1) ** 2

    best = cost(fitted)
    assert all(best <= cost(factor) + 1e-3 for factor in (0.0, 0.25, 0.5, 0.75, 1.0))
    assert float(run.weights("latest")["average.trust.value"]) == fitted


@pytest.mark.slow
def test_a_training_on_all_images_trusts_patches_as_the_folds_do_on_average(
    parts: tuple[list[Case], list[Case]], loader: CaseLoader, tmp_path: Path
) -> None:
    folds = [build_model_for(), build_model_for()]
    for fold, factor in zip(folds, (0.25, 0.75), strict=True):
        fold.method.trust.value.fill_(factor)
    options = TrainOptions(**PLAIN | {"epochs": 0, "frozen_epochs": 1})
    trainer = Trainer(build_model_for(), loader, tmp_path, options, folds=folds)
    trainer.fit([*parts[0], *parts[1]], ())
    assert float(trainer.model.method.trust.value) == 0.5


def test_answers_without_trust_in_patches_rest_on_the_glimpse(
    run: Run, parts: tuple[list[Case], list[Case]], loader: CaseLoader
) -> None:
    method = run.trainer.model.method
    settled = method.trust.value.clone()
    remainders, logits = {}, {}
    for factor in (0.0, 0.5, 1.0):
        method.trust.value.fill_(factor)
        (items,) = loader.ahead([parts[1][:1]])
        batch = run.trainer.steps.batch(items, augment="none")
        prediction = method.eval()(batch)
        remainders[factor] = prediction.evidence[0].remainder
        logits[factor] = float(prediction.logits[0, 0].detach())
    method.trust.value.copy_(settled)
    assert remainders[0.0] == 1.0
    assert 0 < remainders[1.0] < 1
    assert remainders[0.5] == pytest.approx((remainders[0.0] + remainders[1.0]) / 2, abs=1e-5)
    assert logits[0.5] == pytest.approx((logits[0.0] + logits[1.0]) / 2, abs=1e-4)


def test_both_parts_get_left_out_predictions(
    run: Run, parts: tuple[list[Case], list[Case]]
) -> None:
    assert set(run.progress.left_out_folds) == {c.image_id for part in parts for c in part}
    assert set(run.progress.left_out_folds.values()) <= set(range(N_LEFT_OUT_FOLDS))


def test_left_out_parts_keep_patients_together_and_labels_even() -> None:
    """Five parts have as equal class counts as possible."""
    cases = [
        Case(f"{p}-{i}", f"P{p:02}", Path("x"), ("a", "b")[p % 2])
        for p in range(20)
        for i in (0, 1)
    ]
    parts_of_cases = _divide(cases, [str(case.label) for case in cases])
    of_patient: dict[str, set[int]] = {}
    for case, part in zip(cases, parts_of_cases.tolist(), strict=True):
        of_patient.setdefault(case.patient_id, set()).add(part)
    assert all(len(parts_seen) == 1 for parts_seen in of_patient.values())
    for part in range(5):
        labels = [
            case.label
            for case, own_part in zip(cases, parts_of_cases, strict=True)
            if own_part == part
        ]
        assert sorted(labels) == ["a"] * 4 + ["b"] * 4


# -- stopped and gone on ---------------------------------------------------------------------------


class Stopped(BaseException):
    """Somebody stopped the run, as Ctrl-C does."""


def stop_at(title: str, n: int) -> Callable[[ProgressUpdate], None]:
    """Return a function that raises at the n-th update of a bar."""
    n_updates = 0

    def tick(update: ProgressUpdate) -> None:
        nonlocal n_updates
        n_updates += update.title == title
        if update.title == title and n_updates == n:
            raise Stopped

    return tick


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_stopped_in_any_stage_ends_with_the_same_weights(
    precision: str,
    run: Run,
    parts: tuple[list[Case], list[Case]],
    loader: CaseLoader,
    tmp_path: Path,
) -> None:
    """Cached features in memory are lost at each stop, as if the process had died."""
    training_options = {"precision": precision, "checkpoint_seconds": 0.0}
    whole = (
        run
        if precision == "32-true"
        else trained(parts, loader, tmp_path / "a", **training_options)
    )
    options, folder = TrainOptions(**PLAIN | training_options), tmp_path / "b"
    stops = (("reading features", 4), ("frozen start", 9), ("frozen start", 8), ("end to end", 5))
    for stage, n in stops:
        display = Recorder(stop_at(f"training: {stage}", n))
        trainer = Trainer(build_model_for(), loader, folder, options, display=display)
        with pytest.raises(Stopped):
            trainer.fit(*parts)
        feature_files = list((folder / "features").glob("*.safetensors"))
        assert len(feature_files) == (0 if stage == "reading features" else 10), (
            "saved with the state"
        )
    trainer = Trainer(build_model_for(), loader, folder, options)
    assert trainer.fit(*parts).best_epoch == whole.progress.best_epoch
    for name in ("frozen", "latest", "best"):
        stored, exact = read_tensors(getattr(trainer.checkpoints, name))[0], whole.weights(name)
        assert set(stored) == set(exact)
        unlike = [key for key in exact if not torch.equal(stored[key], exact[key])]
        assert not unlike, f"{name}: {len(unlike)} of {len(exact)}, such as {unlike[:3]}"


# -- nothing to train on features ------------------------------------------------------------------


@pytest.mark.slow
def test_downsampled_is_fitted_then_trained(
    parts: tuple[list[Case], list[Case]], loader: CaseLoader, tmp_path: Path
) -> None:
    """The linear model is fitted to convergence; end-to-end training must not make it worse."""
    display = Recorder()
    options = TrainOptions(**PLAIN | {"epochs": 2}, precision="32-true")
    trainer = Trainer(build_model_for("downsampled"), loader, tmp_path, options, display=display)
    progress = trainer.fit(*parts)
    assert display.titles == ["training: reading features", "training: end to end"]
    start = read_tensors(trainer.checkpoints.frozen)[0]
    assert bool(start["head.standardise.settled"])
    assert [row["epoch"] for row in progress.history] == [1, 2]
    _, score = score_of(trainer, start, parts[1])
    assert progress.best_score <= score + 2e-3


@pytest.mark.slow
def test_zero_end_to_end_epochs_keep_the_frozen_start(
    parts: tuple[list[Case], list[Case]], loader: CaseLoader, tmp_path: Path
) -> None:
    for method in ("downsampled", "glimpse"):
        options = TrainOptions(**PLAIN | {"epochs": 0, "frozen_epochs": 1}, precision="32-true")
        trainer = Trainer(build_model_for(method), loader, tmp_path / method, options)
        progress = trainer.fit(*parts)
        assert progress.done
        best = read_tensors(trainer.checkpoints.best)[0]
        frozen = read_tensors(trainer.checkpoints.frozen)[0]
        assert all(torch.equal(best[name], frozen[name]) for name in best)
