"""Claims of papers about their methods, tested on the tissue of the demo.

    python benchmarks/claims.py --out OUT [--claims joint reads ips streaming tnet] [--seeds 0 1 2]
        [--slides 100] [--side 16384] [--extra "--train.epochs 2"]
    python benchmarks/claims.py --out OUT --markdown            (prints the tables, runs nothing)

*joint*      `joint_sampling` against `abmil`: seconds of training and of inference as a ratio,
             AUROC with the paired interval of the difference, and the magnifications that it
             chose (Zhang et al. 2021: as good as attention over all patches, in less time).
*reads*      `attention_sampling` and `glimpse` against `abmil`: pixels read and seconds per image
             (Katharopoulos and Fleuret 2019: a tenth to a hundredth of the cost).
*ips*        `ips` with more patches kept, and with more patches in an image: AUROC and memory
             (Bergner et al. 2023: memory does not depend on the number of patches).
*streaming*  `streaming_cnn` at a quarter, half and the whole of the working resolution of 1 µm
             (Pinckaers et al. 2022: more resolution, better AUROC).
*tnet*       `tnet`: levels that it descended and pixels that it read (Papadopoulos et al. 2021).

The cohort is that of ``foveate demo --seed 0`` without the gigapixel slide, and the settings are
the demo's; the encoder is `lite0` with its stored weights. Split and training follow the seed, so
all methods of a seed are tested on the same slides. Training seconds are those of the run less
those of its predictions; *asked* are the pixels that a method asked for in prediction at the
resolution it asked for them, *decoded* those of stored tiles that this took, both as shares of the
full resolution. *found*: positive test slides whose heaviest box lies in a deciding nodule. One
process at a time; a row is appended to ``OUT/claims.csv`` as each run ends; rows that are there
are not run again, failed ones are. Checkpoints are deleted.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
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

from foveate.evaluation.scores import compare_rows
from foveate.images.evidence import Evidence
from foveate.runs.checkpoint import load_model
from foveate.runs.folder import read_json, read_rows
from foveate.synthetic import CohortSpec, SlideSpec, write_cohort
from foveate.workflows.demo import SLIDE, SLIDES_PER_PATIENT, measure_localisation

COMMON = (
    "--encoder lite0 --task binary --task.positive tumour --view.patch-px 64 "
    "--view.glimpse-spacing-um 32 --split.test-fraction 0.3 --split.val-fraction 0.15 --heatmaps 4"
)
AT_1_UM = "--view.spacing-um 1"
COLUMNS = (
    "run",
    "seed",
    "slides",
    "side",
    "extra",
    "flags",
    "images",
    "auroc",
    "lo",
    "hi",
    "over_abmil",
    "over_abmil_lo",
    "over_abmil_hi",
    "train_seconds",
    "test_seconds",
    "seconds_per_image",
    "asked_px_per_image",
    "asked_share",
    "decoded_share",
    "peak_mib",
    "step_mib",
    "device_mib",
    "found",
    "positives",
    "boxes",
    "sizes_per_image",
    "weight_by_size",
    "level_shares",
    "torch",
    "exit",
    "outcome",
)
KEY = ("run", "seed", "slides", "side", "extra")
SHARED = "abmil"


@dataclass(frozen=True)
class Claim:
    """The runs that a claim needs, by name: method and flags."""

    runs: dict[str, tuple[str, str]]
    title: str


CLAIMS = {
    "joint": Claim(
        {SHARED: ("abmil", AT_1_UM), "joint_sampling": ("joint_sampling", AT_1_UM)},
        "`joint_sampling` against `abmil`",
    ),
    "reads": Claim(
        {
            SHARED: ("abmil", AT_1_UM),
            "attention_sampling": ("attention_sampling", AT_1_UM),
            "glimpse": ("glimpse", f"{AT_1_UM} --method.patches 32"),
        },
        "What is read: `attention_sampling` and `glimpse` against `abmil`",
    ),
    "ips": Claim(
        {
            "ips-kept-16": ("ips", f"{AT_1_UM} --method.kept 16"),
            "ips-kept-64": ("ips", f"{AT_1_UM} --method.kept 64"),
            "ips-kept-256": ("ips", f"{AT_1_UM} --method.kept 256"),
            "ips-kept-64-at-2-um": ("ips", "--view.spacing-um 2 --method.kept 64"),
            "ips-kept-64-at-0.5-um": ("ips", "--view.spacing-um 0.5 --method.kept 64"),
        },
        "`ips` as more patches are kept, and as an image has more of them",
    ),
    "streaming": Claim(
        {
            f"streaming-at-{um}-um": ("streaming_cnn", f"--view.spacing-um {um}")
            for um in ("4", "2", "1")
        },
        "`streaming_cnn` by resolution",
    ),
    "tnet": Claim(
        {SHARED: ("abmil", AT_1_UM), "tnet": ("tnet", AT_1_UM)}, "`tnet`, level by level"
    ),
}
TITLES = (
    "run",
    "seeds",
    "AUROC (95 %)",
    "less that of `abmil` (95 %)",
    "training s",
    "of `abmil`",
    "s per image",
    "of `abmil`",
    "asked",
    "decoded",
    "peak MiB",
    "found",
)


@dataclass(frozen=True)
class Run:
    """One training on the cohort."""

    name: str
    method: str
    flags: str
    seed: int
    cohort: Cohort
    extra: str

    @property
    def key(self) -> tuple[object, ...]:
        """Return the columns that identify the run."""
        return (self.name, self.seed, self.cohort.slides, self.cohort.side, self.extra)


@dataclass(frozen=True)
class Cohort:
    """The slides of a study: their number, and their side in pixels of 0.5 µm."""

    slides: int
    side: int

    @property
    def name(self) -> str:
        """Return the name of the cohort's folder."""
        return f"{self.slides}x{self.side}"

    @property
    def spec(self) -> SlideSpec:
        """Return the slide of the demo; a smaller one has less tissue and fewer nodules."""
        spec = replace(SLIDE, shape_px0=(self.side, self.side))
        if self.side >= SLIDE.shape_px0[0]:
            return spec
        spec = replace(spec, tissue_area_px0=(1.1e6, 1.3e6), n_islands=(1, 1))
        return replace(spec, n_nodules=(4, 6), n_deciding=(2, 3))

    def write(self, folder: Path) -> Path:
        """Write the slides and return the path of their table."""
        n_patients = max(8, round(self.slides / SLIDES_PER_PATIENT))
        return write_cohort(folder, CohortSpec(self.slides, n_patients, self.spec))


