"""Find simple facts that predict the label by themselves: size, format, device, site, date.

A network finds such a fact first, and scores well on images that differ in it for the same reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from foveate.checks.joins import JoinedTable
from foveate.checks.records import CheckFinding, ImageRecord
from foveate.metrics import adjust_p_values
from foveate.metrics.associations import Association, associate_classes, associate_numbers
from foveate.metrics.types import Floats, Ints
from foveate.table import Case
from foveate.table.files import SUFFIXES
from foveate.table.same import label_key
from foveate.tasks.base import AbstractTask

_DIVISIONS = 10
_MAX_IMAGES = 2000
"""Images that are compared; of more, so many are drawn."""
_MIN_IMAGES = 12
_MAX_P = 0.01
"""Largest adjusted p value of a fact that is reported."""
_MIN_EXCESS = 0.1
"""Least distance of a value from chance that is reported."""
_STRONG = 0.35
"""Distance from chance from which a fact nearly tells the label."""

_SEEN = ("size", "pixel size", "format", "glass", "device")
"""Families of facts that pixels show or stand for; a model can learn them."""


@dataclass(frozen=True)
class Fact:
    """One simple fact about all images.

    Attributes:
        name: name of the fact.
        family: facts of one family have one cause and are reported together.
        ordered: whether its values are quantities, not categories.
        values: value by image id; images without one are left out.
    """

    name: str
    family: str
    ordered: bool
    values: Mapping[str, float | str]


@dataclass(frozen=True)
class Measured:
    """A fact with its association to the labels.

    Attributes:
        fact: the fact.
        association: how well it predicts the labels.
        p_value: p value, adjusted for the number of facts that were measured.
    """

    fact: Fact
    association: Association
    p_value: float

    @property
    def excess(self) -> float:
        """Distance of the value from chance."""
        return self.association.value - self.association.chance

    @property
    def p_text(self) -> str:
        """The p value as text, such as ``0.032`` or ``below 0.001``."""
        return "below 0.001" if self.p_value < 0.001 else f"{self.p_value:.3f}"

    @property
    def is_reported(self) -> bool:
        """Whether the fact predicts the label, beyond what so many facts do by accident."""
        return self.p_value < _MAX_P and self.excess >= _MIN_EXCESS


def measure_facts(
    joined: JoinedTable, records: Mapping[str, ImageRecord], task: AbstractTask
) -> list[Measured]:
    """Measure how well each simple fact predicts the labels by itself, the best first.

    Args:
        joined: the images with their labels.
        records: facts about the images, by image id.
        task: the task, which gives the labels their meaning.
    """
    cases = [c for c in joined.cases if c.image_id in records and task.understands(c.label)]
    if len(cases) > _MAX_IMAGES:
        chosen = np.random.default_rng(0).permutation(len(cases))[:_MAX_IMAGES]
        cases = [cases[i] for i in sorted(chosen)]
    facts = _list_facts(cases, records) + _list_batches(joined)
    measured = [
        (fact, association)
        for fact in facts
        if (association := _associate(fact, cases, task)) is not None
    ]
    adjusted = adjust_p_values([association.p_value for _, association in measured])
    return sorted(
        (Measured(*pair, p_value) for pair, p_value in zip(measured, adjusted, strict=True)),
        key=lambda m: -round(m.excess, 3),
    )


def _associate(fact: Fact, cases: Sequence[Case], task: AbstractTask) -> Association | None:
    """Measure one fact on the images that have it; None where it does not differ."""
    known = [case for case in cases if case.image_id in fact.values]
    raw = [fact.values[case.image_id] for case in known]
    names = {value: float(i) for i, value in enumerate(sorted(set(raw), key=str))}
    if len(known) < _MIN_IMAGES or len(names) < 2:
        return None
    if not fact.ordered and len(names) > len(known) / 2:
        return None
    values: Floats = np.array([v if fact.ordered else names[v] for v in raw], np.float64)
    targets = [task.parse(str(case.label)) for case in known]
    patients = [case.patient_id for case in known]
    if all(isinstance(target, int) for target in targets):
        kinds = np.unique(np.array(targets, np.int64), return_inverse=True)[1]
        if not kinds.any():
            return None
        halves = _divide(patients, kinds)
        return associate_classes(values, kinds, patients, halves, ordered=fact.ordered)
    if not all(isinstance(target, float) for target in targets):
        return None
    numbers: Floats = np.array(targets, np.float64)
    halves = _divide(patients, np.zeros(len(known), np.int64))
    return associate_numbers(values, numbers, patients, halves, ordered=fact.ordered)


def _divide(patients: Sequence[str], kinds: Ints) -> Ints:
    """Divide the patients into halves several times, those of each class evenly: ``(r, n)``."""
    rng = np.random.default_rng(0)
    names, index = np.unique(np.array(patients), return_inverse=True)
    kind_of = np.zeros(len(names), np.int64)
    kind_of[index] = kinds
    halves = np.zeros((_DIVISIONS, len(names)), np.int64)
    for half in halves:
        for kind in np.unique(kind_of):
            members = rng.permutation(np.flatnonzero(kind_of == kind))
            half[members] = (np.arange(len(members)) + rng.integers(2)) % 2
    return np.asarray(halves[:, index])


# -- the facts ------------------------------------------------------------------------------------

_Get = Callable[[Case, ImageRecord], float | str | None]


def _get_suffix(case: Case, _: ImageRecord) -> str:
    name = case.path.name.lower()
    return next((s for s in SUFFIXES if name.endswith(s)), case.path.suffix.lower())


_FACTS: tuple[tuple[str, str, bool, _Get], ...] = (
    ("width", "size", True, lambda _, r: r.shape[-1]),
    ("height", "size", True, lambda _, r: r.shape[-2]),
    ("long side", "size", True, lambda _, r: max(r.shape)),
    ("aspect", "size", True, lambda _, r: r.shape[-1] / r.shape[-2]),
    ("number of slices", "size", True, lambda _, r: r.shape[0] if len(r.shape) == 3 else None),
    ("file size", "size", True, lambda _, r: r.file_bytes),
    ("bytes per pixel", "size", True, lambda _, r: r.file_bytes / math.prod(r.shape)),
    ("number of levels", "format", True, lambda _, r: len(r.levels)),
    ("kind of image", "format", False, lambda _, r: r.kind),
    ("channels", "format", False, lambda _, r: str(r.channels)),
    ("bits", "format", False, lambda _, r: str(r.bits or 8)),
    ("file type", "format", False, _get_suffix),
    ("maker, model, program", "device", False, lambda _, r: r.device or "not stated"),
    ("colour of the glass", "glass", True, lambda _, r: r.border if r.kind == "slide" else None),
    ("file date", "place", True, lambda _, r: float(r.date.replace("-", ""))),
    ("folder", "place", False, lambda c, _: c.path.parent.as_posix()),
)
"""Name, family, whether it is a quantity, and the value of each fact."""


def _list_facts(cases: Sequence[Case], records: Mapping[str, ImageRecord]) -> list[Fact]:
    """List the facts about files and images."""
    facts = []
    for name, family, ordered, get in _FACTS:
        values = {c.image_id: get(c, records[c.image_id]) for c in cases}
        facts.append(
            Fact(name, family, ordered, {k: v for k, v in values.items() if v is not None})
        )
    spacing = {
        case.image_id: math.prod(um) ** (1 / len(um))
        for case in cases
        if (um := case.spacing_um or records[case.image_id].spacing_um) is not None
    }
    facts.append(Fact("pixel size", "pixel size", True, spacing))
    stated = {c.image_id: "yes" if c.image_id in spacing else "no" for c in cases}
    facts.append(Fact("whether a pixel size is stated", "format", False, stated))
    return [fact for fact in facts if not _is_sorted_by_label(fact, cases)]


def _is_sorted_by_label(fact: Fact, cases: Sequence[Case]) -> bool:
    """Return whether folders are those of the labels, by their names."""
    if fact.name != "folder":
        return False
    names = [label_key(Path(str(fact.values[c.image_id])).name.casefold()) for c in cases]
    return all(label_key(str(c.label).casefold()) == n for c, n in zip(cases, names, strict=True))


def _list_batches(joined: JoinedTable) -> list[Fact]:
    return [
        Fact(f"column '{name}'", "device", False, {k: v or "empty" for k, v in values.items()})
        for name, values in joined.batches.items()
    ]


# -- findings -------------------------------------------------------------------------------------


def find_confounds(
    measured: Sequence[Measured], records: Mapping[str, ImageRecord]
) -> list[CheckFinding]:
    """Report facts that predict the label by themselves, one finding for each family of facts.

    Args:
        measured: the facts, the best first.
        records: facts about the images, by image id.
    """
    findings = []
    reported = [m for m in measured if m.is_reported]
    for family in dict.fromkeys(m.fact.family for m in reported):
        members = [m for m in reported if m.fact.family == family]
        best, association = members[0], members[0].association
        others = ", ".join(f"{m.fact.name} {m.association.value:.3f}" for m in members[1:6])
        strong = "nearly tells the label" if best.excess >= _STRONG else "predicts the label"
        text = (
            f"{best.fact.name} alone {strong}: {association.name} {association.value:.3f} (95 % "
            f"interval {association.lo:.3f} to {association.hi:.3f}, chance "
            f"{association.chance:g}, {association.n} images, p "
            f"{best.p_text} corrected for {len(measured)} facts)"
        )
        findings.append(
            CheckFinding(
                "problem" if family in _SEEN else "note",
                "confound",
                best.fact.name,
                f"{text}; also {others}" if others else text,
                _advise(family, members, records),
                weight=10.0 + best.excess,
            )
        )
    return findings


def _advise(family: str, members: Sequence[Measured], records: Mapping[str, ImageRecord]) -> str:
    """Advise what to do about facts of a family."""
    kinds = {record.kind for record in records.values()}
    if family == "size" and kinds == {"picture"}:
        coding = any(m.fact.name == "bytes per pixel" for m in members)
        return (
            f"bring every picture to one size: train with {suggest_fit(records)}"
            + ("; and write all files anew with one quality, as compression differs" * coding)
            + ". Look at the heatmaps then: borders and sharpness may still differ"
        )
    advice = {
        "size": "crop or pad all images to one field of view around the same organ, or compare "
        "with a model that knows only the size; scores on these images do not carry over",
        "pixel size": "train at one pixel size that all images have (--view.spacing-um), and test "
        "on images of another device",
        "format": "convert all images from their source in one way; a model can learn the format",
        "device": "balance the classes within each value, or test on a value that training never "
        "saw; scores on mixed values do not carry over",
        "glass": "stain and scanner differ between the classes; test on slides of another site",
        "place": "pixels do not show this, but the classes were collected in different places or "
        "at different times: look for what else differs between them",
    }
    return advice[family]


def suggest_fit(records: Mapping[str, ImageRecord]) -> str:
    """Return the flag that brings all pictures to their median size."""
    sides = [round(median(r.shape[axis] for r in records.values()) / 32) * 32 for axis in (-2, -1)]
    return f"--view.fit {max(32, sides[0])}x{max(32, sides[1])}"
