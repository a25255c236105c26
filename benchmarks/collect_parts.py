r"""Time and memory of collecting many predictions from the parts of a job array.

One image is predicted; its answer is written for all the others, as parts would have left it; then
the real command collects them.

    python benchmarks/collect_parts.py --run runs/first --image one.png \
        --out /tmp/many --images 100000
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from foveate.files.journal import Journal
from foveate.prediction.job_array import JobPart
from foveate.prediction.outputs import _make_key
from foveate.table import Case, LabelRules, read_cases


def predict(run: Path, images: Path, out: Path) -> None:
    """Run ``foveate predict`` on the images."""
    words = ("predict", run, images, "--out", out, "--heatmaps", "0")
    command = [sys.executable, "-m", "foveate", *map(str, words)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def answer_of(line: str, case: Case) -> dict[str, object]:
    """Build the prediction of a case from a stored line."""
    entry: dict[str, Any] = json.loads(line)
    del entry["key"]
    entry["row"] |= {"image_id": case.image_id, "path": str(case.path)}
    entry["pictures"][0]["image_id"] = case.image_id
    return entry | {"of": json.loads(json.dumps(_make_key(case)))}


def main() -> None:
    """Write the parts, collect them, and print the cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--parts", type=int, default=40)
    args = parser.parse_args()
    folder = args.out / "in"
    shutil.rmtree(args.out, ignore_errors=True)
    folder.mkdir(parents=True)
    names = [f"S{i:06d}{args.image.suffix}" for i in range(args.images)]
    for name in names:
        shutil.copyfile(args.image, folder / name)
    table = args.out / "slides.csv"
    table.write_text("path\n" + "".join(f"in/{name}\n" for name in names), encoding="utf-8")

    predict(args.run, args.image, args.out / "one")
    lines = (args.out / "one" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    about = {k: v for k, v in json.loads(lines[0]).items() if k != "schema"}
    cases = read_cases(table, labels=LabelRules(needed=False)).cases
    for number in range(1, args.parts + 1):
        part = JobPart(number, args.parts)
        path = args.out / "all" / "parts" / part.folder / "answers.jsonl"
        path.parent.mkdir(parents=True)
        journal = Journal(path, about)
        journal.add_all({c.image_id: answer_of(lines[1], c) for c in part.pick(cases)})
        journal.finish()

    begun = time.perf_counter()
    predict(args.run, table, args.out / "all")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{args.images} answers of {args.parts} parts collected")
    print(f"{time.perf_counter() - begun:.0f} s, {used.ru_utime:.0f} s of CPU in both commands")
    print(f"{used.ru_maxrss / 1024:.0f} MiB at most, on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
