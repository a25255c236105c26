"""The training of the models of a run, by one process or by several together.

The first process also does all other work, and tells the others which training begins.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.batch.features import FeatureStore
from foveate.files.digest import code_sha256
from foveate.files.run_layout import FoldLayout, RunLayout, fold_name, fold_number
from foveate.loading.loader import CaseLoader
from foveate.messages.display import Display, Silent
from foveate.parts import plugin_folders
from foveate.runs.card import read_card
from foveate.runs.checkpoint import Model, build_model, load_model, read_tensors, save_model
from foveate.runs.config import RunConfig, make_card
from foveate.runs.folder import make_quarantine_row, read_json, write_rows
from foveate.runs.models import Ensemble
from foveate.runs.plan import Plan, make_plan
from foveate.runs.schedule import Schedule, TrainOptions
from foveate.runtime import Runtime, start_runtime
from foveate.table import Case
from foveate.tasks import settle_part
from foveate.training.loop import Trainer
from foveate.training.notice import StageDisplay
from foveate.training.state import Progress


@dataclass
class Processes:
    """The processes of a run, started when its first training begins.

    Attributes:
        config: config of the run, with the encoder settled.
        folder: folder of the run.
        runtime: runtime of this process; None before the first training.
    """

    config: RunConfig
    folder: Path
    runtime: Runtime | None = None

    def begin(self, model: Model, job: str = "") -> Runtime:
        """Return the runtime; the first process tells the others which training begins.

        Args:
            model: the model that is trained.
            job: name of the training, which the other processes are told.
        """
        if self.runtime is None:
            options = self.config.train
            plugins = [word for p in plugin_folders() for word in ("--plugins", str(p))]
            words = ["--config", str(RunLayout(self.folder).config), "--out", str(self.folder)]
            self.runtime = start_runtime(
                device=options.device,
                precision=options.precision,
                devices=options.devices,
                seed=options.seed,
                pretrained=not model.method.encoder.from_scratch,
                command=["-m", "foveate", "train", *words, *plugins],
            )
        if job and self.runtime.is_main:
            self.runtime.gather(job)
        return self.runtime

    def next_job(self) -> str | None:
        """Wait for the first process to say which training begins; None when all are done."""
        assert self.runtime is not None
        job: str | None = self.runtime.gather(None)[0]
        return job

    def close(self) -> None:
        """Let the other processes end."""
        if self.runtime is None:
            return
        if self.runtime.is_main:
            self.runtime.gather(None)
        self.runtime.close()


@dataclass(frozen=True)
class TrainingRun:
    """A run while its models are trained.

    Attributes:
        folder: folder of the run.
        plan: plan of the run, with its config.
        store: features of the frozen encoder, which the trainings share.
        processes: processes that train together.
        display: shows messages and progress.
        after_epoch: called with the folder of the model after each epoch.
    """

    folder: Path
    plan: Plan
    store: FeatureStore
    processes: Processes
    display: Display
    after_epoch: Callable[[Path], None] | None = None

    @property
    def config(self) -> RunConfig:
        """Config of the run, with the encoder settled."""
        return self.plan.config


def join_training(config: RunConfig, folder: Path) -> None:
    """Take part in the training of a run whose first process has started this process.

    This process writes nothing and shows nothing; the first process does.

    Args:
        config: options of the run.
        folder: folder of the run.
    """
    plan = make_plan(config, folder, Silent())
    processes = Processes(plan.config, folder)
    run = TrainingRun(folder, plan, FeatureStore(None), processes, Silent())
    processes.begin(_build_fresh_model(plan, list(plan.cases.values())))
    while (job := processes.next_job()) is not None:
        if job == RunLayout.refit_folder:
            train_refit(run)
        else:
            train_fold(run, int(fold_number(job)))
    processes.close()


def make_loader(config: RunConfig, plan: Plan, *, keep: bool = True) -> CaseLoader:
    """Return a loader for the images of a run; with `keep`, images stay open between reads.

    Args:
        config: options of the run.
        plan: plan of the run.
        keep: whether images stay open between reads.
    """
    assumed = config.view.assume_spacing_um
    if keep:
        return CaseLoader(plan.view, assume_spacing_um=assumed, readers=config.reader_options)
    return CaseLoader(
        plan.view,
        assume_spacing_um=assumed,
        readers=config.reader_options,
        keep_bytes=0,
        keep_open=0,
    )


def list_set_aside(
    folder: Path, plan: Plan, training: Mapping[int, Mapping[str, str]] | None = None
) -> int:
    """Write ``quarantine.csv`` with all images set aside so far; return the number of its rows.

    Args:
        folder: folder of the run.
        plan: plan, with the images that were set aside before training.
        training: by fold, images that a training without a stored model has set aside, and why.
    """
    rows = list(plan.quarantine)
    for k in range(len(plan.splits.folds)):
        fold, reasons = RunLayout(folder).fold(k), dict((training or {}).get(k, {}))
        if fold.model.is_complete:
            reasons |= read_card(fold.model.card)[0].provenance["quarantined"]
        if fold.failed.is_file():
            reasons |= read_json(fold.failed)
        rows += [
            make_quarantine_row(i, plan.find_path(i), f"fold {k}", why)
            for i, why in reasons.items()
        ]
    if rows:
        write_rows(RunLayout(folder).quarantine, rows, list(rows[0]))
    return len(rows)


def train_fold(run: TrainingRun, k: int) -> None:
    """Train the model of fold k; the first process writes it, and the model of the frozen start.

    Args:
        run: the run that is trained.
        k: number of the fold, from 0.
    """
    fold, n_folds = run.plan.splits.folds[k], len(run.plan.splits.folds)
    title = f"fold {k + 1} of {n_folds}" if n_folds > 1 else "training"
    train, val = run.plan.pick(fold.train), run.plan.pick(fold.val)
    with _open_trainer(run, fold_name(k), title, run.config.train, train) as trainer:
        try:
            progress = trainer.fit(train, val)
        finally:
            if trainer.runtime.is_main:
                list_set_aside(run.folder, run.plan, {k: trainer.progress.quarantined})
        counts = {"fold": k, "n_train": len(train), "n_val": len(val)}
        scores = {"best_val_score": progress.best_score}
        provenance = _describe_training(
            run, trainer, trainer.schedule_of(len(train)), counts, scores
        )
        calibrate = functools.partial(_calibrate, trainer, val, trainer.display_of(len(train)))
        _note_colours(trainer, [*train, *val])
        _save_models(trainer, calibrate, provenance)


def train_refit(run: TrainingRun) -> None:
    """Train one model on all images, with the settings of the models of the folds.

    What their validation parts settled, such as the threshold, is averaged. The number of epochs is
    the median of their best epochs.
    """
    n_folds = len(run.plan.splits.folds)
    layout = RunLayout(run.folder)
    folds = Ensemble(tuple(load_model(layout.fold(k).model_folder) for k in range(n_folds)))
    records = [member.card.provenance for member in folds.members]
    epochs = round(float(np.median([r["best_epoch"] - r["frozen_epochs"] for r in records])))
    options = replace(run.config.train, epochs=max(epochs, 0), patience=0)
    cases = list(run.plan.cases.values())
    title = "refit on all images"
    with _open_trainer(
        run, RunLayout.refit_folder, title, options, cases, folds.members
    ) as trainer:
        progress = trainer.fit(cases, ())
        counts = {"refit": True, "n_train": len(cases) - len(progress.quarantined)}
        schedule = trainer.schedule_of(len(cases))
        provenance = _describe_training(run, trainer, schedule, counts, folds.point)
        _note_colours(trainer, cases)
        _save_trained(trainer, FoldLayout(trainer.folder), provenance)


@contextlib.contextmanager
def _open_trainer(
    run: TrainingRun,
    name: str,
    title: str,
    options: TrainOptions,
    train: Sequence[Case],
    folds: Sequence[Model] = (),
) -> Iterator[Trainer]:
    """Build a trainer of a fresh model, and close its loader at the end of the block.

    Args:
        run: the run.
        name: name of the model's folder within that of the run.
        title: title of the progress bar.
        options: options of the training.
        train: images of the training part, whose labels settle the task.
        folds: models of the folds, for a training without a validation part.
    """
    with contextlib.closing(make_loader(run.config, run.plan)) as loader:
        torch.manual_seed(options.seed)
        model = _build_fresh_model(run.plan, train)
        yield Trainer(
            model,
            loader,
            run.folder / name,
            options,
            runtime=run.processes.begin(model, name),
            store=run.store,
            folds=folds,
            display=run.display,
            title=title,
            after_epoch=run.after_epoch,
        )


def _build_fresh_model(plan: Plan, train: Sequence[Case]) -> Model:
    """Build a model with fresh weights; labels of the training part settle its task."""
    labels = [str(case.label) for case in train]
    settled = settle_part(plan.task, labels, plan.settled, plan.task_options)
    card = make_card(plan.config, plan.view, plan.task, plan.task_options, settled)
    card = replace(card, trained_on=plan.trained_on)
    model = build_model(card, pretrained=True)
    options = plan.config.encoder_options | dict(model.method.encoder.resolved)
    return replace(model, card=replace(card, encoder_options=options))


def _describe_training(
    run: TrainingRun,
    trainer: Trainer,
    schedule: Schedule,
    counts: Mapping[str, Any],
    scores: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the provenance of a trained model, before it is calibrated.

    Args:
        run: the run.
        trainer: the trainer, after the training.
        schedule: schedule of the training.
        counts: what the model was trained with: its fold and numbers of images.
        scores: results on validation parts.
    """
    progress = trainer.progress
    return {
        "split_hash": run.plan.splits.hash,
        "code": code_sha256(),
        "assumptions": list(run.plan.assumptions),
        **counts,
        "best_epoch": progress.best_epoch,
        "frozen_epochs": schedule.frozen_epochs,
        **scores,
        "train": _sum_training_cost(progress),
        "quarantined": progress.quarantined,
    }


