"""The commands ``predict`` and ``evaluate``: a trained run on new images.

All models of a run answer together (`foveate.runs.models`); ``answer.json`` names them.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate import defaults
from foveate.errors import CheckpointError, FolderInUse, TableError, UnreadableImage
from foveate.evaluation import audit
from foveate.evaluation.scores import evaluate_rows
from foveate.files.atomic import write_json
from foveate.files.lock import is_locked, lock_folder
from foveate.loading.gather import gather_cases
from foveate.messages.display import Display
from foveate.prediction.job_array import JobPart
from foveate.prediction.outputs import PARTS, Summary, predict_into, predict_part
from foveate.prediction.predict import open_loader
from foveate.prediction.spread import open_workers
from foveate.prediction.workers import AbstractWorkers
from foveate.runs.fingerprint import Inputs, file_print, load_inputs
from foveate.runs.folder import (
    check_out,
    log_into,
    make_quarantine_row,
    remove_partial_files,
    write_rows,
)
from foveate.runs.models import Ensemble, find_models
from foveate.runtime import find_device
from foveate.table import (
    Case,
    CaseTable,
    describe_factors,
    load_splits,
    patient_key,
    read_cases,
    with_known_labels,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction by a trained run.

    Attributes:
        out: folder for the results.
        assume_spacing_um: spacing of images that state none; None takes that of the training, for
            images of the kinds that needed it there.
        heatmaps: number of images, from the first on, that get pictures.
        device: device that computes; ``auto`` takes a GPU when there is one.
        workers: number of processes that predict; 0 takes this process, or all places of a cluster
            of Ray.
        ray: address of a cluster of Ray, ``auto`` or ``local``; None for no cluster.
        part: part of the images to predict, which a later call without a part collects; None for
            all images.
        export: kinds of pictures.
    """

    out: Path
    assume_spacing_um: float | None = None
    heatmaps: int = defaults.PREDICT_HEATMAPS
    device: str = defaults.DEVICE
    workers: int = defaults.WORKERS
    ray: str | None = None
    part: JobPart | None = None
    export: tuple[str, ...] = defaults.EXPORT


def predict_paths(
    run: Path, paths: Sequence[Path], options: PredictOptions, display: Display
) -> Summary:
    """Predict images, and list those that fail in ``quarantine.csv``.

    The same call continues where an earlier one stopped.

    Raises:
        UnreadableImage: none of the images could be predicted.
        CheckpointError: there is no complete model, or `out` holds something else.
        FolderInUse: another process writes into `out`.
    """
    check_out(options.out, run)
    for path in paths:
        if path.is_dir() and path.resolve() == options.out.resolve():
            raise CheckpointError(
                f"--out {options.out} is the folder of the images, among which pictures would be "
                "written: give another --out"
            )
    models, table = find_models(run), gather_cases(paths)
    if options.part is not None:
        return _predict_part(models, table, options, options.part, display)
    with _lock_output(options.out, display):
        summary = _predict(models, table, options, display, "predict")
    if not summary.rows:
        first = next(iter(summary.failed.values()), "there is none")
        raise UnreadableImage(f"no image could be predicted; the first: {first}")
    return summary


