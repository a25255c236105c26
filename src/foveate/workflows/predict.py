"""The commands ``predict`` and ``evaluate``: a trained run on new images.

All models of a run answer together (`foveate.runs.models`); ``answer.json`` names them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.errors import CheckpointError, FolderInUse, TableError, UnreadableImage
from foveate.evaluation import audit
from foveate.evaluation.scores import evaluate_rows
from foveate.files.atomic import remove_partial_files, write_json
from foveate.files.lock import is_locked, lock_folder
from foveate.files.run_layout import PredictionLayout
from foveate.loading.gather import gather_cases
from foveate.messages.display import Display, OnUpdate, as_display
from foveate.prediction.job_array import JobPart, parse_part
from foveate.prediction.options import EvaluateOptions, PredictOptions
from foveate.prediction.outputs import PredictionJob, Summary, predict_into, predict_part
from foveate.prediction.predict import open_loader
from foveate.prediction.worker_choice import open_workers
from foveate.readers import is_image_folder
from foveate.reports import write_predictions
from foveate.runs.folder import check_out, log_into, make_quarantine_row, write_rows
from foveate.runs.max_failed import check_failed
from foveate.runs.models import Ensemble, find_models
from foveate.runtime import find_device
from foveate.table import (
    Case,
    CaseTable,
    LabelRules,
    NamedColumns,
    bag_by_patient,
    check_new_names,
    describe_factors,
    read_cases,
    with_known_labels,
)
from foveate.table.frames import store_table
from foveate.workflows.trained_images import find_trained_images, warn_of_trained_images
from foveate.workflows.words import describe_scores

if TYPE_CHECKING:
    import pandas as pd


def predict(
    run: Path | str,
    images: Path | str | Iterable[Path | str],
    out: Path | str,
    options: PredictOptions | None = None,
    *,
    on_progress: OnUpdate | Display | None = None,
) -> Summary:
    """Predict images with a trained run; write a table, heatmaps and GeoJSON.

    The same call continues where an earlier one stopped. Images that fail are listed in
    ``quarantine.csv``. The table does not depend on how the images are divided among workers and
    parts.

    Args:
        run: the folder that `train` wrote, or the folder of one model.
        images: files, folders, or a table.
        out: folder for the results.
        options: how the run predicts, such as ``PredictOptions(heatmaps=10)``.
        on_progress: called with the progress of the work.

    Returns:
        The predictions, or of a part only the failures; `Summary.to_frame` returns a data frame.

    Raises:
        UnreadableImage: none of the images could be predicted.
        CheckpointError: there is no complete model, or `out` holds something else.
        FolderInUse: another process writes into `out`.
        TooManyFailed: more images failed than `options.max_failed` allows.

    Example:
        >>> options = foveate.PredictOptions(heatmaps=1)
        >>> foveate.predict("runs/first", "new", "predictions", options)
        2 images predicted (…), 0 failed
    """
    run, out, options = Path(run), Path(out), options or PredictOptions()
    display = as_display(on_progress)
    paths = [Path(path) for path in ([images] if isinstance(images, str | Path) else images)]
    part = _read_part(options)
    check_out(out, run)
    for path in paths:
        if path.is_dir() and path.resolve() == out.resolve():
            raise CheckpointError(
                f"--out {out} is the folder of the images, among which pictures would be "
                "written: give another --out"
            )
    models = find_models(run)
    command = _Command("predict", models, out, options, display)
    rules = replace(_rule_labels(models), needed=False)
    table = _join_patients(gather_cases(paths, rules, readers=models.card.readers), models)
    if part is not None:
        return _predict_part(command, table, part)
    with _lock_output(out, display) as logged:
        summary = _predict(replace(command, display=logged), table)
        write_predictions(out, command.models)
    if not summary.rows:
        first = next(iter(summary.failed.values()), "there is none")
        raise UnreadableImage(f"no image could be predicted; the first: {first}. Mend this")
    _check_failed(command, summary)
    return summary


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Scores of a run on a labelled table.

    Attributes:
        metrics: content of ``metrics.json``; empty for a part of the images.
        failed: by image id, why an image could not be predicted.
    """

    metrics: dict[str, Any]
    failed: dict[str, str]

    def __repr__(self) -> str:
        if not self.metrics:
            return f"a part of the images, {len(self.failed)} failed"
        return describe_scores(self.metrics)