def plan_runs(claims: Sequence[str], seeds: Sequence[int], cohort: Cohort, extra: str) -> list[Run]:
    """Return each needed run once; `abmil` comes first, as others are compared with it."""
    needed: dict[str, tuple[str, str]] = {}
    for claim in claims:
        needed |= CLAIMS[claim].runs
    names = sorted(needed, key=lambda name: name != SHARED)
    return [Run(name, *needed[name], seed, cohort, extra) for seed in seeds for name in names]


def run_one(run: Run, labels: Path, out: Path) -> Row:
    """Train one run and return its row."""
    folder, log = folder_of(run, out), folder_of(run, out).with_suffix(".txt")
    flags = f"{COMMON} {run.flags} {run.extra}".strip()
    command = [sys.executable, "-m", "foveate.cli", "train", str(labels), "--out", str(folder)]
    command += ["--method", run.method, "--seed", str(run.seed), *shlex.split(flags)]
    result = run_child(command, log)
    row: Row = dict(zip(KEY, run.key, strict=True))
    row |= {"flags": f"--method {run.method} {flags}", "exit": result.code}
    row |= {"outcome": describe_outcome(result, log, fine=(0, 2))}
    if result.code in (0, 2):
        row |= figures(folder, folder_of(replace(run, name=SHARED), out), run.seed)
        delete_large_files(folder)
    return row


