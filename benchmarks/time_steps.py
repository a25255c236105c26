"""Share of a training step that each method spends waiting for pixels of a slide.

    python benchmarks/time_steps.py [--slide FILE] [--methods glimpse,abmil] [--spacing 0.5]

Every step opens the slide anew, so that no tile is decoded yet, and reads its glimpse before the
clock starts, as the loop does ahead of a step. Encoder `small`, from scratch; the slide is read
twice in a step, as two images.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from foveate.batch import Batch, View
from foveate.encoders import build_encoder
from foveate.loading.loader import CaseLoader
from foveate.methods.base import AbstractMethod, further_loss
from foveate.nn.generators import seeded
from foveate.parts import find, names
from foveate.table import Case
from foveate.tasks.binary import BinaryTask

SLIDE = (
    Path(__file__).resolve().parents[1] / "../shared/data/pathology_atlas/giga/BS9__HE1_1.56Gpx.svs"
)
IMAGES = 2

Row = tuple[float, float]
"""Seconds of a step, and those of them that it waited for pixels."""


def time_step(method: AbstractMethod, task: BinaryTask, slide: Path, view: View, seed: int) -> Row:
    """Return seconds of one step, and those of waiting for pixels."""
    loader = CaseLoader(view)
    try:
        items = [loader.load(Case(str(i), str(i), slide)) for i in range(IMAGES)]
        begun = time.perf_counter()
        batch = Batch(
            items,
            view=view,
            normalise=(method.encoder.mean, method.encoder.std),
            device=torch.device("cpu"),
            pool=loader.threads,
            generators=seeded([seed + i for i in range(IMAGES)]),
        )
        method.begin_step(0.5)
        prediction = method(batch)
        target = torch.arange(IMAGES) % 2
        loss = task.loss(prediction.logits, target) + further_loss(task, prediction, target)
        loss.backward()
        return time.perf_counter() - begun, batch.seconds_reading
    finally:
        loader.close()


def main() -> None:
    """Measure all methods and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slide", type=Path, default=SLIDE)
    parser.add_argument("--methods", default="")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--spacing", type=float, default=0.5, help="micrometres a pixel")
    parser.add_argument("--patch", type=int, default=256, help="pixels a side")
    options = parser.parse_args()
    task = BinaryTask(classes=("absent", "present"))
    print("| method | s a step | of it waiting for pixels, s | % |\n|---|---|---|---|")
    for name in options.methods.split(",") if options.methods else names("methods"):
        torch.manual_seed(0)
        part = find("methods", name)
        encoder = build_encoder("small", {}, part.encoder_defaults)
        method = part(encoder=encoder, heads=task.heads).train()
        view = View(options.spacing, options.patch, 32 * options.spacing)
        rows = [time_step(method, task, options.slide, view, 10 * k) for k in range(options.steps)]
        seconds, waiting = (statistics.median(values) for values in zip(*rows, strict=True))
        share = statistics.median(100 * w / s for s, w in rows)
        print(f"| `{name}` | {seconds:.2f} | {waiting:.2f} | {share:.0f} |", flush=True)


if __name__ == "__main__":
    main()
