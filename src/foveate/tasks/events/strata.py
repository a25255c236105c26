"""Counts of events, and strata of patients by event and time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

_MAX_STRATA, _MIN_PATIENTS_PER_STRATUM = 3, 10


def divide_patients(targets: Sequence[Sequence[float]], patients: Sequence[str]) -> list[str]:
    """Return for each image whether its patient had an event, and the range of the time.

    Args:
        targets: time of each image, and 1 for an event.
        patients: one patient per image.
    """
    of_patient: dict[str, list[Sequence[float]]] = defaultdict(list)
    for target, patient in zip(targets, patients, strict=True):
        of_patient[patient].append(target)
    mean = {patient: np.mean(values, 0) for patient, values in of_patient.items()}
    stratum: dict[str, str] = {}
    for word, with_event in (("event", True), ("no event", False)):
        order = sorted(
            (p for p in mean if (mean[p][1] >= 0.5) == with_event),
            key=lambda patient: (float(mean[patient][0]), patient),
        )
        n = max(1, min(_MAX_STRATA, len(order) // _MIN_PATIENTS_PER_STRATUM))
        for k, members in enumerate(np.array_split(np.array(order, dtype=object), n)):
            if len(members):
                name = f"{word}, {k + 1}: {mean[members[0]][0]:.4g}"
                stratum |= dict.fromkeys(members, f"{name} to {mean[members[-1]][0]:.4g}")
    return [stratum[patient] for patient in patients]


def count_events(targets: Sequence[Sequence[float]]) -> dict[str, str]:
    """Return the numbers of events and of censored times, and the median time, as texts.

    Args:
        targets: time of each image, and 1 for an event.
    """
    events = sum(event > 0 for _, event in targets)
    median = f"{np.median([time for time, _ in targets]):.4g}" if targets else "–"
    return {"events": str(events), "censored": str(len(targets) - events), "median time": median}
