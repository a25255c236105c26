"""Sites, such as hospitals, whose patients are held out together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from foveate.errors import SplitError
from foveate.table.same import loose_key
from foveate.table.types import Case
from foveate.wording import several


def group_sites(cases: Sequence[Case]) -> dict[str, set[str]]:
    """Group patients by site; spellings of a site that differ in capitals or dashes are one.

    Args:
        cases: the cases, each with a site.

    Returns:
        The patients by the name of their site, in the order of the names.

    Raises:
        SplitError: an image has no site, or the images of a patient come from two sites.
    """
    without = sorted(case.image_id for case in cases if not case.site)
    if without:
        raise SplitError(
            f"{len(without)} images have no site ({several(without)}): fill the column, or leave "
            "--split.site out"
        )
    names: dict[str, str] = {}
    site_of: dict[str, str] = {}
    sites: dict[str, set[str]] = defaultdict(set)
    for case in sorted(cases, key=lambda case: case.image_id):
        site = names.setdefault(loose_key(str(case.site)), str(case.site))
        other = site_of.setdefault(case.patient_id, site)
        if other != site:
            raise SplitError(
                f"patient '{case.patient_id}' has images of the sites '{other}' and '{site}', so "
                "these cannot be held out separately: give both sites one name, or each patient "
                "one site"
            )
        sites[site].add(case.patient_id)
    return dict(sorted(sites.items()))


def deal_sites(
    sites: Mapping[str, set[str]],
    order: Mapping[str, Sequence[str]],
    folds: int,
    test_fraction: float,
) -> list[set[str]]:
    """Divide whole sites among test parts with similar numbers of patients of each label.

    The largest sites are dealt first, each to the part where it disturbs the balance least.

    Args:
        sites: patients by site.
        order: patients by label, shuffled; among equal sites the one of the first patient is first.
        folds: number of test parts; 1 for a hold-out.
        test_fraction: share of the patients to test on, with one fold.

    Returns:
        The patients of each test part.

    Raises:
        SplitError: there are too few sites.
    """
    need = max(folds, 2)
    if len(sites) < need:
        parts = f"{folds} folds" if folds > 1 else "a training and a test part"
        raise SplitError(
            f"there are {len(sites)} sites ({several(list(sites))}), and {parts} need at least "
            f"{need}: use fewer folds, or leave --split.site out"
        )
    if folds == 1 and test_fraction == 0:
        return [set()]
    n_parts = folds if folds > 1 else min(len(sites), max(2, round(1 / test_fraction)))
    label_of = {patient: label for label, members in order.items() for patient in members}
    place = {patient: n for n, patient in enumerate(label_of)}
    total = Counter(label_of.values())
    parts_of = [Counter[str]() for _ in range(n_parts)]
    tests: list[set[str]] = [set() for _ in range(n_parts)]
    first = {site: min(place[p] for p in members) for site, members in sites.items()}
    for site in sorted(sites, key=lambda site: (-len(sites[site]), first[site])):
        counts = Counter(label_of[patient] for patient in sites[site])
        costs = [
            (sum((2 * part[c] * n + n * n) / total[c] ** 2 for c, n in counts.items()), len(test))
            for part, test in zip(parts_of, tests, strict=True)
        ]
        chosen = costs.index(min(costs))
        parts_of[chosen] += counts
        tests[chosen] |= sites[site]
    if folds > 1:
        return tests
    # The part that is nearest to the share in size; among equal ones the first shuffled patient's.
    aim = test_fraction * len(label_of)
    return [min(tests, key=lambda test: (abs(len(test) - aim), min(place[p] for p in test)))]
