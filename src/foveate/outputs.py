"""What prediction leaves behind: the table, heatmaps, GeoJSON, and the account of what was read."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from foveate.atomic import write_json
from foveate.cases import Case
from foveate.ensemble import Ensemble
from foveate.errors import FoveateError
from foveate.heatmaps import draw_heatmap, write_geojson
from foveate.loading import CaseLoader
from foveate.prediction import Failure, Report, predict_cases
from foveate.run_folder import read_json, write_rows

log = logging.getLogger("foveate")


class Display(Protocol):
    """Where progress goes: a terminal, a log, or nowhere."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def bar(self, title: str, done: float, total: int, note: str = "") -> None:
        """Work under way, which may be within one of its parts."""


def training_bar(display: Display, title: str) -> Callable[[Any], None]:
    """Shows each stage of training as one bar; nothing of an epoch before its first step."""

    def tick(status: Any) -> None:
        running, note = status.running, ""
        if status.epoch:
            note = f"epoch {status.epoch}"
        if running.get("seconds_computing", 0) > 0:
            waiting = running["seconds_reading"] / running["seconds"]
            note += f"  loss {running['train_loss']:.4f}  waiting for pixels {waiting:.0%}"
        if "validated" in running:
            note += f"  validating {running['validated']:.0%}"
        display.bar(f"{title}: {status.stage}", status.done, status.total, note)

    return tick


@dataclass
class Summary:
    """Predictions as rows, failures with reasons, and what it cost; `classes` in their order."""

    classes: tuple[str, ...]
    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)


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
) -> Summary:
    """Predict cases; write ``predictions.csv`` into `folder` and pictures into `heatmaps`.

    Where several models answer, the mean of their probabilities is the answer.

    Pictures are drawn for the first `n_heatmaps` images; evidence is kept for all.
    """
    keys = ("seconds", "seconds_reading", "decoded_px", "asked_px", "level0_px")
    summary = Summary(models.classes, cost={**dict.fromkeys(keys, 0.0), "n_images": 0.0})
    index: list[dict[str, Any]] = []

    def within(done: float) -> None:
        display.bar("predicting", done, len(cases))

    reports = predict_cases(models, cases, loader, device=device, tell=within)
    for done, found in enumerate(reports, 1):
        if isinstance(found, Failure):
            summary.failed[found.case.image_id] = found.reason
            display.say(f"set aside {found.case.image_id}: {found.reason}")
        else:
            row = _row(found, models)
            summary.rows.append(row)
            for key in keys:
                summary.cost[key] += getattr(found, key)
            summary.cost["n_images"] += 1
            if not index and not len(found.evidence):
                display.say("the method gives no evidence: heatmaps will show no regions")
            index.append(_pictures(found, row, models, heatmaps, draw=len(index) < n_heatmaps))
        within(done)
    summary.cost["seconds_computing"] = summary.cost["seconds"] - summary.cost["seconds_reading"]
    write_rows(folder / "predictions.csv", summary.rows, _columns(models, summary.rows))
    _merge_index(heatmaps / "index.json", index)
    return summary


