"""From a table to a finished run: scan, split, train each fold, predict its test part, score.

Every step leaves its result in the run folder and is skipped when the result is there, so that the
same command continues a run that was stopped.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.batch.features import FeatureStore
from foveate.checks.stored import read_stored_check
from foveate.errors import TrainingError
from foveate.evaluation.calibration import evaluate_uncalibrated
from foveate.evaluation.scores import compare_rows, evaluate_rows
from foveate.files.atomic import write_bytes, write_json
from foveate.files.digest import file_sha256
from foveate.files.lock import lock_folder
from foveate.files.run_layout import FoldLayout, RunLayout
from foveate.memory import peak_device_mib, peak_rss_mib
from foveate.messages.display import Display
from foveate.prediction.options import PredictOptions
from foveate.prediction.outputs import PredictionJob, Summary, predict_into
from foveate.runs.checkpoint import load_model
from foveate.runs.config import RunConfig, dump_yaml
from foveate.runs.folder import (
    check_folder,
    claim_folder,
    log_into,
    read_json,
    read_rows,
    write_rows,
)
from foveate.runs.max_failed import check_failed
from foveate.runs.models import Ensemble
from foveate.runs.plan import Plan, make_plan
from foveate.table import CaseTable
from foveate.tasks import restore_task
from foveate.tasks.base import AbstractTask
from foveate.wording import several
from foveate.workflows.folds import (
    Processes,
    TrainingRun,
    list_set_aside,
    make_loader,
    train_fold,
    train_refit,
)
from foveate.workflows.missing import (
    check_frozen_start,
    check_records,
    list_missing_of_training,
    list_missing_results,
)
from foveate.workflows.words import describe_scores


@dataclass(frozen=True, repr=False)
class RunResult:
    """The result of a run.

    Attributes:
        folder: folder of the run.
        metrics: content of ``metrics.json``.
        n_set_aside: number of images that were set aside.
        task: task of the run, which gives the labels their meaning.
        n_images: number of images of the table, with those that were set aside.
    """

    folder: Path
    metrics: dict[str, Any]
    n_set_aside: int
    task: AbstractTask
    n_images: int = 0

    def __repr__(self) -> str:
        return f"Run {self.folder}: {describe_scores(self.metrics)}"


def run_experiment(
    config: RunConfig,
    folder: Path,
    display: Display,
    *,
    table: CaseTable | None = None,
    after_epoch: Callable[[Path], None] | None = None,
) -> RunResult:
    """Train and evaluate as the config says; continue where the same command stopped.

    Args:
        config: config of the run.
        folder: folder of the run.
        display: shows messages and progress.
        table: the table of the config, if it has been read.
        after_epoch: called with the folder of the fold after each epoch.

    Raises:
        FoveateError: an error that the user can correct.
    """
    check_folder(folder)
    check_records(folder)
    with lock_folder(folder):
        claim_folder(folder, config.as_dict(), dump_yaml(config))
        with log_into(folder, display) as logged:
            return _run(config, folder, logged, table, after_epoch)


def _run(
    config: RunConfig,
    folder: Path,
    display: Display,
    table: CaseTable | None,
    after_epoch: Callable[[Path], None] | None,
) -> RunResult:
    layout = RunLayout(folder)
    if layout.plan.is_file():
        display.say(
            f"{folder} holds this run already: finished steps are kept, and the others follow"
        )
    plan = make_plan(config, folder, display, table)
    check_set_aside(config, folder, list_set_aside(folder, plan), _count_images(plan))
    _take_check(config, layout, display)
    store, processes = FeatureStore(layout.features), Processes(plan.config, folder)
    run = TrainingRun(folder, plan, store, processes, display, after_epoch)
    try:
        for k in range(len(plan.splits.folds)):
            _run_fold(run, k)
        result = _score_run(folder, plan)
        # The refit has no score, because it is trained with all images.
        if plan.config.refit:
            if list_missing_of_training(layout.refit, refit=True):
                train_refit(run)
            _draw_curves(run, layout.refit)
        processes.close()
    finally:
        if processes.runtime is not None:
            processes.runtime.stop()
    shutil.rmtree(layout.features, ignore_errors=True)
    return result


def _take_check(config: RunConfig, layout: RunLayout, display: Display) -> None:
    """Store what a check of the table has found, for the report."""
    stored, sentence = read_stored_check(Path(config.table.path))
    display.say(sentence)
    if stored:
        write_json(layout.check, stored)


# -- one fold -------------------------------------------------------------------------------------


def _run_fold(run: TrainingRun, k: int) -> None:
    """Train the model of fold k, and predict the fold's test part, where results are missing."""
    layout = RunLayout(run.folder)
    fold = layout.fold(k)
    if missing := list_missing_results(layout, k, run.plan.splits.folds[k].test):
        if fold.failed.is_file():
            names = several([str(path.relative_to(run.folder)) for path in missing])
            run.display.say(f"missing in {run.folder}, so made again: {names}")
        if list_missing_of_training(fold):
            train_fold(run, k)
            check_frozen_start(fold)
        _predict_fold(run, k)
    _draw_curves(run, fold)


