"""The outputs of prediction: the table, the pictures, and the costs of reading.

===========================  ================================================================
function                     what it does
===========================  ================================================================
`predict_into`               predicts all images of a command; writes journal, pictures, table
`predict_part`               predicts one part of them (``--part 2/5``); writes a journal and
                             pictures, but no table
`_predict_images`            predicts the images that have no answer yet, for both of these: in
                             the workers of the job, or by `predict_cases` in this process
`predict.predict_cases`      opens images in order, reading ahead, and yields an answer for each;
                             writes nothing
`predict.predict_one`        opens one image and returns its answer; writes nothing
===========================  ================================================================

The command ``predict --part`` is `foveate.workflows.predict._predict_part`, which takes the lock of
the part and calls `predict_part`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foveate._version import __version__
from foveate.errors import CheckpointError
from foveate.files.atomic import write_json
from foveate.files.identical import image_state
from foveate.files.journal import Journal, read_entries
from foveate.files.run_layout import HeatmapLayout, PredictionLayout, name_case
from foveate.loading.loader import CaseLoader
from foveate.messages.display import Display, OnProgress, SetAsideMessages
from foveate.prediction.answer import AnswerOrFailure, Failure
from foveate.prediction.job_array import JobPart
from foveate.prediction.options import PredictOptions
from foveate.prediction.pictures import forget_files, list_files, write_files
from foveate.prediction.predict import predict_cases
from foveate.prediction.rows import build_row, name_columns
from foveate.prediction.workers import AbstractWorkers, CaseJob, map_cases
from foveate.runs.folder import read_json, write_rows
from foveate.runs.models import Ensemble
from foveate.runtime import find_device
from foveate.table import Case
from foveate.tasks.base import AbstractTask
from foveate.wording import several

if TYPE_CHECKING:
    import pandas as pd


_COSTS = ("seconds", "seconds_reading", "decoded_px", "asked_px", "level0_px")


@dataclass(repr=False)
class Summary:
    """Predictions of many images.

    Attributes:
        task: task of the models that answered.
        rows: rows of ``predictions.csv``, one per image, or one per patient.
        failed: by image id, why an image could not be predicted, or not be used for its patient.
        cost: sums over the images: seconds, pixels decoded and received, number of images.
        factors: by image id, how many times larger the spacing in the table is than the one in the
            file, where they differ.
    """

    task: AbstractTask
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)

    def add(self, case: Case, row: dict[str, Any], entry: Mapping[str, Any]) -> None:
        """Add an image by its row of the table and its entry of the journal.

        Args:
            case: the image.
            row: its row of ``predictions.csv``.
            entry: its entry of the journal.
        """
        self.rows.append(row)
        if entry.get("factor") is not None:
            self.factors[case.image_id] = entry["factor"]
        for key in _COSTS:
            self.cost[key] += entry["cost"][key]
        self.cost["n_images"] += len(entry["pictures"])

    def to_frame(self) -> pd.DataFrame:
        """Return the rows of ``predictions.csv`` as a data frame, with numbers as numbers."""
        import pandas as pd

        frame = pd.DataFrame(self.rows)
        texts = ["image_id", "patient_id", "path", "images", "shares", "left_out", "label"]
        texts += ["predicted", "spacing", "unlike", "abstain", "in_training"]
        for name in frame.columns.difference(texts):
            frame[name] = pd.to_numeric(frame[name])
        return frame

    def __repr__(self) -> str:
        counts = Counter(row["predicted"] for row in self.rows)
        shares = ", ".join(f"{n} {name}" for name, n in counts.most_common())
        return f"{len(self.rows)} images predicted ({shares}), {len(self.failed)} failed"


@dataclass(frozen=True)
class PredictionJob:
    """Everything about one prediction but its images.

    Attributes:
        folder: folder for the table.
        models: models that answer.
        loader: opens the images.
        options: how the models predict.
        heatmaps: folder for the evidence of all images, and the pictures of the first ones.
        display: shows messages and progress.
        others: what happens to answers of another command, or to other images, that the folder
            holds: ``refuse`` stops the command, ``replace`` drops them.
        command: what the answers depend on besides models and pictures.
        workers: other processes that predict; with None, this process does.
    """

    folder: Path
    models: Ensemble
    loader: CaseLoader
    options: PredictOptions
    _: KW_ONLY
    heatmaps: Path
    display: Display
    others: Literal["refuse", "replace"]
    command: Mapping[str, Any] = field(default_factory=dict)
    workers: AbstractWorkers | None = None

    def list_dependencies(self) -> dict[str, Any]:
        """Return what all answers in the folder depend on."""
        return {
            "foveate": __version__,
            "models": self.models.digests(),
            "heatmaps": self.options.heatmaps,
            "exports": list(self.options.export),
            **self.command,
        }


def predict_into(
    job: PredictionJob, cases: Sequence[Case], use_in_training: Mapping[str, str] | None = None
) -> Summary:
    """Predict cases; write ``predictions.csv`` into the folder of the job, and the pictures.

    Each answer is written to ``answers.jsonl`` as soon as it is computed, after its pictures.
    Answers that are stored there for the same file, models and options are not computed again. The
    table is written from them at the end. Answers of parts (`predict_part`) are collected first.

    Args:
        job: models, folders and options.
        cases: images in the order of the table.
        use_in_training: by image id, how training used the image; None leaves the column out.

    Raises:
        CheckpointError: the folder holds answers of another command.
        DiskFull: there is no room; what was written before is whole.
    """
    dependencies = job.list_dependencies()
    path = PredictionLayout(job.folder).journal
    journal = Journal(path, dependencies, anew=job.others == "replace")
    keys = {case.image_id: _make_key(case) for case in cases}
    known = _pick_valid(journal.entries, keys, job.heatmaps)
    collected = _read_parts(job.folder, dependencies)
    if job.others == "refuse":
        _refuse_other_images(job.folder, {**collected, **journal.entries}, set(keys))
    valid = _pick_valid(collected, keys, job.heatmaps)
    more = {i: entry for i, entry in valid.items() if i not in known}
    journal.add_all(more)
    known |= more
    if known:
        job.display.say(f"{len(known)} of {len(keys)} images are answered already")
    todo = [
        CaseJob(case, n < job.options.heatmaps)
        for n, case in enumerate(cases)
        if case.image_id not in known
    ]
    _answer_all(job, journal, todo, keys)
    summary = _write_results(job, cases, journal, use_in_training)
    shutil.rmtree(PredictionLayout(job.folder).parts, ignore_errors=True)
    return summary


def predict_part(job: PredictionJob, part: JobPart, cases: Sequence[Case]) -> dict[str, str]:
    """Predict one part of the cases; `predict_into` later collects its answers from a subfolder.

    Images that this part, another part or `predict_into` has answered already are not computed
    again, even where the cases were dealt into other parts then.

    Args:
        job: models, folders and options, for all parts; the caller has locked ``parts/2_of_5`` in
            the folder of the job.
        part: part to predict.
        cases: images of all parts, in the order of the table.

    Returns:
        By image id, why an image of this part failed.

    Raises:
        CheckpointError: the folder holds answers of another command.
        DiskFull: there is no room; what was written before is whole.
    """
    dependencies, folder = job.list_dependencies(), job.folder
    pictured = {case.image_id for case in cases[: job.options.heatmaps]}
    cases_of_part = part.pick(cases)
    keys = {case.image_id: _make_key(case) for case in cases_of_part}
    layout = PredictionLayout(folder)
    journal = Journal(layout.part(part.folder).journal, dependencies)
    collected = {
        **_read_parts(folder, dependencies),
        **read_entries(layout.journal, dependencies),
    }
    _refuse_other_images(folder, collected, {case.image_id for case in cases})
    answered = {i: entry for i, entry in collected.items() if "failed" not in entry}
    known = _pick_valid({**journal.entries, **answered}, keys, job.heatmaps)
    job.display.say(
        f"part {part}: {len(cases_of_part)} of {len(cases)} images, {len(known)} answered already"
    )
    todo = [CaseJob(c, c.image_id in pictured) for c in cases_of_part if c.image_id not in known]
    _answer_all(job, journal, todo, keys)
    failed = {i: e["failed"] for i, e in journal.entries.items() if i in keys and "failed" in e}
    journal.finish()
    return failed


def _read_parts(folder: Path, dependencies: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Read the entries of all parts; an answer in one part replaces a failure in another."""
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted(PredictionLayout(folder).parts.glob(f"*/{PredictionLayout.journal}")):
        for image_id, entry in read_entries(path, dependencies).items():
            if "failed" not in entry or image_id not in entries:
                entries[image_id] = entry
    return entries


