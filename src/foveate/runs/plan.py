"""The plan of a run, settled before the first step: cases, task, view, division of patients."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from foveate.batch import View
from foveate.errors import OptionError, SplitError, TrainingError
from foveate.files.atomic import write_json
from foveate.files.fields import Fields, read_fields
from foveate.geometry import shape_from_size_um, size_um_from_shape
from foveate.images.likeness import ImageFacts, TrainedOn, trained_on
from foveate.loading.scan import Scan, choose_view, scan_cases
from foveate.messages.display import Display, SetAsideMessages
from foveate.runs.card import ModelCard, parse_trained_on, parse_view, store_trained_on
from foveate.runs.checkpoint import build_model
from foveate.runs.config import RunConfig, settle_encoder
from foveate.runs.fingerprint import (
    check_unchanged,
    list_files,
    load_inputs,
    note_inputs,
    save_inputs,
)
from foveate.runs.folder import make_quarantine_row
from foveate.table import (
    Case,
    CaseTable,
    Splits,
    describe_factors,
    load_splits,
    make_splits,
    read_cases,
    save_splits,
    several,
    with_known_labels,
)
from foveate.tasks import build_task
from foveate.tasks.base import AbstractTask


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

    def pick(self, image_ids: Sequence[str]) -> list[Case]:
        """Return the cases of these images, in the same order."""
        return [self.cases[i] for i in image_ids]


def make_plan(config: RunConfig, folder: Path, display: Display) -> Plan:
    """Read the table and make the plan; a plan that the folder already holds is read from there.

    Raises:
        FoveateError: whatever the user has to mend.
    """
    table = _read_table(config, display)
    labels = [str(case.label) for case in table.cases]
    task = build_task(config.task, labels, config.task_options, str(table.label_column))
    name = type(task).__module__.rsplit(".", 1)[-1].rstrip("_")
    table = _drop_unknown_labels(table, task, display)
    display.say(f"task: {name}, {task.describe()}")
    stored = folder / "plan.json"
    options = config.task_options | dict(task.resolved)
    if not stored.is_file():
        axes = _check_parts(config, name, options, task.settled)
        _settle(config, folder, table, display, task, (name, options), axes)
        content = _read_plan(stored)
    else:
        content = _read_plan(stored)
        _check_inputs(config, folder, table, _read_quarantine(content), display)
    view, quarantine = parse_view(content.part("view")), _read_quarantine(content)
    bad = {row["image_id"] for row in quarantine}
    cases = {c.image_id: c for c in table.cases if c.image_id not in bad}
    splits = load_splits(folder / "splits.json")
    try:
        splits.check(list(cases.values()))
    except SplitError as error:
        raise SplitError(f"{folder / 'splits.json'}: {error}") from None
    settled = settle_encoder(config, view.axes)
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


def _read_table(config: RunConfig, display: Display) -> CaseTable:
    options = config.table
    table = read_cases(
        Path(options.path),
        files=None if options.files is None else Path(options.files),
        images=None if options.images is None else Path(options.images),
        label=options.label,
        patient=options.patient,
        path=options.image,
        labels_wanted=options.classes,
        task=config.task,
    )
    for note in table.notes:
        display.say(note)
    if not config.permute_labels:
        return table
    # Before the split: folds stratified by the true labels would hold uneven shares of the new
    # ones, and a fold's test part would lack what its training part has too many of.
    display.say("labels are shuffled over patients: the scores must be those of chance")
    return replace(table, cases=_permute_labels(table.cases, config.split.seed))


def _drop_unknown_labels(table: CaseTable, task: AbstractTask, display: Display) -> CaseTable:
    """Set rows aside whose label the task does not understand, and display why."""
    understood = with_known_labels(table, task, {})
    for note in understood.notes[len(table.notes) :]:
        display.say(note)
    return understood


def _settle(
    config: RunConfig,
    folder: Path,
    table: CaseTable,
    display: Display,
    task: AbstractTask,
    named: tuple[str, dict[str, Any]],
    axes: int | None,
) -> None:
    """Open all images once, choose the view, divide the patients, and write the plan.

    Raises:
        OptionError: the images do not have as many `axes` as the encoder reads.
    """
    scan, quarantine = _open_all(config, table, display)
    usable = [case for case in table.cases if case.image_id in scan.facts]
    view = choose_view(scan.facts.values(), config.view)
    if axes is None:
        axes = _check_parts(settle_encoder(config, view.axes), *named, task.settled)
    if view.axes != axes:
        other = "--encoder slices or small3d" if view.axes == 3 else "--encoder lite0 or small"
        raise OptionError(
            f"encoder: '{config.encoder}' reads images of {axes} axes, these have {view.axes}: "
            f"take {other}"
        )
    display.say(f"encoder: {settle_encoder(config, view.axes).encoder}")
    display.say(_describe_view(view, [fact.shape for fact in scan.facts.values()]))
    _warn_of_bits(scan.facts, display)
    split = config.split
    splits = make_splits(
        usable,
        folds=split.folds,
        test_fraction=split.test_fraction,
        val_fraction=split.val_fraction,
        seed=split.seed,
        strata=task.strata([str(c.label) for c in usable], [c.patient_id for c in usable]),
    )
    labels = {case.image_id: str(case.label) for case in usable}
    save_splits(splits, folder / "splits.json", labels=labels)
    chosen = _choose_patch_numbers(config.method_options, view, list(scan.facts.values()))
    if chosen:
        display.say("per image: " + ", ".join(f"{key} {value}" for key, value in chosen.items()))
    inputs = note_inputs(usable, list_files(config.encoder_options), None, _show_noting(display))
    save_inputs(inputs, folder / "inputs.json")
    content = {
        "view": asdict(view),
        "quarantine": quarantine,
        "method_options": chosen,
        "trained_on": store_trained_on(trained_on(scan.facts.values())),
    }
    write_json(folder / "plan.json", content)


def _open_all(
    config: RunConfig, table: CaseTable, display: Display
) -> tuple[Scan, list[dict[str, str]]]:
    """Collect facts about all images and rows about those set aside, and display problems.

    Raises:
        TrainingError: no image can be read.
    """
    display.bar("opening images", 0, len(table.cases))
    scan = scan_cases(
        table.cases,
        config.view,
        lambda done, total: display.bar("opening images", done, total),
        config.reader_options,
    )
    quarantine = [
        make_quarantine_row(row.image_id, row.path, "table", row.reason) for row in table.set_aside
    ]
    quarantine += [
        make_quarantine_row(c.image_id, c.path, "open", scan.failed[c.image_id])
        for c in table.cases
        if c.image_id in scan.failed
    ]
    SetAsideMessages(display.say).set_all_aside(quarantine)
    if not scan.facts:
        reason = quarantine[0]["reason"] if quarantine else "the table is empty"
        raise TrainingError(f"no image of {config.table.path} can be read; the first: {reason}")
    factors = {i: fact.factor for i, fact in scan.facts.items() if fact.factor is not None}
    if contradiction := describe_factors(factors):
        display.say(contradiction)
    return scan, quarantine


def _warn_of_bits(facts: Mapping[str, ImageFacts], display: Display) -> None:
    """Warn of images that use more of the 16 bits than most, as they make the others dark."""
    bits = {image_id: fact.bits for image_id, fact in facts.items() if fact.bits is not None}
    if not bits:
        return
    usual = statistics.median_low(bits.values())
    more = sorted(image_id for image_id, n in bits.items() if n > usual)
    if more:
        display.say(
            f"warning: {several(more)} use {max(bits.values())} bits where most images use "
            f"{usual}, so that most are shown dark; mend these, or leave them out of the table"
        )


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
    bad = {row["image_id"] for row in quarantine}
    usable = [case for case in table.cases if case.image_id not in bad]
    was = load_inputs(folder / "inputs.json")
    now = note_inputs(usable, list_files(config.encoder_options), was, _show_noting(display))
    check_unchanged(was, now, folder)


def _show_noting(display: Display) -> Callable[[int, int], None]:
    return lambda done, total: display.bar("noting what the run rests on", done, total)


def _check_parts(
    config: RunConfig, task: str, options: dict[str, Any], settled: dict[str, Any]
) -> int | None:
    """Build the model once before images are opened, so that wrong options fail at once.

    A file of weights that the user names is read as well.

    Returns:
        Number of axes that the images must have; None where the encoder is chosen by the images.

    Raises:
        UnknownName, OptionError: a part or an option does not exist.
        CheckpointError: a file of weights is missing, damaged or of another network.
    """
    automatic = config.encoder == "auto"
    config = settle_encoder(config, 2)
    view = View(1.0, config.view.patch_px or 224, 1.0)
    user_weights = bool(config.encoder_options.get("weights"))
    model = build_model(make_card(config, view, task, options, settled), pretrained=user_weights)
    return None if automatic else model.method.encoder.axes


_PIXELS = {"patches": 600_000, "eval_patches": 1_200_000, "survey": 6_000_000}
"""Pixels (voxels) of all patches of an image that are worth their time, by option."""
_MAX_BY_OPTION = {"patches": 32, "eval_patches": 64, "survey": 256}
_NOTHING_NEW = {"patches": 2, "eval_patches": 4, "survey": 4}


def _choose_patch_numbers(
    options: dict[str, Any], view: View, facts: Sequence[ImageFacts]
) -> dict[str, int]:
    """Choose the numbers of patches for the options that are left at 0.

    As many patches as are worth their time, but no more than cover the median image twice.
    """
    covering = [
        math.prod(
            shape_from_size_um(size_um_from_shape(fact.shape, fact.spacing_um), view.patch_um)
        )
        for fact in facts
    ]
    cover, patch_size_px = max(1, int(np.median(covering))), view.patch_px**view.axes
    numbers = {
        key: max(
            1,
            min(
                _MAX_BY_OPTION[key],
                pixels // patch_size_px,
                cover if key == "patches" else 2 * cover,
            ),
        )
        for key, pixels in _PIXELS.items()
    }
    if view.glimpse_spacing_um < 1.25 * view.spacing_um:
        # The glimpse is as fine as patches, so that patches show hardly anything new.
        numbers = {key: min(value, _NOTHING_NEW[key]) for key, value in numbers.items()}
    return {key: value for key, value in numbers.items() if options.get(key) == 0}


def _describe_view(view: View, shapes: Sequence[tuple[int, ...]]) -> str:
    """Describe the view, and what it means for these images."""
    if view.axes == 3:
        return (
            f"view: cubes of {view.patch_px} voxels of {view.spacing_um / 1000:g} mm, "
            f"glimpse at {view.glimpse_spacing_um / 1000:g} mm"
        )
    unit = "um per pixel" if view.unit == "um" else "pixels of the picture per pixel"
    text = (
        f"view: patches of {view.patch_px} px at {view.spacing_um:g} {unit}, "
        f"glimpse at {view.glimpse_spacing_um:g}"
    )
    if view.bits is not None:
        text += f"\n16-bit images use {view.bits} bits: {(1 << view.bits) - 1} is white"
    if view.unit == "um":
        return text
    text += "\nno spacing: these pictures state no pixel size, so lengths count in pixels"
    if view.fit is None and len(set(shapes)) > 1:
        text += "; their sizes differ: if size could give the class away, use --view.fit 1024x1024"
    return text


def _permute_labels(cases: Sequence[Case], seed: int) -> tuple[Case, ...]:
    """Shuffle labels over patients; all images of a patient get the new label of the patient."""
    first = {c.patient_id: str(c.label) for c in sorted(cases, key=lambda c: c.image_id)}
    patients = sorted(first)
    order = np.random.default_rng((seed, 17)).permutation(len(patients))
    label = {p: first[patients[i]] for p, i in zip(patients, order, strict=True)}
    return tuple(replace(case, label=label[case.patient_id]) for case in cases)


def make_card(
    config: RunConfig, view: View, task: str, options: dict[str, Any], settled: dict[str, Any]
) -> ModelCard:
    """Build the card of the model that this config asks for, before anything is trained."""
    return ModelCard(
        method=config.method,
        method_options=config.method_options,
        encoder=config.encoder,
        encoder_options=config.encoder_options,
        task=task,
        task_options=options,
        settled=settled,
        view=view,
        assume_spacing_um=config.view.assume_spacing_um,
        readers=config.reader_options,
    )
