"""The table of a run: read, its labels shuffled on demand, rows without a known label set aside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from foveate.errors import TableError
from foveate.messages.display import Display
from foveate.readers import is_image_folder
from foveate.runs.config import RunConfig
from foveate.table import (
    Case,
    CaseTable,
    LabelRules,
    NamedColumns,
    bag_by_patient,
    read_cases,
    with_known_labels,
)
from foveate.tasks.base import AbstractTask


def read_table(config: RunConfig) -> CaseTable:
    """Read the table that a config names, shuffle labels on demand, and join patients on demand.

    Args:
        config: config of the run.

    Raises:
        OptionError: a label that is to be renamed does not occur.
        TableError: the table cannot be used.
    """
    options = config.table
    table = read_cases(
        Path(options.path),
        files=None if options.files is None else Path(options.files),
        images=None if options.images is None else Path(options.images),
        columns=NamedColumns(options.image, options.patient, options.label, config.split.site),
        labels=LabelRules(
            wanted=options.classes,
            task=config.task,
            task_options=config.task_options,
            renamed=options.renamed or {},
        ),
        is_image=partial(is_image_folder, options=config.reader_options),
    )
    if config.bag == "patient":
        table = _bag_by_patient(table)
    if not config.permute_labels:
        return table
    # Before the split: folds stratified by the true labels would hold uneven shares of the new
    # ones, and a fold's test part would lack what its training part has too many of.
    note = "labels are shuffled over patients: the scores must be those of chance"
    cases = _permute_labels(table.cases, config.split.seed)
    return replace(table, cases=cases, notes=(*table.notes, note))


def _bag_by_patient(table: CaseTable) -> CaseTable:
    """Join the images of each patient; a table that names no patients is refused.

    Raises:
        TableError: there is no column of patients, or images of a patient have different labels.
    """
    if "patient_id" not in table.columns:
        raise TableError(
            "--bag patient needs to know the patients: name their column with --patient, or leave "
            "--bag out"
        )
    return bag_by_patient(table)


def drop_unknown_labels(table: CaseTable, task: AbstractTask, display: Display) -> CaseTable:
    """Set rows aside whose label the task does not understand, and display why.

    Args:
        table: the table of the run.
        task: the task.
        display: shows why rows are set aside.
    """
    understood = with_known_labels(table, task)
    for note in understood.notes[len(table.notes) :]:
        display.say(note)
    return understood


def _permute_labels(cases: Sequence[Case], seed: int) -> tuple[Case, ...]:
    """Shuffle labels over patients; all images of a patient get the new label of the patient."""
    first = {c.patient_id: str(c.label) for c in sorted(cases, key=lambda c: c.image_id)}
    patients = sorted(first)
    order = np.random.default_rng((seed, 17)).permutation(len(patients))
    label = {p: first[patients[i]] for p, i in zip(patients, order, strict=True)}
    return tuple(_with_label(case, label[case.patient_id]) for case in cases)


def _with_label(case: Case, label: str) -> Case:
    """Return a case, and its images, with another label."""
    images = tuple(replace(image, label=label) for image in case.images)
    return replace(case, label=label, images=images)
