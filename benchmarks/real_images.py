"""Small real sets with their own tables and default settings: set x method x seed.

    python benchmarks/real_images.py --data DATA --out OUT [--sets xray oral]
        [--methods glimpse abmil] [--seeds 0 1 2] [--folds 5] [--extra "--train.epochs 0"]
    python benchmarks/real_images.py --out OUT --markdown       (prints the tables, runs nothing)
(a single flag needs an equals sign: ``--extra=--refit``)

Each run is one `foveate train` with what a user would have to say of the set and nothing else:

*xray*         ``xray_kermany``: pneumonia or not; brought to 1024² pixels, because the size of a
               file alone tells its class; split by patient.
*oral*         ``histo_oral``: carcinoma or not; no patients known, and with augmented copies, so
               that it says nothing about generalising.
*osteosarcoma* ``histo_osteosarcoma``: three classes, split by slide; three slides have the rarest,
               so at most three folds.
*stain*        ``pathology_atlas/slides_5x``: H&E or another stain, split by case. Slides that
               state no pixel size get 2.0 µm in the table. Three cases have another stain, so at
               most three folds.
*hippocampus*  ``mri_hippocampus``: volumes; large or small.
*adrenal*      ``ct_adrenal64``: volumes, written as NIfTI by ``benchmarks/adrenal_nifti.py``;
               normal or hyperplasia.

Scores are of pooled predictions that no training saw, with 95 % intervals over patients; with
three classes the AUROC is the mean of one against the rest. *frozen*: the same after the frozen
start alone, before anything was trained end to end; *gain*: end to end above that on the same
images. A row is appended to ``OUT/real_images.csv`` as each run ends; rows that are there are not
run again, failed ones are. Checkpoints and models of a run are deleted after it.
"""

from __future__ import annotations

import argparse
import csv
import shlex
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from _rows import (
    Row,
    Rows,
    delete_large_files,
    describe_outcome,
    format_figure,
    format_interval,
    group_rows,
    mean,
    run_child,
    table,
)

from foveate.runs.folder import read_json

COLUMNS = (
    "set",
    "method",
    "seed",
    "folds",
    "extra",
    "images",
    "patients",
    "classes",
    "auroc",
    "lo",
    "hi",
    "frozen_auroc",
    "frozen_lo",
    "frozen_hi",
    "gain",
    "gain_lo",
    "gain_hi",
    "balanced_accuracy",
    "brier",
    "ece",
    "seconds",
    "peak_mib",
    "peak_device_mib",
    "torch",
    "exit",
    "outcome",
)
KEY = ("set", "method", "seed", "folds", "extra")
ATLAS_UM = "2.0"


@dataclass(frozen=True)
class Images:
    """A data set: its table, the flags that it needs, and its maximal number of folds."""

    table: Callable[[Path, Path], Path]
    flags: str
    most_folds: int = 1000


def _given_table(name: str) -> Callable[[Path, Path], Path]:
    """Return a function that gives the table of a set in its folder."""
    return lambda data, _: data / name / "labels.csv"


def stain_table(data: Path, out: Path) -> Path:
    """Write the atlas's table with a pixel size in every row and absolute paths."""
    folder, path = data / "pathology_atlas" / "slides_5x", out / "tables" / "stain.csv"
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["file", "case_id", "stain_class", "mpp"])
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {
                    "file": folder / row["file"],
                    "case_id": row["case_id"],
                    "stain_class": row["stain_class"],
                    "mpp": row["mpp"] or ATLAS_UM,
                }
            )
    return path


def adrenal_table(data: Path, out: Path) -> Path:
    """Write the table of the volumes once, by the script beside this one."""
    folder = out / "tables" / "adrenal"
    if not (folder / "labels.csv").is_file():
        writer = Path(__file__).with_name("adrenal_nifti.py")
        arrays = data / "ct_adrenal64" / "train_val.npz"
        if not writer.is_file():
            raise FileNotFoundError(f"adrenal needs {writer}")
        subprocess.run([sys.executable, str(writer), str(arrays), str(folder)], check=True)
    return folder / "labels.csv"


def known_sets() -> dict[str, Images]:
    """Return all data sets by name."""
    return {
        "xray": Images(
            _given_table("xray_kermany"), "--label label --patient patient_id --view.fit 1024x1024"
        ),
        "oral": Images(_given_table("histo_oral"), "--label label"),
        "osteosarcoma": Images(
            _given_table("histo_osteosarcoma"), "--label label --patient slide", 3
        ),
        "stain": Images(stain_table, "--label stain_class --patient case_id", 3),
        "hippocampus": Images(_given_table("mri_hippocampus"), "--label size_class"),
        "adrenal": Images(adrenal_table, "--label label"),
    }


@dataclass(frozen=True)
class Run:
    """One training."""

    name: str
    method: str
    seed: int
    folds: int
    extra: str

    @property
    def key(self) -> tuple[object, ...]:
        """Return the columns that identify the run."""
        return (self.name, self.method, self.seed, self.folds, self.extra)

    @property
    def folder_name(self) -> str:
        """Return the name of the run's folder."""
        mark = f"-{zlib.crc32(self.extra.encode()):08x}" if self.extra else ""
        return f"{self.name}-{self.method}-{self.folds}folds-seed{self.seed}{mark}"


