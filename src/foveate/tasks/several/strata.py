"""Strata of patients by the rarest of their labels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

_MIN_PATIENTS_PER_STRATUM = 10


def divide_patients(targets: Sequence[Sequence[float]], patients: Sequence[str]) -> list[str]:
    """Return for each image the rarest label of its patient that ten patients have or more.

    Patients without such a label, if they are fewer than ten, are of the largest stratum.

    Args:
        targets: 1 for each label that an image has, 0 or NaN for others.
        patients: one patient per image.
    """
    present: dict[str, set[int]] = defaultdict(set)
    for values, patient in zip(targets, patients, strict=True):
        present[patient] |= {c for c, value in enumerate(values) if value == 1}
    count = Counter(c for labels in present.values() for c in labels)
    often = {c: n for c, n in count.items() if n >= _MIN_PATIENTS_PER_STRATUM}
    stratum = {
        patient: min(labels & often.keys(), key=lambda c: (often[c], c), default=-1)
        for patient, labels in present.items()
    }
    sizes = Counter(stratum.values())
    largest = min(sizes, key=lambda c: (-sizes[c], c))
    chosen = {
        patient: largest if sizes[c] < _MIN_PATIENTS_PER_STRATUM else c
        for patient, c in stratum.items()
    }
    return [f"label {chosen[p]}" if chosen[p] >= 0 else "other" for p in patients]
