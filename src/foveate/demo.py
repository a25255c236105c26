"""The demo: a synthetic gigapixel cohort, two methods on the same patients, one report.

What makes a slide positive is visible at full resolution only, so the demo also proves the point:
`glimpse` finds it in a small share of the pixels, `downsampled` cannot.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from foveate.atomic import write_json
from foveate.config import RunConfig, build_config
from foveate.evidence import Evidence
from foveate.experiment import Outcome, run_experiment
from foveate.metrics import proportion_interval
from foveate.outputs import Display, safe_name
from foveate.report import write_progress, write_report
from foveate.run_folder import read_json, read_rows
from foveate.synthetic import SlideSpec, read_truth, write_cohort

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


def run_demo(
    folder: Path, display: Display, *, seed: int = 0, n_slides: int | None = None
) -> Outcome:
    """Write the cohort, train both methods, localise, report; continues where it stopped."""
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
    write_json(outcome.folder / "localisation.json", localisation(outcome.folder))
    write_report(straw.folder)
    write_report(outcome.folder)
    return outcome


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
        "train": {"seed": seed},
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