def folder_of(run: Run, out: Path) -> Path:
    """Return the folder of a run, without dots, so that `with_suffix` works."""
    mark = f"-{zlib.crc32(run.extra.encode()):08x}" if run.extra else ""
    name = f"{run.name}-seed{run.seed}".replace(".", "_")
    return out / "runs" / f"{run.cohort.name}{mark}" / name


def figures(folder: Path, shared: Path, seed: int) -> Row:
    """Read the scores of a finished run and its comparison with the run of `abmil`."""
    metrics, cost = (read_json(folder / f"{name}.json") for name in ("metrics", "cost"))
    images = metrics["n_images"]
    row: Row = {"images": images, "torch": read_json(folder / "env.json")["torch"]}
    row |= _score(metrics["metrics"].get("auroc"), "auroc", "")
    if folder != shared and (shared / "metrics.json").is_file():
        rows, others = (read_rows(f / "predictions_oof.csv") for f in (folder, shared))
        above = compare_rows(rows, others, load_model(folder / "fold_0" / "model").task)
        row |= _score(above.get("auroc"), "over_abmil", "over_abmil_")
    test_seconds = cost["seconds_per_image"] * images
    row |= {
        "train_seconds": f"{cost['seconds'] - test_seconds:.2f}",
        "test_seconds": f"{test_seconds:.3f}",
        "seconds_per_image": f"{cost['seconds_per_image']:.4f}",
        "asked_px_per_image": f"{cost['asked_px'] / max(images, 1):.0f}",
        "asked_share": f"{cost['asked_px'] / cost['level0_px']:.6f}",
        "decoded_share": f"{cost['decoded_px'] / cost['level0_px']:.6f}",
        "peak_mib": f"{cost['peak_rss_mib']:.0f}",
        "device_mib": f"{cost['peak_device_mib']:.0f}",
    }
    hits = measure_localisation(folder)
    row |= {"found": round(hits["hit_fraction"] * hits["n"]), "positives": hits["n"]}
    return row | magnifications(folder) | _history(folder)


def _score(score: dict[str, Any] | None, name: str, before: str) -> Row:
    """Return the columns of one score with its interval."""
    if score is None:
        return {}
    return {name: score["value"], f"{before}lo": score["lo"], f"{before}hi": score["hi"]}


def magnifications(folder: Path) -> Row:
    """Count the evidence boxes by size, with their share of the weight per image."""
    weights: dict[float, float] = {}
    boxes, sizes, n = 0, 0, 0
    for path in sorted((folder / "heatmaps").glob("*.npz")):
        evidence = Evidence.load(path)
        side = [float(f"{um:.3g}") for um in evidence.size_um.max(1)]
        total = float(evidence.weight.sum()) or 1.0
        for um, weight in zip(side, evidence.weight / total, strict=True):
            weights[um] = weights.get(um, 0.0) + float(weight)
        boxes, sizes, n = boxes + len(evidence), sizes + len(set(side)), n + 1
    if not n:
        return {}
    shares = "; ".join(f"{um:g} um {weights[um] / n:.3f}" for um in sorted(weights)[:6])
    return {"boxes": f"{boxes / n:.1f}", "sizes_per_image": f"{sizes / n:.2f}",
            "weight_by_size": shares}  # fmt: skip


def _history(folder: Path) -> Row:
    """Read attention per scale in the last epoch, and the peak memory of training."""
    rows = read_rows(folder / "fold_0" / "metrics.csv")
    if not rows:
        return {}
    last = {k.removeprefix("level_share_"): v for k, v in rows[-1].items() if "level_share_" in k}
    shares = "; ".join(f"{scale} x {float(v):.3f}" for scale, v in last.items() if v)
    peaks = [float(row["peak_memory_mib"]) for row in rows if row.get("peak_memory_mib")]
    return {"level_shares": shares, "step_mib": f"{np.max(peaks):.0f}" if peaks else ""}


