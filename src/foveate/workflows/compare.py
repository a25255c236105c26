"""The command ``compare``: methods on the same patients, or runs that are trained already."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveate.errors import CheckpointError, OptionError
from foveate.evaluation.comparison import Contestant, compare_contestants
from foveate.files.atomic import write_json
from foveate.files.lock import lock_folder
from foveate.files.run_layout import ComparisonLayout, ModelLayout, RunLayout
from foveate.messages.display import Display
from foveate.reports import write_comparison, write_progress, write_report
from foveate.reports.comparison import describe_comparison
from foveate.runs.card import read_card
from foveate.runs.config import RunConfig
from foveate.runs.default_method import names_features, refuse_features
from foveate.runs.folder import check_folder, model_folders, read_json, read_rows, write_rows
from foveate.runs.labels import read_table
from foveate.tasks import restore_task
from foveate.tasks.base import AbstractTask
from foveate.workflows.train import check_set_aside, run_experiment


@dataclass(frozen=True, repr=False)
class Comparison:
    """The result of a comparison.

    Attributes:
        folder: folder of the comparison.
        content: content of ``comparison.json``.
        task: task of the runs.
        n_set_aside: number of images that a training set aside.
    """

    folder: Path
    content: dict[str, Any]
    task: AbstractTask
    n_set_aside: int = 0

    def __repr__(self) -> str:
        return f"Comparison {self.folder}: {describe_comparison(self.content, self.task)}"


def compare_methods(configs: Mapping[str, RunConfig], folder: Path, display: Display) -> Comparison:
    """Train methods on the same patients and splits, and compare them; continue where it stopped.

    Args:
        configs: the config of each method, by the name of its folder.
        folder: folder of the comparison, which holds a run for each method.
        display: shows messages and progress.

    Raises:
        FoveateError: an error that the user can correct.
    """
    if len(configs) < 2:
        raise OptionError("--methods: expected two or more methods, such as glimpse,abmil")
    _check_out(folder)
    layout, n_set_aside = ComparisonLayout(folder), 0
    table = read_table(next(iter(configs.values())))
    if names_features(table):
        refuse_features([config.method for config in configs.values()], "methods")
    with lock_folder(folder):
        for k, (name, config) in enumerate(configs.items()):
            display.say(f"method {k + 1} of {len(configs)}: {name}")
            result = run_experiment(
                config,
                layout.run(name).folder,
                display,
                table=table,
                after_epoch=write_progress,
            )
            write_report(result.folder)
            check_set_aside(config, result.folder, result.n_set_aside, result.n_images)
            n_set_aside = max(n_set_aside, result.n_set_aside)
        runs = {name: layout.run(name).folder for name in configs}
        return _compare(runs, folder, n_set_aside)


def compare_runs(runs: Sequence[Path], folder: Path) -> Comparison:
    """Compare runs that are trained already.

    Args:
        runs: folders of runs with the same split.
        folder: folder of the comparison.

    Raises:
        CheckpointError: a folder holds no finished run, or the runs differ in task or split.
    """
    if len(runs) < 2:
        raise OptionError("expected two or more runs to compare")
    _check_out(folder)
    with lock_folder(folder):
        return _compare(name_runs(runs), folder, 0)


def name_runs(runs: Sequence[Path]) -> dict[str, Path]:
    """Return folders of runs by the names of the folders, or by paths where two names are equal.

    Args:
        runs: folders of runs.
    """
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    return dict(zip(names, runs, strict=True))


def _check_out(folder: Path) -> None:
    check_folder(folder)
    if RunLayout(folder).config.is_file():
        raise CheckpointError(f"--out {folder} is the folder of a run: give another --out")


def _compare(runs: Mapping[str, Path], folder: Path, n_set_aside: int) -> Comparison:
    """Compare finished runs, and write the results."""
    task = _check_alike(runs)
    contestants = [
        entry for name, run in runs.items() for entry in read_contestants(name, run, folder)
    ]
    check_labels(contestants)
    content = compare_contestants(contestants, task)
    layout = ComparisonLayout(folder)
    write_json(layout.result, content)
    rows = list_rows(content)
    write_rows(layout.table, rows, list(rows[0]))
    write_comparison(folder, task)
    return Comparison(folder, content, task, n_set_aside)


def _check_alike(runs: Mapping[str, Path]) -> AbstractTask:
    """Return the task of runs; refuse runs that cannot be compared.

    Raises:
        CheckpointError: a folder holds no finished run, or the runs differ in task or split.
    """
    task, first = check_question(list(runs.values())), next(iter(runs.values()))
    folds = read_json(RunLayout(first).splits)["folds"]
    for run in runs.values():
        if read_json(RunLayout(run).splits)["folds"] != folds:
            raise CheckpointError(
                f"{run} divides the patients otherwise than {first}: train both on the same table "
                "with the same --seed and --folds"
            )
    return task


def check_question(runs: Sequence[Path]) -> AbstractTask:
    """Return the task of finished runs, which must be the same.

    Args:
        runs: folders of runs.

    Raises:
        CheckpointError: a folder holds no finished run, or the runs differ in task or classes.
    """
    first, *others = runs
    task = _read_task(first)
    for run in others:
        other = _read_task(run)
        if (type(other), other.common) != (type(task), task.common):
            raise CheckpointError(
                f"{run} answers another question than {first}: compare runs on the same labels"
            )
    return task


def check_labels(contestants: Sequence[Contestant]) -> None:
    """Refuse runs that were trained on different labels of the same images.

    Args:
        contestants: answers of the runs.

    Raises:
        CheckpointError: an image has two labels; the message names it.
    """
    first = contestants[0]
    label_of = {row["image_id"]: row["label"] for row in first.rows}
    for other in contestants[1:]:
        for row in other.rows:
            label = label_of.get(row["image_id"], row["label"])
            if label != row["label"]:
                raise CheckpointError(
                    f"image '{row['image_id']}' has the label '{label}' in {first.name}, but "
                    f"'{row['label']}' in {other.name}: compare runs on the same labels"
                )


def _read_task(run: Path) -> AbstractTask:
    """Return the task of a finished run.

    Raises:
        CheckpointError: the run is not finished.
    """
    layout = RunLayout(run)
    needed = (layout.splits, layout.predictions, layout.metrics, layout.cost)
    missing = [path for path in needed if not path.is_file()]
    if missing:
        raise CheckpointError(
            f"{run} holds no finished run ({missing[0].name} is missing): give the `foveate train` "
            "command again that began it"
        )
    card, _ = read_card(ModelLayout(model_folders(run)[0]).card)
    return restore_task(card.task, card.settled, card.task_options)


def read_contestants(name: str, run: Path, folder: Path) -> list[Contestant]:
    """Read the answers of a run, and those of its frozen start where there is one.

    Args:
        name: name of the run.
        run: its folder.
        folder: folder that places of runs are relative to.
    """
    layout, metrics = RunLayout(run), read_json(RunLayout(run).metrics)
    place = Path(os.path.relpath(run.resolve(), folder.resolve())).as_posix()
    entries = [
        Contestant(
            name, read_rows(layout.predictions), metrics["metrics"], read_json(layout.cost), place
        )
    ]
    if layout.frozen_predictions.is_file() and "frozen" in metrics:
        rows = read_rows(layout.frozen_predictions)
        title = f"{name}, frozen start"
        entries.append(Contestant(title, rows, metrics["frozen"], {}, place, is_frozen=True))
    return entries


def list_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of ``comparison.csv``: scores, cost, and the difference to the first row.

    Args:
        content: content of ``comparison.json``.
    """
    main = content["score"]
    rows = []
    for entry in content["rows"]:
        score = entry["scores"].get(main, {})
        less = entry["less_first"]
        rows.append(
            {
                "name": entry["name"],
                **{key: score.get(key, "") for key in ("value", "lo", "hi")},
                "difference": less.get("value", ""),
                "difference_lo": less.get("lo", ""),
                "difference_hi": less.get("hi", ""),
                "p_value": less.get("p_value", ""),
                "p_adjusted": less.get("p_adjusted", ""),
                **{
                    key: "" if entry[key] is None else entry[key]
                    for key in (
                        "seconds",
                        "seconds_per_image",
                        "decoded_fraction",
                        "asked_fraction",
                    )
                },
                "run": entry["run"],
            }
        )
    return rows
