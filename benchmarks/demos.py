"""Does `foveate demo` come out right every time: many demos, each with a cohort of its own.

    python benchmarks/demos.py --seeds 0-9 --out DIR [--python VENV/bin/python] [--slides N]
    python benchmarks/demos.py --out DIR --markdown          (prints the table, runs nothing)

Each demo is a child process of the given Python; that of an odd seed has one thread, that of an
even seed two, so that what depends on the order of sums shows. A row is appended to
``DIR/demos.csv`` as each demo ends; seeds that have one are left out, and a demo that was
interrupted goes on where it stopped (its seconds are then those since: column *resumed*). Exit
code 1 of a demo means that it did not keep its promise.

Cohort and checkpoints of a demo are deleted after it; scores, logs, report and heatmaps stay.
Memory is the peak of resident memory of the child, as the system counted it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from _rows import Ended, Row, Rows, drop_bulk, numbers, outcome_of, run_child, said, table

from foveate.runs.folder import read_json

COLUMNS = (
    "seed",
    "torch",
    "threads",
    "slides",
    "seconds",
    "peak_mib",
    "auroc",
    "lo",
    "hi",
    "downsampled_auroc",
    "downsampled_lo",
    "downsampled_hi",
    "peaks",
    "positives",
    "promises_kept",
    "exit",
    "resumed",
    "outcome",
)
TITLES = (
    "seed",
    "torch",
    "threads",
    "`glimpse` AUROC (95 %)",
    "peak in a deciding nodule",
    "`downsampled` AUROC (95 %)",
    "s",
    "peak MiB",
    "exit",
)


def run_one(seed: int, out: Path, python: str, slides: int | None) -> Row:
    folder, log = out / f"seed_{seed}", out / f"seed_{seed}.txt"
    resumed, threads = folder.exists(), 1 if seed % 2 else 2
    command = [python, "-m", "foveate.cli", "demo", "--seed", str(seed), "--out", str(folder)]
    command += ["--slides", str(slides)] if slides else []
    ended = run_child(command, log, {"OMP_NUM_THREADS": str(threads)})
    row: Row = {"seed": seed, "threads": threads, "slides": slides or "", "resumed": int(resumed)}
    row |= {"outcome": outcome_of(ended, log, fine=(0, 2)), **_cost(ended), **found(folder)}
    if ended.code in (0, 1, 2) and "auroc" in row:
        shutil.rmtree(folder / "cohort", ignore_errors=True)
        drop_bulk(folder)
    return row


def _cost(ended: Ended) -> Row:
    return {"seconds": f"{ended.seconds:.1f}", "peak_mib": f"{ended.peak_mib:.0f}",
            "exit": ended.code}  # fmt: skip


def found(folder: Path) -> Row:
    """What the run folders of a demo say; empty of one that did not come so far."""
    row: Row = {}
    for method, before in (("glimpse", ""), ("downsampled", "downsampled_")):
        own = folder / method
        if (own / "env.json").is_file():
            row["torch"] = read_json(own / "env.json")["torch"]
        if (own / "metrics.json").is_file():
            score = read_json(own / "metrics.json")["metrics"].get("auroc")
            if score:
                row |= {f"{before}auroc": score["value"]}
                row |= {f"{before}{end}": score[end] for end in ("lo", "hi")}
    if (folder / "glimpse" / "localisation.json").is_file():
        peaks = read_json(folder / "glimpse" / "localisation.json")
        row |= {"peaks": round(peaks["hit_fraction"] * peaks["n"]), "positives": peaks["n"]}
    if (folder / "promises.json").is_file():
        promises = read_json(folder / "promises.json")
        row["promises_kept"] = f"{sum(p['kept'] for p in promises)} of {len(promises)}"
    return row


def markdown(rows: Sequence[dict[str, str]]) -> str:
    cells = [
        (
            row["seed"],
            row["torch"] or "–",
            row["threads"],
            _score(row, ""),
            f"{row['peaks']} of {row['positives']}" if row["positives"] else "–",
            _score(row, "downsampled_"),
            said(row["seconds"], "{:.0f}") + (" (resumed)" if row["resumed"] == "1" else ""),
            said(row["peak_mib"], "{:.0f}"),
            row["exit"] if row["outcome"] == "ok" else row["outcome"],
        )
        for row in sorted(rows, key=lambda row: int(row["seed"]))
    ]
    right = sum(row["exit"] == "0" for row in rows)
    hits, slides = (sum(int(row[c] or 0) for row in rows) for c in ("peaks", "positives"))
    told = f"{right} of {len(rows)} demos ended with 0; peaks in a deciding nodule: {hits}"
    return f"{table(TITLES, cells)}\n\n{told} of {slides}."


def _score(row: dict[str, str], before: str) -> str:
    if not row[f"{before}auroc"]:
        return "–"
    value, lo, hi = (said(row[before + name]) for name in ("auroc", "lo", "hi"))
    return f"{value} ({lo} to {hi})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=numbers, default="0-9", help="such as 0-9 or 1,4")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable, help="of the installation to try")
    parser.add_argument("--slides", type=int, help="smaller cohorts, to try this script")
    parser.add_argument("--markdown", action="store_true", help="print the table, run nothing")
    chosen = parser.parse_args()
    out = chosen.out.resolve()
    rows = Rows(out / "demos.csv", COLUMNS, ("seed",))
    for seed in [] if chosen.markdown else chosen.seeds:
        before = rows.find(seed)
        if before is None or not before["auroc"]:
            row = run_one(seed, out, chosen.python, chosen.slides)
            rows.add(row)
            print(f"seed {seed}: {row['outcome']}", file=sys.stderr, flush=True)
    print(markdown(rows.all()))


if __name__ == "__main__":
    main()
