"""From a table to a finished run: scan, split, train each fold, predict its test part, score.

Every step leaves its result in the run folder and is skipped when the result is there, so that the
same command continues a run that was stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.atomic import write_json
from foveate.batch import View
from foveate.cases import (
    Case,
    CaseTable,
    Splits,
    load_splits,
    make_splits,
    read_cases,
    save_splits,
)
from foveate.checkpoint import Model, ModelCard, build_model, load_model, save_model
from foveate.config import RunConfig, dump_yaml
from foveate.errors import SplitError, TrainingError
from foveate.evaluation import evaluate_rows
from foveate.loading import CaseLoader, choose_view, scan_cases
from foveate.memory import peak_device_mib, peak_rss_mib
from foveate.metrics import threshold_youden
from foveate.outputs import Display, predict_into
from foveate.prediction import Report, predict_cases
from foveate.run_folder import claim, log_to, read_json, read_rows, write_rows
from foveate.state import Progress
from foveate.tasks import build_task
from foveate.training import Trainer, build_fabric

log = logging.getLogger("foveate")

_QUARANTINE_COLUMNS = ("image_id", "path", "stage", "reason")


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its scores, and whether images were set aside."""

    folder: Path
    metrics: dict[str, Any]
    n_quarantined: int


@dataclass(frozen=True)
class _Plan:
    """What is settled before the first step and stored; a resumed run goes the same way."""

    view: View
    task: str
    classes: tuple[str, ...]
    task_options: dict[str, Any]
    cases: dict[str, Case]
    quarantine: list[dict[str, str]]
    splits: Splits


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
        plan = _plan(config, folder, display)
        for k in range(len(plan.splits.folds)):
            if not (folder / f"fold_{k}" / "failed.json").is_file():
                _run_fold(config, folder, k, plan, display, after_epoch)
        return _finish(config, folder, plan)
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


# -- before training ------------------------------------------------------------------------------


def _plan(config: RunConfig, folder: Path, display: Display) -> _Plan:
    table = _read_table(config, display)
    labels = [str(case.label) for case in table.cases]
    task = build_task(config.task, labels, config.task_options)
    name = type(task).__module__.rsplit(".", 1)[-1].rstrip("_")
    display.say(f"task: {name}, classes {', '.join(task.classes)} (in this order)")
    stored = folder / "plan.json"
    options = dict(config.task_options)
    if name == "binary":
        options["positive"] = task.classes[1]
    if not stored.is_file():
        _check_parts(config, name, options, task.classes)
        _settle(config, folder, table, display)
    content = read_json(stored)
    fit = content["view"].pop("fit")
    view = View(**content["view"], fit=None if fit is None else tuple(fit))
    quarantine: list[dict[str, str]] = content["quarantine"]
    bad = {row["image_id"] for row in quarantine}
    cases = {c.image_id: c for c in table.cases if c.image_id not in bad}
    splits = load_splits(folder / "splits.json")
    try:
        splits.check(list(cases.values()))
    except SplitError as error:
        raise SplitError(f"{folder / 'splits.json'}: {error}") from None
    return _Plan(view, name, task.classes, options, cases, quarantine, splits)


def _read_table(config: RunConfig, display: Display) -> CaseTable:
    options = config.table
    table = read_cases(
        Path(options.path),
        images=None if options.images is None else Path(options.images),
        label=options.label,
        patient=options.patient,
        path=options.image,
        labels_wanted=options.classes,
    )
    for note in table.notes:
        display.say(note)
    if not config.permute_labels:
        return table
    # Before the split: folds stratified by the true labels would hold uneven shares of the new
    # ones, and a fold's test part would lack what its training part has too many of.
    display.say("labels are shuffled over patients: the scores must be those of chance")
    return replace(table, cases=_permuted(table.cases, config.split.seed))


