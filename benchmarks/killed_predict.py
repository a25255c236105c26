"""Kill `foveate predict` on many images again and again, and compare with an undisturbed run.

None may be lost, none answered twice, none wrong; memory and open files may not grow with the
number of images.

    python benchmarks/killed_predict.py --out /tmp/kills --images 1000 --kills 5
    python benchmarks/killed_predict.py --out /tmp/kills3 --images 200 --kills 5 --volumes
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import psutil
from PIL import Image

RUN = (
    *("--method", "mil_mean", "--encoder.width", "4", "--encoder.dim", "8", "--epochs", "1"),
    *("--heatmaps", "0"),
)
PICTURES = ("--encoder", "small", "--view.patch-px", "32")
VOLUMES = ("--encoder", "small3d", "--view.patch-px", "16", "--view.glimpse-px", "16")


def write_image(folder: Path, i: int, volumes: bool) -> Path:
    """Write image number i, some of them broken."""
    rng = np.random.default_rng(i)
    shape = (24, 24, 24) if volumes else (64, 64)
    pixels = rng.integers(100, 200, shape, dtype=np.uint8)
    if i % 2:
        pixels[(slice(8, 16),) * len(shape)] //= 4
    path = folder / (f"V{i:04d}.nii.gz" if volumes else f"P{i:04d}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    if volumes:
        nibabel.save(nibabel.Nifti1Image(pixels, np.diag([1.0, 1.0, 1.0, 1.0])), path)
    else:
        Image.fromarray(pixels).save(path)
    return path


def command(*words: object) -> list[str]:
    """Return the words of a ``foveate`` command for `subprocess`."""
    return [sys.executable, "-m", "foveate", *map(str, words)]


def train_run(out: Path, volumes: bool) -> Path:
    """Train a short run and return its folder."""
    rows = [(write_image(out / "cohort", i, volumes), ("plain", "dark")[i % 2]) for i in range(16)]
    table = out / "labels.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    words = command("train", table, "--out", out / "run", *RUN, *(VOLUMES if volumes else PICTURES))
    subprocess.run(words, check=True, capture_output=True)
    return out / "run"


def count_predictions(out: Path) -> int:
    """Count the predictions written so far."""
    path = out / "answers.jsonl"
    return max(path.read_bytes().count(b"\n") - 1, 0) if path.is_file() else 0


def run_and_kill(
    words: Sequence[str], out: Path, until: int | None
) -> list[tuple[int, float, int]]:
    """Run a command until a number of predictions; samples are (count, MiB, open files)."""
    samples = []
    log = (out.parent / "log.txt").open("a", encoding="utf-8")
    with subprocess.Popen(words, stdout=log, stderr=log) as child:
        process = psutil.Process(child.pid)
        while child.poll() is None:
            try:
                mib, files = process.memory_info().rss / 2**20, process.num_fds()
                samples.append((count_predictions(out), mib, files))
            except psutil.Error:
                break
            if until is not None and samples[-1][0] >= until:
                child.kill()
            time.sleep(0.1 if until is None else 0.01)
    log.close()
    return samples


def table_of(out: Path) -> dict[str, dict[str, str]]:
    """Read the predictions by image."""
    with (out / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    by_image = {row["image_id"]: row for row in rows}
    assert len(by_image) == len(rows), "an image stands twice in the table"
    return {i: {k: v for k, v in r.items() if k != "seconds"} for i, r in by_image.items()}


def main() -> None:
    """Run the study and print its result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--volumes", action="store_true")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    out = args.out
    shutil.rmtree(out, ignore_errors=True)
    run, n = train_run(out, args.volumes), args.images
    images = [write_image(out / "in", 100 + i, args.volumes) for i in range(n)]
    broken = images[::20]
    for path in broken:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    words = command("predict", run, out / "in", "--heatmaps", "0")
    rng = random.Random(0)
    samples: list[tuple[int, float, int]] = []
    for k in range(args.kills):
        at = round(n * (k + rng.random()) / (args.kills + 1)) + 1
        run_and_kill([*words, "--out", str(out / "killed")], out / "killed", at)
        print(f"killed after {count_predictions(out / 'killed')} images", flush=True)
    run_and_kill([*words, "--out", str(out / "killed")], out / "killed", None)
    samples = run_and_kill([*words, "--out", str(out / "whole")], out / "whole", None)

    killed, undisturbed = table_of(out / "killed"), table_of(out / "whole")
    lines = (out / "killed" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    keys = [json.loads(line).get("key") for line in lines[1:]]
    keys = [key for key in keys if key is not None]
    print(f"{n} images, {len(broken)} broken, {args.kills} kills")
    print(f"lost: {n - len(broken) - len(killed)}; answered twice: {len(keys) - len(set(keys))}")
    print(f"other than undisturbed: {sum(killed[i] != undisturbed[i] for i in undisturbed)}")
    print(f"left aside: {len(list(out.rglob('*.part')))} files")
    early = [x for x in samples if n * 0.1 <= x[0] < n * 0.3]
    late = [x for x in samples if x[0] >= n * 0.8]
    mib = [float(np.median([x[1] for x in part])) for part in (early, late)]
    growth = (mib[1] - mib[0]) * 1024 / (0.7 * n)
    print(f"memory {mib[0]:.0f} to {mib[1]:.0f} MiB ({growth:.1f} KiB an image)")
    print(f"open files at most {max(x[2] for x in samples)}")
    assert killed == undisturbed
    assert len(killed) == n - len(broken)
    assert len(keys) == len(set(keys)) == n


if __name__ == "__main__":
    main()
