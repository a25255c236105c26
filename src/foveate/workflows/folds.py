"""The training of the models of a run, by one process or by several together.

The first process also does all other work, and tells the others which training begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from foveate.batch.features import FeatureStore
from foveate.loading.loader import CaseLoader
from foveate.messages.display import Display, Silent, training_bar
from foveate.parts import find, plugin_folders
from foveate.runs.card import read_card
from foveate.runs.checkpoint import Model, build_model, load_model, read_tensors, save_model
from foveate.runs.config import RunConfig
from foveate.runs.folder import make_quarantine_row, read_json, write_rows
from foveate.runs.models import Ensemble
from foveate.runs.plan import Plan, make_card, make_plan
from foveate.runtime import Runtime, start_runtime
from foveate.table import Case
from foveate.training.loop import Trainer
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
        """Return the runtime; the first process tells the others which training begins."""
        if self.runtime is None:
            options = self.config.train
            plugins = [word for p in plugin_folders() for word in ("--plugins", str(p))]
            words = ["--config", str(self.folder / "config.yaml"), "--out", str(self.folder)]
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


def join_training(config: RunConfig, folder: Path) -> None:
    """Take part in the training of a run whose first process has started this process.

    This process writes nothing and shows nothing; the first process does.
    """
    silent, store = Silent(), FeatureStore(None)
    plan = make_plan(config, folder, silent)
    processes = Processes(plan.config, folder)
    processes.begin(_build_fresh_model(plan.config, plan, list(plan.cases.values())))
    while (job := processes.next_job()) is not None:
        model_folder = folder / job
        loader = make_loader(plan.config, plan)
        try:
            if job == "refit":
                train_refit(plan.config, model_folder, plan, loader, store, silent, None, processes)
            else:
                k = int(job.removeprefix("fold_"))
                train_fold(
                    plan.config, model_folder, k, plan, loader, store, silent, None, processes
                )
        finally:
            loader.close()
    processes.close()


def make_loader(config: RunConfig, plan: Plan, *, keep: bool = True) -> CaseLoader:
    """Return a loader for the images of a run; with `keep`, images stay open between reads."""
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
        fold_folder, reasons = folder / f"fold_{k}", dict((training or {}).get(k, {}))
        if (fold_folder / "model" / "model.json").is_file():
            reasons |= read_card(fold_folder / "model" / "model.json")[0].provenance["quarantined"]
        if (fold_folder / "failed.json").is_file():
            reasons |= read_json(fold_folder / "failed.json")
        rows += [
            make_quarantine_row(i, plan.cases[i].path, f"fold {k}", why)
            for i, why in reasons.items()
        ]
    if rows:
        write_rows(folder / "quarantine.csv", rows, list(rows[0]))
    return len(rows)


def train_fold(
    config: RunConfig,
    fold_folder: Path,
    k: int,
    plan: Plan,
    loader: CaseLoader,
    store: FeatureStore,
    display: Display,
    after_epoch: Callable[[Path], None] | None,
    processes: Processes,
) -> None:
    """Train the model of fold k; the first process writes it, and the model of the frozen start."""
    fold = plan.splits.folds[k]
    n_folds = len(plan.splits.folds)
    title = f"fold {k + 1} of {n_folds}" if n_folds > 1 else "training"

    tick = training_bar(display, title)
    torch.manual_seed(config.train.seed)
    model = _build_fresh_model(config, plan, plan.pick(fold.train))
    runtime = processes.begin(model, fold_folder.name)
    trainer = Trainer(
        model,
        loader,
        fold_folder,
        config.train,
        runtime=runtime,
        store=store,
        tick=tick,
        say=display.say,
        after_epoch=after_epoch,
    )
    try:
        progress = trainer.fit(plan.pick(fold.train), plan.pick(fold.val))
    finally:
        if runtime.is_main:
            list_set_aside(fold_folder.parent, plan, {k: trainer.progress.quarantined})
    provenance = {
        "split_hash": plan.splits.hash,
        "fold": k,
        "n_train": len(fold.train),
        "n_val": len(fold.val),
        "best_epoch": progress.best_epoch,
        "frozen_epochs": trainer.schedule.frozen_epochs,
        "best_val_score": progress.best_score,
        "train": _sum_training_cost(progress),
        "quarantined": progress.quarantined,
    }
    val = plan.pick(fold.val)
    best_weights = {key: value.clone() for key, value in model.method.state_dict().items()}
    if trainer.checkpoints.frozen.is_file():
        model.method.load_state_dict(read_tensors(trainer.checkpoints.frozen)[0])
        settled = provenance | _calibrate(trainer, val)
        card = replace(model.card, provenance=settled | {"best_epoch": 0, "frozen_start": True})
        if runtime.is_main:
            save_model(fold_folder / "frozen" / "model", card, model.method.state_dict())
        model.method.load_state_dict(best_weights)
    provenance |= _calibrate(trainer, val)
    if runtime.is_main:
        save_model(fold_folder / "model", replace(model.card, provenance=provenance), best_weights)


def _build_fresh_model(config: RunConfig, plan: Plan, train: Sequence[Case]) -> Model:
    """Build a model with fresh weights; labels of the training part settle its task."""
    labels = [str(case.label) for case in train]
    settled = find("tasks", plan.task).settle(labels, plan.settled)
    card = make_card(config, plan.view, plan.task, plan.task_options, settled)
    card = replace(card, trained_on=plan.trained_on)
    model = build_model(card, pretrained=True)
    options = config.encoder_options | dict(model.method.encoder.resolved)
    return replace(model, card=replace(card, encoder_options=options))


def _calibrate(trainer: Trainer, val: Sequence[Case]) -> dict[str, float | None]:
    """Settle on the validation part how logits become answers: temperature, threshold."""
    logits, target = trainer.answer(val)
    return trainer.model.task.calibrate(logits.cpu(), target.cpu())


def _sum_training_cost(progress: Progress) -> dict[str, float]:
    keys = ("seconds", "seconds_reading", "seconds_computing", "decoded_px", "asked_px")
    return {key: sum(row[key] for row in progress.history) for key in keys}


def train_refit(
    config: RunConfig,
    refit_folder: Path,
    plan: Plan,
    loader: CaseLoader,
    store: FeatureStore,
    display: Display,
    after_epoch: Callable[[Path], None] | None,
    processes: Processes,
) -> None:
    """Train one model on all images, with the settings of the models of the folds.

    What those settled on their validation parts, such as the threshold, is averaged; the number of
    epochs is the median of their best epochs.
    """
    n_folds = len(plan.splits.folds)
    folders = [refit_folder.parent / f"fold_{k}" / "model" for k in range(n_folds)]
    folds = Ensemble(tuple(load_model(folder) for folder in folders))
    about = [member.card.provenance for member in folds.members]
    epochs = round(float(np.median([a["best_epoch"] - a["frozen_epochs"] for a in about])))
    options = replace(config.train, epochs=max(epochs, 0), patience=0)
    torch.manual_seed(options.seed)
    model = _build_fresh_model(config, plan, list(plan.cases.values()))
    runtime = processes.begin(model, refit_folder.name)
    trainer = Trainer(
        model,
        loader,
        refit_folder,
        options,
        runtime=runtime,
        store=store,
        tick=training_bar(display, "refit on all images"),
        say=display.say,
        after_epoch=after_epoch,
    )
    progress = trainer.fit(list(plan.cases.values()), ())
    provenance = {
        "split_hash": plan.splits.hash,
        "refit": True,
        "n_train": len(plan.cases) - len(progress.quarantined),
        "best_epoch": progress.best_epoch,
        "frozen_epochs": trainer.schedule.frozen_epochs,
        **folds.point,
        "train": _sum_training_cost(progress),
        "quarantined": progress.quarantined,
    }
    if runtime.is_main:
        card = replace(model.card, provenance=provenance)
        save_model(refit_folder / "model", card, model.method.state_dict())
