"""The outputs of prediction: the table, the pictures, and the costs of reading."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foveate._version import __version__
from foveate.errors import CheckpointError
from foveate.exports import DEFAULT
from foveate.files.atomic import write_json
from foveate.files.journal import Journal, read_entries
from foveate.loading.loader import CaseLoader
from foveate.messages.display import Display, QuarantineMessages
from foveate.prediction.job_array import JobPart
from foveate.prediction.pictures import add_files, forget_files, write_files
from foveate.prediction.predict import Failure, Outcome, predict_cases
from foveate.prediction.rows import build_row, name_columns
from foveate.prediction.workers import AbstractWorkers, CaseJob, map_cases
from foveate.runs.folder import read_json, write_rows
from foveate.runs.models import Ensemble
from foveate.table import Case, several
from foveate.tasks.base import AbstractTask

if TYPE_CHECKING:
    import pandas as pd


@dataclass(repr=False)
class Summary:
    """Predictions of many images.

    Attributes:
        task: task of the models that answered.
        rows: rows of ``predictions.csv``, one per image.
        failed: by image id, why an image could not be predicted.
        cost: sums over the images: seconds, pixels decoded and received, number of images.
        factors: by image id, how many times larger the spacing in the table is than the one in the
            file, where they differ.
    """

    task: AbstractTask
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """Return the rows of ``predictions.csv`` as a data frame, with numbers as numbers."""
        import pandas as pd

        frame = pd.DataFrame(self.rows)
        texts = ("image_id", "patient_id", "path", "label", "predicted", "spacing", "unlike")
        for name in frame.columns.difference([*texts, "in_training"]):
            frame[name] = pd.to_numeric(frame[name])
        return frame

    def __repr__(self) -> str:
        counts = Counter(row["predicted"] for row in self.rows)
        shares = ", ".join(f"{n} {name}" for name, n in counts.most_common())
        return f"{len(self.rows)} images predicted ({shares}), {len(self.failed)} failed"


ANSWERS, PARTS = "answers.jsonl", "parts"
_COSTS = ("seconds", "seconds_reading", "decoded_px", "asked_px", "level0_px")


def predict_into(
    folder: Path,
    models: Ensemble,
    cases: Sequence[Case],
    loader: CaseLoader,
    *,
    device: torch.device,
    heatmaps: Path,
    n_heatmaps: int,
    display: Display,
    seen: Mapping[str, str] | None = None,
    about: Mapping[str, Any] | None = None,
    exports: Sequence[str] = DEFAULT,
    workers: AbstractWorkers | None = None,
) -> Summary:
    """Predict cases; write ``predictions.csv`` into `folder` and pictures into `heatmaps`.

    Each answer is written to ``answers.jsonl`` as soon as it is computed, after its pictures.
    Answers that are stored there for the same file, models and options are not computed again. The
    table is written from them at the end. Answers of parts (`predict_part`) are collected first.

    Args:
        folder: folder for the table.
        models: models that answer.
        cases: images in the order of the table.
        loader: opens the images.
        device: device that computes.
        heatmaps: folder for the pictures.
        n_heatmaps: number of images, from the first on, that get pictures; all get evidence.
        display: shows the progress.
        seen: by image id, how training used the image; None leaves the column out.
        about: what the answers depend on besides models and options. With None, answers of another
            command are replaced; otherwise they are refused.
        exports: kinds of pictures.
        workers: other processes that predict; with None, this process does.

    Raises:
        CheckpointError: the folder holds answers of another command.
        DiskFull: there is no room; what was written before is whole.
    """
    rests_on = _list_dependencies(models, n_heatmaps, exports, about or {})
    journal = Journal(folder / ANSWERS, rests_on, anew=about is None)
    keys = {case.image_id: _make_key(case) for case in cases}
    known = _pick_valid(journal.entries, keys)
    if about is not None:
        collected = _read_parts(folder, rests_on)
        _refuse_other_images(folder, {**collected, **journal.entries}, set(keys))
        more = {i: e for i, e in _pick_valid(collected, keys).items() if i not in known}
        journal.add_all(more)
        known |= more
    if known:
        display.say(f"{len(known)} of {len(keys)} images are answered already")
    todo = [
        CaseJob(case, n < n_heatmaps) for n, case in enumerate(cases) if case.image_id not in known
    ]
    _answer_all(journal, models, todo, keys, loader, device, heatmaps, exports, display, workers)
    summary = _write_results(folder, models, cases, journal, heatmaps, seen)
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    return summary


def predict_part(
    folder: Path,
    part: JobPart,
    models: Ensemble,
    cases: Sequence[Case],
    loader: CaseLoader,
    *,
    device: torch.device,
    heatmaps: Path,
    n_heatmaps: int,
    display: Display,
    about: Mapping[str, Any],
    exports: Sequence[str] = DEFAULT,
    workers: AbstractWorkers | None = None,
) -> dict[str, str]:
    """Predict one part of the cases; `predict_into` later collects its answers from a subfolder.

    Images that this part, another part or `predict_into` has answered already are not computed
    again, even where the cases were dealt into other parts then.

    Args:
        folder: folder for the table of all parts; the caller has locked ``parts/2_of_5`` in it.
        part: part to predict.
        models: models that answer.
        cases: images of all parts, in the order of the table.
        loader: opens the images.
        device: device that computes.
        heatmaps: folder for the pictures.
        n_heatmaps: number of images of all parts, from the first on, that get pictures.
        display: shows the progress.
        about: what the answers depend on besides models and options.
        exports: kinds of pictures.
        workers: other processes that predict; with None, this process does.

    Returns:
        By image id, why an image of this part failed.

    Raises:
        CheckpointError: the folder holds answers of another command.
        DiskFull: there is no room; what was written before is whole.
    """
    rests_on = _list_dependencies(models, n_heatmaps, exports, about)
    drawn = {case.image_id for case in cases[:n_heatmaps]}
    cases_of_part = part.pick(cases)
    keys = {case.image_id: _make_key(case) for case in cases_of_part}
    journal = Journal(folder / PARTS / part.folder / ANSWERS, rests_on)
    of_all, others = read_entries(folder / ANSWERS, rests_on), _read_parts(folder, rests_on)
    _refuse_other_images(folder, {**others, **of_all}, {case.image_id for case in cases})
    known = {i: e for i, e in {**others, **of_all}.items() if "failed" not in e}
    known = _pick_valid({**journal.entries, **known}, keys)
    display.say(
        f"part {part}: {len(cases_of_part)} of {len(cases)} images, {len(known)} answered already"
    )
    todo = [CaseJob(c, c.image_id in drawn) for c in cases_of_part if c.image_id not in known]
    _answer_all(journal, models, todo, keys, loader, device, heatmaps, exports, display, workers)
    failed = {i: e["failed"] for i, e in journal.entries.items() if i in keys and "failed" in e}
    journal.finish()
    return failed


def _list_dependencies(
    models: Ensemble, n_heatmaps: int, exports: Sequence[str], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what all answers of a folder depend on."""
    return {
        "foveate": __version__,
        "models": models.digests(),
        "heatmaps": n_heatmaps,
        "exports": list(exports),
        **about,
    }


