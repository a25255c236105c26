"""The page of predictions of new images: every answer, its picture, doubts, and scores if any."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveate.files.atomic import write_text
from foveate.files.run_layout import PredictionLayout
from foveate.presentation import write_count
from foveate.reports import sections
from foveate.reports.answers import build_answers
from foveate.reports.figures import render_charts
from foveate.reports.gallery import MAX_INLINED, list_heatmaps
from foveate.reports.run_files import Row
from foveate.reports.template import fill_template
from foveate.runs.folder import read_json, read_rows
from foveate.runs.models import Ensemble

_TEMPLATE = "predictions.html.j2"


def write_predictions_page(folder: Path, models: Ensemble) -> Path:
    """Read the results of a prediction, fill the template and return the path of the page.

    Args:
        folder: folder of the predictions.
        models: the models that answered.
    """
    layout, task = PredictionLayout(folder), models.task
    rows = read_rows(layout.predictions)
    metrics = read_json(layout.metrics) if layout.metrics.is_file() else {}
    entries = read_json(layout.heatmaps.index) if layout.heatmaps.index.is_file() else []
    heatmaps = list_heatmaps(layout.heatmaps_folder, entries, rows, task)
    charts = task.charts(rows, metrics, [models.point]) if metrics else []
    values = {
        "name": folder.resolve().name,
        "about": task.describe(),
        "answering": models.describe(),
        "counts": Counter(row.get("predicted", "") for row in rows).most_common(12),
        "n_images": len(rows),
        "doubts": _list_doubts(rows, metrics),
        "scores": sections.build_score_rows(metrics, task),
        "bar_note": task.bar_note,
        "charts": render_charts(charts, layout.figures),
        "heatmaps": heatmaps,
        "n_heatmaps": len(entries),
        "most_inlined": MAX_INLINED,
        "order": task.order if metrics else "",
        "answers": build_answers(rows, heatmaps, task),
        "quarantine": read_rows(layout.quarantine) if layout.quarantine.is_file() else [],
    }
    write_text(layout.page, fill_template(_TEMPLATE, values))
    return layout.page


def _list_doubts(rows: Sequence[Row], metrics: Mapping[str, Any]) -> list[str]:
    """List warnings about the answers, one sentence each."""
    doubts: list[str] = []
    unlike = sum(bool(row.get("unlike")) for row in rows)
    abstained = [row.get("abstain") or "" for row in rows if row.get("abstain")]
    if abstained:
        reasons = Counter(
            reason.partition(":")[0] for text in abstained for reason in text.split("; ")
        )
        counted = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
        doubts.append(
            f"{write_count(len(abstained), 'answer')} of {len(rows)} should be looked at by a "
            f"person ({counted}). The column abstain says why."
        )
    seen = sum(bool(row.get("in_training")) for row in rows)
    if unlike:
        doubts.append(
            f"{write_count(unlike, 'image')} of {len(rows)} unlike those of training: the answers "
            "mean little. The table says how they differ."
        )
    if seen:
        scores = "the scores are too good" if metrics else "these answers are too good"
        doubts.append(
            f"{write_count(seen, 'image')} of {len(rows)} trained these models, or other images "
            f"of their patients did: {scores}."
        )
    return doubts
