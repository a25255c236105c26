"""A trained run on images it has never seen: predictions, and scores where there are labels.

All models of a run answer together (`foveate.runs.models`), and what is written says which did.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.errors import CheckpointError, FolderInUse, TableError, UnreadableImage
from foveate.evaluation.audit import audit_layout
from foveate.evaluation.scores import evaluate_rows
from foveate.exports import DEFAULT
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
from foveate.runs.folder import aside, check_out, logged, sweep, write_rows
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
class Asked:
    """How a trained run is to be used.

    Attributes:
        out: folder for the results.
        assume_spacing_um: of images that state no spacing; None takes that of the training, for
            images of the kind that needed it there.
        n_heatmaps: so many images from the first on get pictures.
        device: ``auto`` takes a GPU when there is one.
        workers: processes that predict; 0 lets this one do it, or takes all of a cluster of Ray.
        ray: address of a cluster of Ray; ``auto``, ``local``, or None for none.
        part: predict this part of the images only, for a later call without one to collect.
        exports: which kinds of pictures.
    """

    out: Path
    assume_spacing_um: float | None = None
    n_heatmaps: int = 1000
    device: str = "auto"
    workers: int = 0
    ray: str | None = None
    part: JobPart | None = None
    exports: tuple[str, ...] = DEFAULT


def predict_paths(run: Path, paths: Sequence[Path], asked: Asked, display: Display) -> Summary:
    """Predict images. Images that fail are listed in ``quarantine.csv``.

    The same call continues where an earlier one stopped.

    Raises:
        UnreadableImage: not one of them could be predicted.
        CheckpointError: there is no whole model, or `out` holds something else.
        FolderInUse: another process writes into `out`.
    """
    check_out(asked.out, run)
    for path in paths:
        if path.is_dir() and path.resolve() == asked.out.resolve():
            raise CheckpointError(
                f"--out {asked.out} is the folder of the images, among which pictures would be "
                "written: give another --out"
            )
    models, table = find_models(run), gather_cases(paths)
    if asked.part is not None:
        return _predict_part(models, table, asked, asked.part, display)
    with _writing(asked.out, display):
        summary = _predict(models, table, asked, display, "predict")
    if not summary.rows:
        first = next(iter(summary.failed.values()), "there is none")
        raise UnreadableImage(f"no image could be predicted; the first: {first}")
    return summary


def evaluate_table(
    run: Path,
    table: Path,
    asked: Asked,
    display: Display,
    *,
    label: str | None = None,
    files: Path | None = None,
    images: Path | None = None,
    renamed: Mapping[str, str] | None = None,
    shuffle_layout: bool = False,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Predict a labelled table and score it; returns the metrics and the images that failed.

    Labels are `renamed` first; rows with others than the model knows are left out, set aside and
    said. Images that trained a model which answers are counted under ``n_seen_in_training``, and
    said. With `shuffle_layout`, an audit of whether the model uses where patches lie is added under
    ``layout`` (`foveate.evaluation.audit`). The same call continues where an earlier one stopped.

    Raises:
        OptionError: a label is renamed to what is no class, or does not occur.
        TableError: the model knows none of the labels, or no image could be predicted.
        CheckpointError: there is no whole model, or `out` holds something else.
        FolderInUse: another process writes into `out`.
    """
    out = asked.out
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
    try:
        read = with_known_labels(read, models.task, renamed or {})
    except TableError as error:
        raise TableError(f"{table}: {error}") from None
    with _writing(out, display):
        summary = _predict(models, read, asked, display, "evaluate")
        if not summary.rows:
            raise TableError(
                f"no image of {table} could be predicted; see {out / 'quarantine.csv'}"
            )
        display.say("scoring, with intervals over patients")
        rows = [{k: str(v) for k, v in row.items()} for row in summary.rows]
        n_seen = sum(row["in_training"] != "" for row in rows)
        metrics = evaluate_rows(rows, models.task) | {"n_seen_in_training": n_seen}
        if shuffle_layout:
            good = [case for case in read.cases if case.image_id not in summary.failed]
            metrics["layout"] = _layout(models, good, asked)
        write_json(out / "metrics.json", metrics)
    return metrics, summary.failed


