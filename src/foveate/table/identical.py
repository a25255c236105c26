"""Images with the same bytes under several names: contradictions set aside, patients joined."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from foveate.files.identical import group_identical
from foveate.table.types import Case, Row, SetAside
from foveate.wording import several

_JOINT = " + "

_MIN_PATIENTS = 3
"""Number of patients with one label that a split needs: one for each part."""

Pair = tuple[Row, Case]


@dataclass(frozen=True)
class Settled:
    """The cases of a table after images with the same bytes were compared.

    Attributes:
        cases: the cases without contradictions, in the order of the table.
        set_aside: images with the same bytes and different labels.
        notes: lines to show to the user.
    """

    cases: tuple[Case, ...]
    set_aside: tuple[SetAside, ...]
    notes: tuple[str, ...]


def settle_identical(pairs: Sequence[Pair]) -> Settled:
    """Compare the files of all cases, and settle those with the same bytes.

    Images whose labels contradict each other are set aside. Patients who share an image become one
    patient, so that the image cannot lie on both sides of a split. Where this would leave a
    label half of its patients or less, and too few for a split, as in a table of copies, they stay
    apart, and a note warns.

    Args:
        pairs: rows of the table with their cases, each file once.
    """
    by_path = {case.path: (row, case) for row, case in pairs}
    groups = [[by_path[path] for path in group] for group in group_identical(list(by_path))]
    contradictions = [g for g in groups if len({case.label for _, case in g}) > 1]
    agreeing = [g for g in groups if len({case.label for _, case in g}) == 1]
    joint = [g for g in agreeing if len({case.patient_id for _, case in g}) > 1]
    repeated = [g for g in agreeing if g not in joint]
    aside = [_set_aside(pair, group) for group in contradictions for pair in group]
    left_out = {case.path for group in contradictions for _, case in group}
    names = join_patients([[case.patient_id for _, case in group] for group in joint])
    few = _leaves_too_few([case for _, case in pairs if case.path not in left_out], names)
    names = {} if few else names
    cases = tuple(
        replace(case, patient_id=names.get(case.patient_id, case.patient_id))
        for _, case in pairs
        if case.path not in left_out
    )
    return Settled(cases, tuple(aside), tuple(_describe(contradictions, joint, repeated, names)))


def join_patients(groups: Iterable[Sequence[str]]) -> dict[str, str]:
    """Join the patients of each group, and those of groups that share a patient, to one.

    Args:
        groups: names of patients.

    Returns:
        the joint name, such as ``P1 + P2``, by name.
    """
    members: dict[str, set[str]] = {}
    for group in groups:
        joined = set(group).union(*(members.get(name, ()) for name in group))
        members |= dict.fromkeys(joined, joined)
    return {name: _JOINT.join(sorted(joined)) for name, joined in members.items()}


def _leaves_too_few(cases: Sequence[Case], names: Mapping[str, str]) -> bool:
    """Return whether a label has too few patients for a split, and half or less, once joined.

    Args:
        cases: the cases with the names of the table.
        names: the joint name of a patient, by name.
    """
    apart, joined = defaultdict[str | None, set[str]](set), defaultdict[str | None, set[str]](set)
    for case in cases:
        apart[case.label].add(case.patient_id)
        joined[case.label].add(names.get(case.patient_id, case.patient_id))
    return any(
        len(joined[k]) < _MIN_PATIENTS <= len(apart[k]) and 2 * len(joined[k]) <= len(apart[k])
        for k in apart
    )


def patient_names(patient_id: str) -> tuple[str, ...]:
    """Return the names of the patients that were joined to one, and the joint name itself."""
    return tuple(dict.fromkeys((patient_id, *patient_id.split(_JOINT))))


def _set_aside(pair: Pair, group: Sequence[Pair]) -> SetAside:
    """Describe why an image cannot be used whose bytes have another label elsewhere."""
    row, case = pair
    _, other = next(p for p in group if p[1].label != case.label)
    reason = (
        f"label '{case.label}', but {other.path} holds the same bytes and has the label "
        f"'{other.label}'; keep the row that is right"
    )
    return SetAside(row.number, case.image_id, str(case.path), reason)


def _describe(
    contradictions: Sequence[Sequence[Pair]],
    joint: Sequence[Sequence[Pair]],
    repeated: Sequence[Sequence[Pair]],
    names: Mapping[str, str],
) -> Iterable[str]:
    """Describe contradictions, joined patients and repeated images, one line each."""
    if contradictions:
        yield (
            f"warning: {sum(map(len, contradictions))} images set aside, for files with the same "
            f"bytes have different labels: {_list_groups(contradictions)}; keep the right rows"
        )
    if joint and not names:
        yield (
            f"warning: {sum(map(len, joint))} images hold the bytes of another one and count as "
            f"different patients: {_list_groups(joint)}. Joined to one patient each, too few would "
            "be left for a split, so they stay apart: images that are tested on were trained on "
            "under another name, and the scores say nothing about new images"
        )
    elif joint:
        yield (
            f"warning: {sum(map(len, joint))} images hold the bytes of another one and count as "
            f"different patients: {_list_groups(joint)}. These {len(names)} patients are joined to "
            f"{len(set(names.values()))}, so that the images lie on one side of every split; keep "
            "one row of each image"
        )
    if repeated:
        n = sum(len(group) - 1 for group in repeated)
        yield (
            f"warning: {n} images hold the bytes of another one of the same patient: "
            f"{_list_groups(repeated)}; each counts in training and in scores: keep one row"
        )


def _list_groups(groups: Sequence[Sequence[Pair]]) -> str:
    """List images with the same bytes, with row, label and patient."""
    return several([" = ".join(map(_describe_pair, group[:3])) for group in groups], 2)


def _describe_pair(pair: Pair) -> str:
    """Describe an image by its row, file, label and, where it has a name, its patient."""
    row, case = pair
    patient = f", patient '{case.patient_id}'" if case.patient_id != case.image_id else ""
    return f"row {row.number} {case.path.name} ('{case.label}'{patient})"
