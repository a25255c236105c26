"""The files of a run folder, read for the report; missing and damaged ones are noted."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from foveate.errors import CheckpointError, FoveateError
from foveate.files.run_layout import FoldLayout, HeatmapLayout, ModelLayout, RunLayout
from foveate.presentation import read_number
from foveate.runs.folder import model_folders, read_json, read_rows
from foveate.tasks import restore_task
from foveate.tasks.base import AbstractTask
from foveate.wording import one_line
from foveate.yamltext import read_yaml

Row = dict[str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class FoldFiles:
    """The files of one fold.

    Attributes:
        name: name of its folder.
        history: rows of ``metrics.csv``.
        predictions: rows of ``predictions.csv``.
        model: content of ``model/model.json``.
    """

    name: str
    history: list[Row]
    predictions: list[Row]
    model: dict[str, Any]


@dataclass(frozen=True)
class RunFiles:
    """The files of a run; a missing file is empty.

    Attributes:
        folder: folder of the run.
        config: content of ``config.yaml``.
        config_text: the same as text.
        env: content of ``env.json``.
        splits: content of ``splits.json``.
        quarantine: rows of ``quarantine.csv``.
        check: content of ``check.json``.
        folds: files of the folds.
        predictions: rows of ``predictions_oof.csv``, or of all folds without that file.
        metrics: content of ``metrics.json``.
        cost: content of ``cost.json``.
        heatmaps: entries of ``heatmaps/index.json``.
        baseline: entries of ``baseline.json``: runs to compare with.
        localisation: content of ``localisation.json``.
        audit: content of ``audit.json``.
        answering: cards of the models that answer for new images.
        unanswered: why there are no such models; else empty.
        task: task of the run; None where no stored model states it.
        problems: which files are missing or damaged that the report needs.
    """

    folder: Path
    config: dict[str, Any]
    config_text: str
    env: dict[str, Any]
    splits: dict[str, Any]
    quarantine: list[Row]
    check: dict[str, Any]
    folds: list[FoldFiles]
    predictions: list[Row]
    metrics: dict[str, Any]
    cost: dict[str, Any]
    heatmaps: list[dict[str, Any]]
    baseline: list[dict[str, Any]]
    localisation: dict[str, Any]
    audit: dict[str, Any]
    answering: list[dict[str, Any]]
    unanswered: str
    task: AbstractTask | None
    problems: list[str] = field(default_factory=list)

    @property
    def model(self) -> dict[str, Any]:
        """Card of the model of the first fold; empty without one."""
        return next((fold.model for fold in self.folds if fold.model), {})

    @property
    def points(self) -> list[dict[str, Any]]:
        """Provenance of the model of each fold, with what was settled after its training."""
        provenances = (fold.model.get("provenance") for fold in self.folds)
        return [point for point in provenances if isinstance(point, dict)]


def read_run(folder: Path) -> RunFiles:
    """Read all files of a run folder that a report can show.

    Raises:
        CheckpointError: there is no such folder, or it holds no file of a run.
    """
    run = RunLayout(folder)
    known = (run.config, run.metrics, run.predictions, run.fold(0).folder, run.splits)
    if not folder.is_dir() or not any(path.exists() for path in known):
        raise CheckpointError(f"{folder} holds no run; give the --out folder of `foveate train`")
    disk, read_text = _Disk(folder), partial(Path.read_text, encoding="utf-8")
    folds = _read_folds(disk)
    answering, unanswered = _read_answering(disk)
    pooled = disk.rows(RunLayout.predictions, wanted=len(folds) != 1)
    return RunFiles(
        folder=folder,
        config=disk.take(RunLayout.config, read_yaml, dict),
        config_text=disk.take(RunLayout.config, read_text, str, wanted=False),
        env=disk.take(RunLayout.environment, read_json, dict),
        splits=disk.take(RunLayout.splits, read_json, dict),
        quarantine=disk.rows(RunLayout.quarantine, wanted=False),
        check=disk.take(RunLayout.check, read_json, dict, wanted=False),
        folds=folds,
        predictions=pooled or [row for fold in folds for row in fold.predictions],
        metrics=disk.take(RunLayout.metrics, read_json, dict),
        cost=disk.take(RunLayout.cost, read_json, dict),
        heatmaps=disk.entries(f"{RunLayout.heatmaps_folder}/{HeatmapLayout.index}"),
        baseline=disk.entries(RunLayout.baseline, wanted=False),
        localisation=disk.take(RunLayout.localisation, read_json, dict, wanted=False),
        audit=disk.take(RunLayout.audit, read_json, dict, wanted=False),
        answering=answering,
        unanswered=unanswered,
        task=_restore_task(folds, disk),
        problems=disk.problems,
    )


def _read_folds(disk: _Disk) -> list[FoldFiles]:
    card = f"{FoldLayout.model_folder}/{ModelLayout.card}"
    return [
        FoldFiles(
            name,
            disk.rows(f"{name}/{FoldLayout.epochs}"),
            disk.rows(f"{name}/{FoldLayout.predictions}", wanted=False),
            disk.take(f"{name}/{card}", read_json, dict, wanted=False),
        )
        for name in (fold.folder.name for fold in RunLayout(disk.folder).folds())
    ]


def _restore_task(folds: list[FoldFiles], disk: _Disk) -> AbstractTask | None:
    """Restore the task of the first fold's model, which all models share; None without one."""
    card = next((fold.model for fold in folds if fold.model), None)
    if card is None:
        return None
    settled, options = (card.get(key) or {} for key in ("settled", "task_options"))
    try:
        return restore_task(str(card.get("task")), settled, options)
    except (FoveateError, TypeError, ValueError, AttributeError) as error:
        disk.problems.append(f"scores, for the task is not known: {one_line(str(error))[:200]}")
        return None


