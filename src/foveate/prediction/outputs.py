"""What prediction leaves behind: the table, heatmaps, GeoJSON, and the account of what was read."""

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

from foveate import __version__
from foveate.errors import CheckpointError
from foveate.files.atomic import write_json
from foveate.files.journal import Journal, read_entries
from foveate.loading.loader import CaseLoader
from foveate.messages.display import Display, Reasons
from foveate.prediction.job_array import JobPart
from foveate.prediction.pictures import add_files, forget_files, write_files
from foveate.prediction.predict import Failure, Outcome, predict_cases
from foveate.prediction.rows import build_row, name_columns
from foveate.prediction.workers import AbstractWorkers, Job, map_cases
from foveate.runs.folder import read_json, write_rows
from foveate.runs.models import Ensemble
from foveate.table import Case, several
from foveate.tasks.base import AbstractTask

if TYPE_CHECKING:
    import pandas as pd


@dataclass(repr=False)
class Summary:
    """Predictions as rows, failures with reasons, what it cost, and contradictory spacings."""

    task: AbstractTask
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)

    def to_frame(self) -> pd.DataFrame:
        """Return the rows of ``predictions.csv`` as a data frame; what are numbers are numbers."""
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
    workers: AbstractWorkers | None = None,
) -> Summary:
    """Predict cases; write ``predictions.csv`` into `folder` and pictures into `heatmaps`.

    Each answer goes to ``answers.jsonl`` as soon as it is there, its pictures before it; what is
    known there of the same file, models and options is not computed again. The table is written
    from it at the end. Answers of parts (`predict_part`) are collected first.

    Args:
        folder, heatmaps: where to.
        models, device: what answers, and what computes.
        cases, loader: in the order of the table, and what reads them.
        n_heatmaps: so many images from the first on get pictures; evidence is kept for all.
        display: is told.
        seen: by image, that a model which answers was trained with it; None leaves the column out.
        about: what the answers rest on besides models and options. None: answers of another
            command are replaced; otherwise they are refused.
        workers: other processes that predict; by default this one does.

    Raises:
        CheckpointError: the folder holds answers of another command.
        DiskFull: there is no room; what was written before is whole.
    """
    rests_on = _rests_on(models, n_heatmaps, about or {})
    journal = Journal(folder / ANSWERS, rests_on, anew=about is None)
    keys = {case.image_id: _key(case, loader.assumed_um) for case in cases}
    known = _still_true(journal.entries, keys)
    if about is not None:
        collected = _of_parts(folder, rests_on)
        _refuse_others(folder, {**collected, **journal.entries}, set(keys))
        more = {i: e for i, e in _still_true(collected, keys).items() if i not in known}
        journal.add_all(more)
        known |= more
    if known:
        display.say(f"{len(known)} of {len(keys)} images are answered already")
    todo = [Job(case, n < n_heatmaps) for n, case in enumerate(cases) if case.image_id not in known]
    _answer_all(journal, models, todo, keys, loader, device, heatmaps, display, workers)
    summary = _settled(folder, models, cases, journal, heatmaps, seen)
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
    workers: AbstractWorkers | None = None,
) -> dict[str, str]:
    """Predict one part of the cases; its answers wait in a folder of their own for `predict_into`.

    What this part, another one or the whole has answered already is not computed again, even where
    the cases were dealt into other parts then.

    Args:
        folder: where the whole goes; the caller holds ``parts/2_of_5`` in it.
        part: which one.
        models, cases, loader, device, heatmaps, n_heatmaps, display, about, workers: of the whole,
            as of `predict_into`.

    Returns:
        the images of this part that failed, with the reasons.

    Raises:
        CheckpointError: the folder holds answers of another command.
        DiskFull: there is no room; what was written before is whole.
    """
    rests_on = _rests_on(models, n_heatmaps, about)
    drawn = {case.image_id for case in cases[:n_heatmaps]}
    own = part.pick(cases)
    keys = {case.image_id: _key(case, loader.assumed_um) for case in own}
    journal = Journal(folder / PARTS / part.folder / ANSWERS, rests_on)
    whole, others = read_entries(folder / ANSWERS, rests_on), _of_parts(folder, rests_on)
    _refuse_others(folder, {**others, **whole}, {case.image_id for case in cases})
    known = {i: e for i, e in {**others, **whole}.items() if "failed" not in e}
    known = _still_true({**journal.entries, **known}, keys)
    display.say(f"part {part}: {len(own)} of {len(cases)} images, {len(known)} answered already")
    todo = [Job(case, case.image_id in drawn) for case in own if case.image_id not in known]
    _answer_all(journal, models, todo, keys, loader, device, heatmaps, display, workers)
    failed = {i: e["failed"] for i, e in journal.entries.items() if i in keys and "failed" in e}
    journal.finish()
    return failed