def evaluate_table(
    run: Path,
    table: Path,
    options: PredictOptions,
    display: Display,
    *,
    label: str | None = None,
    files: Path | None = None,
    images: Path | None = None,
    renamed: Mapping[str, str] | None = None,
    audit_layout: bool = False,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Predict a labelled table and score it; return the metrics, and why images failed, by id.

    The same call continues where an earlier one stopped. Images that a model which answers was
    trained with are counted under ``n_seen_in_training``, and a warning names their number.

    Args:
        run: folder of the trained run.
        table: file of the table.
        options: how the run predicts.
        display: shows messages and progress.
        label: column of labels; None where it is recognised.
        files: a second table with one row per image, where `table` has one row per patient.
        images: folder that paths are relative to.
        renamed: class of the model by label of the table; rows with other labels that the model
            does not know are set aside.
        audit_layout: whether `foveate.evaluation.audit` adds its result under ``layout``.

    Raises:
        OptionError: a label is renamed to a name that is no class, or does not occur.
        TableError: the model knows none of the labels, or no image could be predicted.
        CheckpointError: there is no complete model, or `out` holds something else.
        FolderInUse: another process writes into `out`.
    """
    out = options.out
    check_out(out, run)
    models = find_models(run)
    read = read_cases(
        table,
        files=files,
        images=images,
        label=label,
        known_labels=models.task.known_labels,
        for_training=False,
    )
    read = _match_labels(read, models, renamed or {}, table)
    with _lock_output(out, display):
        summary = _predict(models, read, options, display, "evaluate")
        if not summary.rows:
            raise TableError(
                f"no image of {table} could be predicted; see {out / 'quarantine.csv'}"
            )
        display.say("scoring, with intervals over patients")
        metrics = _score_summary(summary)
        if audit_layout:
            good = [case for case in read.cases if case.image_id not in summary.failed]
            metrics["layout"] = _audit_layout(models, good, options)
        write_json(out / "metrics.json", metrics)
    return metrics, summary.failed


def _match_labels(
    cases: CaseTable, models: Ensemble, renamed: Mapping[str, str], path: Path
) -> CaseTable:
    """Rename labels, and set rows aside whose label the models do not know.

    Raises:
        TableError: the models know none of the labels; the message names the file at `path`.
    """
    try:
        return with_known_labels(cases, models.task, renamed)
    except TableError as error:
        raise TableError(f"{path}: {error}") from None


def _score_summary(summary: Summary) -> dict[str, Any]:
    """Score predictions, and count the images that a model which answers was trained with."""
    rows = [{k: str(v) for k, v in row.items()} for row in summary.rows]
    n_seen = sum(row["in_training"] != "" for row in rows)
    return evaluate_rows(rows, summary.task) | {"n_seen_in_training": n_seen}


@contextlib.contextmanager
def _lock_output(out: Path, display: Display) -> Iterator[None]:
    """Lock `out` for this process, remove half-written files, and write a log there.

    Raises:
        FolderInUse: another process predicts all images, or a part of them.
    """
    with lock_folder(out):
        for part in sorted((out / PARTS).glob("*/")):
            if is_locked(part):
                raise FolderInUse(
                    f"{out}: part {part.name.replace('_of_', '/')} is still being predicted; wait "
                    "until it has ended"
                )
        remove_partial_files(out)
        with log_into(out, display):
            yield


def _find_trained_images(models: Ensemble, cases: Sequence[Case]) -> dict[str, str]:
    """Find the images that models which answer were trained with; return their use by image id.

    ``training`` and ``validation``: the image itself, recognised by the content of its file, under
    any path and name. ``patient``: another image of a patient whose images trained. Empty where
    the run folder of the models with its split is missing.
    """
    use_of: dict[str, str] = {}
    for model, folder in zip(models.members, models.folders, strict=False):
        about, root = model.card.provenance, folder.resolve().parent.parent
        if not all((root / name).is_file() for name in ("splits.json", "inputs.json")):
            continue
        splits = load_splits(root / "splits.json")
        if splits.hash != about.get("split_hash"):
            continue
        use = dict.fromkeys(splits.patients, "training") if about.get("refit") else {}
        k = about.get("fold")
        if k is not None and k < len(splits.folds):
            use = dict.fromkeys(splits.folds[k].val, "validation")
            use |= dict.fromkeys(splits.folds[k].train, "training")
        for image_id, was in _match_files(load_inputs(root / "inputs.json"), cases).items():
            if was in use and use_of.get(image_id) != "training":
                use_of[image_id] = use[was]
        # Without a column of patients the image id stands for the patient, and identifies nobody.
        named = {patient_key(p) for i, p in splits.patients.items() if i in use and p != i}
        for case in cases:
            if case.patient_id != case.image_id and patient_key(case.patient_id) in named:
                use_of.setdefault(case.image_id, "patient")
    return use_of


def _match_files(inputs: Inputs, cases: Sequence[Case]) -> dict[str, str]:
    """Find the images whose file a run was begun with; return their id in that run by image id."""
    known = {
        (stated["file"]["size"], stated["file"]["sha256"]): (image_id, stated["file"])
        for image_id, stated in inputs.images.items()
    }
    sizes = {size for size, _ in known}
    by_path = {file["path"]: file for _, file in known.values()}
    same = {}
    for case in cases:
        with contextlib.suppress(OSError):
            if case.path.is_file() and case.path.stat().st_size not in sizes:
                continue
        now = file_print(case.path, by_path.get(str(case.path.absolute())))
        if now["size"] >= 0 and (now["size"], now["sha256"]) in known:
            same[case.image_id] = known[now["size"], now["sha256"]][0]
    return same


def _audit_layout(
    models: Ensemble, cases: Sequence[Case], options: PredictOptions
) -> dict[str, Any]:
    loader = open_loader(models, options.assume_spacing_um)
    try:
        result = audit.audit_layout(models, cases, loader, device=_find_device(options))
    finally:
        loader.close()
    return {**asdict(result), "uses_layout": result.uses_layout, "summary": result.describe()}


def _predict(
    models: Ensemble, table: CaseTable, options: PredictOptions, display: Display, command: str
) -> Summary:
    for note in table.notes:
        display.say(note)
    display.say(models.describe())
    out, seen = options.out, _find_trained_images(models, table.cases)
    known = Counter(
        "are other images of patients that trained" if use == "patient" else "trained"
        for use in seen.values()
    )
    for how, n in sorted(known.items(), reverse=True):
        display.say(
            f"warning: {n} of {len(table.cases)} images {how} the models that answer, which makes "
            "their answers too good; they are marked in the column in_training. Honest scores are "
            "in metrics.json of the run"
        )
    loader = open_loader(models, options.assume_spacing_um)
    try:
        with _open_workers(models, options) as workers:
            summary = predict_into(
                out,
                models,
                table.cases,
                loader,
                device=_find_device(options),
                heatmaps=out / "heatmaps",
                n_heatmaps=options.heatmaps,
                display=display,
                seen=seen,
                about=_list_command_options(command, options),
                exports=options.export,
                workers=workers,
            )
    finally:
        loader.close()
    if contradiction := describe_factors(summary.factors):
        display.say(contradiction)
    unlike = sum(bool(row["unlike"]) for row in summary.rows)
    if unlike:
        display.say(
            f"warning: {unlike} of {len(summary.rows)} images are unlike those of training; their "
            "answers mean little. The column unlike says why"
        )
    paths = {case.image_id: str(case.path) for case in table.cases}
    rows = [
        make_quarantine_row(row.image_id, row.path, "table", row.reason) for row in table.set_aside
    ] + [
        make_quarantine_row(i, paths[i], "predict", reason) for i, reason in summary.failed.items()
    ]
    for row in table.set_aside:
        summary.failed[row.image_id] = row.reason
    if rows:
        write_rows(out / "quarantine.csv", rows, list(rows[0]))
    else:
        (out / "quarantine.csv").unlink(missing_ok=True)
    write_json(out / "cost.json", {"models": len(models), **summary.cost})
    write_json(out / "answer.json", models.record())
    return summary


def _open_workers(
    models: Ensemble, options: PredictOptions
) -> contextlib.AbstractContextManager[AbstractWorkers | None]:
    return open_workers(
        models,
        assume_spacing_um=options.assume_spacing_um,
        device=options.device,
        n=options.workers,
        ray=options.ray,
        exports=options.export,
    )


def _list_command_options(command: str, options: PredictOptions) -> dict[str, Any]:
    """Return the command and the options that change answers, for the journal of answers."""
    return {"command": command, "--spacing-um": options.assume_spacing_um}


def _predict_part(
    models: Ensemble, table: CaseTable, options: PredictOptions, part: JobPart, display: Display
) -> Summary:
    """Predict one part of the images, while other processes predict other parts.

    Raises:
        FolderInUse: another process predicts this part, or all images.
    """
    out = options.out
    with _lock_output(out / PARTS / part.folder, display):
        if is_locked(out):
            raise FolderInUse(f"{out}: another foveate writes there; wait until it has ended")
        for note in table.notes:
            display.say(note)
        display.say(models.describe())
        loader = open_loader(models, options.assume_spacing_um)
        try:
            with _open_workers(models, options) as workers:
                failed = predict_part(
                    out,
                    part,
                    models,
                    table.cases,
                    loader,
                    device=_find_device(options),
                    heatmaps=out / "heatmaps",
                    n_heatmaps=options.heatmaps,
                    display=display,
                    about=_list_command_options("predict", options),
                    exports=options.export,
                    workers=workers,
                )
        finally:
            loader.close()
    return Summary(models.task, failed=failed)


def _find_device(options: PredictOptions) -> torch.device:
    return find_device(options.device)
