"""Memory of one training step as a function of image size and number of patches.

Every row is a fresh process, so that its peak is its own. Images are sparse canvases with something
in every cell of the lattice, up to tens of gigapixels; nothing of them is ever held whole.

What a step takes is the process's peak less what it held before the step: parameters, libraries,
glimpses and the canvas' own tables do not count.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.canvas import Canvas, write_canvas
from benchmarks.canvas.base import MAX_SIDE_PX
from benchmarks.canvas.loading import CanvasLoader
from benchmarks.mnist.run import forget_peaks, write_table
from benchmarks.process import measure_in_process, peaks
from foveate.batch import Batch, View
from foveate.encoders import build_encoder
from foveate.errors import OptionError
from foveate.files.atomic import write_json
from foveate.memory import peak_rss_mib, release_memory
from foveate.messages.display import Display
from foveate.methods.base import further_loss
from foveate.parts import add_plugin_folder, find, plugin_folders
from foveate.parts.options import parse_options
from foveate.runs.folder import read_json
from foveate.table import Case
from foveate.tasks.binary import BinaryTask

_STAMP_PX = 28
_N_STAMPS = 64
_GLIMPSE_PX = 512


@dataclass(frozen=True)
class Step:
    """The settings of one measurement: a method with its options, on canvases of one side.

    Attributes:
        method, method_options: which method.
        encoder_options: of the encoder ``small``.
        side: of the canvas, pixels.
        patch_px: side of a patch.
        batch_size: images a step.
        device: ``cpu`` or ``cuda``.
    """

    method: str
    method_options: Mapping[str, Any]
    encoder_options: Mapping[str, Any]
    side: int
    patch_px: int
    batch_size: int
    device: str

    def facts(self) -> dict[str, Any]:
        """Return the columns that identify the measurement."""
        return {
            "method": self.method,
            **self.method_options,
            "side": self.side,
            "gigapixels": round(self.side**2 / 1e9, 4),
            "patch_px": self.patch_px,
            "patches": (self.side // self.patch_px) ** 2,
            "batch_size": self.batch_size,
            **{f"encoder_{key}": value for key, value in self.encoder_options.items()},
        }


def sweep_memory(
    out: Path,
    *,
    method: str,
    sides: Sequence[int],
    batch_size: int,
    patch_px: int,
    encoder_options: Mapping[str, Any],
    method_options: Sequence[Mapping[str, Any]],
    device: str,
    display: Display,
) -> list[dict[str, Any]]:
    """Measure every side with every set of method options; finished rows are reused.

    Args:
        out: where canvases and ``results.csv`` go.
        method: which method.
        sides: of the square canvases, in pixels.
        batch_size: images a step.
        patch_px: side of a patch; there are ``(side / patch_px)²`` of them.
        encoder_options: of the encoder ``small``.
        method_options: sets of options, such as ``{"kept": 100}``.
        device: ``cpu`` or ``cuda``.
        display: progress.

    Raises:
        OptionError, UnknownName: a number or option that is not allowed.
        TrainingError: the process of a row was killed, most likely for want of memory.
    """
    _check(sides, batch_size, patch_px, device)
    part = find("methods", method)
    sets = [parse_options(part, options, "method") for options in method_options]
    encoder = parse_options(find("encoders", "small"), encoder_options, "encoder")
    rows, total = [], len(sides) * len(sets)
    for i, (side, options) in enumerate((s, o) for s in sides for o in sets):
        description = f"side {side}" + "".join(f"  {k} {v}" for k, v in options.items())
        display.bar(f"memory {method}", i, total, description)
        step = Step(method, options, encoder, side, patch_px, batch_size, device)
        settings = json.dumps(asdict(step), sort_keys=True)
        digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
        row_path = out / "runs" / f"memory-{method}-{side}-{digest}" / "row.json"
        if not row_path.is_file():
            canvas = crowded_canvas(out / "canvases", side=side, cell_px=patch_px)
            folders = [str(folder) for folder in plugin_folders()]
            row = measure_in_process(
                *(measure_step, str(canvas), step, folders),
                label=f"memory, {description}",
                less="a smaller --sides, --kept or --batch-size",
            )
            write_json(row_path, {"benchmark": "memory", **row})
        rows.append(read_json(row_path))
        write_table(out)
    display.bar(f"memory {method}", total, total)
    return rows


def crowded_canvas(folder: Path, *, side: int, cell_px: int) -> Path:
    """Write a canvas with one random stamp in every cell, unless it exists."""
    path = folder / f"crowded-{side}-{cell_px}.sparse"
    if path.is_file():
        return path
    rng = np.random.default_rng(side)
    n = side // cell_px
    size = min(_STAMP_PX, cell_px)
    scale = cell_px // size
    cells = np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), -1).reshape(-1, 2)
    canvas = Canvas(
        shape=(side, side),
        origins=cells * cell_px + rng.integers(0, cell_px - size * scale + 1, cells.shape),
        stamp_ids=rng.integers(0, _N_STAMPS, len(cells)),
        scales=np.full(len(cells), scale),
        stamp_sizes=np.full((_N_STAMPS, 2), size),
        stamp_pixels=rng.integers(64, 256, _N_STAMPS * size * size).astype(np.uint8),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_canvas(path, canvas)
    return path


def measure_step(canvas: str, step: Step, plugins: Sequence[str] = ()) -> dict[str, Any]:
    """Measure one training step on copies of a canvas, in a process of its own.

    The images are open and their glimpses read, as the loop does ahead of a step; then come crops,
    forward, backward and optimiser.
    """
    for folder in plugins:
        add_plugin_folder(Path(folder))
    torch.manual_seed(0)
    task = BinaryTask(classes=("absent", "present"))
    part = find("methods", step.method)
    encoder = build_encoder("small", step.encoder_options, part.encoder_defaults)
    method = part(encoder=encoder, heads=task.heads, **step.method_options).to(step.device)
    optimizer = torch.optim.AdamW(method.parameters())
    view = View(1.0, step.patch_px, max(1.0, step.side / _GLIMPSE_PX), unit="px")
    loader = CanvasLoader(view)
    items = [loader.load(Case(str(i), str(i), Path(canvas))) for i in range(step.batch_size)]
    target = torch.arange(step.batch_size, device=step.device) % 2
    # Kernels and other things that are loaded once are loaded before the measurement.
    warm = encoder(torch.zeros(2, 3, step.patch_px, step.patch_px, device=step.device))
    warm.sum().backward()
    optimizer.zero_grad(set_to_none=True)
    del warm
    release_memory()
    forget_peaks()
    before, begun = peak_rss_mib(), time.perf_counter()
    try:
        batch = Batch(
            items,
            view=view,
            normalise=(encoder.mean, encoder.std),
            device=torch.device(step.device),
            pool=loader.threads,
        )
        method.begin_step(0.5)
        prediction = method(batch)
        loss = task.loss(prediction.logits, target)
        (loss + further_loss(task, prediction, target)).backward()
        optimizer.step()
        seconds = time.perf_counter() - begun
        asked_px = sum(item.image.count.asked_px for item in items)
    finally:
        loader.close()
    return step.facts() | {
        "parameters": sum(p.numel() for p in method.parameters()),
        **peaks(before, step.device),
        "seconds": round(seconds, 2),
        "seconds_reading": round(batch.seconds_reading, 2),
        "asked_fraction": round(asked_px / (step.batch_size * step.side**2), 6),
        "device": step.device,
        "threads": torch.get_num_threads(),
    }


def _check(sides: Sequence[int], batch_size: int, patch_px: int, device: str) -> None:
    """Check the options of the command."""
    if patch_px < 16:
        raise OptionError(f"--patch-px: got {patch_px}, expected at least 16")
    for side in sides:
        if not patch_px <= side <= MAX_SIDE_PX:
            raise OptionError(
                f"--sides: got {side}, expected {patch_px} (one patch) to {MAX_SIDE_PX} pixels"
            )
    if batch_size < 1:
        raise OptionError(f"--batch-size: got {batch_size}, expected 1 or more")
    if device == "cuda" and not torch.cuda.is_available():
        raise OptionError("--device: 'cuda' is not on this machine; take cpu")