def _settle(config: RunConfig, folder: Path, table: CaseTable, display: Display) -> None:
    """Open every image once, choose the view, divide the patients, and write it all down."""
    scan = scan_cases(
        table.cases, config.view, lambda done, total: display.bar("opening images", done, total)
    )
    quarantine = [_aside(row.image_id, row.path, "table", row.reason) for row in table.set_aside]
    quarantine += [
        _aside(c.image_id, c.path, "open", scan.failed[c.image_id])
        for c in table.cases
        if c.image_id in scan.failed
    ]
    for row in quarantine:
        display.say(f"set aside {row['image_id']}: {row['reason']}")
    usable = [case for case in table.cases if case.image_id in scan.facts]
    if not usable:
        reason = quarantine[0]["reason"] if quarantine else "the table is empty"
        raise TrainingError(f"no image of {config.table.path} can be read; the first: {reason}")
    view = choose_view(scan.facts.values(), config.view)
    display.say(_told(view, [fact.shape for fact in scan.facts.values()]))
    split = config.split
    splits = make_splits(
        usable,
        folds=split.folds,
        test_fraction=split.test_fraction,
        val_fraction=split.val_fraction,
        seed=split.seed,
    )
    labels = {case.image_id: str(case.label) for case in usable}
    save_splits(splits, folder / "splits.json", labels=labels)
    write_json(folder / "plan.json", {"view": asdict(view), "quarantine": quarantine})


def _check_parts(
    config: RunConfig, task: str, options: dict[str, Any], classes: tuple[str, ...]
) -> None:
    """Build the model once, without weights, before the images cost any time.

    Raises:
        UnknownName, OptionError: a part or an option does not exist.
    """
    view = View(1.0, config.view.patch_px, 1.0)
    build_model(_card(config, view, task, options, classes), pretrained=False)


def _told(view: View, shapes: Sequence[tuple[int, ...]]) -> str:
    """The view in words."""
    unit = "um per pixel" if view.unit == "um" else "pixels of the picture per pixel"
    told = (
        f"view: patches of {view.patch_px} px at {view.spacing_um:g} {unit}, "
        f"glimpse at {view.glimpse_spacing_um:g}"
    )
    if view.unit == "um":
        return told
    told += "\nno spacing: these pictures state no pixel size, so lengths count in pixels"
    if view.fit is None and len(set(shapes)) > 1:
        told += "; their sizes differ: if size could give the class away, use --view.fit 1024x1024"
    return told


def _aside(image_id: str, path: object, stage: str, reason: str) -> dict[str, str]:
    return {"image_id": image_id, "path": str(path), "stage": stage, "reason": reason}


def _permuted(cases: Sequence[Case], seed: int) -> tuple[Case, ...]:
    """Labels shuffled over patients; every image of a patient gets the patient's new label."""
    first = {c.patient_id: str(c.label) for c in sorted(cases, key=lambda c: c.image_id)}
    patients = sorted(first)
    order = np.random.default_rng((seed, 17)).permutation(len(patients))
    label = {p: first[patients[i]] for p, i in zip(patients, order, strict=True)}
    return tuple(replace(case, label=label[case.patient_id]) for case in cases)


# -- one fold -------------------------------------------------------------------------------------


