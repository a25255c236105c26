"""One row of a benchmark: train a method on canvases, test it, and measure its cost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.canvas.loading import CanvasLoader
from foveate.batch import View
from foveate.encoders import build_encoder
from foveate.errors import TrainingError
from foveate.evaluation.audit import audit_layout
from foveate.files.atomic import remove_partial_files, write_json, write_text
from foveate.files.csvtext import csv_text
from foveate.messages.display import Display
from foveate.parts import find
from foveate.parts.options import parse_options
from foveate.prediction.answer import Answer
from foveate.prediction.predict import predict_cases
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import Model
from foveate.runs.folder import read_json
from foveate.runs.models import Ensemble
from foveate.runs.schedule import TrainOptions
from foveate.table import Case
from foveate.tasks.base import AbstractTask
from foveate.training.loop import Trainer
from foveate.training.state import Progress

log = logging.getLogger("foveate")

_AUDITED = 300
_ORDER = ("benchmark", "method", "seed", "side", "batch_size", "kept")


@dataclass(frozen=True)
class Run:
    """The settings of one row.

    Attributes:
        benchmark: name, for the table.
        method, method_options: which method.
        encoder, encoder_options: which encoder.
        view: the geometry of reading.
        options: of training; its seed seeds everything.
        probe_minutes: when so much training time has passed, the test part is scored once for the
            table; nothing is decided by it, and it does not count as training time.
    """

    benchmark: str
    method: str
    view: View
    options: TrainOptions
    encoder: str = "small"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    encoder_options: Mapping[str, Any] = field(default_factory=dict)
    probe_minutes: float | None = None


def run_row(
    run: Run,
    task: AbstractTask,
    parts: Mapping[str, Sequence[Case]],
    runs: Path,
    display: Display,
) -> dict[str, Any]:
    """Train on ``parts["train"]``, stop by ``parts["val"]``, score ``parts["test"]`` once.

    A finished row is read from its folder in `runs` instead; an unfinished one goes on where it
    stopped.
    """
    settings = json.dumps(asdict(run), sort_keys=True, default=str)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
    folder = runs / f"{run.method}-{run.options.seed}-{digest}"
    row_path = folder / "row.json"
    if row_path.is_file():
        row: dict[str, Any] = read_json(row_path)
        return row
    folder.mkdir(parents=True, exist_ok=True)
    remove_partial_files(folder)
    forget_peaks()
    torch.manual_seed(run.options.seed)
    model = _build(run, task)
    loader = CanvasLoader(run.view, keep_bytes=2 << 30)
    probe = _Probe(run, model, parts["test"], folder / "probe.json")
    title = f"{run.benchmark} {run.method} seed {run.options.seed}"
    try:
        trainer = Trainer(
            model,
            loader,
            folder,
            run.options,
            display=display,
            title=title,
            after_epoch=probe.after_epoch,
        )
        probe.trainer = trainer
        progress = trainer.fit(parts["train"], parts["val"])
    finally:
        loader.close()
    tested = score(model, parts["test"], trainer.fabric.device)
    audited = _audit(model, parts["test"][:_AUDITED], trainer.fabric.device)
    row = {
        "benchmark": run.benchmark,
        "method": run.method,
        "seed": run.options.seed,
        **{f"n_{name}": len(cases) for name, cases in parts.items()},
        **tested,
        **audited,
        **_costs(progress, len(parts["train"]) + len(parts["val"])),
        **probe.found,
        "method_options": json.dumps(dict(run.method_options)),
        "encoder": run.encoder,
        "encoder_options": json.dumps(dict(run.encoder_options)),
        "spacing": run.view.spacing_um,
        "device": str(trainer.fabric.device),
        "threads": torch.get_num_threads(),
    }
    write_json(row_path, row)
    return row


def forget_peaks() -> None:
    """Reset the peaks of memory to the present use, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _costs(progress: Progress, n_images: int) -> dict[str, Any]:
    """Return the cost columns of a training; each epoch reads `n_images`, validation included.

    All of it comes from the epochs' own rows, so that a run which was stopped has lost nothing.
    """
    history = progress.history
    seconds = sum(r["seconds"] for r in history)
    reading = sum(r["seconds_reading"] for r in history)
    asked_px = sum(r["asked_px"] for r in history)
    return {
        "epochs": len(history),
        "best_epoch": progress.best_epoch,
        "left_chance_epoch": _first_epoch_below_chance(history),
        "train_minutes": round(seconds / 60, 2),
        "reading_share": round(reading / max(seconds, 1e-9), 3),
        "asked_px_per_image": round(asked_px / len(history) / n_images),
        "peak_memory_mib": round(max(r["peak_memory_mib"] for r in history)),
    }


