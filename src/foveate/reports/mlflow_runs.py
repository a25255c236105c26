"""The figures of each epoch as a run of MLflow, where it is installed."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foveate.errors import FoveateError, converting
from foveate.files.run_layout import RunLayout
from foveate.messages.warn import warn_once
from foveate.reports.epochs import read_epochs

EXPERIMENT = "foveate"
"""Name of the experiment, unless ``MLFLOW_EXPERIMENT_NAME`` names another."""
_FOLDER = "foveate.folder"
"""The tag by which the run of a fold is found again."""


def write_to_mlflow(fold: Path) -> None:
    """Write the epochs of a fold that MLflow does not have yet, if MLflow is installed.

    They go into the folder ``mlruns`` of the run; only where the environment sets
    ``MLFLOW_TRACKING_URI``, they go there. MLflow's own usage statistics are switched off unless
    the environment sets them. What MLflow cannot write is said once, and training goes on.

    Args:
        fold: folder of the fold.
    """
    if find_spec("mlflow") is None:
        return
    try:
        with converting("MLflow"):
            _write_epochs(fold)
    except FoveateError as error:
        text = f"MLflow could not write the figures of the epochs ({error}); training goes on"
        warn_once(logging.WARNING, "mlflow", fold, text)


def _write_epochs(fold: Path) -> None:
    """Write the epochs that the run of a fold lacks."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    local = (fold.resolve().parent / RunLayout.mlflow).as_uri()
    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or local)
    run_id = _find_run(client, fold.resolve())
    known = {metric.step for metric in client.get_metric_history(run_id, "time/epoch")}
    for epoch in read_epochs(fold):
        if epoch.number not in known:
            time_ms = round(1000 * epoch.end_s)
            metrics = [Metric(name, v, time_ms, epoch.number) for name, v in epoch.figures.items()]
            client.log_batch(run_id, metrics=metrics)


def _find_run(client: Any, fold: Path) -> str:
    """Return the id of the run of a fold, which is made where there is none."""
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    experiment = client.get_experiment_by_name(name)
    experiment_id = client.create_experiment(name) if experiment is None else (
        experiment.experiment_id
    )  # fmt: skip
    runs = client.search_runs([experiment_id], f"tags.`{_FOLDER}` = '{_quote(fold)}'")
    if runs:
        return str(runs[0].info.run_id)
    tags = {_FOLDER: _quote(fold), "mlflow.runName": f"{fold.parent.name}/{fold.name}"}
    return str(client.create_run(experiment_id, tags=tags).info.run_id)


def _quote(fold: Path) -> str:
    """Write a path so that it can stand in a filter of MLflow."""
    return fold.as_uri().replace("'", "%27")
