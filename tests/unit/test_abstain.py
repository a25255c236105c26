"""The columns uncertainty and abstain: margins of tasks, and the reasons to ask a person."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from foveate.batch import View
from foveate.images.evidence import Evidence
from foveate.prediction.answer import Answer, ModelAnswer
from foveate.prediction.rows import build_row, name_columns
from foveate.reports.predictions import _list_doubts
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import Model, build_model
from foveate.runs.models import Ensemble
from foveate.table import Case
from foveate.tasks import restore_task
from foveate.tasks.base import AbstractTask

VIEW = View(spacing_um=2.0, patch_px=32, glimpse_spacing_um=16.0)
NOTHING = Evidence(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), remainder=1.0)


def task_of(name: str, **settled: object) -> AbstractTask:
    return restore_task(name, settled, {})


# -- margins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "threshold", "margin"),
    [((0.5, 0.5), 0.5, 0.0), ((0.0, 1.0), 0.2, 1.0), ((0.4, 0.6), 0.2, 0.5),
     ((0.9, 0.1), 0.2, 0.5),
     ((0.8, 0.2), 0.2, 0.0), ((0.0, 1.0), 1.0, 0.0), ((0.3, 0.7), None, 0.4)],
)  # fmt: skip
def test_two_classes_measure_the_way_to_their_threshold(
    values: tuple[float, ...], threshold: float | None, margin: float
) -> None:
    task = task_of("binary", classes=["no", "yes"])
    assert task.margin(values, {"threshold": threshold}) == pytest.approx(margin)


def test_several_classes_compare_the_two_most_probable() -> None:
    task = task_of("multiclass", classes=["a", "b", "c"])
    assert task.margin((0.5, 0.2, 0.3), {}) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("values", "margin"),
    [((0.0, 1.0, 0.0), 1.0), ((0.5, 0.5, 0.0), 0.0), ((0.1, 0.8, 0.1), 0.8),
     ((0.4, 0.3, 0.3), 0.2)],
)  # fmt: skip
def test_grades_measure_the_way_of_the_median_to_its_neighbours(
    values: tuple[float, ...], margin: float
) -> None:
    task = task_of("ordinal", classes=["G1", "G2", "G3"])
    assert task.margin((*values, 1.0), {}) == pytest.approx(margin)


def test_several_labels_take_the_nearest_threshold() -> None:
    task = task_of("multilabel", classes=["a", "b"], none="none")
    assert task.margin((0.9, 0.35), {"threshold_b": 0.3}) == pytest.approx(0.05 / 0.7)


def test_numbers_have_no_margin() -> None:
    assert task_of("regression", mean=0.0, spread=2.0).margin((1.0,), {}) is None


# -- reasons ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def five() -> Ensemble:
    """Five models of two classes with the threshold 0.5."""
    torch.manual_seed(0)
    card = ModelCard(
        "mil_mean", {}, "small", {"width": 8, "dim": 16}, "binary", {},
        {"classes": ["no", "yes"]}, VIEW, provenance={"threshold": 0.5},
    )  # fmt: skip
    return Ensemble((build_model(card, pretrained=False),) * 5)


def numbers(spread: float, n: int) -> Ensemble:
    settled = {"mean": 0.0, "spread": spread}
    card = ModelCard("mil_mean", {}, "small", {"width": 8, "dim": 16}, "regression", {}, settled,
                     VIEW)  # fmt: skip
    model: Model = build_model(card, pretrained=False)
    return Ensemble((model,) * n)


def answer(*members: tuple[float, ...], unlike: str = "") -> Answer:
    values = np.array(members)
    singles = tuple(ModelAnswer(m, m, NOTHING, None, 0.0) for m in members)
    return Answer(
        Case("i", "p", Path("i.png")), singles, tuple(values.mean(0).tolist()), (0.0,), NOTHING,
        (1.0, 1.0), "px", 1, 1, 1, 0.1, 0.0,
        deviation_over_models=tuple(values.std(0, ddof=1).tolist()) if len(members) > 1 else None,
        unlike=unlike,
    )  # fmt: skip


def yes(*shares: float) -> tuple[tuple[float, float], ...]:
    return tuple((1 - p, p) for p in shares)


def test_a_sure_answer_stands(five: Ensemble) -> None:
    row = build_row(answer(*yes(0.9, 0.8, 0.95, 0.9, 0.85)), five)
    assert row["abstain"] == ""
    assert float(row["uncertainty"]) == pytest.approx(0.24, abs=1e-4)
    columns = name_columns(five, [row], seen=False)
    assert columns.index("uncertainty") + 1 == columns.index("abstain")


def test_reasons_are_named(five: Ensemble) -> None:
    one_of_five = build_row(answer(*yes(0.99, 0.99, 0.99, 0.9, 0.1)), five)
    assert one_of_five["abstain"] == ""
    row = build_row(answer(*yes(0.99, 0.99, 0.99, 0.4, 0.1), unlike="grey"), five)
    assert row["predicted"] == "yes"
    assert row["abstain"] == "models disagree: 2 of 5 answer otherwise; unlike training"
    row = build_row(answer(*yes(0.55, 0.55, 0.55, 0.6, 0.6)), five)
    assert row["abstain"] == "close call"
    assert float(row["uncertainty"]) >= 0.8


def test_numbers_disagree_by_half_the_spread_of_the_labels() -> None:
    row = build_row(answer((1.0,), (2.1,)), numbers(spread=2.0, n=2))
    assert row["uncertainty"] == ""
    assert row["abstain"] == ""
    row = build_row(answer((1.0,), (2.6,)), numbers(spread=2.0, n=2))
    assert row["abstain"] == "models disagree: standard deviation 1.131"
    single = replace(answer((1.0,)), deviation_over_models=None)
    assert build_row(single, numbers(spread=2.0, n=1))["abstain"] == ""


def test_the_page_counts_the_reasons() -> None:
    texts = ["", "close call", "close call; unlike training", "models disagree: 2 of 5 answer so"]
    (doubt,) = _list_doubts([{"abstain": text} for text in texts], {})
    assert doubt.startswith("3 answers of 4 should be looked at by a person (2 close call, ")
    assert "1 models disagree" in doubt
