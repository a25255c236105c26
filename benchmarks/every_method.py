"""Train every method of `foveate methods` on two cohorts and make one table.

    python benchmarks/every_method.py DATA OUT [--methods abmil,tnet] [--cohorts demo]
        [--minutes 15]

*demo* is the cohort of `foveate demo` with smaller slides, so that methods which scan everything
end soon: 100 slides of 80 patients, 8192² pixels of 0.5 µm (67 megapixels), a third of the demo's
tissue and nodules, no gigapixel slide; 30 % of patients are the test part and 15 % of the rest
validation. Patches of 64 pixels of 1 µm, glimpse of 32 µm. Methods that scan train for at most 12
epochs, the others, which look at fewer patches a step, for 20.

*xray* is ``DATA/xray_kermany/labels.csv``, 44 pictures of 41 patients brought to 256² pixels, three
folds with pooled predictions, 16 epochs; patches of 32 of these pixels, glimpse of 64.

Encoder `small`, from scratch, pairs of images, seed 0; every method of a cohort has the same split,
which is checked. One process at a time, about an hour of one core. Runs that ended are kept, runs
that were stopped go on; one that fails is told in its row. Minutes are of the whole command, with
heatmaps and report, and grow with what else the machine does. *asked* are the pixels that a method
asked for in prediction, at the resolutions it asked for them, *decoded* those of the stored tiles
that had to be decoded for that, both as shares of the full resolution of the test images (a JPEG
picture is decoded whole). *found*: positive test slides whose heaviest box lies in a deciding
nodule, by the truth that no training reads. Writes ``OUT/table.csv`` after every run.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveate.files.atomic import write_json
from foveate.parts import names
from foveate.runs.folder import read_json, read_rows, write_rows
from foveate.synthetic import CohortSpec, write_cohort
from foveate.workflows.demo import SLIDE, measure_localisation

SLIDE_SMALL = replace(
    SLIDE,
    shape_px0=(8192, 8192),
    tissue_area_px0=(1.5e6, 1.7e6),
    n_islands=(1, 1),
    n_nodules=(6, 8),
    n_deciding=(3, 4),
)
COHORTS = ("demo", "xray")
SCANNING = (
    "abmil",
    "clam",
    "dsmil",
    "ips",
    "mil_max",
    "mil_mean",
    "streaming_cnn",
    "transmil",
)
COMMON = "--encoder small --train.batch-size 2 --train.lr 7e-4 --seed 0 --heatmaps 8"
DEMO = (
    "--task binary --task.positive tumour --split.test-fraction 0.3 --split.val-fraction 0.15 "
    "--view.spacing-um 1 --view.patch-px 64 --view.glimpse-spacing-um 32"
)
DEMO_SCANNING = "--epochs 12 --train.min-epochs 8 --train.patience 3"
DEMO_DRAWING = "--epochs 20 --train.min-epochs 16 --train.patience 4"
DEMO_OWN = {
    # As published it has no instance head.
    "clam": "--method.instance 1",
    "attention_sampling": "--method.patches 48",
    "differentiable_top_k": "--method.k 24 --method.most 64",
    "glimpse": "--method.patches 48",
    # An image has about 110 patches, of which 100, the default, would be no selection.
    "ips": "--method.kept 32",
    "joint_sampling": "--method.patches 48",
    "tnet": "--method.locations 12,3 --train.min-epochs 20",
}
XRAY = (
    "--label label --folds 3 --epochs 16 --train.min-epochs 16 "
    "--view.fit 256x256 --view.spacing-um 1 --view.patch-px 32 --view.glimpse-px 64"
)
COLUMNS = (
    "cohort",
    "method",
    "auroc",
    "lo",
    "hi",
    "test_images",
    "minutes",
    "peak_rss_mib",
    "asked_share",
    "decoded_share",
    "peaks_in_deciding",
    "peaks",
    "epochs",
    "best_val_loss",
    "chance_loss",
    "split",
    "settings",
    "outcome",
)
TITLES = (
    "cohort",
    "method",
    "AUROC (95 %)",
    "min",
    "peak MiB",
    "asked",
    "decoded",
    "found",
    "epochs",
    "outcome",
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One training: cohort, method, flags and folder."""

    cohort: str
    method: str
    table: Path
    flags: list[str]
    folder: Path

    @property
    def state_path(self) -> Path:
        """Return the path of the file with the time of all attempts and the last outcome."""
        return self.folder.with_suffix(".json")

    @property
    def known(self) -> bool:
        """Tell whether the run was tried before."""
        return self.state_path.is_file()

    @property
    def state(self) -> dict[str, Any]:
        """Read the time of all attempts and the last outcome."""
        return read_json(self.state_path) if self.known else {"seconds": 0.0, "outcome": "not run"}

    @property
    def command(self) -> list[str]:
        """Return the words of the training command."""
        program = shutil.which("foveate", path=str(Path(sys.executable).parent)) or "foveate"
        run_flags = ["--method", self.method, *self.flags, "--out", str(self.folder)]
        return [program, "train", str(self.table), *run_flags]


def plan_runs(data: Path, out: Path) -> list[Run]:
    """Return the runs of both cohorts, those that read little first."""
    runs = []
    for cohort in COHORTS:
        table = out / "cohort" / "labels.csv"
        if cohort == "xray":
            table = data / "xray_kermany" / "labels.csv"
        for method in sorted(names("methods"), key=lambda m: (m in SCANNING, m)):
            flags = _flags(cohort, method).split() + COMMON.split()
            runs.append(Run(cohort, method, table, flags, out / f"{cohort}-{method}"))
    return runs