def _read_parts(folder: Path, rests_on: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Read the entries of all parts; an answer in one part replaces a failure in another."""
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / PARTS).glob(f"*/{ANSWERS}")):
        for image_id, entry in read_entries(path, rests_on).items():
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
    entries: Mapping[str, dict[str, Any]], keys: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the entries that answer one of these images as it is now."""
    return {i: entry for i, entry in entries.items() if keys.get(i) == entry.get("of")}


def _answer_all(
    journal: Journal,
    models: Ensemble,
    todo: Sequence[CaseJob],
    keys: Mapping[str, Any],
    loader: CaseLoader,
    device: torch.device,
    heatmaps: Path,
    exports: Sequence[str],
    display: Display,
    workers: AbstractWorkers | None,
) -> None:
    """Predict images; write each answer to the journal at once, after its pictures."""
    messages, n_known = QuarantineMessages(display.say), len(keys) - len(todo)

    def show_done(done: float) -> None:
        display.bar("predicting", n_known + done, len(keys))

    show_done(0)
    if workers is None:
        drawn = frozenset(job.case.image_id for job in todo if job.draw)
        finish = functools.partial(add_files, drawn=drawn, exports=exports)
        cases = [job.case for job in todo]
        outcomes = predict_cases(
            models, cases, loader, device=device, tell=show_done, finish=finish
        )
    else:
        outcomes = map_cases(workers, todo)
    for done, outcome in enumerate(outcomes, 1):
        image_id = outcome.case.image_id
        journal.add(
            image_id, _make_entry(outcome, models, heatmaps, exports) | {"of": keys[image_id]}
        )
        if isinstance(outcome, Failure):
            messages.set_aside(image_id, str(outcome.case.path), outcome.reason)
        elif not len(outcome.evidence):
            messages.once("the method gives no evidence: heatmaps will show no regions")
        show_done(done)
    messages.end()


def _make_entry(
    outcome: Outcome, models: Ensemble, heatmaps: Path, exports: Sequence[str]
) -> dict[str, Any]:
    """Write the pictures of one image, and return its entry of the journal."""
    forget_files(heatmaps, outcome.case)
    if isinstance(outcome, Failure):
        return {"failed": outcome.reason, "factor": None}
    row, cost = build_row(outcome, models), {key: getattr(outcome, key) for key in _COSTS}
    picture = write_files(outcome, row, models, heatmaps, exports)
    return {"row": row, "cost": cost, "picture": picture, "factor": outcome.factor}


def _write_results(
    folder: Path,
    models: Ensemble,
    cases: Sequence[Case],
    journal: Journal,
    heatmaps: Path,
    seen: Mapping[str, str] | None,
) -> Summary:
    """Write the table and the index of pictures from the entries of the journal."""
    summary, index = Summary(models.task), []
    summary.cost = {**dict.fromkeys(_COSTS, 0.0), "n_images": 0.0}
    for case in cases:
        entry = journal.entries[case.image_id]
        if "failed" in entry:
            summary.failed[case.image_id] = entry["failed"]
            continue
        training = {} if seen is None else {"in_training": seen.get(case.image_id, "")}
        summary.rows.append(entry["row"] | training)
        if entry.get("factor") is not None:
            summary.factors[case.image_id] = entry["factor"]
        index.append(entry["picture"])
        for key in _COSTS:
            summary.cost[key] += entry["cost"][key]
        summary.cost["n_images"] += 1
    summary.cost["seconds_computing"] = summary.cost["seconds"] - summary.cost["seconds_reading"]
    columns = name_columns(models, summary.rows, seen is not None)
    write_rows(folder / "predictions.csv", summary.rows, columns)
    _merge_index(heatmaps / "index.json", index, {case.image_id for case in cases})
    journal.finish()
    return summary


def _make_key(case: Case) -> dict[str, Any]:
    """Return what the answer to a case depends on: its row, and size and time of its file."""
    key: dict[str, Any] = {"path": str(case.path), "patient": case.patient_id, "label": case.label}
    key["spacing_um"] = None if case.spacing_um is None else list(case.spacing_um)
    with contextlib.suppress(OSError):
        state = case.path.stat()
        key["file"] = [state.st_size, state.st_mtime_ns]
    return key


def _merge_index(path: Path, entries: list[dict[str, Any]], replaced: set[str]) -> None:
    """Replace the entries of the index about these images by new ones."""
    old = read_json(path) if path.is_file() else []
    write_json(path, [entry for entry in old if entry["image_id"] not in replaced] + entries)