def _refuse_other_images(
    folder: Path, entries: Mapping[str, Mapping[str, Any]], wanted: set[str]
) -> None:
    """Refuse a folder with answers to images that are not asked for now.

    Raises:
        CheckpointError: the folder holds such answers.
    """
    others = [i for i, entry in entries.items() if i not in wanted and "failed" not in entry]
    if others:
        raise CheckpointError(
            f"{folder} holds answers to {len(others)} images that are not among those "
            f"given now ({several(others)}). Give these too, or another --out, or delete this "
            "folder"
        )


def _pick_valid(
    entries: Mapping[str, dict[str, Any]], keys: Mapping[str, Any], heatmaps: Path
) -> dict[str, dict[str, Any]]:
    """Return the entries that answer one of these images as it is now, and whose files are there.

    Args:
        entries: entries of a journal by image id.
        keys: by image id, what the answer depends on.
        heatmaps: folder of the pictures.
    """
    return {
        i: entry
        for i, entry in entries.items()
        if keys.get(i) == entry.get("of") and ("failed" in entry or _has_files(entry, heatmaps))
    }


def _has_files(entry: Mapping[str, Any], heatmaps: Path) -> bool:
    """Return whether all files of an answer are there; older entries do not name them all."""
    pictures = entry.get("pictures")
    return pictures is not None and all(
        path.is_file() for picture in pictures for path in list_files(heatmaps, picture)
    )