def score(model: Model, cases: Sequence[Case], device: torch.device) -> dict[str, Any]:
    """Compute the scores of a part, and the share of its pixels that was read."""
    begun = time.perf_counter()
    loader = CanvasLoader(model.card.view)
    try:
        reports = list(predict_cases(Ensemble((model,)), cases, loader, device=device))
    finally:
        loader.close()
    failed = [r for r in reports if not isinstance(r, Answer)]
    if failed:
        log.warning("%d of %d images could not be predicted", len(failed), len(cases))
    good = [r for r in reports if isinstance(r, Answer)]
    if not good:
        raise TrainingError("not one image of the test part could be predicted")
    logits = torch.tensor([r.logits for r in good])
    target = model.task.targets([str(r.case.label) for r in good])
    scores = model.task.log_scores(model.task.decode(logits, {}), target)
    level0 = sum(r.level0_px for r in good)
    return {
        **{k.replace("val_", "test_"): round(v, 4) for k, v in scores.items()},
        "test_loss": round(float(model.task.loss(logits, target)), 4),
        "test_seconds": round(time.perf_counter() - begun, 1),
    } | ({"read_fraction": round(sum(r.asked_px for r in good) / level0, 4)} if level0 else {})


def write_table(out: Path) -> None:
    """Write ``results.csv`` from all finished rows."""
    rows = [read_json(path) for path in sorted(out.glob("runs/*/row.json"))]
    rows.sort(key=lambda row: [row.get(key, 0) for key in _ORDER])
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_text(out / "results.csv", csv_text(rows, columns))


def _audit(model: Model, cases: Sequence[Case], device: torch.device) -> dict[str, Any]:
    """Audit the use of layout on some images.

    Empty where it reads no patches that could trade places.
    """
    if not model.method.reads & {"crops", "bag"}:
        return {"uses_layout": None}
    loader = CanvasLoader(model.card.view)
    try:
        audit = audit_layout(Ensemble((model,)), cases, loader, device=device, n_shuffles=1)
    finally:
        loader.close()
    log.info(audit.describe())
    shuffled = {k.replace("val_", "shuffled_"): round(v, 4) for k, v in audit.shuffled.items()}
    return {"uses_layout": audit.uses_layout, **shuffled}


class _Probe:
    """Scores the test part once, when the training time has passed a mark."""

    def __init__(self, run: Run, model: Model, cases: Sequence[Case], path: Path) -> None:
        self._run, self._model, self._cases, self._kept = run, model, cases, path
        self.trainer: Trainer | None = None
        self.found: dict[str, Any] = read_json(path) if path.is_file() else {}

    def after_epoch(self, _: Path) -> None:
        """Score the test part if the training time has passed the mark."""
        mark = self._run.probe_minutes
        if mark is None or self.found or self.trainer is None:
            return
        history = self.trainer.progress.history
        minutes = sum(row["seconds"] for row in history) / 60
        if minutes + 0.6 * minutes / len(history) < mark:
            return
        device = next(self._model.method.parameters()).device
        scores = score(self._model, self._cases, device)
        self.found = {"probe_minutes": round(minutes, 2)} | {
            f"probe_{k}": v for k, v in scores.items() if k.startswith("test_")
        }
        write_json(self._kept, self.found)
        log.info("probe: %s", self.found)


def _build(run: Run, task: AbstractTask) -> Model:
    """Build the model of a row."""
    part = find("methods", run.method)
    encoder = build_encoder(run.encoder, run.encoder_options, part.encoder_defaults)
    options = parse_options(part, run.method_options, "method")
    method = part(encoder=encoder, heads=task.heads, **options)
    card = ModelCard(
        method=run.method,
        method_options=dict(run.method_options),
        encoder=run.encoder,
        encoder_options=dict(run.encoder_options),
        task="benchmark",
        task_options={},
        settled=task.settled,
        view=run.view,
    )
    return Model(card, method, task)


def _first_epoch_below_chance(history: Sequence[Mapping[str, float]]) -> int:
    """Return the first epoch with a training loss over a tenth below chance; 0 for none."""
    for row in history:
        if row["train_loss"] < 0.9 * row["chance_loss"]:
            return int(row["epoch"])
    return 0