def run_one(run: Run, images: Images, data: Path, out: Path, *, keep: bool) -> Row:
    """Train one run and return its row."""
    row: Row = dict(zip(KEY, run.key, strict=True))
    try:
        rows = images.table(data, out)
    except (OSError, subprocess.CalledProcessError) as error:
        return row | {"exit": "", "outcome": f"no table: {error}"[:200]}
    folder, log = out / "runs" / run.folder_name, out / "runs" / f"{run.folder_name}.txt"
    command = [sys.executable, "-m", "foveate.cli", "train", str(rows), "--out", str(folder)]
    command += ["--method", run.method, "--folds", str(run.folds), "--seed", str(run.seed)]
    command += shlex.split(images.flags) + shlex.split(run.extra)
    result = run_child(command, log)
    row |= {"seconds": f"{result.seconds:.1f}", "peak_mib": f"{result.peak_mib:.0f}"}
    row |= {"exit": result.code, "outcome": describe_outcome(result, log, fine=(0, 2))}
    if result.code in (0, 2):
        row |= scores(folder)
        delete_large_files(folder, models=not keep)
    return row


def scores(folder: Path) -> Row:
    """Read the scores of a finished run folder."""
    metrics, cost = (read_json(folder / f"{name}.json") for name in ("metrics", "cost"))
    row: Row = {
        "images": metrics["n_images"],
        "patients": metrics["n_patients"],
        "classes": len(metrics["classes"]),
        "peak_device_mib": f"{cost['peak_device_mib']:.0f}",
        "torch": read_json(folder / "env.json")["torch"],
    }
    parts = (
        ("auroc", "", metrics["metrics"]),
        ("frozen_auroc", "frozen_", metrics.get("frozen", {})),
        ("gain", "gain_", metrics.get("gain", {})),
    )
    for name, before, part in parts:
        if "auroc" in part:
            score = part["auroc"]
            row |= {name: score["value"], f"{before}lo": score["lo"], f"{before}hi": score["hi"]}
    for name in ("balanced_accuracy", "brier", "ece"):
        if name in metrics["metrics"]:
            row[name] = metrics["metrics"][name]["value"]
    return row


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """Return tables of scores and of the gain by end-to-end training, as means over seeds."""
    fine = [row for row in rows if row["auroc"]]
    grouped = group_rows(fine, lambda r: (r["set"], r["method"], r["folds"], r["extra"]))
    score_cells, gain_cells = [], []
    for (name, method, folds, extra), members in grouped.items():
        cells = [name, f"{members[0]['images']} / {members[0]['patients']}", f"`{method}`"]
        cells[-1] += f", `{extra}`" if extra else ""
        values = [float(row["auroc"]) for row in members]
        score_cells.append(
            (
                *cells,
                f"{folds} / {len(members)}",
                format_interval(members, "auroc", "lo", "hi"),
                f"{min(values):.3f} to {max(values):.3f}",
                *(format_figure(mean(members, c)) for c in ("balanced_accuracy", "brier", "ece")),
                format_figure(mean(members, "seconds"), "{:.0f}"),
                format_figure(mean(members, "peak_mib"), "{:.0f}"),
            )
        )
        if any(row["gain"] for row in members):
            gains = [float(row["gain"]) for row in members if row["gain"]]
            clear = sum(float(row["gain_lo"]) > 0 for row in members if row["gain"])
            worse = sum(float(row["gain_hi"]) < 0 for row in members if row["gain"])
            gain_cells.append(
                (
                    *cells,
                    format_interval(members, "frozen_auroc", "frozen_lo", "frozen_hi"),
                    format_interval(members, "auroc", "lo", "hi"),
                    format_interval(members, "gain", "gain_lo", "gain_hi"),
                    f"{min(gains):+.3f} to {max(gains):+.3f}",
                    f"{clear} / {worse} of {len(gains)}",
                )
            )
    first = ("set", "images / patients", "method")
    tables = [table((*first, "folds / seeds", "AUROC (95 %)", "over seeds", "balanced accuracy",
                   "Brier", "ECE", "s", "peak MiB"), score_cells),
            table((*first, "frozen AUROC (95 %)", "end to end", "gain (95 %)", "over seeds",
                   "seeds clearly better / worse"), gain_cells)]  # fmt: skip
    tables += [f"- {' '.join(row[c] for c in KEY)}: {row['outcome']}" for row in rows
             if not row["auroc"]]  # fmt: skip
    return "\n\n".join(tables)


def main() -> None:
    """Run what is missing, or print the tables."""
    sets = known_sets()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder that holds the sets")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=sets, default=list(sets))
    parser.add_argument("--methods", nargs="+", default=["glimpse", "downsampled", "abmil"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--extra", default="", help="further flags of `foveate train`")
    parser.add_argument("--keep-models", action="store_true")
    parser.add_argument("--markdown", action="store_true", help="print the tables, run nothing")
    chosen = parser.parse_args()
    out = chosen.out.resolve()
    rows = Rows(out / "real_images.csv", COLUMNS, KEY)
    if not chosen.markdown and chosen.data is None:
        parser.error("--data is needed to run")
    runs = [
        Run(name, method, seed, min(chosen.folds, sets[name].most_folds), chosen.extra)
        for seed in chosen.seeds
        for name in chosen.sets
        for method in chosen.methods
    ]
    for run in [] if chosen.markdown else runs:
        before = rows.find(*run.key)
        if before is None or not before["auroc"]:
            row = run_one(run, sets[run.name], chosen.data.resolve(), out, keep=chosen.keep_models)
            rows.add(row)
            print(f"{run.folder_name}: {row['outcome']}", file=sys.stderr, flush=True)
    print(markdown(rows.all()))


if __name__ == "__main__":
    main()
