"""Describe cases for the user: classes, spellings, and files that no row names."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from foveate.table.damage import looks_like_date
from foveate.table.files import image_files, stem
from foveate.table.same import clean, has_look_alikes, loose_key
from foveate.table.types import Case
from foveate.wording import several


def describe_cases(cases: Sequence[Case]) -> list[str]:
    """Describe the labels of cases: patients with several, their numbers, similar spellings."""
    labels: dict[str, set[str]] = defaultdict(set)
    counts: Counter[str] = Counter()
    for case in cases:
        if case.label is not None:
            labels[case.patient_id].add(case.label)
            counts[case.label] += 1
    notes = []
    mixed = sorted(patient for patient, words in labels.items() if len(words) > 1)
    if mixed:
        many = f"{len(mixed)} patients have" if mixed[1:] else "1 patient has"
        notes.append(f"{many} images of several classes: {several(mixed)}")
    if 0 < len(counts) <= 20:
        by_label = ", ".join(f"{label} {n}" for label, n in sorted(counts.items()))
        patients = len({case.patient_id for case in cases})
        notes.append(f"{len(cases)} images of {patients} patients: {by_label}")
    if dates := [quoted(label) for label in sorted(counts) if looks_like_date(label)]:
        notes.append(
            f"warning: label {several(dates)} looks like a date that a spreadsheet made of another "
            "word, such as 1-3; look into the source of the table"
        )
    similar = Counter(map(loose_key, counts))
    return notes + [
        f"warning: label '{label}' differs from another in capitals, blanks, dashes or marks only, "
        "and is a class of its own"
        for label in sorted(counts)
        if similar[loose_key(label)] > 1
    ]


def describe_respelt_patients(groups: Sequence[Sequence[str]]) -> str:
    """Describe which patients are written in several ways, each group the spellings of one."""
    many = f"{len(groups)} patients are" if groups[1:] else "1 patient is"
    spellings = ", ".join(quoted(word) for word in groups[0])
    return f"warning: {many} written in several ways ({spellings}): one patient each"


def describe_unlisted(values: Iterable[str], paths: Sequence[Path]) -> list[str]:
    """Describe the files beside the images that no row of the table names.

    Args:
        values: the paths of all rows as written, whether or not the row is used.
        paths: the files of the rows that are used.
    """
    listed = {stem(Path(value.replace("\\", "/")).name) for value in values if value}
    listed |= {stem(path.name) for path in paths}
    folders = {path.parent for path in paths}
    files = sorted(p.name for folder in folders for p in image_files(folder, deep=False))
    unlisted = [name for name in files if stem(name) not in listed]
    if not unlisted:
        return []
    return [f"{len(unlisted)} files beside the images are not in the table: {several(unlisted)}"]


def quoted(word: str) -> str:
    """Put a word in quotation marks; invisible characters and look-alikes become escapes."""
    return ascii(word) if word != clean(word) or has_look_alikes(word) else f"'{word}'"