def markdown(rows: Sequence[dict[str, str]]) -> str:
    """Return a table per claim with means over seeds, the weight by box size, and failures."""
    grouped = group_rows(
        (r for r in rows if r["auroc"]), lambda r: (r["slides"], r["side"], r["extra"])
    )
    lines = []
    for (slides, side, extra), members in grouped.items():
        lines.append(f"{slides} slides of {side}²{f', `{extra}`' if extra else ''}:")
        runs = group_rows(members, lambda r: r["run"])
        for claim in CLAIMS.values():
            names = [name for name in claim.runs if name in runs]
            if set(names) - {SHARED}:
                cells = [_cells(name, runs[name], runs.get(SHARED, [])) for name in names]
                lines += [f"*{claim.title}*", table(TITLES, cells)]
        looked = [
            (f"`{name}`", run["seed"], run["boxes"], run["sizes_per_image"],
             run["weight_by_size"], run["level_shares"] or "–")
            for name in ("joint_sampling", "tnet") for run in runs.get(name, [])
        ]  # fmt: skip
        if looked:
            titles = ("run", "seed", "boxes per image", "sizes per image",
                      "share of weight by side of the box", "scales in training")  # fmt: skip
            lines += ["*Magnifications*", table(titles, looked)]
    lines += [f"- {' '.join(r[c] for c in KEY)}: {r['outcome']}" for r in rows if not r["auroc"]]
    return "\n\n".join(lines)


def _cells(
    name: str, members: Sequence[dict[str, str]], shared: Sequence[dict[str, str]]
) -> tuple[str, ...]:
    """Return the cells of one row of a claim's table."""

    def ratio(column: str) -> str:
        mine, theirs = mean(members, column), mean(shared, column)
        return "–" if mine is None or not theirs else f"{mine / theirs:.2f}"

    hits, slides = (sum(int(row[c] or 0) for row in members) for c in ("found", "positives"))
    return (
        f"`{name}`",
        str(len(members)),
        format_interval(members, "auroc", "lo", "hi"),
        format_interval(members, "over_abmil", "over_abmil_lo", "over_abmil_hi"),
        format_figure(mean(members, "train_seconds"), "{:.0f}"),
        ratio("train_seconds"),
        format_figure(mean(members, "seconds_per_image"), "{:.2f}"),
        ratio("seconds_per_image"),
        format_figure(mean(members, "asked_share"), "{:.2%}"),
        format_figure(mean(members, "decoded_share"), "{:.2%}"),
        format_figure(mean(members, "peak_mib"), "{:.0f}"),
        f"{hits} of {slides}",
    )


def main() -> None:
    """Run what is missing, or print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--claims", nargs="+", choices=CLAIMS, default=list(CLAIMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--slides", type=int, default=100)
    parser.add_argument("--side", type=int, default=SLIDE.shape_px0[0], help="of a slide, pixels")
    parser.add_argument("--extra", default="", help="further flags of `foveate train`")
    parser.add_argument("--markdown", action="store_true", help="print the tables, run nothing")
    chosen = parser.parse_args()
    out, cohort = chosen.out.resolve(), Cohort(chosen.slides, chosen.side)
    rows = Rows(out / "claims.csv", COLUMNS, KEY)
    runs = plan_runs(chosen.claims, chosen.seeds, cohort, chosen.extra)
    if not chosen.markdown:
        labels = cohort.write(out / "cohorts" / cohort.name)
        for run in runs:
            before = rows.find(*run.key)
            if before is None or not before["auroc"]:
                rows.add(run_one(run, labels, out))
                last = rows.find(*run.key) or {}
                print(f"{run.name} seed {run.seed}: {last.get('outcome')}", file=sys.stderr)
    print(markdown(rows.all()))


if __name__ == "__main__":
    main()