def _flags(cohort: str, method: str) -> str:
    """Return the flags of a method on a cohort."""
    if cohort == "xray":
        return XRAY
    length = DEMO_SCANNING if method in SCANNING else DEMO_DRAWING
    return f"{DEMO} {length} {DEMO_OWN.get(method, '')}"


def train(run: Run, limit_s: float) -> None:
    """Train, unless the same command already ended well."""
    before = run.state
    if before["outcome"] == "ok" and before["command"] == run.command:
        return
    started = time.monotonic()
    with run.folder.with_suffix(".txt").open("a", encoding="utf-8") as log:
        try:
            result = subprocess.run(
                run.command, stdout=log, stderr=subprocess.STDOUT, timeout=limit_s, check=False
            )
            code: int | None = result.returncode
        except subprocess.TimeoutExpired:
            # The run was killed; the same command resumes it.
            code = None
    after = {
        "command": run.command,
        "seconds": before["seconds"] + time.monotonic() - started,
        "outcome": _outcome(code, run, limit_s),
    }
    write_json(run.state_path, after)


def _outcome(code: int | None, run: Run, limit_s: float) -> str:
    """Describe how a training ended."""
    if code is None:
        return f"stopped after {limit_s / 60:g} min"
    if code == 0:
        return "ok"
    lines = run.folder.with_suffix(".txt").read_text(encoding="utf-8").strip().splitlines()
    return f"exit {code}: {lines[-1] if lines else 'nothing said'}"


def row_of(run: Run) -> Row:
    """Read the row of a run from its folder, without missing figures."""
    row: Row = {"cohort": run.cohort, "method": run.method, "outcome": run.state["outcome"]}
    row |= {"minutes": run.state["seconds"] / 60, "settings": " ".join(run.flags)}
    if (run.folder / "splits.json").is_file():
        row["split"] = read_json(run.folder / "splits.json")["hash"]
    row |= _training(run.folder)
    if (run.folder / "cost.json").is_file():
        metrics, cost = (read_json(run.folder / f"{n}.json") for n in ("metrics", "cost"))
        score = metrics["metrics"]["auroc"]
        row |= {"auroc": score["value"], "lo": score["lo"], "hi": score["hi"]}
        row |= {"test_images": metrics["n_images"], "peak_rss_mib": cost["peak_rss_mib"]}
        for kind in ("asked", "decoded"):
            row[f"{kind}_share"] = cost[f"{kind}_px"] / cost["level0_px"]
        if run.cohort == "demo":
            hits = measure_localisation(run.folder)
            row["peaks_in_deciding"] = round(hits["hit_fraction"] * hits["n"])
            row["peaks"] = hits["n"]
    return row


def _training(folder: Path) -> Row:
    """Return the epochs of every fold, and mean best validation and chance losses."""
    folds = [read_rows(path) for path in sorted(folder.glob("fold_*/metrics.csv"))]
    if not folds or not all(folds):
        return {}
    best = [min(float(epoch["val_loss"]) for epoch in epochs) for epochs in folds]
    chance = [float(epochs[-1]["chance_loss"]) for epochs in folds]
    return {
        "epochs": "+".join(str(len(epochs)) for epochs in folds),
        "best_val_loss": sum(best) / len(best),
        "chance_loss": sum(chance) / len(chance),
    }


def markdown(rows: Sequence[Row]) -> str:
    """Return the Markdown table of all rows."""
    lines = [f"| {' | '.join(TITLES)} |", "|" + "---|" * len(TITLES)]
    for row in rows:
        score = "–" if "auroc" not in row else "{auroc:.3f} ({lo:.3f}–{hi:.3f})".format(**row)
        figures = [
            f"{row['minutes']:.1f}",
            _format_cell(row, "peak_rss_mib", "{:.0f}"),
            _format_cell(row, "asked_share", "{:.2%}"),
            _format_cell(row, "decoded_share", "{:.2%}"),
            "{peaks_in_deciding} of {peaks}".format(**row) if "peaks" in row else "–",
            row.get("epochs", "–"),
        ]
        cells = [row["cohort"], f"`{row['method']}`", score, *figures, row["outcome"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _format_cell(row: Row, key: str, form: str) -> str:
    """Format one cell, or a dash if the value is missing."""
    return form.format(row[key]) if key in row else "–"


def check_splits(rows: Sequence[Row]) -> None:
    """Check that all methods of a cohort used the same split."""
    for cohort in {row["cohort"] for row in rows}:
        splits = {row["split"] for row in rows if row["cohort"] == cohort and "split" in row}
        if len(splits) > 1:
            sys.exit(f"{cohort}: methods were trained on different splits, {sorted(splits)}")


def main() -> None:
    """Run what is missing, or print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder that holds xray_kermany")
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", default=",".join(names("methods")))
    parser.add_argument("--cohorts", default=",".join(COHORTS))
    parser.add_argument("--minutes", type=float, default=15.0, help="at most, of one run")
    chosen = parser.parse_args()
    out = chosen.out.resolve()
    write_cohort(
        out / "cohort", CohortSpec(n_slides=100, n_patients=80, spec=SLIDE_SMALL), workers=1
    )
    runs = plan_runs(chosen.data.resolve(), out)
    for run in runs:
        if run.method in chosen.methods.split(",") and run.cohort in chosen.cohorts.split(","):
            train(run, 60 * chosen.minutes)
            print(markdown([row_of(run)]).splitlines()[-1], file=sys.stderr, flush=True)
            write_rows(out / "table.csv", [row_of(r) for r in runs if r.known], COLUMNS)
    rows = [row_of(run) for run in runs if run.known]
    check_splits(rows)
    print(markdown(rows))


if __name__ == "__main__":
    main()
