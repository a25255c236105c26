"""Repeated runs of `foveate demo` with different cohorts, to count how often promises hold.

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

from _rows import (
    ChildResult,
    Row,
    Rows,
    delete_large_files,
    describe_outcome,
    format_figure,
    parse_numbers,
    run_child,
    table,
)

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
    "heaviest_peaks",
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
    "heaviest patch in one",
    "`downsampled` AUROC (95 %)",
    "s",
    "peak MiB",
    "exit",
)


def run_one(seed: int, out: Path, python: str, slides: int | None) -> Row:
    """Run one demo and return its row."""
    folder, log = out / f"seed_{seed}", out / f"seed_{seed}.txt"
    resumed, threads = folder.exists(), 1 if seed % 2 else 2
    command = [python, "-m", "foveate.cli", "demo", "--seed", str(seed), "--out", str(folder)]
    command += ["--slides", str(slides)] if slides else []
    result = run_child(command, log, {"OMP_NUM_THREADS": str(threads)})
    row: Row = {"seed": seed, "threads": threads, "slides": slides or "", "resumed": int(resumed)}
    row |= {
        "outcome": describe_outcome(result, log, fine=(0, 2)),
        **_cost(result),
        **read_run(folder),
    }
    if result.code in (0, 1, 2) and "auroc" in row:
        shutil.rmtree(folder / "cohort", ignore_errors=True)
        delete_large_files(folder)
    return row


def _cost(result: ChildResult) -> Row:
    """Return the time and memory columns of a child process."""
    return {"seconds": f"{result.seconds:.1f}", "peak_mib": f"{result.peak_mib:.0f}",
            "exit": result.code}  # fmt: skip


def read_run(folder: Path) -> Row:
    """Read the results of a demo; empty if it did not get that far."""
    row: Row = {}
    for method, before in (("glimpse", ""), ("downsampled", "downsampled_")):
        method_folder = folder / method
        if (method_folder / "env.json").is_file():
            row["torch"] = read_json(method_folder / "env.json")["torch"]
        if (method_folder / "metrics.json").is_file():
            score = read_json(method_folder / "metrics.json")["metrics"].get("auroc")
            if score:
                row |= {f"{before}auroc": score["value"]}
                row |= {f"{before}{end}": score[end] for end in ("lo", "hi")}
    if (folder / "glimpse" / "localisation.json").is_file():
        peaks = read_json(folder / "glimpse" / "localisation.json")
        row |= {
            "peaks": round(peaks["hit_fraction"] * peaks["n"]),
            "heaviest_peaks": round(peaks["heaviest_hit_fraction"] * peaks["n"]),
            "positives": peaks["n"],
        }
    if (folder / "promises.json").is_file():
        promises = read_json(folder / "promises.json")
        row["promises_kept"] = f"{sum(p['kept'] for p in promises)} of {len(promises)}"
    return row


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """Return the table of all demos and a summary line."""
    cells = [
        (
            row["seed"],
            row["torch"] or "–",
            row["threads"],
            _score(row, ""),
            *(
                f"{row[hits]} of {row['positives']}" if row[hits] else "–"
                for hits in ("peaks", "heaviest_peaks")
            ),
            _score(row, "downsampled_"),
            format_figure(row["seconds"], "{:.0f}")
            + (" (resumed)" if row["resumed"] == "1" else ""),
            format_figure(row["peak_mib"], "{:.0f}"),
            row["exit"] if row["outcome"] == "ok" else row["outcome"],
        )
        for row in sorted(rows, key=lambda row: int(row["seed"]))
    ]
    right = sum(row["exit"] == "0" for row in rows)
    hits, slides = (sum(int(row[c] or 0) for row in rows) for c in ("peaks", "positives"))
    summary = f"{right} of {len(rows)} demos ended with 0; peaks in a deciding nodule: {hits}"
    return f"{table(TITLES, cells)}\n\n{summary} of {slides}."


def _score(row: dict[str, str], before: str) -> str:
    """Format a score with its interval."""
    if not row[f"{before}auroc"]:
        return "–"
    value, lo, hi = (format_figure(row[before + name]) for name in ("auroc", "lo", "hi"))
    return f"{value} ({lo} to {hi})"


def main() -> None:
    """Run the demos that are missing, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=parse_numbers, default="0-9", help="such as 0-9 or 1,4")
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