def _columns(models: Ensemble, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of ``predictions.csv``, in order."""
    columns = ["image_id", "patient_id", "path", "label", "predicted", "threshold", "spacing"]
    columns += ["models", *(f"prob_{c}" for c in models.classes)]
    if len(models) > 1:
        columns += [f"prob_sd_{c}" for c in models.classes]
    columns += [key for key in (rows or [{}])[0] if key.startswith("logit_sd_")]
    return [*columns, "seconds", "decoded_px", "level0_px", "decoded_fraction"]


def decide(probabilities: Sequence[float], classes: Sequence[str], threshold: float | None) -> str:
    """The predicted class: the most probable, or by the threshold of a binary task."""
    if threshold is not None and len(classes) == 2:
        return classes[int(probabilities[1] >= threshold)]
    return classes[max(range(len(classes)), key=lambda i: probabilities[i])]


def _row(report: Report, models: Ensemble) -> dict[str, Any]:
    threshold, case = models.threshold, report.case
    row: dict[str, Any] = {
        "image_id": case.image_id,
        "patient_id": case.patient_id,
        "path": str(case.path),
        "label": case.label or "",
        "predicted": decide(report.probabilities, models.classes, threshold),
        "threshold": "" if threshold is None else f"{threshold:.6g}",
        "spacing": f"{report.image.known_spacing_um[-1]:.4g} {report.image.unit}",
        "models": len(models),
        "seconds": f"{report.seconds:.3f}",
        "decoded_px": report.decoded_px,
        "level0_px": report.level0_px,
        "decoded_fraction": f"{report.decoded_px / report.level0_px:.5f}",
    }
    shares = zip(models.classes, report.probabilities, strict=True)
    row |= {f"prob_{c}": f"{p:.6f}" for c, p in shares}
    if report.probability_sd is not None:
        spread = zip(models.classes, report.probability_sd, strict=True)
        row |= {f"prob_sd_{c}": f"{sd:.6f}" for c, sd in spread}
    return row | _deviations(report, models.classes)


def _deviations(report: Report, classes: Sequence[str]) -> dict[str, str]:
    """What a method says of the noise in its logits; one logit of two classes is the second's."""
    if report.deviation is None:
        return {}
    n = len(report.deviation)
    said = classes[-n:] if n in (1, len(classes)) else [str(j) for j in range(n)]
    return {f"logit_sd_{c}": f"{d:.6f}" for c, d in zip(said, report.deviation, strict=True)}


def _pictures(
    report: Report, row: dict[str, Any], models: Ensemble, folder: Path, *, draw: bool
) -> dict[str, Any]:
    """Write evidence and, if asked, the pictures; a picture that fails is said, not fatal."""
    stem = safe_name(report.case.image_id)
    report.evidence.save(folder / f"{stem}.npz")
    shares = dict(zip(models.classes, report.probabilities, strict=True))
    entry: dict[str, Any] = {
        "image_id": report.case.image_id,
        "label": row["label"],
        "predicted": row["predicted"],
        "probs": shares,
        "models": len(models),
        "png": None,
        "geojson": None,
    }
    if not draw:
        return entry
    said = "  ".join(f"{c} {p:.3f}" for c, p in shares.items())
    if row["threshold"] != "":
        said += f"; {models.classes[1]} from {float(row['threshold']):.3f}"
    if len(models) > 1:
        said += f"; mean of {len(models)} models"
    label = f"label {row['label']}, " if row["label"] else ""
    try:
        metadata = {"label": row["label"], "predicted": row["predicted"]}
        metadata |= {f"prob_{c}": f"{p:.4f}" for c, p in shares.items()}
        write_geojson(report.image, report.evidence, folder / f"{stem}.geojson", metadata=metadata)
        draw_heatmap(
            report.image,
            report.evidence,
            folder / f"{stem}.png",
            title=report.case.image_id,
            caption=f"{label}predicted {row['predicted']}   ({said})",
        )
    except (FoveateError, OSError, ValueError) as error:
        log.warning("no picture of %s: %s", report.case.image_id, error)
        return entry
    return entry | {"png": f"{stem}.png", "geojson": f"{stem}.geojson"}


def safe_name(image_id: str) -> str:
    """A file name from an id; one that had to be changed gets a few digits of the id's hash."""
    plain = "".join(c if c.isalnum() or c in "._-" else "_" for c in image_id).lstrip(".")
    if plain == image_id:
        return plain
    return f"{plain}-{hashlib.sha256(image_id.encode()).hexdigest()[:8]}"


def _merge_index(path: Path, entries: list[dict[str, Any]]) -> None:
    """Add entries to those that other folds wrote."""
    old = read_json(path) if path.is_file() else []
    new = {entry["image_id"] for entry in entries}
    write_json(path, [entry for entry in old if entry["image_id"] not in new] + entries)
