"""The page of the report, written from a run folder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from foveate.files.atomic import write_text
from foveate.files.run_layout import RunLayout
from foveate.reports import sections
from foveate.reports.answers import build_answers
from foveate.reports.audits import build_audit
from foveate.reports.figures import (
    Drawn,
    describe_training,
    plot_training,
    render,
    render_charts,
)
from foveate.reports.gallery import MAX_INLINED, list_heatmaps
from foveate.reports.run_files import RunFiles, read_run
from foveate.reports.template import MAX_LISTED, fill_template

_TEMPLATE = "page.html.j2"


def write_page(folder: Path) -> Path:
    """Read the run folder, draw the figures, fill the template, and return the path of the page."""
    run, page = read_run(folder), RunLayout(folder).report
    write_text(page, fill_template(_TEMPLATE, _collect_values(run)))
    return page


def _collect_values(run: RunFiles) -> dict[str, Any]:
    task, points = run.task, run.points
    charts = [] if task is None else task.charts(run.predictions, run.metrics, points)
    folder = RunLayout(run.folder).heatmaps_folder
    heatmaps = list_heatmaps(folder, run.heatmaps, run.predictions, task)
    return {
        "name": run.folder.resolve().name,
        "problems": run.problems,
        "headline": sections.build_headline(run),
        "cost": sections.build_cost(run),
        "scores": sections.build_score_rows(run.metrics, task),
        "score_titles": sections.list_score_titles(run),
        "bar_note": "" if task is None else task.bar_note,
        "pooling": str(run.metrics.get("pooling") or ""),
        "folds": sections.build_fold_rows(run),
        "tables": [] if task is None else task.tables(run.metrics, points),
        "flow": sections.count_patients(run),
        "n_folds": sections.build_headline(run)["n_folds"],
        "comparison": sections.compare_runs(run),
        "gain": sections.describe_gain(run),
        "only_frozen": sections.answers_by_frozen_start(run),
        "notes": [] if task is None else task.notes(points),
        "audit": build_audit(run.audit, RunLayout(run.folder).figures / "audit.png"),
        "localisation": sections.summarise_localisation(run),
        "charts": render_charts(charts, RunLayout(run.folder).figures),
        "training": _render_training(run),
        "heatmaps": heatmaps,
        "answers": build_answers(run.predictions, heatmaps, task),
        "order": "" if task is None else task.order,
        "reading": () if task is None else task.reading,
        "n_heatmaps": len(run.heatmaps),
        "most_inlined": MAX_INLINED,
        "quarantine": run.quarantine,
        "check": sections.read_check(run),
        "most_listed": MAX_LISTED,
        "config": run.config_text,
        "env": {key: _write_plain(value) for key, value in run.env.items()},
        "answering": sections.describe_answering(run),
        "commands": sections.list_commands(run),
    }


def _render_training(run: RunFiles) -> Drawn | None:
    folds = [fold for fold in run.folds if fold.history]
    if not folds:
        return None
    return render(
        partial(plot_training, folds=folds),
        RunLayout(run.folder).figures / "training.png",
        describe_training(folds),
        size_inches=(10.6, 6.2),
    )


def _write_plain(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "not installed" if value is None else str(value)