def _read_answering(disk: _Disk) -> tuple[list[dict[str, Any]], str]:
    """Read the cards of the models that answer, and why none does, if so."""
    try:
        folders = model_folders(disk.folder)
    except CheckpointError as error:
        return [], str(error)
    names = [ModelLayout(folder.relative_to(disk.folder)).card for folder in folders]
    return [disk.take(str(name), read_json, dict) for name in names], ""


@dataclass(frozen=True)
class _Disk:
    """Reads files of one folder; what is missing or damaged is empty and noted in `problems`."""

    folder: Path
    problems: list[str] = field(default_factory=list)

    def take(
        self, name: str, read: Callable[[Path], Any], kind: Callable[[], T], *, wanted: bool = True
    ) -> T:
        """Read a file by `read`; return an empty `kind` where it fails or returns another type."""
        path, empty = self.folder / name, kind()
        if not path.is_file():
            if wanted:
                self.problems.append(f"{name} is missing")
            return empty
        try:
            content = read(path)
        except (CheckpointError, OSError, ValueError, csv.Error) as error:
            self.problems.append(f"{name} cannot be read: {one_line(str(error), max_letters=200)}")
            return empty
        if not isinstance(content, type(empty)):
            self.problems.append(f"{name} holds something else than expected")
            return empty
        return content

    def rows(self, name: str, *, wanted: bool = True) -> list[Row]:
        """Read the rows of a CSV file; note a missing one if it is `wanted`."""
        return self.take(name, read_rows, list, wanted=wanted)

    def entries(self, name: str, *, wanted: bool = True) -> list[dict[str, Any]]:
        """Read the objects of a JSON list; note a missing file if it is `wanted`."""
        items: list[Any] = self.take(name, read_json, list, wanted=wanted)
        return [entry for entry in items if isinstance(entry, dict)]


def read_column(rows: list[Row], key: str) -> list[float]:
    """Return the numbers of a column; NaN for cells without a finite number.

    Args:
        rows: rows of a CSV file.
        key: name of the column.
    """
    numbers = (read_number(row, key) for row in rows)
    return [math.nan if value is None else value for value in numbers]
