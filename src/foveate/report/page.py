"""From a run folder to its page."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from foveate import __version__
from foveate.files.atomic import write_text
from foveate.report import sections
from foveate.report.curves import Scored, scored
from foveate.report.figures import (
    Drawn,
    describe_training,
    draw_calibration,
    draw_distribution,
    draw_precision_recall,
    draw_roc,
    draw_training,
    render,
)
from foveate.report.gallery import MOST_INLINED, gallery
from foveate.report.run_files import RunFiles, number, read_run
from foveate.report.words import counted, decimals, percent

_TEMPLATE = "page.html.j2"


def write_page(folder: Path) -> Path:
    """Read the folder, draw the figures, fill the template."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    run = read_run(folder)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "decimals": decimals}
    environment.globals["counted"] = counted
    page = folder / "report.html"
    write_text(page, environment.get_template(_TEMPLATE).render(**_values(run)))
    return page


def _values(run: RunFiles) -> dict[str, Any]:
    found = scored(run.predictions, run.classes)
    return {
        "version": __version__,
        "name": run.folder.resolve().name,
        "problems": run.problems,
        "headline": sections.headline(run),
        "cost": sections.cost(run),
        "scores": sections.score_rows(run.metrics),
        "pooling": str(run.metrics.get("pooling") or ""),
        "folds": sections.fold_rows(run),
        "confusion": sections.confusion(run),
        "flow": sections.patient_flow(run),
        "comparison": sections.comparison(run),
        "gain": sections.gain(run),
        "temperatures": sections.temperatures(run),
        "localisation": sections.localisation(run),
        "figures": _draw(run, found),
        "heatmaps": gallery(run.folder / "heatmaps", run.heatmaps, sections.called_from(run)),
        "n_heatmaps": len(run.heatmaps),
        "most_inlined": MOST_INLINED,
        "quarantine": run.quarantine,
        "config": run.config_text,
        "env": {key: _plain(value) for key, value in run.env.items()},
        "answering": sections.answering(run),
        "commands": sections.commands(run),
    }


def _draw(run: RunFiles, found: Scored | None) -> dict[str, Drawn]:
    """Every figure whose data is there."""
    target = run.folder / "figures"
    drawn = {}
    two_classes = found is not None and len(np.unique(found.target)) > 1
    if found is not None and two_classes:
        areas = _areas(run, found, "auroc")
        drawn["roc"] = render(
            partial(draw_roc, found=found, areas=areas),
            target / "roc.png",
            f"ROC curve over {len(found.target)} images" + _told(areas),
        )
        drawn["pr"] = render(
            partial(draw_precision_recall, found=found, areas=_areas(run, found, "auprc")),
            target / "precision_recall.png",
            f"Precision against recall over {len(found.target)} images",
        )
    bins = run.metrics.get("calibration")
    if isinstance(bins, list) and any(isinstance(b, dict) and number(b, "n") for b in bins):
        kept = [b for b in bins if isinstance(b, dict)]
        drawn["calibration"] = render(
            partial(draw_calibration, bins=kept),
            target / "calibration.png",
            f"Calibration in {counted(len(kept), 'bin')}: share observed against stated",
        )
    if found is not None:
        drawn["distribution"] = render(
            partial(draw_distribution, found=found, thresholds=sections.thresholds(run)),
            target / "scores.png",
            f"Distribution of scores by class: {', '.join(found.classes)}",
        )
    folds = [fold for fold in run.folds if fold.history]
    if folds:
        drawn["training"] = render(
            partial(draw_training, folds=folds),
            target / "training.png",
            describe_training(folds),
            size=(10.6, 6.2),
        )
    return drawn


def _areas(run: RunFiles, found: Scored, name: str) -> dict[str, float]:
    """Areas under the curves of two classes as they are in the tables, by class and by fold."""
    if len(found.classes) != 2:
        return {}
    values = {found.classes[1]: number(sections.scores_of(run.metrics).get(name, {}), "value")}
    for fold in sections.stored_folds(run):
        score = sections.scores_of(fold).get(name, {})
        values[f"fold {fold.get('fold', '')}"] = number(score, "value")
    return {title: value for title, value in values.items() if value is not None}


def _told(areas: dict[str, float]) -> str:
    return "".join(f"; area {value:.3f} for {name}" for name, value in areas.items())


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "not installed" if value is None else str(value)
