"""Divide the images of a run into the parts of its folds: drawn, or taken from a stored split."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from foveate.errors import OptionError
from foveate.files.run_layout import ClamSplitsLayout, RunLayout
from foveate.runs.config import SplitOptions
from foveate.runs.folder import write_rows
from foveate.table import (
    Case,
    Splits,
    gather_splits,
    join_splits,
    make_splits,
    read_stored_splits,
    save_splits,
)
from foveate.tasks.base import AbstractTask
from foveate.wording import several

_ROLES = ("label", "patient_id", "site")


@dataclass(frozen=True)
class Division:
    """The division of the images of a run.

    Attributes:
        splits: the parts of the folds.
        notes: lines to show to the user.
        left_out: ids of images that are in no part.
    """

    splits: Splits
    notes: tuple[str, ...] = ()
    left_out: frozenset[str] = frozenset()


def divide_images(options: SplitOptions, task: AbstractTask, cases: Sequence[Case]) -> Division:
    """Divide images as the options say, stratified by the task.

    Args:
        options: the options.
        task: the task, which knows the strata of labels.
        cases: the images that can be used.

    Raises:
        SplitError: there are too few patients or sites, or a stored split does not fit.
        OptionError: the number of folds is not that of the stored split.
    """
    strata = task.strata([str(c.label) for c in cases], [c.patient_id for c in cases])
    if options.from_ is None:
        splits = make_splits(
            cases,
            folds=options.folds,
            test_fraction=options.test_fraction,
            val_fraction=options.val_fraction,
            seed=options.seed,
            strata=strata,
            by_site=options.site is not None,
            repeats=options.repeats,
        )
        return Division(splits, _describe_sites(splits, cases) if options.site else ())
    stored = read_stored_splits(Path(options.from_))
    if options.folds not in (1, len(stored.folds)):
        raise OptionError(
            f"split.folds: got {options.folds}, but {options.from_} holds {len(stored.folds)}: "
            "leave --folds out"
        )
    joined = join_splits(
        stored, cases, val_fraction=options.val_fraction, seed=options.seed, strata=strata
    )
    return Division(joined.splits, joined.notes, joined.left_out)


def _describe_sites(splits: Splits, cases: Sequence[Case]) -> tuple[str, ...]:
    """Describe which sites each fold tests."""
    site_of = {case.image_id: str(case.site) for case in cases}
    notes = []
    for k, fold in enumerate(splits.folds):
        patients: dict[str, set[str]] = defaultdict(set)
        for image_id in fold.test:
            patients[site_of[image_id]].add(splits.patients[image_id])
        sites = several([f"{site} ({len(who)} patients)" for site, who in patients.items()], 5)
        notes.append(f"fold {k + 1} tests the sites {sites}")
    return tuple(notes)


def save_division(
    division: Division, run: RunLayout, cases: Sequence[Case], columns: Mapping[str, str]
) -> None:
    """Write ``splits.json``, and the same folds as CLAM writes them, for other programs.

    Args:
        division: the division of single images.
        run: layout of the run's folder.
        cases: the cases that hold the images, with labels.
        columns: columns of the table by role.
    """
    followed = {role: columns[role] for role in _ROLES if role in columns}
    labels = {case.image_id: str(case.label) for case in cases}
    splits = division.splits
    images = {c.image_id: [i.image_id for i in c.images] for c in cases if c.images}
    if images:
        splits = gather_splits(splits, cases)
    save_splits(splits, run.splits, labels=labels, columns=followed, images=images)
    for k, fold in enumerate(splits.folds):
        parts = fold.parts()
        rows = [
            {"": i} | {part: ids[i] for part, ids in parts.items() if i < len(ids)}
            for i in range(max(map(len, parts.values())))
        ]
        write_rows(ClamSplitsLayout(run.clam_splits).fold(k), rows, ["", *parts])
