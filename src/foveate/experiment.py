"""From a table to a finished run: scan, split, train each fold, predict its test part, score.

Every step leaves its result in the run folder and is skipped when the result is there, so that the
same command continues a run that was stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.atomic import write_json
from foveate.cases import Case
from foveate.checkpoint import Model, build_model, load_model, save_model
from foveate.config import RunConfig, dump_yaml
from foveate.ensemble import Ensemble
from foveate.errors import TrainingError
from foveate.evaluation import evaluate_rows
from foveate.loading import CaseLoader
from foveate.memory import peak_device_mib, peak_rss_mib
from foveate.metrics import threshold_youden
from foveate.outputs import Display, predict_into, training_bar
from foveate.plan import Plan, make_plan, model_card
from foveate.prediction import Report, predict_cases
from foveate.run_folder import aside, claim, log_to, read_json, read_rows, write_rows
from foveate.state import Progress
from foveate.training import Trainer, build_fabric

log = logging.getLogger("foveate")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its scores, and whether images were set aside."""

    folder: Path
    metrics: dict[str, Any]
    n_quarantined: int


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
    claim(folder, config.as_dict(), dump_yaml(config))
    if (folder / "plan.json").is_file():
        display.say(f"{folder} holds this run already: what is done is kept, the rest follows")
    handlers = [log_to(folder), _Aloud(display)]
    log.addHandler(handlers[1])
    try:
        plan = make_plan(config, folder, display)
        for k in range(len(plan.splits.folds)):
            if not (folder / f"fold_{k}" / "failed.json").is_file():
                _run_fold(config, folder, k, plan, display, after_epoch)
        outcome = _finish(config, folder, plan)
        if config.refit:
            _refit(config, folder, plan, display, after_epoch)
        return outcome
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()


class _Aloud(logging.Handler):
    """Says warnings on the display as well as in the log."""

    def __init__(self, display: Display) -> None:
        super().__init__(logging.WARNING)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        """Say the message."""
        self._display.say(f"warning: {record.getMessage()}")


# -- one fold -------------------------------------------------------------------------------------


