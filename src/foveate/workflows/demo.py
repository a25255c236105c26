"""The demo: a synthetic gigapixel cohort, two methods on the same patients, one report.

What makes a slide positive is visible at full resolution only, so the demo also proves the point:
`glimpse` finds it in a small share of the pixels, `downsampled` cannot. Whether that came true is
checked at the end of every demo.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from foveate.evaluation.scores import compare_rows
from foveate.files.atomic import write_json
from foveate.images.evidence import Evidence
from foveate.messages.display import Display
from foveate.metrics import proportion_interval
from foveate.prediction.pictures import safe_name
from foveate.report import write_progress, write_report
from foveate.runs.config import RunConfig, build_config
from foveate.runs.folder import read_json, read_rows
from foveate.synthetic import SlideSpec, read_truth, write_cohort
from foveate.workflows.train import Outcome, run_experiment

N_SLIDES, SLIDES_PER_PATIENT = 100, 1.25
SLIDE = SlideSpec(
    tissue_px0=(4.4e6, 5.2e6),
    n_islands=(1, 2),
    n_nodules=(16, 24),
    n_deciding=(5, 8),
    nodule_diameter_px0=(288, 336),
)
GIGA = replace(
    SLIDE,
    shape_px0=(32768, 32768),
    tissue_px0=(16e6, 20e6),
    n_islands=(6, 8),
    n_nodules=(48, 72),
    n_deciding=(15, 24),
)

ENFORCED_FROM = 60
"""Slides from which on a promise that is not kept counts as a failure."""

LEAST_SCORE, LEAST_PEAKS = 0.95, 0.9
"""Of `glimpse`: its main score, and positive slides whose evidence peaks in a deciding nodule."""

MOST_BLIND_SCORE = 0.8
"""Of `downsampled`. At chance the main score of 30 test slides scatters by 0.107, so chance
alone comes out above this in 1 demo of 400."""


@dataclass(frozen=True)
class Promise:
    """One thing that the demo promises.

    Attributes:
        promised: in words.
        came: what was measured, in words.
        kept: whether that is enough.
    """

    promised: str
    came: str
    kept: bool


@dataclass(frozen=True)
class DemoOutcome:
    """How the demo ended.

    Attributes:
        glimpse, downsampled: the two runs.
        promises: what was promised, and what came.
        enforced: whether there are slides enough for a promise to count.
    """

    glimpse: Outcome
    downsampled: Outcome
    promises: tuple[Promise, ...]
    enforced: bool

    @property
    def broken(self) -> tuple[Promise, ...]:
        """Promises that count and were not kept."""
        return tuple(p for p in self.promises if self.enforced and not p.kept)


def run_demo(
    folder: Path, display: Display, *, seed: int = 0, n_slides: int | None = None
) -> DemoOutcome:
    """Write the cohort, train both methods, localise, report; continues where it stopped.

    What was promised and what came of it is written to ``promises.json``, too.
    """
    count = n_slides or N_SLIDES
    table = write_cohort(
        folder / "cohort",
        n_slides=count,
        n_patients=max(8, round(count / SLIDES_PER_PATIENT)),
        spec=SLIDE,
        giga_spec=GIGA,
        seed=seed,
        progress=lambda done, total: display.bar("writing slides", done, total),
    )
    straw = run_experiment(demo_config("downsampled", table, seed), folder / "downsampled", display)
    outcome = run_experiment(
        demo_config("glimpse", table, seed), folder / "glimpse", display, after_epoch=write_progress
    )
    write_json(outcome.folder / "baseline.json", [_summary("downsampled", straw)])
    found = localisation(outcome.folder)
    write_json(outcome.folder / "localisation.json", found)
    write_report(straw.folder)
    write_report(outcome.folder)
    promises = judge(outcome, straw, _difference(outcome, straw), found)
    write_json(folder / "promises.json", [asdict(promise) for promise in promises])
    return DemoOutcome(outcome, straw, promises, count >= ENFORCED_FROM)


def judge(
    glimpse: Outcome,
    downsampled: Outcome,
    difference: dict[str, Any] | None,
    peaks: dict[str, Any],
) -> tuple[Promise, ...]:
    """Hold what was measured against what the demo promises.

    Args:
        glimpse, downsampled: their runs.
        difference: of their main scores on the same slides, as `compare_rows` gives it; None
            where it could not be measured.
        peaks: what `localisation` gives for `glimpse`.
    """
    sees, blind = (_main_score(run) for run in (glimpse, downsampled))
    title = glimpse.task.title(glimpse.task.tabled[0])
    hits = round(peaks["hit_fraction"] * peaks["n"])
    shown = {"value": peaks["hit_fraction"], "lo": peaks["lo"], "hi": peaks["hi"]}
    return (
        Promise(
            f"{title} of `glimpse` at least {LEAST_SCORE:g}",
            _said(sees),
            sees is not None and sees["value"] >= LEAST_SCORE,
        ),
        Promise(
            f"evidence of `glimpse` peaks in a deciding nodule on at least {LEAST_PEAKS:.0%} of "
            "the positive test slides",
            f"{hits} of {peaks['n']}; {_said(shown)}",
            peaks["n"] > 0 and peaks["hit_fraction"] >= LEAST_PEAKS,
        ),
        Promise(
            f"{title} of `downsampled` at most {MOST_BLIND_SCORE:g}",
            _said(blind),
            blind is not None and blind["value"] <= MOST_BLIND_SCORE,
        ),
        Promise(
            f"{title} of `glimpse` above that of `downsampled` on the same slides, with its "
            "interval",
            f"difference {_said(difference)}",
            difference is not None and difference["lo"] > 0,
        ),
    )


def _main_score(run: Outcome) -> dict[str, Any] | None:
    score: dict[str, Any] | None = run.metrics["metrics"].get(run.task.tabled[0])
    return score


def _said(score: dict[str, Any] | None) -> str:
    if score is None:
        return "not measured: the test slides are all of one class"
    return "{value:.3f} (95 % interval {lo:.3f} to {hi:.3f})".format(**score)


def _difference(outcome: Outcome, straw: Outcome) -> dict[str, Any] | None:
    """Of the main scores of both runs on the same slides, with its interval over patients."""
    rows, others = (read_rows(run.folder / "predictions_oof.csv") for run in (outcome, straw))
    differences = compare_rows(rows, others, outcome.task)
    found: dict[str, Any] | None = differences.get(outcome.task.tabled[0])
    return found


def demo_config(method: str, table: Path, seed: int) -> RunConfig:
    """The settings of the demo; everything else is the default."""
    given: dict[str, Any] = {
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
    return build_config(given)


def localisation(run: Path) -> dict[str, Any]:
    """How often the heaviest box of a positive slide lies in a deciding nodule.

    Uses the truth that the cohort's writer left beside the slides; nothing else ever reads it.
    """
    rows = read_rows(run / "predictions_oof.csv")
    hits = []
    for row in rows:
        if row["label"] == "tumour":
            stored = run / "heatmaps" / f"{safe_name(row['image_id'])}.npz"
            hits.append(_peak_decides(Evidence.load(stored), Path(row["path"])))
    lo, hi = proportion_interval(sum(hits), len(hits))
    share = sum(hits) / max(len(hits), 1)
    return {"hit_fraction": share, "n": len(hits), "lo": lo, "hi": hi}


def _peak_decides(evidence: Evidence, slide: Path) -> bool:
    peak_px0 = np.asarray(evidence.peak_um().centre) / np.asarray(SLIDE.spacing_um)
    return any(
        nodule.deciding
        and np.hypot(*(peak_px0 - np.asarray(nodule.centre_px0))) <= nodule.radius_px0
        for nodule in read_truth(slide)
    )


def _summary(method: str, outcome: Outcome) -> dict[str, Any]:
    return {
        "method": method,
        "run": str(outcome.folder),
        "metrics": outcome.metrics["metrics"],
        **read_json(outcome.folder / "cost.json"),
    }