def _rests_on(models: Ensemble, n_heatmaps: int, about: Mapping[str, Any]) -> dict[str, Any]:
    """What all answers of a folder rest on."""
    return {
        "foveate": __version__,
        "models": models.digests(),
        "heatmaps": n_heatmaps,
        **about,
    }


def _of_parts(folder: Path, rests_on: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Read the entries of all parts; what failed in one part and was answered in another is so."""
    entries: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / PARTS).glob(f"*/{ANSWERS}")):
        for image_id, entry in read_entries(path, rests_on).items():
            if "failed" not in entry or image_id not in entries:
                entries[image_id] = entry
    return entries


def _refuse_others(folder: Path, entries: Mapping[str, Mapping[str, Any]], asked: set[str]) -> None:
    """Refuse a folder with answers to images that are not asked for now.

    Raises:
        CheckpointError: there are such answers, and their pictures.
    """
    others = [i for i, entry in entries.items() if i not in asked and "failed" not in entry]
    if others:
        raise CheckpointError(
            f"{folder} holds answers to {len(others)} images that are not among those "
            f"given now ({several(others)}). Give these too, or another --out, or delete this "
            "folder"
        )


def _still_true(
    entries: Mapping[str, dict[str, Any]], keys: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Keep the entries that answer one of these images as it is now."""
    return {i: entry for i, entry in entries.items() if keys.get(i) == entry.get("of")}


def _answer_all(
    journal: Journal,
    models: Ensemble,
    todo: Sequence[Job],
    keys: Mapping[str, Any],
    loader: CaseLoader,
    device: torch.device,
    heatmaps: Path,
    display: Display,
    workers: AbstractWorkers | None,
) -> None:
    """Write each answer to the journal as soon as it is there, its pictures before it."""
    teller, n_known = Reasons(display), len(keys) - len(todo)

    def within(done: float) -> None:
        display.bar("predicting", n_known + done, len(keys))

    within(0)
    if workers is None:
        drawn = frozenset(job.case.image_id for job in todo if job.draw)
        finish = functools.partial(add_files, drawn=drawn)
        cases = [job.case for job in todo]
        outcomes = predict_cases(models, cases, loader, device=device, tell=within, finish=finish)
    else:
        outcomes = map_cases(workers, todo)
    for done, outcome in enumerate(outcomes, 1):
        image_id = outcome.case.image_id
        journal.add(image_id, _entry(outcome, models, heatmaps) | {"of": keys[image_id]})
        if isinstance(outcome, Failure):
            teller.set_aside(image_id, str(outcome.case.path), outcome.reason)
        elif not len(outcome.evidence):
            teller.once("the method gives no evidence: heatmaps will show no regions")
        within(done)
    teller.end()


def _entry(outcome: Outcome, models: Ensemble, heatmaps: Path) -> dict[str, Any]:
    """What the journal keeps of one image; its pictures are written before."""
    forget_files(heatmaps, outcome.case)
    if isinstance(outcome, Failure):
        return {"failed": outcome.reason, "factor": None}
    row, cost = build_row(outcome, models), {key: getattr(outcome, key) for key in _COSTS}
    picture = write_files(outcome, row, models, heatmaps)
    return {"row": row, "cost": cost, "picture": picture, "factor": outcome.factor}


def _settled(
    folder: Path,
    models: Ensemble,
    cases: Sequence[Case],
    journal: Journal,
    heatmaps: Path,
    seen: Mapping[str, str] | None,
) -> Summary:
    """Write the table and the index of pictures from what the journal holds of these cases."""
    summary, index = Summary(models.task), []
    summary.cost = {**dict.fromkeys(_COSTS, 0.0), "n_images": 0.0}
    for case in cases:
        entry = journal.entries[case.image_id]
        if "failed" in entry:
            summary.failed[case.image_id] = entry["failed"]
            continue
        told = {} if seen is None else {"in_training": seen.get(case.image_id, "")}
        summary.rows.append(entry["row"] | told)
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


def _key(case: Case, assumed_um: float | None) -> dict[str, Any]:
    """What an answer to a case rests on: the row, the assumed spacing, and the file as it is."""
    key: dict[str, Any] = {"path": str(case.path), "patient": case.patient_id, "label": case.label}
    key["assumed_um"] = assumed_um
    key["spacing_um"] = None if case.spacing_um is None else list(case.spacing_um)
    with contextlib.suppress(OSError):
        state = case.path.stat()
        key["file"] = [state.st_size, state.st_mtime_ns]
    return key


def _merge_index(path: Path, entries: list[dict[str, Any]], asked: set[str]) -> None:
    """Put these entries in the place of all that there are of the images asked for."""
    old = read_json(path) if path.is_file() else []
    write_json(path, [entry for entry in old if entry["image_id"] not in asked] + entries)
