"""The demo: a synthetic gigapixel cohort, two methods on the same patients, one report.

The nodules that make a slide positive are visible at full resolution only: `glimpse` finds them in
a small share of the pixels, `downsampled` cannot. Every demo checks this at its end.
"""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from foveate import defaults
from foveate.evaluation.scores import compare_rows
from foveate.files.atomic import write_json
from foveate.files.run_layout import RunLayout
from foveate.geometry import Box, px0_from_um
from foveate.images.evidence import Evidence
from foveate.messages.display import Display
from foveate.metrics import proportion_interval
from foveate.prediction.pictures import evidence_file
from foveate.reports import write_progress, write_report
from foveate.runs.config import RunConfig, build_config
from foveate.runs.folder import read_json, read_rows
from foveate.synthetic import CohortSpec, SlideSpec, read_truth, write_cohort
from foveate.workflows.train import RunResult, run_experiment

N_SLIDES, SLIDES_PER_PATIENT = 100, 1.25
SLIDE = SlideSpec(
    tissue_area_px0=(4.4e6, 5.2e6),
    n_islands=(1, 2),
    n_nodules=(16, 24),
    n_deciding=(5, 8),
    nodule_diameter_px0=(288, 336),
)
GIGA = replace(
    SLIDE,
    shape_px0=(32768, 32768),
    tissue_area_px0=(16e6, 20e6),
    n_islands=(6, 8),
    n_nodules=(48, 72),
    n_deciding=(15, 24),
)

ENFORCED_FROM = 60
"""The number of slides from which a promise that is not kept counts as a failure."""

MIN_SCORE, MIN_PEAKS = 0.95, 0.9
"""Least main score of `glimpse`, and least share of positive slides that it localises rightly."""

MAX_BLIND_SCORE = 0.8
"""Largest main score of `downsampled`. At chance the main score of 30 test slides scatters by
0.107, so that chance alone exceeds this in 1 demo of 400."""


@dataclass(frozen=True)
class Promise:
    """One thing that the demo promises.

    Attributes:
        claim: what the demo promises, in words.
        measured: the measured value, in words.
        kept: whether the measured value meets the promise.
    """

    claim: str
    measured: str
    kept: bool


@dataclass(frozen=True)
class DemoResult:
    """The result of the demo.

    Attributes:
        glimpse, downsampled: results of the two runs.
        promises: the claims with the measured values.
        enforced: whether there are enough slides for a broken promise to count as a failure.
    """

    glimpse: RunResult
    downsampled: RunResult
    promises: tuple[Promise, ...]
    enforced: bool

    @property
    def broken(self) -> tuple[Promise, ...]:
        """Promises that were not kept; empty where there are too few slides to judge."""
        return tuple(p for p in self.promises if self.enforced and not p.kept)


def run_demo(
    folder: Path, display: Display, *, seed: int = defaults.SEED, slides: int | None = None
) -> DemoResult:
    """Write the cohort, train both methods, localise and report; continue where it stopped.

    The claims and the measured values are written to ``promises.json`` as well.

    Args:
        folder: folder of the cohort and the runs.
        display: display of the progress.
        seed: seed of the cohort, the split and training.
        slides: number of slides; None for 100 and a larger one.
    """
    count = slides or N_SLIDES
    table = write_cohort(
        folder / "cohort",
        CohortSpec(count, max(8, round(count / SLIDES_PER_PATIENT)), SLIDE, GIGA, seed),
        on_progress=functools.partial(display.bar, "writing slides"),
    )
    baseline = run_experiment(
        demo_config("downsampled", table, seed), folder / "downsampled", display
    )
    result = run_experiment(
        demo_config("glimpse", table, seed), folder / "glimpse", display, after_epoch=write_progress
    )
    write_json(RunLayout(result.folder).baseline, [_summarise("downsampled", baseline)])
    peaks = measure_localisation(result.folder)
    write_json(RunLayout(result.folder).localisation, peaks)
    write_report(baseline.folder)
    write_report(result.folder)
    promises = judge(result, baseline, _compare_runs(result, baseline), peaks)
    write_json(folder / "promises.json", [asdict(promise) for promise in promises])
    return DemoResult(result, baseline, promises, count >= ENFORCED_FROM)


