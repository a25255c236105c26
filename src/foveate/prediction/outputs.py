"""What prediction leaves behind: the table, heatmaps, GeoJSON, and the account of what was read."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from foveate import __version__
from foveate.errors import CheckpointError, FoveateError, disk_full, out_of_files
from foveate.exports import DEFAULT, About, build_exports
from foveate.files.atomic import write_json
from foveate.files.journal import Journal
from foveate.loading.loader import CaseLoader
from foveate.messages.display import Display, Reasons
from foveate.parts import find, names
from foveate.prediction.predict import Failure, Report, predict_cases
from foveate.runs.folder import read_json, write_rows
from foveate.runs.models import Ensemble
from foveate.table import Case, several
from foveate.tasks.base import AbstractTask

log = logging.getLogger("foveate")


@dataclass
class Summary:
    """Predictions as rows, failures with reasons, what it cost, and contradictory spacings."""

    task: AbstractTask
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)


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
) -> Summary:
    """Predict cases; write ``predictions.csv`` into `folder` and pictures into `heatmaps`.

    Each answer goes to ``answers.jsonl`` as soon as it is there, its pictures before it; what is
    known there of the same file, models and options is not computed again. The table is written
    from it at the end.

    Args:
        folder, heatmaps, models, device: where to, what answers, and what computes.
        cases, loader: in the order of the table, and what reads them.
        n_heatmaps: for how many images pictures are drawn; evidence is kept for all.
        display: is told.
        seen: by image, that a model which answers was trained with it; None leaves the column out.
        about: what the answers rest on besides models and options. None: answers of another
            command are replaced; otherwise they are refused.
        exports: kinds of pictures.

    Raises:
        CheckpointError: the folder holds answers of another command.
        DiskFull: there is no room; what was written before is whole.
    """
    rests_on = {"foveate": __version__, "models": models.digests(), "heatmaps": n_heatmaps}
    rests_on |= {"exports": list(exports), **(about or {})}
    journal = Journal(folder / "answers.jsonl", rests_on, anew=about is None)
    keys = {case.image_id: _key(case, loader.assumed_um) for case in cases}
    known = _known(journal, keys, display, refuse_others=about is not None)
    teller, drawn = Reasons(display), sum(bool(e.get("drawn")) for e in known.values())

    def within(done: float) -> None:
        display.bar("predicting", len(known) + done, len(cases))

    within(0)
    todo = [case for case in cases if case.image_id not in known]
    reports = predict_cases(models, todo, loader, device=device, tell=within)
    for done, found in enumerate(reports, 1):
        entry = _entry(found, models, heatmaps, exports if drawn < n_heatmaps else ())
        image_id = found.case.image_id
        entry |= {"of": keys[image_id], "factor": loader.factors.get(image_id)}
        if isinstance(found, Failure):
            teller.set_aside(image_id, str(found.case.path), found.reason)
        elif not len(found.evidence):
            teller.once("the method gives no evidence: heatmaps will show no regions")
        drawn += bool(entry.get("drawn"))
        journal.add(image_id, entry)
        within(done)
    teller.end()
    return _settled(folder, models, cases, journal, heatmaps, seen)


def _entry(
    found: Report | Failure, models: Ensemble, heatmaps: Path, exports: Sequence[str]
) -> dict[str, Any]:
    """What the journal keeps of one image; its pictures are written before."""
    _forget_pictures(heatmaps, found.case)
    if isinstance(found, Failure):
        return {"failed": found.reason}
    row, cost = _row(found, models), {key: getattr(found, key) for key in _COSTS}
    picture = _pictures(found, row, models, heatmaps, exports)
    return {"row": row, "cost": cost, "picture": picture, "drawn": bool(exports)}


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
    columns = _columns(models, summary.rows, seen is not None)
    write_rows(folder / "predictions.csv", summary.rows, columns)
    _merge_index(heatmaps / "index.json", index, {case.image_id for case in cases})
    journal.finish()
    return summary


def _key(case: Case, assumed_um: float | None) -> dict[str, Any]:
    """What an answer to a case rests on: the row, the assumed spacing, and the file as it is."""
    key: dict[str, Any] = {"path": str(case.path), "patient": case.patient_id, "label": case.label}
    key["assumed_um"] = assumed_um
    key["spacing_um"] = None if case.spacing_um is None else list(case.spacing_um)
    for name, path in (("file", case.path), ("places", case.places)):
        with contextlib.suppress(OSError):
            state = None if path is None else path.stat()
            key[name] = state and [state.st_size, state.st_mtime_ns]
    return key


def _known(
    journal: Journal, keys: Mapping[str, Any], display: Display, *, refuse_others: bool
) -> dict[str, dict[str, Any]]:
    """Entries that answer one of these images as it is now.

    Raises:
        CheckpointError: there are answers, and pictures, of images that are not asked for now.
    """
    others = [i for i, e in journal.entries.items() if i not in keys and "failed" not in e]
    if others and refuse_others:
        raise CheckpointError(
            f"{journal.path.parent} holds answers to {len(others)} images that are not among those "
            f"given now ({several(others)}). Give these too, or another --out, or delete this "
            "folder"
        )
    known = {i: e for i, e in journal.entries.items() if keys.get(i) == e.get("of")}
    if known:
        display.say(f"{len(known)} of {len(keys)} images are answered already")
    return known


def _columns(models: Ensemble, rows: Sequence[Mapping[str, Any]], seen: bool) -> list[str]:
    """Of ``predictions.csv``, in order."""
    columns = ["image_id", "patient_id", "path", "label", "predicted", "threshold", "spacing"]
    columns += ["models", *models.task.columns]
    if len(models) > 1:
        columns += models.task.spread_columns
    columns += [key for key in (rows or [{}])[0] if key.startswith("logit_sd_")]
    columns += ["unlike", *(["in_training"] if seen else [])]
    return [*columns, "seconds", "decoded_px", "level0_px", "decoded_fraction"]


def _row(report: Report, models: Ensemble) -> dict[str, Any]:
    task, point, case = models.task, models.point, report.case
    threshold = point.get("threshold")
    row: dict[str, Any] = {
        "image_id": case.image_id,
        "patient_id": case.patient_id,
        "path": str(case.path),
        "label": case.label or "",
        "predicted": task.predict(report.values, point),
        "threshold": "" if threshold is None else f"{threshold:.6g}",
        "spacing": f"{report.image.known_spacing_um[-1]:.4g} {report.image.unit}",
        "models": len(models),
        "unlike": report.unlike,
        "seconds": f"{report.seconds:.3f}",
        "decoded_px": report.decoded_px,
        "level0_px": report.level0_px,
        "decoded_fraction": f"{report.decoded_px / report.level0_px:.5f}",
    }
    row |= {key: task.write(v) for key, v in zip(task.columns, report.values, strict=True)}
    if report.spread is not None:
        spread = zip(task.spread_columns, report.spread, strict=True)
        row |= {key: task.write(sd) for key, sd in spread}
    if report.deviation is None:
        return row
    noise = zip(task.outputs, report.deviation, strict=True)
    return row | {f"logit_sd_{name}": f"{sd:.6f}" for name, sd in noise}


def _pictures(
    report: Report,
    row: dict[str, Any],
    models: Ensemble,
    folder: Path,
    exports: Sequence[str],
) -> dict[str, Any]:
    """Write evidence and the pictures asked for; a picture that fails is said, not fatal."""
    stem = safe_name(report.case.image_id)
    report.evidence.save(folder / f"{stem}.npz")
    entry: dict[str, Any] = {
        "image_id": report.case.image_id,
        "label": row["label"],
        "predicted": row["predicted"],
        **models.task.record(report.values),
        "models": len(models),
        "unlike": report.unlike,
        **dict.fromkeys((*DEFAULT, *exports)),
    }
    about = _about(report, row, models)
    for name, export in build_exports(exports).items():
        path = folder / f"{stem}{export.suffix}"
        try:
            export.write(report.image, report.evidence, path, about)
        except Exception as error:
            if disk_full(error) or out_of_files(error):
                raise
            why = str(error) if isinstance(error, FoveateError) else "drawing it went wrong"
            log.warning("no %s of %s: %s", export.title, report.case.image_id, why)
            log.info("%s", report.case.path, exc_info=error)
            continue
        entry[name] = path.name
    return entry


def _about(report: Report, row: Mapping[str, Any], models: Ensemble) -> About:
    """What pictures say of an answer."""
    task = models.task
    said = task.explain(report.values, models.point)
    if len(models) > 1:
        said += f"; mean of {len(models)} models"
    label = f"label {row['label']}, " if row["label"] else ""
    caption = f"{label}predicted {row['predicted']}   ({said})"
    numbers = {"label": row["label"], "predicted": row["predicted"]}
    values = zip(task.columns, report.values, strict=True)
    numbers |= {column: task.write(value, short=True) for column, value in values}
    if report.unlike:
        caption += f"\nunlike the images of training: {report.unlike}"
        numbers["unlike"] = report.unlike
    return About(report.case.image_id, caption, numbers)


def _forget_pictures(folder: Path, case: Case) -> None:
    """Remove what an earlier answer to this image left, so that no old picture stays."""
    suffixes = [find("exports", name).suffix for name in names("exports")]
    for suffix in (".npz", *suffixes):
        (folder / f"{safe_name(case.image_id)}{suffix}").unlink(missing_ok=True)


_NAME_BYTES = 180
"""Of a file name: with suffixes and what is written aside it stays below 255."""


def safe_name(image_id: str) -> str:
    """A file name from an id.

    One that had to be changed or shortened gets a few digits of the id's hash.
    """
    plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in image_id).lstrip(".")
    short = _bytes(plain)[:_NAME_BYTES].decode(errors="ignore")
    if short == image_id:
        return short
    return f"{short}-{hashlib.sha256(_bytes(image_id)).hexdigest()[:8]}"


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _merge_index(path: Path, entries: list[dict[str, Any]], asked: set[str]) -> None:
    """Put these entries in the place of all that there are of the images asked for."""
    old = read_json(path) if path.is_file() else []
    write_json(path, [entry for entry in old if entry["image_id"] not in asked] + entries)