def _run_fold(
    config: RunConfig,
    folder: Path,
    k: int,
    plan: _Plan,
    display: Display,
    after_epoch: Callable[[Path], None] | None,
) -> None:
    own, fold = folder / f"fold_{k}", plan.splits.folds[k]
    loader = CaseLoader(plan.view, assume_spacing_um=config.view.assume_spacing_um)
    try:
        if not (own / "model" / "model.json").is_file():
            _train_fold(config, own, k, plan, loader, display, after_epoch)
        model = load_model(own / "model")
        summary = predict_into(
            own,
            model,
            _pick(plan, fold.test),
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
    plan: _Plan,
    loader: CaseLoader,
    display: Display,
    after_epoch: Callable[[Path], None] | None,
) -> None:
    fold = plan.splits.folds[k]
    n_folds = len(plan.splits.folds)
    title = f"fold {k + 1} of {n_folds}" if n_folds > 1 else "training"

    def tick(epoch: int, step: int, steps: int, running: dict[str, float]) -> None:
        share = running["seconds_reading"] / max(running["seconds"], 1e-9)
        note = (
            f"epoch {epoch + 1}  loss {running['train_loss']:.4f}  waiting for pixels {share:.0%}"
        )
        display.bar(title, epoch * steps + step, config.train.epochs * steps, note)

    torch.manual_seed(config.train.seed)
    model = _fresh_model(config, plan)
    trainer = Trainer(model, loader, own, config.train, tick=tick, after_epoch=after_epoch)
    progress = trainer.fit(_pick(plan, fold.train), _pick(plan, fold.val))
    provenance = {
        "split_hash": plan.splits.hash,
        "fold": k,
        "n_train": len(fold.train),
        "n_val": len(fold.val),
        "best_epoch": progress.best_epoch,
        "best_val_loss": progress.best_loss,
        "threshold": _threshold(model, _pick(plan, fold.val), loader, trainer),
        "train": _training_cost(progress),
        "quarantined": progress.quarantined,
    }
    card = replace(model.card, provenance=provenance)
    save_model(own / "model", card, model.method.state_dict())


def _card(
    config: RunConfig, view: View, task: str, options: dict[str, Any], classes: tuple[str, ...]
) -> ModelCard:
    return ModelCard(
        method=config.method,
        method_options=config.method_options,
        encoder=config.encoder,
        encoder_options=config.encoder_options,
        task=task,
        task_options=options,
        classes=classes,
        view=view,
        assume_spacing_um=config.view.assume_spacing_um,
    )


def _fresh_model(config: RunConfig, plan: _Plan) -> Model:
    card = _card(config, plan.view, plan.task, plan.task_options, plan.classes)
    model = build_model(card, pretrained=True)
    settled = config.encoder_options | dict(model.method.encoder.resolved)
    return replace(model, card=replace(card, encoder_options=settled))


def _threshold(
    model: Model, val: Sequence[Case], loader: CaseLoader, trainer: Trainer
) -> float | None:
    """The operating point of a binary task, from the inner validation part alone."""
    if len(model.task.classes) != 2 or not val:
        return None
    found = predict_cases(model, val, loader, device=trainer.fabric.device)
    reports = [r for r in found if isinstance(r, Report)]
    target = np.array([model.task.target(str(r.case.label)) for r in reports])
    best = threshold_youden(np.array([r.probabilities[1] for r in reports]), target)
    return 0.5 if best is None else float(best)


def _training_cost(progress: Progress) -> dict[str, float]:
    keys = ("seconds", "seconds_reading", "seconds_computing", "decoded_px", "asked_px")
    return {key: sum(row[key] for row in progress.history) for key in keys}


def _pick(plan: _Plan, image_ids: Sequence[str]) -> list[Case]:
    return [plan.cases[i] for i in image_ids]


# -- after training -------------------------------------------------------------------------------


def _finish(config: RunConfig, folder: Path, plan: _Plan) -> Outcome:
    """Pool the folds, score them, and write what the report needs."""
    rows, quarantine, costs = [], list(plan.quarantine), []
    for k in range(len(plan.splits.folds)):
        own = folder / f"fold_{k}"
        rows += [row | {"fold": str(k)} for row in read_rows(own / "predictions.csv")]
        provenance = load_model(own / "model").card.provenance
        failed = provenance["quarantined"] | read_json(own / "failed.json")
        quarantine += [
            _aside(image_id, plan.cases[image_id].path, f"fold {k}", reason)
            for image_id, reason in failed.items()
        ]
        costs.append((provenance["train"], read_json(own / "cost.json")))
    if quarantine:
        write_rows(folder / "quarantine.csv", quarantine, _QUARANTINE_COLUMNS)
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
