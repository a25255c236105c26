"""One row of a benchmark: train a method on a recipe's canvases, test it, and say what it cost."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from foveate.atomic import write_json, write_text
from foveate.audit import audit_layout
from foveate.batch import View
from foveate.cases import Case
from foveate.checkpoint import Model, ModelCard
from foveate.encoders import build_encoder
from foveate.loading import CaseLoader
from foveate.memory import peak_memory_mib
from foveate.outputs import Display
from foveate.plugins import find, parse_options
from foveate.prediction import Report, predict_cases
from foveate.state import Progress, TrainOptions
from foveate.tasks.base import AbstractTask
from foveate.training import Trainer

log = logging.getLogger("foveate")

_AUDITED = 300


@dataclass(frozen=True)
class Run:
    """What one row trains.

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
    done = folder / "row.json"
    if done.is_file():
        row: dict[str, Any] = json.loads(done.read_text(encoding="utf-8"))
        return row
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(run.options.seed)
    model = _build(run, task)
    loader = CaseLoader(run.view, keep_bytes=2 << 30)
    probe = _Probe(run, model, parts["test"])
    try:
        trainer = Trainer(
            model,
            loader,
            folder,
            run.options,
            tick=_ticker(run, display),
            after_epoch=probe.after_epoch,
        )
        probe.progress = trainer.progress
        progress = trainer.fit(parts["train"], parts["val"])
    finally:
        loader.close()
    tested = score(model, parts["test"], trainer.fabric.device)
    audited = _audited(model, parts["test"][:_AUDITED], trainer.fabric.device)
    row = {
        "benchmark": run.benchmark,
        "method": run.method,
        "seed": run.options.seed,
        **{f"n_{name}": len(cases) for name, cases in parts.items()},
        **tested,
        **audited,
        **_costs(progress, len(parts["train"])),
        **probe.found,
        "method_options": json.dumps(dict(run.method_options)),
        "device": str(trainer.fabric.device),
        "threads": torch.get_num_threads(),
    }
    write_json(done, row)
    return row


def _costs(progress: Progress, n_train: int) -> dict[str, Any]:
    """What training took."""
    history = progress.history
    epochs = max(len(history), 1)
    return {
        "epochs": len(history),
        "best_epoch": progress.best_epoch,
        "left_chance_epoch": _left_chance(history),
        "train_minutes": round(sum(r["seconds"] for r in history) / 60, 2),
        "reading_share": round(
            sum(r["seconds_reading"] for r in history) / max(sum(r["seconds"] for r in history), 1),
            3,
        ),
        "asked_px_per_image": round(sum(r["asked_px"] for r in history) / epochs / n_train),
        "peak_memory_mib": round(peak_memory_mib()),
    }


def score(model: Model, cases: Sequence[Case], device: torch.device) -> dict[str, Any]:
    """Scores of the task on a part, with the share of its pixels that was read."""
    begun = time.perf_counter()
    loader = CaseLoader(model.card.view)
    try:
        reports = list(predict_cases(model, cases, loader, device=device))
    finally:
        loader.close()
    failed = [r for r in reports if not isinstance(r, Report)]
    if failed:
        log.warning("%d of %d images could not be predicted", len(failed), len(cases))
    good = [r for r in reports if isinstance(r, Report)]
    logits = torch.tensor([r.logits for r in good])
    target = torch.tensor([model.task.target(str(r.case.label)) for r in good])
    found = model.task.validation(logits, target)
    level0 = sum(r.level0_px for r in good)
    return {
        **{k.replace("val_", "test_"): round(v, 4) for k, v in found.items()},
        "test_loss": round(float(model.task.loss(logits, target)), 4),
        "test_seconds": round(time.perf_counter() - begun, 1),
    } | ({"read_fraction": round(sum(r.asked_px for r in good) / level0, 4)} if level0 else {})


def write_table(out: Path) -> None:
    """``results.csv`` from all rows that are done."""
    rows = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(out.glob("runs/*/row.json"))]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "results.csv", text.getvalue())


def _audited(model: Model, cases: Sequence[Case], device: torch.device) -> dict[str, Any]:
    """Whether the method uses layout, and its scores on some images without it."""
    loader = CaseLoader(model.card.view)
    try:
        found = audit_layout(model, cases, loader, device=device, n_shuffles=1)
    finally:
        loader.close()
    log.info(found.told())
    shuffled = {k.replace("val_", "shuffled_"): round(v, 4) for k, v in found.shuffled.items()}
    return {"uses_layout": found.uses_layout, **shuffled}


class _Probe:
    """Scores the test part once, when the training time has passed a mark."""

    def __init__(self, run: Run, model: Model, cases: Sequence[Case]) -> None:
        self._run, self._model, self._cases = run, model, cases
        self.progress: Any = None
        self.found: dict[str, Any] = {}

    def after_epoch(self, _: Path) -> None:
        """Look at the clock."""
        mark = self._run.probe_minutes
        history = self.progress.history
        minutes = sum(row["seconds"] for row in history) / 60
        if mark is None or self.found or minutes + 0.6 * minutes / len(history) < mark:
            return
        device = next(self._model.method.parameters()).device
        found = score(self._model, self._cases, device)
        self.found = {"probe_minutes": round(minutes, 2)} | {
            f"probe_{k}": v for k, v in found.items() if k.startswith("test_")
        }
        log.info("probe: %s", self.found)


def _build(run: Run, task: AbstractTask) -> Model:
    encoder = build_encoder(run.encoder, dict(run.encoder_options))
    part = find("methods", run.method)
    options = parse_options(part, run.method_options, "method")
    method = part(encoder=encoder, heads=task.heads, **options)
    card = ModelCard(
        method=run.method,
        method_options=dict(run.method_options),
        encoder=run.encoder,
        encoder_options=dict(run.encoder_options),
        task="benchmark",
        task_options={},
        classes=task.classes,
        view=run.view,
    )
    return Model(card, method, task)


def _ticker(run: Run, display: Display) -> Any:
    def tick(epoch: int, step: int, steps: int, running: dict[str, float]) -> None:
        title = f"{run.benchmark} {run.method} seed {run.options.seed}"
        note = f"epoch {epoch + 1}  loss {running['train_loss']:.3f}"
        display.bar(title, epoch * steps + step, run.options.epochs * steps, note)

    return tick


def _left_chance(history: Sequence[Mapping[str, float]]) -> int:
    """The first epoch whose training loss lies more than a tenth below chance; 0 for none."""
    for row in history:
        if row["train_loss"] < 0.9 * row["chance_loss"]:
            return int(row["epoch"])
    return 0