def _answer_all(
    job: PredictionJob, journal: Journal, todo: Sequence[CaseJob], keys: Mapping[str, Any]
) -> None:
    """Predict images; write each answer to the journal at once, after its pictures.

    Args:
        job: models, folders and options.
        journal: journal for the answers.
        todo: images without an answer.
        keys: by image id, what the answer depends on; for all images, answered or not.
    """
    messages, n_known = SetAsideMessages(job.display.say), len(keys) - len(todo)
    path_of = {i.image_id: str(i.path) for item in todo for i in item.case.list_images()}

    def show_done(done: float, _: int = 1) -> None:
        job.display.bar("predicting", n_known + done, len(keys))

    show_done(0)
    for done, result in enumerate(_predict_images(job, todo, show_done), 1):
        image_id = result.case.image_id
        journal.add(image_id, _make_entry(job, result) | {"of": keys[image_id]})
        if isinstance(result, Failure):
            messages.set_aside(image_id, result.case.paths, result.reason)
        else:
            for left_out, reason in result.left_out.items():
                messages.set_aside(left_out, path_of[left_out], reason)
            if not len(result.evidence):
                messages.once("the method gives no evidence: heatmaps will show no regions")
        show_done(done)
    messages.end()


def _predict_images(
    job: PredictionJob, todo: Sequence[CaseJob], on_progress: OnProgress
) -> Iterator[AnswerOrFailure]:
    """Predict images by the workers of the job, or by this process where it has none."""
    if job.workers is not None:
        return map_cases(job.workers, todo)
    return predict_cases(
        job.models,
        [item.case for item in todo],
        job.loader,
        device=find_device(job.options.device),
        on_progress=on_progress,
        options=job.options,
        pictured={item.case.image_id for item in todo if item.with_pictures},
    )


def _make_entry(job: PredictionJob, result: AnswerOrFailure) -> dict[str, Any]:
    """Write the pictures of one image, and return its entry of the journal."""
    forget_files(job.heatmaps, result.case)
    if isinstance(result, Failure):
        return {"failed": result.reason, "factor": None}
    row, cost = build_row(result, job.models), {key: getattr(result, key) for key in _COSTS}
    pictures = write_files(result, row, job.models, job.heatmaps, job.options)
    return {
        "row": row,
        "cost": cost,
        "pictures": pictures,
        "factor": result.factor,
        "left_out": dict(result.left_out),
    }


def _write_results(
    job: PredictionJob,
    cases: Sequence[Case],
    journal: Journal,
    use_in_training: Mapping[str, str] | None,
) -> Summary:
    """Write the table and the index of pictures from the entries of the journal."""
    summary, index = Summary(job.models.task), []
    summary.cost = {**dict.fromkeys(_COSTS, 0.0), "n_images": 0.0}
    for case in cases:
        entry = journal.entries[case.image_id]
        if "failed" in entry:
            summary.failed[case.image_id] = entry["failed"]
            continue
        row = entry["row"]
        if use_in_training is not None:
            row = row | {"in_training": use_in_training.get(case.image_id, "")}
        summary.add(case, row, entry)
        summary.failed |= entry["left_out"]
        index += entry["pictures"]
    summary.cost["seconds_computing"] = summary.cost["seconds"] - summary.cost["seconds_reading"]
    columns = name_columns(job.models, summary.rows, use_in_training is not None)
    write_rows(PredictionLayout(job.folder).predictions, summary.rows, columns)
    _replace_in_index(HeatmapLayout(job.heatmaps).index, index, {case.image_id for case in cases})
    journal.finish()
    return summary


def _make_key(case: Case) -> dict[str, Any]:
    """Return what the answer to a case depends on: its rows, and size and time of its files."""
    if case.images:
        return {"images": [_make_key(image) for image in case.images]}
    key: dict[str, Any] = {
        "path": str(case.path),
        "patient": case.patient_id,
        "label": case.label,
        "spacing_um": None if case.spacing_um is None else list(case.spacing_um),
    }
    with contextlib.suppress(OSError):
        key["file"] = image_state(case.path)
    return key


def _replace_in_index(path: Path, entries: list[dict[str, Any]], image_ids: set[str]) -> None:
    """Write new entries to the index of pictures, in place of the old ones of these images."""
    old = read_json(path) if path.is_file() else []
    write_json(path, [entry for entry in old if name_case(entry) not in image_ids] + entries)
