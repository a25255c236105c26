"""The plan of a run, settled before the first step: cases, task, view, division of patients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveate.batch import View
from foveate.errors import SplitError
from foveate.files.fields import Fields, read_fields
from foveate.files.run_layout import RunLayout
from foveate.images.likeness import TrainedOn
from foveate.messages.display import Display
from foveate.runs.card import parse_trained_on, parse_view
from foveate.runs.config import RunConfig, settle_encoder
from foveate.runs.fingerprint import check_unchanged, list_files, load_inputs, note_inputs
from foveate.runs.labels import drop_unknown_labels, read_table
from foveate.runs.new_plan import NewRun, settle_plan, show_noting
from foveate.table import Case, CaseTable, Splits, load_splits
from foveate.tasks import build_task


@dataclass(frozen=True)
class Plan:
    """The plan of a run, settled before the first step and stored for runs that are resumed.

    Attributes:
        config: the config, with everything that it leaves open filled in.
        view: at which spacing and size patches and glimpses are read.
        task: name of the task.
        settled: what the task settled from the labels.
        task_options: options of the task.
        cases: the usable images, by image id.
        quarantine: rows about the images that were set aside, with the reasons.
        splits: the division of the patients into folds.
        trained_on: facts about the images; None in runs of older versions.
        assumptions: what the task assumed about the labels, as sentences.
    """

    config: RunConfig
    view: View
    task: str
    settled: dict[str, Any]
    task_options: dict[str, Any]
    cases: dict[str, Case]
    quarantine: list[dict[str, str]]
    splits: Splits
    trained_on: TrainedOn | None
    assumptions: tuple[str, ...] = ()

    def pick(self, image_ids: Sequence[str]) -> list[Case]:
        """Return the cases of these images, in the same order."""
        return [self.cases[i] for i in image_ids]

    def find_path(self, image_id: str) -> str:
        """Return the file of an image, or the files of a case of several, as one text."""
        if image_id in self.cases:
            return self.cases[image_id].paths
        images = (i for case in self.cases.values() for i in case.list_images())
        return next((str(i.path) for i in images if i.image_id == image_id), "")


def make_plan(
    config: RunConfig, folder: Path, display: Display, table: CaseTable | None = None
) -> Plan:
    """Read the table and make the plan; a plan that the folder already holds is read from there.

    Args:
        config: config of the run.
        folder: folder of the run.
        display: shows notes and progress.
        table: the table of the config, if it has been read.

    Raises:
        FoveateError: whatever the user has to mend.
    """
    table = read_table(config) if table is None else table
    for note in table.notes:
        display.say(note)
    labels = [str(case.label) for case in table.cases]
    task = build_task(table.task, labels, config.task_options, str(table.label_column))
    name = type(task).__module__.rsplit(".", 1)[-1].rstrip("_")
    table = drop_unknown_labels(table, task, display)
    display.say(f"task: {name}, {task.describe()}")
    for sentence in task.assumptions:
        display.say(sentence)
    run = RunLayout(folder)
    stored = run.plan
    options = config.task_options | dict(task.resolved)
    if not stored.is_file():
        settle_plan(NewRun(config, folder, table, task, name, options, display))
        content = _read_plan(stored)
    else:
        content = _read_plan(stored)
        _check_inputs(config, folder, table, _read_quarantine(content), display)
    view, quarantine = parse_view(content.part("view")), _read_quarantine(content)
    cases = {case.image_id: case for case in _list_usable(table, quarantine)}
    splits = load_splits(run.splits)
    try:
        splits.check(list(cases.values()))
    except SplitError as error:
        raise SplitError(f"{run.splits}: {error}") from None
    settled = settle_encoder(config, view.axes, view.recipe)
    methods = config.method_options | content.options("method_options")
    facts = parse_trained_on(content.part("trained_on")) if "trained_on" in content else None
    return Plan(
        replace(settled, method_options=methods),
        view,
        name,
        task.settled,
        options,
        cases,
        quarantine,
        splits,
        facts,
        task.assumptions,
    )


def _read_plan(path: Path) -> Fields:
    """Read ``plan.json``; its fields are checked where they are used."""
    fields = read_fields(path)
    fields.only(("view", "quarantine", "method_options", "trained_on"))
    return fields


def _read_quarantine(fields: Fields) -> list[dict[str, str]]:
    """Return the stored rows about images that were set aside before training."""
    rows = [Fields(row, f"{fields.where}: quarantine") for row in fields.items("quarantine")]
    keys = ("image_id", "path", "stage", "reason")
    # A row of the table without a path has none.
    return [{key: row.text(key, may_be_empty=key == "path") for key in keys} for row in rows]


def _list_usable(table: CaseTable, quarantine: Sequence[dict[str, str]]) -> list[Case]:
    """Return the cases of a table without the images that were set aside."""
    bad = {row["image_id"] for row in quarantine}
    cases = (case.without(bad) for case in table.cases)
    return [case for case in cases if case is not None]


def _check_inputs(
    config: RunConfig,
    folder: Path,
    table: CaseTable,
    quarantine: Sequence[dict[str, str]],
    display: Display,
) -> None:
    """Refuse to continue when labels, images or files were changed since the run was begun.

    Raises:
        CheckpointError: an input was changed; the message names it.
    """
    usable = [i for case in _list_usable(table, quarantine) for i in case.list_images()]
    was = load_inputs(RunLayout(folder).inputs)
    now = note_inputs(usable, list_files(config.encoder_options), was, show_noting(display))
    check_unchanged(was, now, folder)