def evaluate(
    run: Path | str,
    table: pd.DataFrame | Path | str,
    out: Path | str,
    options: EvaluateOptions | None = None,
    *,
    on_progress: OnUpdate | Display | None = None,
) -> Evaluation:
    """Score a trained run on a labelled table that it has never seen.

    The same call continues where an earlier one stopped. Images that a model which answers was
    trained with are counted under ``n_seen_in_training``, and a warning names their number. With
    `options.audit_layout`, `foveate.evaluation.audit` adds its result under ``layout``.

    Args:
        run: the folder that `train` wrote, or the folder of one model.
        table: a file or a data frame, with a column of paths and one of labels.
        out: folder for the results.
        options: how the table is read and predicted, such as ``EvaluateOptions(label="grade")``.
        on_progress: called with the progress of the work.

    Returns:
        The scores, or of a part only the failures.

    Raises:
        OptionError: a label is renamed to a name that is no class, or does not occur.
        TableError: the model knows none of the labels, or no image could be predicted.
        CheckpointError: there is no complete model, or `out` holds something else.
        FolderInUse: another process writes into `out`.
        TooManyFailed: more images failed than `options.max_failed` allows.

    Example:
        >>> evaluation = foveate.evaluate("runs/first", "other.csv", "external")
        >>> evaluation.metrics["metrics"]
        {…}
    """
    run, out, options = Path(run), Path(out), options or EvaluateOptions()
    display, stored = as_display(on_progress), store_table(table, out)
    if options.images is None:
        options = replace(options, images=stored.get("images"))
    path = Path(stored["path"])
    part = _read_part(options)
    check_out(out, run)
    models = find_models(run)
    command = _Command("evaluate", models, out, options, display)
    read = _join_patients(_read_labelled(path, options, models), models)
    if part is not None:
        return Evaluation({}, _predict_part(command, read, part).failed)
    with _lock_output(out, display) as logged:
        summary = _predict(replace(command, display=logged), read)
        if not summary.rows:
            listed = PredictionLayout(out).quarantine
            raise TableError(f"no image of {path} could be predicted; see {listed}")
        metrics = _write_scores(replace(command, display=logged), read, summary)
    _check_failed(command, summary)
    return Evaluation(metrics, summary.failed)


def _write_scores(command: _Command, read: CaseTable, summary: Summary) -> dict[str, Any]:
    """Score the predictions of a labelled table, audit them if that is asked for, and write all."""
    command.display.say("scoring, with intervals over patients")
    metrics = _score_summary(summary)
    options = command.options
    if isinstance(options, EvaluateOptions) and options.audit_layout:
        good = [case for case in read.cases if case.image_id not in summary.failed]
        metrics["layout"] = _audit_layout(command.models, good, options)
    write_json(PredictionLayout(command.out).metrics, metrics)
    write_predictions(command.out, command.models)
    return metrics


@dataclass(frozen=True)
class _Command:
    """A command that predicts, with everything but its images.

    Attributes:
        name: ``predict`` or ``evaluate``.
        models: models that answer.
        out: folder for the results.
        options: how the models predict.
        display: shows messages and progress.
    """

    name: str
    models: Ensemble
    out: Path
    options: PredictOptions
    display: Display


def _read_part(options: PredictOptions) -> JobPart | None:
    """Return the part of the images to predict, which a job array states in the environment."""
    return None if options.part is None else parse_part(options.part, os.environ)


def _read_labelled(path: Path, options: EvaluateOptions, models: Ensemble) -> CaseTable:
    """Read a table, rename its labels, and set rows aside whose label the models do not know.

    Raises:
        OptionError: a label is renamed to a name that is no class, or does not occur.
        TableError: the models know none of the labels; the message names the file at `path`.
    """
    renamed = options.renamed or {}
    check_new_names(renamed, models.task)
    cases = read_cases(
        path,
        files=None if options.files is None else Path(options.files),
        images=None if options.images is None else Path(options.images),
        columns=NamedColumns(label=options.label),
        labels=replace(_rule_labels(models), renamed=renamed),
        is_image=partial(is_image_folder, options=models.card.readers),
    )
    try:
        return with_known_labels(cases, models.task)
    except TableError as error:
        raise TableError(f"{path}: {error}") from None


def _join_patients(table: CaseTable, models: Ensemble) -> CaseTable:
    """Join the images of each patient where the models answer about patients."""
    return bag_by_patient(table) if models.card.bag == "patient" else table


def _rule_labels(models: Ensemble) -> LabelRules:
    """Return the rules by which labels of a table are read as those of the training were."""
    return LabelRules(
        known=models.task.known_labels,
        for_training=False,
        task=models.card.task,
        task_options=models.card.task_options,
        renamed_in_training=models.card.renamed,
    )


def _score_summary(summary: Summary) -> dict[str, Any]:
    """Score predictions, and count the images that a model which answers was trained with."""
    rows = [{k: str(v) for k, v in row.items()} for row in summary.rows]
    n_seen = sum(row["in_training"] != "" for row in rows)
    return evaluate_rows(rows, summary.task) | {"n_seen_in_training": n_seen}