def _run_fold(
    config: RunConfig,
    folder: Path,
    k: int,
    plan: Plan,
    display: Display,
    after_epoch: Callable[[Path], None] | None,
) -> None:
    own, fold = folder / f"fold_{k}", plan.splits.folds[k]
    loader = CaseLoader(plan.view, assume_spacing_um=config.view.assume_spacing_um)
    try:
        if not (own / "model" / "model.json").is_file():
            _train_fold(config, own, k, plan, loader, display, after_epoch)
        summary = predict_into(
            own,
            Ensemble((load_model(own / "model"),)),  # the one that never saw the test part
            plan.pick(fold.test),
            loader,
            device=build_fabric(config.train).device,
            heatmaps=folder / "heatmaps",
            n_heatmaps=-(-config.heatmaps // len(plan.splits.folds)),
            display=display,
        )
        write_json(own / "cost.json", summary.cost)
        write_json(own / "failed.json", summary.failed)
    finally:
        loader.close()


def _train_fold(
    config: RunConfig,
    own: Path,
    k: int,
    plan: Plan,
    loader: CaseLoader,
    display: Display,
    after_epoch: Callable[[Path], None] | None,
) -> None:
    fold = plan.splits.folds[k]
    n_folds = len(plan.splits.folds)
    title = f"fold {k + 1} of {n_folds}" if n_folds > 1 else "training"

    tick = training_bar(display, title, config.train.epochs)
    torch.manual_seed(config.train.seed)
    model = _fresh_model(config, plan)
    trainer = Trainer(model, loader, own, config.train, tick=tick, after_epoch=after_epoch)
    progress = trainer.fit(plan.pick(fold.train), plan.pick(fold.val))
    provenance = {
        "split_hash": plan.splits.hash,
        "fold": k,
        "n_train": len(fold.train),
        "n_val": len(fold.val),
        "best_epoch": progress.best_epoch,
        "best_val_loss": progress.best_loss,
        "threshold": _threshold(model, plan.pick(fold.val), loader, trainer),
        "train": _training_cost(progress),
        "quarantined": progress.quarantined,
    }
    card = replace(model.card, provenance=provenance)
    save_model(own / "model", card, model.method.state_dict())


def _fresh_model(config: RunConfig, plan: Plan) -> Model:
    card = model_card(config, plan.view, plan.task, plan.task_options, plan.classes)
    model = build_model(card, pretrained=True)
    settled = config.encoder_options | dict(model.method.encoder.resolved)
    return replace(model, card=replace(card, encoder_options=settled))


def _threshold(
    model: Model, val: Sequence[Case], loader: CaseLoader, trainer: Trainer
) -> float | None:
    """The operating point of a binary task, from the inner validation part alone."""
    if len(model.task.classes) != 2 or not val:
        return None
    found = predict_cases(Ensemble((model,)), val, loader, device=trainer.fabric.device)
    reports = [r for r in found if isinstance(r, Report)]
    target = np.array([model.task.target(str(r.case.label)) for r in reports])
    best = threshold_youden(np.array([r.probabilities[1] for r in reports]), target)
    return 0.5 if best is None else float(best)


def _training_cost(progress: Progress) -> dict[str, float]:
    keys = ("seconds", "seconds_reading", "seconds_computing", "decoded_px", "asked_px")
    return {key: sum(row[key] for row in progress.history) for key in keys}


# -- one model of all images ----------------------------------------------------------------------


def _refit(
    config: RunConfig,
    folder: Path,
    plan: Plan,
    display: Display,
    after_epoch: Callable[[Path], None] | None,
) -> None:
    """Train one model on all usable images, as long as the folds' models were.

    It is scored on nothing, for it has seen everything. What folds settle on their validation
    parts is the mean of theirs: the threshold, and the number of epochs (the median).
    """
    own, n_folds = folder / "refit", len(plan.splits.folds)
    if (own / "model" / "model.json").is_file():
        return
    folds = Ensemble(tuple(load_model(folder / f"fold_{k}" / "model") for k in range(n_folds)))
    kept = [member.card.provenance["best_epoch"] for member in folds.members]
    options = replace(config.train, epochs=max(1, round(float(np.median(kept)))), patience=0)
    loader = CaseLoader(plan.view, assume_spacing_um=config.view.assume_spacing_um)
    try:
        torch.manual_seed(options.seed)
        model = _fresh_model(config, plan)
        tick = training_bar(display, "refit on all images", options.epochs)
        trainer = Trainer(model, loader, own, options, tick=tick, after_epoch=after_epoch)
        progress = trainer.fit(list(plan.cases.values()), ())
    finally:
        loader.close()
    provenance = {
        "split_hash": plan.splits.hash,
        "refit": True,
        "n_train": len(plan.cases) - len(progress.quarantined),
        "best_epoch": progress.best_epoch,
        "threshold": folds.threshold,
        "train": _training_cost(progress),
        "quarantined": progress.quarantined,
    }
    save_model(own / "model", replace(model.card, provenance=provenance), model.method.state_dict())


# -- after training -------------------------------------------------------------------------------


def _finish(config: RunConfig, folder: Path, plan: Plan) -> Outcome:
    """Pool the folds, score them, and write what the report needs."""
    rows, quarantine, costs = [], list(plan.quarantine), []
    for k in range(len(plan.splits.folds)):
        own = folder / f"fold_{k}"
        rows += [row | {"fold": str(k)} for row in read_rows(own / "predictions.csv")]
        provenance = load_model(own / "model").card.provenance
        failed = provenance["quarantined"] | read_json(own / "failed.json")
        quarantine += [
            aside(image_id, plan.cases[image_id].path, f"fold {k}", reason)
            for image_id, reason in failed.items()
        ]
        costs.append((provenance["train"], read_json(own / "cost.json")))
    if quarantine:
        write_rows(folder / "quarantine.csv", quarantine, list(quarantine[0]))
    if not rows:
        raise TrainingError(f"no test image could be predicted; see {folder / 'quarantine.csv'}")
    write_rows(folder / "predictions_oof.csv", rows, list(rows[0]))
    metrics = evaluate_rows(rows, plan.classes, seed=config.split.seed)
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "cost.json", _total_cost(costs))
    return Outcome(folder, metrics, len(quarantine))


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