def _draw_curves(run: TrainingRun, fold: FoldLayout) -> None:
    """Draw the figures of a finished training again if they are missing or lack its last epochs."""
    if run.after_epoch is None or not fold.epochs.is_file():
        return
    written_at = fold.epochs.stat().st_mtime_ns
    if not fold.curves.is_file() or fold.curves.stat().st_mtime_ns < written_at:
        fold.curves.unlink(missing_ok=True)
        run.after_epoch(fold.folder)


def _predict_fold(run: TrainingRun, k: int) -> None:
    """Predict the test part of fold k by its model, and by that of its frozen start.

    If both models have the same weights, the answers of one are those of the other.
    """
    layout = RunLayout(run.folder)
    fold = layout.fold(k)
    n_heatmaps = -(-run.config.heatmaps // len(run.plan.splits.folds))
    summary = _predict_test(run, k, fold, layout.heatmaps_folder, n_heatmaps)
    if fold.frozen.model.is_complete:
        weights = (layout.model.weights for layout in (fold, fold.frozen))
        if len({file_sha256(path) for path in weights}) > 1:
            _predict_test(run, k, fold.frozen, fold.frozen.heatmaps_folder, 0)
        else:
            write_bytes(fold.frozen.predictions, fold.predictions.read_bytes())
    write_json(fold.cost, summary.cost)
    write_json(fold.failed, summary.failed)


def _predict_test(
    run: TrainingRun, k: int, layout: FoldLayout, heatmaps: Path, n_heatmaps: int
) -> Summary:
    """Predict the test part of fold k by the model in a folder, which was not trained with it.

    The images are opened again and closed at once, so that their cost is the same for a run that
    was stopped and continued.
    """
    models = Ensemble((load_model(layout.model_folder),), (layout.model_folder,))
    with contextlib.closing(make_loader(run.config, run.plan, keep=False)) as loader:
        options = PredictOptions(
            heatmaps=n_heatmaps, export=run.config.export, device=run.config.train.device
        )
        job = PredictionJob(
            layout.folder,
            models,
            loader,
            options,
            heatmaps=heatmaps,
            display=run.display,
            others="replace",
        )
        return predict_into(job, run.plan.pick(run.plan.splits.folds[k].test))


# -- after training -------------------------------------------------------------------------------


def _score_run(folder: Path, plan: Plan) -> RunResult:
    """Pool and score the predictions of the folds, and write the inputs of the report."""
    layout, rows, costs, points = RunLayout(folder), [], [], {}
    for k in range(len(plan.splits.folds)):
        fold = layout.fold(k)
        rows += [row | {"fold": str(k)} for row in read_rows(fold.predictions)]
        provenance = load_model(fold.model_folder).card.provenance
        costs.append((provenance["train"], read_json(fold.cost)))
        points[str(k)] = provenance
    n_set_aside = list_set_aside(folder, plan)
    if not rows:
        raise TrainingError(
            f"no test image could be predicted: mend those that {layout.quarantine} lists, "
            "and give another --out"
        )
    write_rows(layout.predictions, rows, list(rows[0]))
    task = restore_task(plan.task, plan.settled, plan.task_options)
    metrics = evaluate_rows(rows, task) | evaluate_uncalibrated(rows, task, points)
    start = _read_frozen_rows(folder, len(plan.splits.folds))
    if start:
        write_rows(layout.frozen_predictions, start, list(start[0]))
        metrics["frozen"] = evaluate_rows(start, task)["metrics"]
        metrics["gain"] = compare_rows(rows, start, task)
    write_json(layout.metrics, metrics)
    write_json(layout.cost, _sum_cost(costs))
    return RunResult(folder, metrics, n_set_aside, task, _count_images(plan))


def _count_images(plan: Plan) -> int:
    """Return the number of images of the table, with those that the plan set aside."""
    return len(plan.cases) + len(plan.quarantine)


def check_set_aside(config: RunConfig, folder: Path, n_set_aside: int, n_images: int) -> None:
    """Check that no more images were set aside than ``--max-failed`` allows.

    Args:
        config: config of the run, with the limit.
        folder: folder of the run.
        n_set_aside: number of images that were set aside.
        n_images: number of all images.

    Raises:
        TooManyFailed: more were set aside.
    """
    check_failed(config.max_failed, n_set_aside, n_images, RunLayout(folder).quarantine)


def _read_frozen_rows(folder: Path, n_folds: int) -> list[dict[str, str]]:
    """Read the test predictions of the frozen starts; empty where a fold has none."""
    rows = []
    for k in range(n_folds):
        path = RunLayout(folder).fold(k).frozen.predictions
        if not path.is_file():
            return []
        rows += [row | {"fold": str(k)} for row in read_rows(path)]
    return rows


def _sum_cost(costs: Sequence[tuple[dict[str, float], dict[str, float]]]) -> dict[str, float]:
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
