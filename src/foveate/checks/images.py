"""Findings about the images themselves: unreadable, blank, without pixel size, unlike others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from foveate.checks.records import CheckFinding, ImageRecord, Severity
from foveate.errors import FoveateError, SplitError
from foveate.images.likeness import ImageFacts
from foveate.loading.scan import MAY_LACK_SPACING, ViewOptions, choose_view
from foveate.runs.config import SplitOptions
from foveate.runs.view_words import describe_bits
from foveate.table import Case, make_splits, spacing_factor, spacing_for_axes
from foveate.tasks.base import AbstractTask
from foveate.wording import several

_SLIDE_UM = (0.08, 4.0)
"""Pixel sizes of slides that are usual, in micrometres."""
_MAX_ANISOTROPY = 1.02
_MAX_RATIO = 4.0
"""Ratio of a pixel size to the median of all from which it is doubtful."""
_UM_TIMES_OBJECTIVE = 10.0
"""Pixel size in micrometres times magnification: 40 x has 0.25 um, 20 x has 0.5 um."""
_MAX_OFF_OBJECTIVE = 1.15
_LITTLE, _HARDLY_ANY = 0.02, 0.002
"""Shares of tissue on a slide that are little, and so little that the slide is hardly usable."""
_MIN_SIDE_PX = 32
_FEW = 0.2
"""Share of the images up to which those of another kind look like mistakes."""

Group = dict[str, str]


def find_in_images(
    cases: Sequence[Case],
    records: Mapping[str, ImageRecord],
    failed: Mapping[str, str],
    assume_spacing_um: float | None = None,
) -> list[CheckFinding]:
    """Find what would stop or spoil a training in the images, each kind of trouble once.

    Args:
        cases: the images.
        records: facts about those that were read, by image id.
        failed: why the others were not, by image id.
        assume_spacing_um: spacing of images that state none.
    """
    known = [case for case in cases if case.image_id in records]
    found = [
        *_find_failed(cases, failed),
        *_find_spacing(known, records, assume_spacing_um),
        *_find_contents(records),
        *_find_mixtures(records),
    ]
    return [finding for finding in found if finding.images or finding.kind in ("bits", "empty")]


def _build(
    severity: Severity, kind: str, text: str, remedy: str, images: Group, weight: float = 1.0
) -> CheckFinding:
    """Build a finding about images; in `text`, ``{n}`` is their number and ``{names}`` names."""
    n = "1 image" if len(images) == 1 else f"{len(images)} images"
    names = several(list(images))
    return CheckFinding(severity, kind, n, text.format(n=n, names=names), remedy, images, weight)


def _find_failed(cases: Sequence[Case], failed: Mapping[str, str]) -> Iterator[CheckFinding]:
    if cases and len(failed) == len(cases):
        yield CheckFinding(
            "unusable",
            "empty",
            "all images",
            f"none of the {len(cases)} images can be read",
            "look at the reason of the first: " + next(iter(failed.values())),
            weight=8.0,
        )
    yield _build(
        "problem",
        "unreadable",
        "{n} not readable: {names}",
        "copy or export these files again; training would leave them out",
        dict(failed),
        weight=6.0,
    )


# -- pixel sizes ----------------------------------------------------------------------------------


def _find_spacing(
    cases: Sequence[Case], records: Mapping[str, ImageRecord], assumed_um: float | None
) -> Iterator[CheckFinding]:
    """Yield findings about missing, unusual and contradictory pixel sizes."""
    known = {c.image_id: c.spacing_um or records[c.image_id].spacing_um for c in cases}
    missing = {
        image_id: f"a {records[image_id].kind} that states no pixel size"
        for image_id, um in known.items()
        if um is None and records[image_id].kind not in MAY_LACK_SPACING and assumed_um is None
    }
    yield _build(
        "unusable",
        "spacing",
        "no pixel size stated for {n} (slides or volumes): {names}",
        "give it in a column 'mpp' of the table (micrometres per pixel), or for all with "
        "--view.assume-spacing-um; training refuses to guess",
        missing,
        weight=7.0,
    )
    odd = {i: text for i, um in known.items() if um and (text := _describe_odd(um, records[i]))}
    yield _build(
        "problem",
        "spacing",
        "an unusual pixel size of {n}: {names}",
        "check these files, and correct the pixel size in a column 'mpp' of the table",
        odd,
        weight=3.0,
    )
    yield _build(
        "problem",
        "spacing",
        "a pixel size far from that of the others, of {n}: {names}",
        "check these files, and correct the pixel size in a column 'mpp' of the table",
        _find_far({i: um for i, um in known.items() if um is not None}),
        weight=2.9,
    )
    yield _build(
        "note",
        "spacing",
        "a pixel size that does not fit the objective, of {n}: {names}",
        "an adapter of the scanner may be why; otherwise correct the pixel size in a column 'mpp'",
        _find_other_objectives(known, records),
    )
    yield _build(
        "problem",
        "spacing",
        "the table's pixel size of {n} is not what the file says: {names}",
        "the table's is used; correct the one that is wrong",
        _find_contradictions(cases, records),
        weight=2.8,
    )


def _describe_odd(um: Sequence[float], record: ImageRecord) -> str:
    """Describe a pixel size that is unusual for slides; empty for one that is usual."""
    sizes = " x ".join(f"{v:.4g}" for v in um)
    if len(um) == 2 and max(um) > _MAX_ANISOTROPY * min(um):
        return f"pixels that are not square: {sizes} um"
    if record.kind == "slide" and not all(_SLIDE_UM[0] <= v <= _SLIDE_UM[1] for v in um):
        return f"{sizes} um per pixel; slides have {_SLIDE_UM[0]:g} to {_SLIDE_UM[1]:g}"
    return ""


def _find_far(known: Mapping[str, Sequence[float]]) -> Group:
    """Return the images whose pixel size is far from the median of all."""
    mean = {i: sum(um) / len(um) for i, um in known.items()}
    if not mean:
        return {}
    middle = median(mean.values())
    limits = middle * (1 / _MAX_RATIO), middle * _MAX_RATIO
    far = {i: v for i, v in mean.items() if not limits[0] <= v <= limits[1]}
    if len(far) > _FEW * len(mean):
        return {}
    return {i: f"{v:.4g} um per pixel; the median is {middle:.4g}" for i, v in far.items()}


def _find_other_objectives(
    known: Mapping[str, Sequence[float] | None], records: Mapping[str, ImageRecord]
) -> Group:
    """Return the slides whose pixel size is not that of their objective."""
    found = {}
    for image_id, um in known.items():
        objective = records[image_id].objective
        if um is None or not objective:
            continue
        usual = _UM_TIMES_OBJECTIVE / objective
        mean = sum(um) / len(um)
        if not usual / _MAX_OFF_OBJECTIVE <= mean <= usual * _MAX_OFF_OBJECTIVE:
            found[image_id] = (
                f"{mean:.4g} um per pixel; an objective of {objective:g} x has about {usual:.3g}"
            )
    return found


def _find_contradictions(cases: Sequence[Case], records: Mapping[str, ImageRecord]) -> Group:
    """Return the images whose pixel size differs between table and file."""
    found = {}
    for case in cases:
        stated_um = records[case.image_id].spacing_um
        table_um = case.spacing_um
        if table_um is None or stated_um is None or len(table_um) != len(stated_um):
            continue
        factor = spacing_factor(table_um, stated_um)
        if factor is not None:
            found[case.image_id] = f"{factor:.3g} times what the file says"
    return found


# -- contents -------------------------------------------------------------------------------------


def _find_contents(records: Mapping[str, ImageRecord]) -> Iterator[CheckFinding]:
    """Yield findings about what images show."""
    blank = {i: f"all values about {r.mean:.2f} of white" for i, r in records.items() if r.blank}
    yield _build(
        "problem",
        "blank",
        "{n} without content, all pixels of nearly one colour: {names}",
        "leave them out of the table, or export them again",
        blank,
        weight=3.5,
    )
    shares = {
        i: r.foreground for i, r in records.items() if r.foreground is not None and i not in blank
    }
    for severity, low, high in (
        ("problem", -1.0, _HARDLY_ANY),
        ("note", _HARDLY_ANY, _LITTLE),
    ):
        little = {i: f"tissue on {s:.2%}" for i, s in shares.items() if low < s <= high}
        yield _build(
            "problem" if severity == "problem" else "note",
            "tissue",
            f"at most {high:.1%} tissue on {{n}}: {{names}}",
            "look at the contact sheet: is the tissue pale, or the slide empty?",
            little,
            weight=2.5,
        )
    tiny = {
        i: " x ".join(map(str, r.shape)) + " pixels"
        for i, r in records.items()
        if (min(r.shape) if len(r.shape) == 2 else max(r.shape)) < _MIN_SIDE_PX
    }
    yield _build(
        "problem",
        "tiny",
        "{n} of few pixels only: {names}",
        "are these thumbnails or icons? Give the full images",
        tiny,
        weight=3.0,
    )
    unknown = {i: f"{r.unknown:.2%} of the pixels" for i, r in records.items() if r.unknown}
    yield _build(
        "problem",
        "values",
        "pixels that are no finite numbers in {n}, read as black: {names}",
        "export them again, with a number for the background",
        unknown,
        weight=2.0,
    )
    warned = {i: r.warnings[0] for i, r in records.items() if r.warnings}
    yield _build(
        "note",
        "reader",
        "the reader warns about {n}: {names}",
        "look at these images",
        warned,
    )


def _find_mixtures(records: Mapping[str, ImageRecord]) -> Iterator[CheckFinding]:
    """Yield findings about few images that are of another kind than most."""
    for kind, values in (
        ("kind", {i: r.kind for i, r in records.items()}),
        ("channels", {i: "grey" if r.channels == 1 else "colour" for i, r in records.items()}),
        ("depth", {i: "8-bit" if r.bits is None else "16-bit" for i, r in records.items()}),
    ):
        if len(set(values.values())) < 2:
            continue
        usual = Counter(values.values()).most_common(1)[0][0]
        others = {i: f"{v}, not {usual}" for i, v in values.items() if v != usual}
        few = len(others) <= _FEW * len(values)
        yield _build(
            "problem" if few else "note",
            kind,
            f"{{n}} unlike the others, which are {usual}: {{names}}",
            "is this on purpose? Otherwise leave them out, or export all in one way",
            others,
            weight=1.5,
        )
    warning = describe_bits({i: r.as_facts(None) for i, r in records.items()})
    if warning is not None:
        text, _, remedy = warning.removeprefix("warning: ").partition("; ")
        yield CheckFinding("problem", "bits", "16-bit images", text, remedy, weight=2.0)


# -- the plan -------------------------------------------------------------------------------------


def find_in_plan(
    cases: Sequence[Case],
    records: Mapping[str, ImageRecord],
    task: AbstractTask | None,
    assume_spacing_um: float | None = None,
) -> list[CheckFinding]:
    """Find why a training of these images could not be planned: mixed units, too few patients.

    Args:
        cases: the images.
        records: facts about those that were read, by image id.
        task: the task; None where there are no labels.
        assume_spacing_um: spacing of images that state none.
    """
    usable = [case for case in cases if case.image_id in records]
    findings = []
    try:
        facts = list(list_plan_facts(usable, records, assume_spacing_um).values())
        if facts:
            choose_view(facts, ViewOptions(assume_spacing_um=assume_spacing_um))
    except FoveateError as error:
        findings.append(
            CheckFinding("unusable", "plan", "the images together", str(error), weight=8.0)
        )
    labelled = [c for c in usable if task is not None and task.understands(c.label)]
    if task is not None:
        split = SplitOptions()
        try:
            make_splits(
                labelled,
                test_fraction=split.test_fraction,
                val_fraction=split.val_fraction,
                strata=task.strata([str(c.label) for c in labelled],
                                   [c.patient_id for c in labelled]),
            )  # fmt: skip
        except SplitError as error:
            findings.append(CheckFinding("unusable", "plan", "the split", str(error), weight=8.0))
    return findings


def list_plan_facts(
    cases: Sequence[Case], records: Mapping[str, ImageRecord], assumed_um: float | None
) -> dict[str, ImageFacts]:
    """List the facts that a training would be planned from, by image id.

    Slides and volumes without a pixel size are left out, which training refuses by themselves.

    Args:
        cases: the images.
        records: facts about those that were read, by image id.
        assumed_um: spacing of images that state none.

    Raises:
        TableError: the table gives a spacing for another number of axes.
    """
    facts = {}
    for case in cases:
        record = records.get(case.image_id)
        if record is None:
            continue
        axes = len(record.shape)
        spacing_um = record.spacing_um
        if case.spacing_um is not None:
            spacing_um = spacing_for_axes(case.spacing_um, axes, case.path)
        elif spacing_um is None and assumed_um is not None:
            spacing_um = (assumed_um,) * axes
        if spacing_um is not None or record.kind in MAY_LACK_SPACING:
            facts[case.image_id] = record.as_facts(spacing_um)
    return facts
