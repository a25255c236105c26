"""Settle the plan of a new run: open all images, choose the view, divide the patients, write it."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveate.batch import View
from foveate.errors import OptionError, TrainingError
from foveate.files.atomic import write_json
from foveate.files.run_layout import RunLayout
from foveate.images.likeness import ImageFacts, join_facts, trained_on
from foveate.loading.scan import Scan, choose_view, scan_cases
from foveate.messages.display import Display, OnProgress, SetAsideMessages
from foveate.parts import find
from foveate.parts.options import parse_options
from foveate.runs.card import store_trained_on
from foveate.runs.checkpoint import build_model
from foveate.runs.config import STORED, RunConfig, make_card, settle_encoder
from foveate.runs.default_method import refuse_features
from foveate.runs.division import divide_images, save_division
from foveate.runs.fingerprint import list_files, note_inputs, save_inputs
from foveate.runs.folder import make_quarantine_row
from foveate.runs.view_words import describe_bits, describe_view
from foveate.table import Case, CaseTable, describe_factors
from foveate.tasks.base import AbstractTask
from foveate.wording import several


@dataclass(frozen=True)
class NewRun:
    """A run without a plan.

    Attributes:
        config: the config, which may leave the encoder and options of the method to the images.
        folder: folder of the run.
        table: the table of labels that the task understands.
        task: the task, settled from the labels.
        task_name: its name.
        task_options: its options, with those that it has resolved.
        display: shows progress and lines about the choices.
    """

    config: RunConfig
    folder: Path
    table: CaseTable
    task: AbstractTask
    task_name: str
    task_options: dict[str, Any]
    display: Display


def settle_plan(run: NewRun) -> None:
    """Open all images once, choose the view, divide the patients, and write the plan.

    Wrong options fail before the first image is opened.

    Raises:
        UnknownName, OptionError: a part or an option does not exist, or does not fit the images.
        CheckpointError: a file of weights is missing, damaged or of another network.
        TrainingError: no image can be read.
    """
    config, display = run.config, run.display
    axes = 2
    if config.encoder != STORED:
        axes = _find_axes(run, settle_encoder(config, 2))
    scan, quarantine = _open_all(run)
    view = choose_view(scan.facts.values(), config.view)
    _check_pixels(run, view)
    settled = settle_encoder(config, view.axes, view.recipe)
    if config.encoder in ("auto", STORED):
        axes = _find_axes(run, settled)
    _check_axes(run, view, axes)
    _describe_choices(run, view, scan)
    cases = _keep_images(run.table.cases, scan.facts.keys())
    _check_alike(cases, scan)
    usable = [image for case in cases for image in case.list_images()]
    division = divide_images(config.split, run.task, usable)
    for note in division.notes:
        display.say(note)
    quarantine += [
        make_quarantine_row(c.image_id, c.path, "split", "in no part of the split")
        for c in usable
        if c.image_id in division.left_out
    ]
    cases = _keep_images(cases, scan.facts.keys() - division.left_out)
    save_division(division, RunLayout(run.folder), cases, run.table.columns)
    usable = [image for case in cases for image in case.list_images()]
    facts = [join_facts([scan.facts[i.image_id] for i in c.list_images()]) for c in cases]
    chosen = _choose_method_options(run, view, facts)
    inputs = note_inputs(usable, list_files(config.encoder_options), None, show_noting(display))
    save_inputs(inputs, RunLayout(run.folder).inputs)
    content = {
        "view": asdict(view),
        "quarantine": quarantine,
        "method_options": chosen,
        "trained_on": store_trained_on(trained_on(scan.facts.values())),
    }
    write_json(RunLayout(run.folder).plan, content)


def _keep_images(cases: Sequence[Case], image_ids: Collection[str]) -> list[Case]:
    """Return the cases with those of their images that are named; leave out cases without any."""
    gone = {i.image_id for case in cases for i in case.list_images()} - set(image_ids)
    kept = (case.without(gone) for case in cases)
    return [case for case in kept if case is not None]


def _check_alike(cases: Sequence[Case], scan: Scan) -> None:
    """Refuse patients whose images cannot be read together.

    Raises:
        OptionError: images of a patient differ in kind or channels, or are volumes.
    """
    mixed = {}
    for case in cases:
        facts = [scan.facts[image.image_id] for image in case.images]
        kinds = sorted({f"{f.kind} of {f.channels} channels" for f in facts})
        volumes = len(facts) > 1 and len(facts[0].shape) == 3
        if len(kinds) > 1 or volumes:
            mixed[case.patient_id] = "several volumes" if volumes else ", ".join(kinds)
    if mixed:
        names = several([f"'{patient}' ({found})" for patient, found in mixed.items()])
        raise OptionError(
            f"bag: images of {len(mixed)} patients cannot be read together: {names}. Leave such "
            "images out of the table, name them as patients of their own, or leave --bag out"
        )


def show_noting(display: Display) -> OnProgress:
    """Return a callback that displays how many inputs of a run have been noted."""
    return functools.partial(display.bar, "noting what the run rests on")


def _find_axes(run: NewRun, config: RunConfig) -> int:
    """Build the model of a config that names its encoder, and return the number of axes it reads.

    A file of weights that the user names is read as well.
    """
    view = View(1.0, config.view.patch_px or 224, 1.0)
    card = make_card(config, view, run.task_name, run.task_options, run.task.settled)
    user_weights = bool(config.encoder_options.get("weights"))
    return build_model(card, pretrained=user_weights).method.encoder.axes


def _check_axes(run: NewRun, view: View, axes: int) -> None:
    """Raise `OptionError` if the encoder, which reads `axes` axes, does not fit the view."""
    if view.axes != axes:
        other = "--encoder slices or small3d" if view.axes == 3 else "--encoder lite0 or small"
        raise OptionError(
            f"encoder: '{run.config.encoder}' reads images of {axes} axes, these have {view.axes}: "
            f"take {other}"
        )


def _check_pixels(run: NewRun, view: View) -> None:
    """Raise `OptionError` if the method needs pixels, and the images are files of features."""
    if view.recipe is not None:
        refuse_features([run.config.method], "method")


def _describe_choices(run: NewRun, view: View, scan: Scan) -> None:
    """Display encoder and view, and warn of images that would be shown dark."""
    settled = settle_encoder(run.config, view.axes, view.recipe)
    run.display.say(f"encoder: {settled.encoder}")
    run.display.say(describe_view(view, [fact.shape for fact in scan.facts.values()]))
    if warning := describe_bits(scan.facts):
        run.display.say(warning)


def _choose_method_options(run: NewRun, view: View, images: Sequence[ImageFacts]) -> dict[str, Any]:
    """Let the method choose the options that the user leaves to the images, and display them.

    Raises:
        OptionError: the method chooses an option that it does not have, or a wrong value.
    """
    method = find("methods", run.config.method)
    chosen = parse_options(
        method, method.choose_options(run.config.method_options, view, images), "method"
    )
    if chosen:
        values = ", ".join(f"{key} {value}" for key, value in chosen.items())
        run.display.say(f"from the images: {values}")
    return chosen


def _open_all(run: NewRun) -> tuple[Scan, list[dict[str, str]]]:
    """Collect facts about all images and rows about those set aside, and display problems.

    Raises:
        TrainingError: no image can be read.
    """
    table, display = run.table, run.display
    images = [image for case in table.cases for image in case.list_images()]
    display.bar("opening images", 0, len(images))
    scan = scan_cases(
        images,
        run.config.view,
        functools.partial(display.bar, "opening images"),
        run.config.reader_options,
    )
    quarantine = [
        make_quarantine_row(row.image_id, row.path, "table", row.reason) for row in table.set_aside
    ]
    quarantine += [
        make_quarantine_row(c.image_id, c.path, "open", scan.failed[c.image_id])
        for c in images
        if c.image_id in scan.failed
    ]
    SetAsideMessages(display.say).set_all_aside(quarantine)
    if not scan.facts:
        reason = quarantine[0]["reason"] if quarantine else "the table is empty"
        raise TrainingError(
            f"no image of {run.config.table.path} can be read; the first: {reason}. Mend what "
            "the table names, and repeat the command"
        )
    factors = {i: fact.factor for i, fact in scan.facts.items() if fact.factor is not None}
    if contradiction := describe_factors(factors):
        display.say(contradiction)
    return scan, quarantine