def judge(
    glimpse: RunResult,
    downsampled: RunResult,
    difference: dict[str, Any] | None,
    peaks: dict[str, Any],
) -> tuple[Promise, ...]:
    """Compare the measured values with the claims of the demo.

    Args:
        glimpse: result of the run of `glimpse`.
        downsampled: result of the run of `downsampled`.
        difference: difference of their main scores on the same slides, from `compare_rows`; None
            where it could not be measured.
        peaks: result of `measure_localisation` for `glimpse`.
    """
    sees, blind = (_pick_main_score(run) for run in (glimpse, downsampled))
    title = glimpse.task.title(glimpse.task.tabled[0])
    hits = round(peaks["hit_fraction"] * peaks["n"])
    shown = {"value": peaks["hit_fraction"], "lo": peaks["lo"], "hi": peaks["hi"]}
    return (
        Promise(
            f"{title} of `glimpse` at least {MIN_SCORE:g}",
            _describe_score(sees),
            sees is not None and sees["value"] >= MIN_SCORE,
        ),
        Promise(
            f"evidence of `glimpse` peaks in a deciding nodule on at least {MIN_PEAKS:.0%} of "
            "the positive test slides",
            f"{hits} of {peaks['n']}; {_describe_score(shown)}",
            peaks["n"] > 0 and peaks["hit_fraction"] >= MIN_PEAKS,
        ),
        Promise(
            f"{title} of `downsampled` at most {MAX_BLIND_SCORE:g}",
            _describe_score(blind),
            blind is not None and blind["value"] <= MAX_BLIND_SCORE,
        ),
        Promise(
            f"{title} of `glimpse` above that of `downsampled` on the same slides, with its "
            "interval",
            f"difference {_describe_score(difference)}",
            difference is not None and difference["lo"] > 0,
        ),
    )


def _pick_main_score(run: RunResult) -> dict[str, Any] | None:
    score: dict[str, Any] | None = run.metrics["metrics"].get(run.task.tabled[0])
    return score


def _describe_score(score: dict[str, Any] | None) -> str:
    if score is None:
        return "not measured: the test slides are all of one class"
    return "{value:.3f} (95 % interval {lo:.3f} to {hi:.3f})".format(**score)


def _compare_runs(result: RunResult, baseline: RunResult) -> dict[str, Any] | None:
    """Compute the difference of the main scores of two runs on the same slides, with interval."""
    rows, others = (read_rows(RunLayout(run.folder).predictions) for run in (result, baseline))
    differences = compare_rows(rows, others, result.task)
    difference: dict[str, Any] | None = differences.get(result.task.tabled[0])
    return difference


def demo_config(method: str, table: Path, seed: int) -> RunConfig:
    """Build the config of the demo; options that it does not set have their defaults.

    Args:
        method: name of the method.
        table: table of the cohort.
        seed: seed of the split and of training.
    """
    nested: dict[str, Any] = {
        "table": {"path": str(table)},
        "method": method,
        "task": "binary",
        "task_options": {"positive": "tumour"},
        "view": {"spacing_um": 1.0, "patch_px": 64, "glimpse_spacing_um": 32.0},
        "split": {"test_fraction": 0.3, "val_fraction": 0.15, "seed": seed},
        "method_options": {"patches": 32} if method == "glimpse" else {},
        "train": {"seed": seed, "batch_size": 2},
        "heatmaps": 12,
    }
    return build_config(nested)


def measure_localisation(run: Path) -> dict[str, Any]:
    """Compute how often the evidence of a positive slide peaks in a deciding nodule.

    Reads the truth that was written beside the slides; training and prediction never read it.

    Returns:
        by name: the number ``n`` of positive slides; the share ``hit_fraction`` of them whose
        `Evidence.peak_um` has its centre in a deciding nodule, with its interval ``lo`` to ``hi``;
        and the share ``heaviest_hit_fraction`` whose single heaviest box has.
    """
    rows = read_rows(RunLayout(run).predictions)
    folder, hits, heaviest_hits = RunLayout(run).heatmaps_folder, [], []
    for row in rows:
        if row["label"] == "tumour":
            evidence = Evidence.load(evidence_file(folder, row["image_id"]))
            hits.append(_is_deciding(evidence.peak_um(), Path(row["path"])))
            heaviest_hits.append(_is_deciding(evidence.heaviest_um(), Path(row["path"])))
    n = len(hits)
    lo, hi = proportion_interval(sum(hits), n)
    share, heaviest_share = (sum(h) / max(n, 1) for h in (hits, heaviest_hits))
    return {"hit_fraction": share, "n": n, "lo": lo, "hi": hi,
            "heaviest_hit_fraction": heaviest_share}  # fmt: skip


def _is_deciding(box_um: Box, slide: Path) -> bool:
    """Return whether the centre of a box, in micrometres, lies in a deciding nodule of a slide."""
    centre_px0 = np.asarray(px0_from_um(box_um, SLIDE.spacing_um).centre)
    return any(
        nodule.deciding
        and np.hypot(*(centre_px0 - np.asarray(nodule.centre_px0))) <= nodule.radius_px0
        for nodule in read_truth(slide)
    )


def _summarise(method: str, result: RunResult) -> dict[str, Any]:
    return {
        "method": method,
        "run": str(result.folder),
        "metrics": result.metrics["metrics"],
        **read_json(RunLayout(result.folder).cost),
    }