def _note_colours(trainer: Trainer, cases: Sequence[Case]) -> None:
    """Note in the card of a model which colours its images have, for `images.likeness`.

    Glimpses that this process has not read, as after a restart, are read.

    Args:
        trainer: the trainer, after the training.
        cases: images that the model was trained and validated with.
    """
    card, loader = trainer.model.card, trainer.loader
    if card.trained_on is None or card.view.axes != 2 or not trainer.runtime.is_main:
        return
    bad = trainer.progress.quarantined
    ids = {case.image_id: [i.image_id for i in case.list_images()] for case in cases}
    missing = [
        case
        for case in cases
        if not loader.colours.keys() >= set(ids[case.image_id]) and case.image_id not in bad
    ]
    for _ in loader.ahead([case] for case in missing):
        pass
    names = {loader.colours.get(i) for case in cases for i in ids[case.image_id]} - {None}
    facts = replace(card.trained_on, colours=tuple(sorted(filter(None, names))))
    trainer.model = replace(trainer.model, card=replace(card, trained_on=facts))


def _save_models(
    trainer: Trainer,
    calibrate: Callable[[], dict[str, float | None]],
    provenance: Mapping[str, Any],
) -> None:
    """Calibrate and write the trained model, and that of its frozen start if there was one.

    Where training end to end was no improvement, both have the same weights.
    """
    method, fold, points = trainer.model.method, FoldLayout(trainer.folder), None
    if trainer.checkpoints.frozen.is_file():
        best = {name: weights.clone() for name, weights in method.state_dict().items()}
        start = read_tensors(trainer.checkpoints.frozen)[0]
        method.load_state_dict(start)
        points = calibrate()
        of_start = {"best_epoch": 0, "frozen_start": True}
        _save_trained(trainer, fold.frozen, {**provenance, **points, **of_start})
        method.load_state_dict(best)
        if not all(weights.equal(start[name]) for name, weights in best.items()):
            points = None
    _save_trained(trainer, fold, {**provenance, **(points or calibrate())})


def _calibrate(
    trainer: Trainer, val: Sequence[Case], display: StageDisplay
) -> dict[str, float | None]:
    """Settle on the validation part how logits become answers: temperature, threshold."""
    logits, target = trainer.answer(val, display.validation)
    return trainer.model.task.calibrate(logits.cpu(), target.cpu())


def _save_trained(trainer: Trainer, layout: FoldLayout, provenance: Mapping[str, Any]) -> None:
    """Write the present weights and the card of a model; only the first process writes."""
    if trainer.runtime.is_main:
        card = replace(trainer.model.card, provenance=dict(provenance))
        save_model(layout.model_folder, card, trainer.model.method.state_dict())


def _sum_training_cost(progress: Progress) -> dict[str, float]:
    """Sum the cost of all epochs, and of what came after the last one or without any."""
    keys = ("seconds", "seconds_reading", "seconds_computing", "decoded_px", "asked_px")
    rows = [*progress.history, progress.running()]
    return {key: sum(row[key] for row in rows) for key in keys}
