"""Reports: self-contained pages, made from the files of runs or of a comparison alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foveate.runs.models import Ensemble
from foveate.tasks.base import AbstractTask


def write_report(run: Path) -> Path:
    """Write ``report.html`` and ``figures/`` into a run folder; files that are missing are named.

    Args:
        run: folder of the run; no file outside it is read.

    Returns:
        Path of the page.

    Raises:
        CheckpointError: the folder holds no run.
    """
    from foveate.reports.page import write_page

    return write_page(Path(run))


def write_comparison(folder: Path, task: AbstractTask) -> Path:
    """Write ``comparison.html`` and ``figures/`` into the folder of a comparison.

    Args:
        folder: folder with ``comparison.json``.
        task: task of the runs, which gives the scores their names.

    Returns:
        Path of the page.
    """
    from foveate.reports.comparison import write_comparison_page

    return write_comparison_page(folder, task)


def write_study(
    runs: Mapping[str, Path], comparison: Mapping[str, Any], task: AbstractTask, page: Path
) -> None:
    """Write one page over several runs of one table.

    Args:
        runs: folders of the runs by name.
        comparison: content of ``comparison.json`` of these runs, one row for each.
        task: task of the runs.
        page: file of the page.
    """
    from foveate.reports.study import Study, write_study_page

    write_study_page(Study(runs, comparison, task), page)


def write_predictions(folder: Path, models: Ensemble) -> Path:
    """Write ``predictions.html`` into a folder of predictions, and the figures of its scores.

    Args:
        folder: folder with ``predictions.csv``; with ``metrics.json`` where labels were scored.
        models: the models that answered.

    Returns:
        Path of the page.
    """
    from foveate.reports.predictions import write_predictions_page

    return write_predictions_page(folder, models)


def write_progress(run_fold: Path) -> None:
    """Redraw the curves of a fold from its ``metrics.csv``, and write it for other programs.

    These are TensorBoard, MLflow and W&B, as far as they are installed.

    Args:
        run_fold: folder of the fold.
    """
    from foveate.reports.events import write_events
    from foveate.reports.mlflow_runs import write_to_mlflow
    from foveate.reports.progress import redraw
    from foveate.reports.wandb_runs import write_to_wandb

    for write in (redraw, write_events, write_to_mlflow, write_to_wandb):
        write(Path(run_fold))
