"""How much memory one training step takes, against the size of the image and the patches kept.

Every row is a fresh process, so that its peak is its own. Images are sparse canvases with something
in every cell of the lattice, up to tens of gigapixels; nothing of them is ever held whole.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from foveate.atomic import write_json
from foveate.benchmark._run import write_table
from foveate.outputs import Display
from foveate.run_folder import read_json
from foveate.sparse import Canvas, read_canvas, write_canvas

_STAMP_PX = 28
_N_STAMPS = 64


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
    """One row for every side and every set of method options; rows that are done are kept.

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
    """
    rows = []
    total = len(sides) * len(method_options)
    for i, (side, options) in enumerate((s, o) for s in sides for o in method_options):
        display.bar(f"memory {method}", i, total, f"side {side}  {dict(options)}")
        said = "-".join(f"{k}{v}" for k, v in options.items()) or "defaults"
        done = out / "runs" / f"{method}-{side}-b{batch_size}-{said}-{device}" / "row.json"
        if not done.is_file():
            canvas = crowded_canvas(out / "canvases", side=side, cell_px=patch_px)
            given = (str(canvas), method, dict(options), dict(encoder_options), patch_px)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                row = pool.apply(measure_step, (*given, batch_size, device))
            done.parent.mkdir(parents=True, exist_ok=True)
            write_json(done, {"benchmark": "memory", "method": method, "side": side, **row})
        rows.append(read_json(done))
        write_table(out)
    display.bar(f"memory {method}", total, total)
    return rows


def crowded_canvas(folder: Path, *, side: int, cell_px: int) -> Path:
    """A canvas with one random stamp inside every cell; written once."""
    path = folder / f"crowded-{side}-{cell_px}.sparse"
    if path.is_file():
        return path
    rng = np.random.default_rng(side)
    n = side // cell_px
    size = min(_STAMP_PX, cell_px)
    cells = np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), -1).reshape(-1, 2)
    canvas = Canvas(
        shape=(side, side),
        origins=cells * cell_px + rng.integers(0, cell_px - size + 1, cells.shape),
        stamp_ids=rng.integers(0, _N_STAMPS, len(cells)),
        scales=np.ones(len(cells), np.int64),
        stamp_sizes=np.full((_N_STAMPS, 2), size),
        stamp_pixels=rng.integers(64, 256, _N_STAMPS * size * size).astype(np.uint8),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_canvas(path, canvas)
    return path


def measure_step(
    canvas: str,
    method: str,
    method_options: Mapping[str, Any],
    encoder_options: Mapping[str, Any],
    patch_px: int,
    batch_size: int,
    device: str,
) -> dict[str, Any]:
    """One training step on copies of a canvas; what it took. Run in a process of its own."""
    import torch

    from foveate.batch import Batch, View
    from foveate.cases import Case
    from foveate.encoders import build_encoder
    from foveate.loading import CaseLoader
    from foveate.memory import peak_rss_mib
    from foveate.plugins import find, parse_options
    from foveate.tasks.binary import BinaryTask

    torch.manual_seed(0)
    task = BinaryTask(classes=("absent", "present"))
    part = find("methods", method)
    built = part(
        encoder=build_encoder("small", dict(encoder_options)),
        heads=task.heads,
        **parse_options(part, method_options, "method"),
    ).to(device)
    optimizer = torch.optim.AdamW(built.parameters())
    n_parameters = sum(p.numel() for p in built.parameters())
    before = peak_rss_mib()
    image_px = read_canvas(Path(canvas)).shape[0]
    view = View(1.0, patch_px, max(1.0, image_px / 512), unit="px")
    loader = CaseLoader(view)
    items = [loader.load(Case(f"{i}", f"{i}", Path(canvas))) for i in range(batch_size)]
    with ThreadPoolExecutor(4) as pool:
        begun = time.perf_counter()
        batch = Batch(
            items,
            view=view,
            normalise=(built.encoder.mean, built.encoder.std),
            device=torch.device(device),
            pool=pool,
        )
        prediction = built(batch)
        target = torch.arange(batch_size, device=device) % 2
        loss = task.loss(prediction.logits, target) + sum(prediction.losses.values())
        for weight, logits in prediction.auxiliary.values():
            loss = loss + weight * task.loss(logits, target)
        loss.backward()
        optimizer.step()
        seconds = time.perf_counter() - begun
    found = {
        "gigapixels": round(image_px**2 / 1e9, 3),
        "patches": (image_px // patch_px) ** 2,
        "patch_px": patch_px,
        "batch_size": batch_size,
        **method_options,
        "parameters": n_parameters,
        "seconds": round(seconds, 2),
        "seconds_reading": round(batch.seconds_reading, 2),
        "asked_fraction": round(sum(i.image.count.asked_px for i in items) / image_px**2, 4),
        "rss_before_mib": round(before),
        "rss_peak_mib": round(peak_rss_mib()),
        "device": device,
    }
    if device == "cuda":
        found["device_peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
        found["device_name"] = torch.cuda.get_device_name()
    loader.close()
    return found