@contextlib.contextmanager
def _lock_output(out: Path, display: Display) -> Iterator[Display]:
    """Lock `out` for this process, remove half-written files, and write a log there.

    Yields:
        A display whose lines are written to the log.

    Raises:
        FolderInUse: another process predicts all images, or a part of them.
    """
    with lock_folder(out):
        for part in sorted(PredictionLayout(out).parts.glob("*/")):
            if is_locked(part):
                raise FolderInUse(
                    f"{out}: part {part.name.replace('_of_', '/')} is still being predicted; wait "
                    "until it has ended"
                )
        remove_partial_files(out)
        with log_into(out, display) as logged:
            yield logged


def _audit_layout(
    models: Ensemble, cases: Sequence[Case], options: PredictOptions
) -> dict[str, Any]:
    with contextlib.closing(open_loader(models, options.assume_spacing_um)) as loader:
        result = audit.audit_layout(models, cases, loader, device=find_device(options.device))
    return {**asdict(result), "uses_layout": result.uses_layout, "summary": result.describe()}


def _predict(command: _Command, table: CaseTable) -> Summary:
    """Predict the images of a table, and write all results into the folder of the command."""
    models, out, display = command.models, command.out, command.display
    _show_notes(models, table, display)
    use_in_training = find_trained_images(models, table.cases)
    warn_of_trained_images(use_in_training, len(table.cases), display)
    with _open_job(command) as job:
        summary = predict_into(job, table.cases, use_in_training)
    if contradiction := describe_factors(summary.factors):
        display.say(contradiction)
    _warn_of_unlike_images(summary, display)
    _write_set_aside(out, table, summary)
    summary.failed |= {row.image_id: row.reason for row in table.set_aside}
    write_json(PredictionLayout(out).cost, {"models": len(models), **summary.cost})
    write_json(PredictionLayout(out).models, models.record())
    return summary


def _show_notes(models: Ensemble, table: CaseTable, display: Display) -> None:
    """Show what is to be known of the table, and which models answer."""
    for note in table.notes:
        display.say(note)
    display.say(models.describe())


def _warn_of_unlike_images(summary: Summary, display: Display) -> None:
    """Warn that images are unlike those of training."""
    n_unlike = sum(bool(row["unlike"]) for row in summary.rows)
    if n_unlike:
        display.say(
            f"warning: {n_unlike} of {len(summary.rows)} images are unlike those of training; "
            "their answers mean little. The column unlike says why"
        )


def _write_set_aside(out: Path, table: CaseTable, summary: Summary) -> None:
    """Write ``quarantine.csv`` with rows and images that were set aside; delete it if none was."""
    paths = {case.image_id: case.paths for case in table.cases}
    paths |= {i.image_id: str(i.path) for case in table.cases for i in case.list_images()}
    rows = [
        make_quarantine_row(row.image_id, row.path, "table", row.reason) for row in table.set_aside
    ] + [
        make_quarantine_row(i, paths[i], "predict", reason) for i, reason in summary.failed.items()
    ]
    if rows:
        write_rows(PredictionLayout(out).quarantine, rows, list(rows[0]))
    else:
        PredictionLayout(out).quarantine.unlink(missing_ok=True)


def _check_failed(command: _Command, summary: Summary) -> None:
    """Check that no more images failed than ``--max-failed`` allows, when all is written."""
    n_failed, quarantine = len(summary.failed), PredictionLayout(command.out).quarantine
    n_images = len(summary.rows) + n_failed
    check_failed(command.options.max_failed, n_failed, n_images, quarantine)


@contextlib.contextmanager
def _open_job(command: _Command) -> Iterator[PredictionJob]:
    """Open loader and workers for a prediction, and close them at the end of the block."""
    models, options = command.models, command.options
    with (
        contextlib.closing(open_loader(models, options.assume_spacing_um)) as loader,
        open_workers(models, options) as workers,
    ):
        yield PredictionJob(
            command.out,
            models,
            loader,
            options,
            heatmaps=PredictionLayout(command.out).heatmaps_folder,
            display=command.display,
            others="refuse",
            command={"command": command.name, "--spacing-um": options.assume_spacing_um},
            workers=workers,
        )


def _predict_part(command: _Command, table: CaseTable, part: JobPart) -> Summary:
    """Predict one part of the images, while other processes predict other parts.

    Raises:
        FolderInUse: another process predicts this part, or all images.
    """
    out = command.out
    folder = PredictionLayout(out).part(part.folder).folder
    with _lock_output(folder, command.display) as logged:
        command = replace(command, display=logged)
        if is_locked(out):
            raise FolderInUse(f"{out}: another foveate writes there; wait until it has ended")
        _show_notes(command.models, table, command.display)
        with _open_job(command) as job:
            failed = predict_part(job, part, table.cases)
    return Summary(command.models.task, failed=failed)
