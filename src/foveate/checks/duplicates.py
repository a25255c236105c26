"""Find images that show the same picture under several names, also re-encoded, resized or turned.

Two images are the same if the gradients of their small copies (`thumbnail.make_print`) correlate.
Pairs of different images of one collection reached 0.73 (X-ray), 0.40 (tissue), 0.77 (MR) and 0.97
(masks of one organ); copies that were shrunk, brightened or written with much loss 0.94 or more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from foveate.checks.records import CheckFinding, ImageRecord, Severity
from foveate.checks.thumbnail import read_print
from foveate.files.identical import group_identical
from foveate.table import Case, patient_names
from foveate.wording import several

_MIN_CORRELATION = {2: 0.85, 3: 0.985}
"""Correlation from which two images are the same, by their number of axes."""
_MAX_COMPARED, _MAX_TURNED = 20_000, 3_000
"""Largest number of images that are compared with each other, and compared turned too."""
_BLOCK = 1024

_KINDS: dict[str, tuple[Severity, str, str]] = {
    "labels": (
        "problem",
        "with different labels, of which one must be wrong",
        "keep the row that is right",
    ),
    "patients": (
        "problem",
        "as different patients, so that one copy could train and the other test",
        "keep one row of each picture, or give the copies one patient_id",
    ),
    "copies": (
        "note",
        "of one patient, and each counts in training and in scores",
        "keep one row of each picture",
    ),
}
"""Severity, text and remedy by the kind of a group of equal images."""

Vectors = NDArray[np.float32]


def find_duplicates(
    cases: Sequence[Case], records: Mapping[str, ImageRecord]
) -> list[CheckFinding]:
    """Find the same picture under several names.

    Args:
        cases: the images.
        records: their facts, by image id; images without facts are left out.
    """
    known = [case for case in cases if case.image_id in records]
    by_path = {case.path: case for case in known}
    groups = [[by_path[path] for path in group] for group in group_identical(list(by_path))]
    identical = {frozenset(case.image_id for case in group) for group in groups}
    alike = [
        group
        for group in _group_alike(known[:_MAX_COMPARED], records)
        if frozenset(case.image_id for case in group) not in identical
    ]
    findings = [
        *_describe(groups, "hold the bytes of another one"),
        *_describe(alike, "show the same picture as another one"),
    ]
    if len(known) > _MAX_COMPARED:
        findings.append(
            CheckFinding(
                "note",
                "duplicate",
                "images not compared",
                f"only the first {_MAX_COMPARED} of {len(known)} images were compared by what "
                "they show",
            )
        )
    return findings


def _describe(groups: Sequence[Sequence[Case]], same: str) -> Iterator[CheckFinding]:
    """Yield a finding for each kind of group: of several labels, of several patients, of one."""
    kinds: dict[str, list[Sequence[Case]]] = defaultdict(list)
    for group in groups:
        if len({case.label for case in group} - {None}) > 1:
            kinds["labels"].append(group)
        else:
            # The table has joined patients who share a file to one, such as 'P1 + P2'.
            patients = {name for case in group for name in patient_names(case.patient_id)}
            kinds["patients" if len(patients) > 1 else "copies"].append(group)
    for kind, alike in kinds.items():
        severity, text, remedy = _KINDS[kind]
        images = {case.image_id: _list_others(case, group) for group in alike for case in group}
        examples = several([" = ".join(case.image_id for case in group[:3]) for group in alike], 3)
        yield CheckFinding(
            severity,
            "duplicate",
            f"{len(images)} images",
            f"{len(images)} images {same}, {text}: {examples}",
            remedy,
            images,
            weight=3.0 if kind == "labels" else 2.0,
        )


def _list_others(case: Case, group: Sequence[Case]) -> str:
    others = [other.image_id for other in group if other is not case]
    return f"the same as {several(others)}"


def _group_alike(cases: Sequence[Case], records: Mapping[str, ImageRecord]) -> list[list[Case]]:
    """Group the images whose prints correlate, directly or through others, in their order."""
    groups: list[list[Case]] = []
    for axes, least in _MIN_CORRELATION.items():
        members = [
            case
            for case in cases
            if records[case.image_id].print and len(records[case.image_id].shape) == axes
        ]
        copies = [read_print(records[case.image_id].print) for case in members]
        root = list(range(len(members)))
        for i, j in _find_pairs(copies, least):
            low, high = sorted((_find_root(root, i), _find_root(root, j)))
            root[high] = low
        by_root: dict[int, list[Case]] = defaultdict(list)
        for i, case in enumerate(members):
            by_root[_find_root(root, i)].append(case)
        groups += [group for group in by_root.values() if len(group) > 1]
    return groups


def _find_root(root: Sequence[int], i: int) -> int:
    while root[i] != i:
        i = root[i]
    return i


def _find_pairs(copies: Sequence[Vectors], least: float) -> Iterator[tuple[int, int]]:
    """Yield the pairs of small copies whose gradients correlate, in any orientation."""
    if len(copies) < 2:
        return
    vectors = np.stack([_take_gradients(copy) for copy in copies])
    turned = len(copies) <= _MAX_TURNED and copies[0].ndim == 2
    for turns in range(8 if turned else 1):
        others = vectors
        if turns:
            others = np.stack([_take_gradients(_turn(copy, turns)) for copy in copies])
        for start in range(0, len(vectors), _BLOCK):
            alike = vectors[start : start + _BLOCK] @ others.T >= least
            rows, columns = np.nonzero(alike)
            yield from (
                (int(i), int(j)) for i, j in zip(rows + start, columns, strict=True) if i < j
            )


def _turn(copy: Vectors, turns: int) -> Vectors:
    """Turn a copy ``(y, x)`` by right angles, for turns from 4 on mirrored before."""
    return np.rot90(copy[:, ::-1] if turns >= 4 else copy, turns % 4)


def _take_gradients(copy: Vectors) -> Vectors:
    """Return the differences between neighbours along each axis as one vector of length 1.

    Roots of the differences, so that few strong edges do not decide alone.
    """
    steps = [np.diff(copy, axis=axis).ravel() for axis in range(copy.ndim)]
    vector = np.concatenate(steps)
    vector = np.sign(vector) * np.sqrt(np.abs(vector))
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-6), np.float32)