@contextlib.contextmanager
def _writing(out: Path, display: Display) -> Iterator[None]:
    """Hold `out` for this process, sweep up what a killed one left, and keep a log there.

    Raises:
        FolderInUse: another process writes the whole, or a part.
    """
    with lock_folder(out):
        for part in sorted((out / PARTS).glob("*/")):
            if is_locked(part):
                raise FolderInUse(
                    f"{out}: part {part.name.replace('_of_', '/')} is still being predicted; wait "
                    "until it has ended"
                )
        sweep(out)
        with logged(out, display):
            yield


def _seen(models: Ensemble, cases: Sequence[Case]) -> dict[str, str]:
    """Of the cases that models which answer know from training, by image id, from where.

    ``training`` and ``validation``: the image itself, known by what its file holds, wherever it
    lies and whatever it is called. ``patient``: another image of a patient whose images trained.
    Empty where the models' run folder with its split is not there.
    """
    found: dict[str, str] = {}
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
        for image_id, was in _same_files(load_inputs(root / "inputs.json"), cases).items():
            if was in use and found.get(image_id) != "training":
                found[image_id] = use[was]
        # Without a column of patients an image's own id stands for its patient, and says nothing.
        named = {patient_key(p) for i, p in splits.patients.items() if i in use and p != i}
        for case in cases:
            if case.patient_id != case.image_id and patient_key(case.patient_id) in named:
                found.setdefault(case.image_id, "patient")
    return found


def _same_files(inputs: Inputs, cases: Sequence[Case]) -> dict[str, str]:
    """Of the cases whose file a run was begun with, by image id, its id in that run."""
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


def _layout(models: Ensemble, cases: Sequence[Case], asked: Asked) -> dict[str, Any]:
    loader = open_loader(models, asked.assume_spacing_um)
    try:
        found = audit_layout(models, cases, loader, device=_device(asked))
    finally:
        loader.close()
    return {**asdict(found), "uses_layout": found.uses_layout, "told": found.told()}


def _predict(
    models: Ensemble, table: CaseTable, asked: Asked, display: Display, command: str
) -> Summary:
    for note in table.notes:
        display.say(note)
    display.say(models.describe())
    out, seen = asked.out, _seen(models, table.cases)
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
    loader = open_loader(models, asked.assume_spacing_um)
    try:
        with _workers(models, asked) as workers:
            summary = predict_into(
                out,
                models,
                table.cases,
                loader,
                device=_device(asked),
                heatmaps=out / "heatmaps",
                n_heatmaps=asked.n_heatmaps,
                display=display,
                seen=seen,
                about=_about(command, asked),
                exports=asked.exports,
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
    rows = [aside(row.image_id, row.path, "table", row.reason) for row in table.set_aside] + [
        aside(i, paths[i], "predict", reason) for i, reason in summary.failed.items()
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


def _workers(
    models: Ensemble, asked: Asked
) -> contextlib.AbstractContextManager[AbstractWorkers | None]:
    return open_workers(
        models,
        assume_spacing_um=asked.assume_spacing_um,
        device=asked.device,
        n=asked.workers,
        ray=asked.ray,
        exports=asked.exports,
    )


def _about(command: str, asked: Asked) -> dict[str, Any]:
    """Return what the answers of the whole and of its parts rest on besides models and pictures."""
    return {"command": command, "--spacing-um": asked.assume_spacing_um}


def _predict_part(
    models: Ensemble, table: CaseTable, asked: Asked, part: JobPart, display: Display
) -> Summary:
    """Predict one part of the images, beside processes that predict others.

    Raises:
        FolderInUse: another process predicts this part, or the whole.
    """
    out = asked.out
    with _writing(out / PARTS / part.folder, display):
        if is_locked(out):
            raise FolderInUse(f"{out}: another foveate writes there; wait until it has ended")
        for note in table.notes:
            display.say(note)
        display.say(models.describe())
        loader = open_loader(models, asked.assume_spacing_um)
        try:
            with _workers(models, asked) as workers:
                failed = predict_part(
                    out,
                    part,
                    models,
                    table.cases,
                    loader,
                    device=_device(asked),
                    heatmaps=out / "heatmaps",
                    n_heatmaps=asked.n_heatmaps,
                    display=display,
                    about=_about("predict", asked),
                    exports=asked.exports,
                    workers=workers,
                )
        finally:
            loader.close()
    return Summary(models.task, failed=failed)


def _device(asked: Asked) -> torch.device:
    return find_device(asked.device)
