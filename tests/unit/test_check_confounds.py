"""How well a simple fact predicts labels: at chance without a relation, and as known with one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foveate.checks.confounds import _divide, find_confounds, measure_facts
from foveate.checks.joins import JoinedTable
from foveate.checks.records import ImageRecord
from foveate.metrics.associations import Association, associate_classes, associate_numbers
from foveate.table import Case
from foveate.tasks import build_task

NAMES = [f"P{i}" for i in range(400)]


def associate(
    fact: np.ndarray, target: np.ndarray, *, ordered: bool = True, patients: list[str] | None = None
) -> Association:
    names = patients or NAMES[: len(target)]
    halves = _divide(names, target)
    found = associate_classes(np.asarray(fact, float), target, names, halves, ordered=ordered)
    assert found is not None
    return found


@pytest.mark.parametrize("values", [1000, 6])
def test_a_fact_without_a_relation_is_at_chance_on_average(values: int) -> None:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(40):
        target = rng.permutation(np.arange(48) % 2)
        found.append(associate(rng.integers(0, values, 48), target, ordered=values > 6))
    assert abs(np.mean([a.value for a in found]) - 0.5) < 0.03
    assert sum(a.p_value < 0.01 for a in found) <= 2


@pytest.mark.parametrize("sign", [1, -1])
def test_a_number_that_tells_the_class_scores_as_its_ranks_do(sign: int) -> None:
    rng = np.random.default_rng(0)
    target = np.arange(120) % 2
    fact = rng.normal(size=120) + 1.5 * target
    expected = np.mean(fact[target == 1][:, None] > fact[target == 0][None])
    found = associate(sign * fact, target)
    assert abs(found.value - expected) < 0.03
    assert found.lo < expected < found.hi
    assert found.p_value < 1e-6


def test_a_number_that_neither_rises_nor_falls_with_the_class_is_found() -> None:
    rng = np.random.default_rng(0)
    target = np.arange(200) % 2
    fact = np.where(
        target == 1, rng.choice([-1, 1], 200) * rng.uniform(2, 3, 200), rng.normal(size=200)
    )
    assert associate(fact, target).value > 0.85


def test_a_category_that_tells_one_of_several_classes_is_found() -> None:
    target = np.arange(90) % 3
    site = np.where(target == 2, 7, 1)
    found = associate(site, target, ordered=False)
    assert 0.8 < found.value < 0.9  # one class is known, the two others are tied
    assert found.p_value < 0.001


def test_a_name_of_each_image_tells_nothing() -> None:
    """A category that never occurs in the half that is learnt from has no say."""
    target = np.arange(60) % 2
    assert associate(np.arange(60), target, ordered=False).value == 0.5


def test_images_of_one_patient_count_as_one() -> None:
    rng = np.random.default_rng(3)
    target = np.repeat(np.arange(12) % 2, 10)
    fact = np.repeat(rng.normal(size=12), 10) + target
    patients = [f"P{i // 10}" for i in range(120)]
    by_image, by_patient = associate(fact, target), associate(fact, target, patients=patients)
    assert by_patient.hi - by_patient.lo > by_image.hi - by_image.lo
    assert by_patient.p_value > by_image.p_value


def test_numbers_are_measured_by_rank_correlation() -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=100)
    halves = _divide(NAMES[:100], np.zeros(100, np.int64))
    related = associate_numbers(-(target**3), target, NAMES[:100], halves, ordered=True)
    assert related is not None
    assert related.name == "rank correlation"
    assert related.value > 0.99
    values = [
        associate_numbers(rng.normal(size=100), target, NAMES[:100], halves, ordered=True)
        for _ in range(30)
    ]
    assert abs(np.mean([a.value for a in values if a is not None])) < 0.06


# -- facts of images -----------------------------------------------------------------------------


def record(width: int, day: str = "2026-01-01", device: str = "") -> ImageRecord:
    return ImageRecord(
        file_bytes=10_000, date=day, kind="picture", reader="r", shape=(100, width), channels=3,
        bits=None, levels=((100, width),), spacing_um=None, device=device, objective=None, low=0,
        high=1, mean=0.5, border=0.5, foreground=None, blank=False, unknown=0, glimpse_s=0,
        region_s=0, warnings=(), thumbnail="", print="",
    )  # fmt: skip


def join(labels: list[str], folders: list[str]) -> JoinedTable:
    cases = tuple(
        Case(f"I{i}", f"P{i}", Path(folders[i]) / f"I{i}.png", label)
        for i, label in enumerate(labels)
    )
    return JoinedTable(Path("t.csv"), cases, label_column="label")


def measure(records: list[ImageRecord], folders: list[str] | None = None) -> dict[str, str]:
    """Severity by fact of what is reported about images of the labels a, b, a, b and so on."""
    labels = ["ab"[i % 2] for i in range(len(records))]
    joined = join(labels, folders or ["in"] * len(records))
    known = {f"I{i}": r for i, r in enumerate(records)}
    task = build_task("auto", labels, {})
    findings = find_confounds(measure_facts(joined, known, task), known)
    return {finding.subject: finding.severity for finding in findings}


def test_facts_of_one_family_are_one_finding() -> None:
    assert measure([record(100 + 20 * (i % 2)) for i in range(40)]) == {"width": "problem"}


def test_what_pixels_do_not_show_is_a_note() -> None:
    days = [f"2026-0{1 + i % 2}-1{i % 5}" for i in range(40)]
    assert measure([record(100, day) for day in days]) == {"file date": "note"}


def test_folders_named_as_the_labels_are_no_finding_and_others_are() -> None:
    same = [record(100)] * 40
    assert measure(same, ["ab"[i % 2] for i in range(40)]) == {}
    assert measure(same, [f"site{i % 2}" for i in range(40)]) == {"folder": "note"}


def test_the_device_that_files_state_is_compared() -> None:
    records = [record(100, device=f"Scanner {i % 2}") for i in range(40)]
    assert measure(records) == {"maker, model, program": "problem"}
