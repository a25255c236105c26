"""Train on shuffled labels with many seeds: the scores must be those of chance.

    python benchmarks/permuted.py --out OUT [--seeds 0-19]
    python benchmarks/permuted.py --out OUT --markdown

The pictures are so easy that a model which sees a true label anywhere gives itself away, and both
pictures of a patient are alike, so that a patient on both sides would be remembered. Each seed
shuffles the labels over the patients, divides these into folds and trains anew, with the choice of
the epoch, the temperature and the threshold as in any run. The control trains on the true labels.
A finished seed is kept in OUT/permuted.csv, so that the same command continues.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _rows import Rows, format_figure, parse_numbers, table
from PIL import Image

import foveate

COLUMNS = ("labels", "seed", "auroc", "lo", "hi", "balanced_accuracy", "seconds")
KEY = ("labels", "seed")
PATIENTS, PICTURES_EACH, SIDE = 60, 2, 48
FLAGS: dict[str, Any] = {
    "encoder": "small", "folds": 3, "epochs": 4, "heatmaps": 0, "device": "cpu",
    "encoder__width": 8, "encoder__dim": 16, "view__patch_px": 16, "view__glimpse_px": SIDE,
    "train__batch_size": 8, "train__lr": 5e-3,
}  # fmt: skip
MAX_GAP = 0.03


def write_pictures(folder: Path) -> Path:
    """Write pictures whose classes differ in red and blue, and patients in green; return a table.

    A table that is there already is left as it is.
    """
    path = folder / "labels.csv"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    rng, lines = np.random.default_rng(7), ["file,patient_id,label"]
    for p in range(PATIENTS):
        colour = np.array([220.0, 120, 70] if p % 2 else [70.0, 120, 220])
        tint = rng.normal(0, (10, 60, 10))
        for i in range(PICTURES_EACH):
            pixels = colour + tint + rng.normal(0, 12, (SIDE, SIDE, 3))
            name = f"p{p:02d}_{i}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
            lines.append(f"{name},P{p:02d},{'ab'[p % 2]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def train(labels: Path, out: Path, seed: int, *, permuted: bool) -> dict[str, float]:
    """Train one run, and return its scores."""
    started = time.monotonic()
    options = foveate.RunOptions(method="downsampled", seed=seed, permute_labels=permuted)
    result = foveate.train(labels, out, options, **FLAGS)
    scores = result.metrics["metrics"]
    auroc = {key: scores["auroc"][key] for key in ("value", "lo", "hi")}
    shutil.rmtree(out)
    return {
        "auroc": auroc["value"],
        "lo": auroc["lo"],
        "hi": auroc["hi"],
        "balanced_accuracy": scores["balanced_accuracy"]["value"],
        "seconds": time.monotonic() - started,
    }


def markdown(rows: list[dict[str, str]]) -> str:
    """Return the table of docs/results.md, and the mean of the shuffled runs below it."""
    titles = ["labels", "seed", "AUROC (95 %)", "balanced accuracy", "s"]
    cells = [
        [row["labels"], row["seed"],
         f"{float(row['auroc']):.3f} ({float(row['lo']):.3f} to {float(row['hi']):.3f})",
         format_figure(row["balanced_accuracy"]), format_figure(row["seconds"], "{:.0f}")]
        for row in rows
    ]  # fmt: skip
    return f"{table(titles, cells)}\n\n{summarise(rows)}"


def summarise(rows: list[dict[str, str]]) -> str:
    """Describe the mean AUROC on shuffled labels, and how many intervals hold 0.5."""
    drawn = [row for row in rows if row["labels"] == "shuffled"]
    if not drawn:
        return "No run on shuffled labels yet."
    values = np.array([float(row["auroc"]) for row in drawn])
    holds = sum(float(row["lo"]) <= 0.5 <= float(row["hi"]) for row in drawn)
    spread = f", standard deviation {values.std(ddof=1):.3f}" if len(values) > 1 else ""
    return (
        f"Mean AUROC of {len(values)} runs on shuffled labels: {values.mean():.3f}{spread}; "
        f"{holds} of {len(values)} intervals contain 0.5."
    )


def main() -> None:
    """Run the seeds that are missing, or print the table; exit with 1 where chance is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of permuted.csv")
    parser.add_argument("--seeds", default="0-19", help="such as 0-19")
    parser.add_argument("--markdown", action="store_true", help="print the table")
    args = parser.parse_args()
    rows = Rows(args.out / "permuted.csv", COLUMNS, KEY)
    if not args.markdown:
        labels = write_pictures(args.out / "pictures")
        seeds = [("shuffled", seed) for seed in parse_numbers(args.seeds)]
        for kind, seed in [("true", 0), *seeds]:
            if rows.find(kind, seed) is None:
                scores = train(labels, args.out / "run", seed, permuted=kind == "shuffled")
                numbers = {key: f"{value:.6f}" for key, value in scores.items()}
                rows.add({"labels": kind, "seed": seed, **numbers})
                print(kind, seed, numbers["auroc"], flush=True)
    print(markdown(rows.all()))
    values = [float(row["auroc"]) for row in rows.all() if row["labels"] == "shuffled"]
    if len(values) >= 20 and abs(np.mean(values) - 0.5) > MAX_GAP:
        sys.exit(1)


if __name__ == "__main__":
    main()
