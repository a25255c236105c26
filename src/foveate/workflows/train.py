"""From a table to a finished run: scan, split, train each fold, predict its test part, score.

Every step leaves its result in the run folder and is skipped when the result is there, so that the
same command continues a run that was stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.batch.features import FeatureStore
from foveate.errors import TrainingError
from foveate.evaluation.scores import compare_rows, evaluate_rows
from foveate.files.atomic import write_json
from foveate.files.lock import lock_folder
from foveate.loading.loader import CaseLoader
from foveate.memory import peak_device_mib, peak_rss_mib
from foveate.messages.display import Display, training_bar
from foveate.parts import find
from foveate.prediction.outputs import Summary, predict_into
from foveate.runs.card import read_card
from foveate.runs.checkpoint import Model, build_model, load_model, read_tensors, save_model
from foveate.runs.config import RunConfig, dump_yaml
from foveate.runs.folder import aside, check_folder, claim, logged, read_json, read_rows, write_rows
from foveate.runs.models import Ensemble
from foveate.runs.plan import Plan, make_plan, model_card
from foveate.runs.runtime import build_fabric
from foveate.table import Case
from foveate.tasks import restore_task
from foveate.tasks.base import AbstractTask
from foveate.training.loop import Trainer
from foveate.training.state import Progress
from foveate.workflows.words import describe_scores


@dataclass(frozen=True, repr=False)
class Outcome:
    """How a run ended: its scores, whether images were set aside, and what the labels mean."""

    folder: Path
    metrics: dict[str, Any]
    n_quarantined: int
    task: AbstractTask

    def __repr__(self) -> str:
        return f"Run {self.folder}: {describe_scores(self.metrics)}"


def run_experiment(
    config: RunConfig,
    folder: Path,
    display: Display,
    *,
    after_epoch: Callable[[Path], None] | None = None,
) -> Outcome:
    """Train and evaluate as the config says; continues where the same command stopped.

    Raises:
        FoveateError: whatever the user has to mend.
    """
    check_folder(folder)
    with lock_folder(folder):
        claim(folder, config.as_dict(), dump_yaml(config))
        return _run(config, folder, display, after_epoch)


def _run(
    config: RunConfig,
    folder: Path,
    display: Display,
    after_epoch: Callable[[Path], None] | None,
) -> Outcome:
    if (folder / "plan.json").is_file():
        display.say(f"{folder} holds this run already: what is done is kept, the rest follows")
    with logged(folder, display):
        plan = make_plan(config, folder, display)
        _list_set_aside(folder, plan)
        config = plan.config
        store = FeatureStore(folder / "features")
        for k in range(len(plan.splits.folds)):
            if not (folder / f"fold_{k}" / "failed.json").is_file():
                _run_fold(config, folder, k, plan, store, display, after_epoch)
        outcome = _finish(config, folder, plan)
        if config.refit:
            _refit(config, folder, plan, store, display, after_epoch)
        shutil.rmtree(folder / "features", ignore_errors=True)
        return outcome


# -- one fold -------------------------------------------------------------------------------------


def _run_fold(
    config: RunConfig,
    folder: Path,
    k: int,
    plan: Plan,
    store: FeatureStore,
    display: Display,
    after_epoch: Callable[[Path], None] | None,
) -> None:
    own = folder / f"fold_{k}"
    if not (own / "model" / "model.json").is_file():
        loader = _loader(config, plan)
        try:
            _train_fold(config, own, k, plan, loader, store, display, after_epoch)
        finally:
            loader.close()
    n_heatmaps = -(-config.heatmaps // len(plan.splits.folds))
    summary = _predict_test(config, own, k, plan, display, folder / "heatmaps", n_heatmaps)
    if (own / "frozen" / "model" / "model.json").is_file():
        frozen = own / "frozen"
        _predict_test(config, frozen, k, plan, display, frozen / "heatmaps", 0)
    write_json(own / "cost.json", summary.cost)
    write_json(own / "failed.json", summary.failed)


def _predict_test(
    config: RunConfig,
    own: Path,
    k: int,
    plan: Plan,
    display: Display,
    heatmaps: Path,
    n_heatmaps: int,
) -> Summary:
    """Predict the test part of fold k by the model in a folder that never saw it.

    The images are opened anew and closed at once, so that what they cost is the same whether or
    not the run was stopped before.
    """
    loader = _loader(config, plan, keep=False)
    try:
        return predict_into(
            own,
            Ensemble((load_model(own / "model"),), (own / "model",)),
            plan.pick(plan.splits.folds[k].test),
            loader,
            device=build_fabric(config.train).device,
            heatmaps=heatmaps,
            n_heatmaps=n_heatmaps,
            display=display,
            exports=config.export,
        )
    finally:
        loader.close()


def _loader(config: RunConfig, plan: Plan, *, keep: bool = True) -> CaseLoader:
    """What opens the images of a run; with `keep`, those that nobody reads stay open."""
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


def _train_fold(
    config: RunConfig,
    own: Path,
    k: int,
    plan: Plan,
    loader: CaseLoader,
    store: FeatureStore,
    display: Display,
    after_epoch: Callable[[Path], None] | None,
) -> None:
    fold = plan.splits.folds[k]
    n_folds = len(plan.splits.folds)
    title = f"fold {k + 1} of {n_folds}" if n_folds > 1 else "training"

    tick = training_bar(display, title)
    torch.manual_seed(config.train.seed)
    model = _fresh_model(config, plan, plan.pick(fold.train))
    trainer = Trainer(
        model,
        loader,
        own,
        config.train,
        store=store,
        tick=tick,
        say=display.say,
        after_epoch=after_epoch,
    )
    try:
        progress = trainer.fit(plan.pick(fold.train), plan.pick(fold.val))
    finally:
        _list_set_aside(own.parent, plan, {k: trainer.progress.quarantined})
    provenance = {
        "split_hash": plan.splits.hash,
        "fold": k,
        "n_train": len(fold.train),
        "n_val": len(fold.val),
        "best_epoch": progress.best_epoch,
        "frozen_epochs": trainer.schedule.frozen_epochs,
        "best_val_score": progress.best_score,
        "train": _training_cost(progress),
        "quarantined": progress.quarantined,
    }
    val = plan.pick(fold.val)
    kept = {key: value.clone() for key, value in model.method.state_dict().items()}
    if trainer.checkpoints.frozen.is_file():
        model.method.load_state_dict(read_tensors(trainer.checkpoints.frozen)[0])
        settled = provenance | _operating_point(trainer, val)
        card = replace(model.card, provenance=settled | {"best_epoch": 0, "frozen_start": True})
        save_model(own / "frozen" / "model", card, model.method.state_dict())
        model.method.load_state_dict(kept)
    provenance |= _operating_point(trainer, val)
    save_model(own / "model", replace(model.card, provenance=provenance), kept)


def _fresh_model(config: RunConfig, plan: Plan, train: Sequence[Case]) -> Model:
    """A model with fresh weights, and with what its task learns from the training part."""
    labels = [str(case.label) for case in train]
    settled = find("tasks", plan.task).settle(labels, plan.settled)
    card = model_card(config, plan.view, plan.task, plan.task_options, settled)
    card = replace(card, trained_on=plan.trained_on)
    model = build_model(card, pretrained=True)
    settled = config.encoder_options | dict(model.method.encoder.resolved)
    return replace(model, card=replace(card, encoder_options=settled))


def _operating_point(trainer: Trainer, val: Sequence[Case]) -> dict[str, float | None]:
    """How logits become answers, from the inner validation part alone."""
    logits, target = trainer.answer(val)
    return trainer.model.task.calibrate(logits.cpu(), target.cpu())


def _training_cost(progress: Progress) -> dict[str, float]:
    keys = ("seconds", "seconds_reading", "seconds_computing", "decoded_px", "asked_px")
    return {key: sum(row[key] for row in progress.history) for key in keys}


# -- one model of all images ----------------------------------------------------------------------


def _refit(
    config: RunConfig,
    folder: Path,
    plan: Plan,
    store: FeatureStore,
    display: Display,
    after_epoch: Callable[[Path], None] | None,
) -> None:
    """Train one model on all usable images, as long as the folds' models were.

    It is scored on nothing, for it has seen everything. What folds settle on their validation
    parts is the mean of theirs, as the number of epochs is (the median).
    """
    own, n_folds = folder / "refit", len(plan.splits.folds)
    if (own / "model" / "model.json").is_file():
        return
    folds = Ensemble(tuple(load_model(folder / f"fold_{k}" / "model") for k in range(n_folds)))
    about = [member.card.provenance for member in folds.members]
    epochs = round(float(np.median([a["best_epoch"] - a["frozen_epochs"] for a in about])))
    options = replace(config.train, epochs=max(epochs, 0), patience=0)
    loader = _loader(config, plan)
    try:
        torch.manual_seed(options.seed)
        model = _fresh_model(config, plan, list(plan.cases.values()))
        tick = training_bar(display, "refit on all images")
        trainer = Trainer(
            model,
            loader,
            own,
            options,
            store=store,
            tick=tick,
            say=display.say,
            after_epoch=after_epoch,
        )
        progress = trainer.fit(list(plan.cases.values()), ())
    finally:
        loader.close()
    provenance = {
        "split_hash": plan.splits.hash,
        "refit": True,
        "n_train": len(plan.cases) - len(progress.quarantined),
        "best_epoch": progress.best_epoch,
        "frozen_epochs": trainer.schedule.frozen_epochs,
        **folds.point,
        "train": _training_cost(progress),
        "quarantined": progress.quarantined,
    }
    save_model(own / "model", replace(model.card, provenance=provenance), model.method.state_dict())


# -- after training -------------------------------------------------------------------------------


def _finish(config: RunConfig, folder: Path, plan: Plan) -> Outcome:
    """Pool the folds, score them, and write what the report needs."""
    rows, costs = [], []
    for k in range(len(plan.splits.folds)):
        own = folder / f"fold_{k}"
        rows += [row | {"fold": str(k)} for row in read_rows(own / "predictions.csv")]
        provenance = load_model(own / "model").card.provenance
        costs.append((provenance["train"], read_json(own / "cost.json")))
    n_set_aside = _list_set_aside(folder, plan)
    if not rows:
        raise TrainingError(
            f"no test image could be predicted: mend those that {folder / 'quarantine.csv'} lists, "
            "and give another --out"
        )
    write_rows(folder / "predictions_oof.csv", rows, list(rows[0]))
    task = restore_task(plan.task, plan.settled, plan.task_options)
    metrics = evaluate_rows(rows, task)
    start = _frozen_rows(folder, len(plan.splits.folds))
    if start:
        write_rows(folder / "predictions_frozen.csv", start, list(start[0]))
        metrics["frozen"] = evaluate_rows(start, task)["metrics"]
        metrics["gain"] = compare_rows(rows, start, task)
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "cost.json", _total_cost(costs))
    return Outcome(folder, metrics, n_set_aside, task)


def _list_set_aside(
    folder: Path, plan: Plan, training: Mapping[int, Mapping[str, str]] | None = None
) -> int:
    """Write ``quarantine.csv`` of all that is set aside so far; return how many rows it has.

    Args:
        folder: of the run.
        plan: with the images that were set aside before training.
        training: by fold, images that its training has set aside and why, before its model is
            stored.
    """
    rows = list(plan.quarantine)
    for k in range(len(plan.splits.folds)):
        own, reasons = folder / f"fold_{k}", dict((training or {}).get(k, {}))
        if (own / "model" / "model.json").is_file():
            reasons |= read_card(own / "model" / "model.json")[0].provenance["quarantined"]
        if (own / "failed.json").is_file():
            reasons |= read_json(own / "failed.json")
        rows += [aside(i, plan.cases[i].path, f"fold {k}", why) for i, why in reasons.items()]
    if rows:
        write_rows(folder / "quarantine.csv", rows, list(rows[0]))
    return len(rows)


def _frozen_rows(folder: Path, n_folds: int) -> list[dict[str, str]]:
    """Test predictions of the frozen starts; empty where a fold has none."""
    rows = []
    for k in range(n_folds):
        path = folder / f"fold_{k}" / "frozen" / "predictions.csv"
        if not path.is_file():
            return []
        rows += [row | {"fold": str(k)} for row in read_rows(path)]
    return rows


def _total_cost(costs: Sequence[tuple[dict[str, float], dict[str, float]]]) -> dict[str, float]:
    train = {key: sum(t[key] for t, _ in costs) for key in costs[0][0]}
    test = {key: sum(t[key] for _, t in costs) for key in costs[0][1]}
    return {
        "seconds": train["seconds"] + test["seconds"],
        "seconds_reading": train["seconds_reading"] + test["seconds_reading"],
        "seconds_computing": train["seconds_computing"] + test["seconds_computing"],
        "peak_rss_mib": peak_rss_mib(),
        "peak_device_mib": peak_device_mib(),
        "train_decoded_px": train["decoded_px"],
        "decoded_px": test["decoded_px"],
        "asked_px": test["asked_px"],
        "level0_px": test["level0_px"],
        "decoded_fraction": test["decoded_px"] / max(test["level0_px"], 1),
        "seconds_per_image": test["seconds"] / max(test["n_images"], 1),
    }
