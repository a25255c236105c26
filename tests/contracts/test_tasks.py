"""The contract that every task keeps; tasks are found in the package, not listed."""

from __future__ import annotations

import json
import math

import pytest
import torch
from matplotlib.figure import Figure

from foveate.errors import OptionError, TableError
from foveate.evaluation.scores import compare_rows, evaluate_rows
from foveate.parts import find, names
from foveate.tasks import restore_task
from foveate.tasks.base import AbstractTask

SAMPLES = (
    ["a", "b"] * 15,
    ["a", "b", "c"] * 10,
    ["G1", "G2", "G3"] * 10,
    [f"{i / 7:.3f}" for i in range(30)],
    ["a|b", "a", "b|c", "c", "none"] * 6,
    [f"{'no event until' if i % 3 else 'event at'} {20 + 7 * i}" for i in range(30)],
)
"""Labels of thirty images, of which a task takes at least one kind."""
PATIENTS = [f"p{i // 2}" for i in range(30)]


def settled_task(name: str) -> tuple[AbstractTask, list[str]]:
    """Return a fitted task and labels that it accepts."""
    part = find("tasks", name)
    for labels in SAMPLES:
        try:
            return restore_task(name, part.settle(labels), {}), labels
        except TableError:
            continue
    raise AssertionError(f"task '{name}' takes none of the samples")


@pytest.fixture(params=names("tasks"))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def random_predictions(task: AbstractTask, labels: list[str], seed: int) -> list[dict[str, str]]:
    """Return prediction rows of random logits."""
    logits = torch.randn(len(labels), sum(head.size for head in task.heads),
                         generator=torch.Generator().manual_seed(seed))  # fmt: skip
    point = task.calibrate(logits, task.targets(labels))
    rows = []
    for i, values in enumerate(task.decode(logits, point).tolist()):
        row = {"image_id": f"i{i}", "patient_id": PATIENTS[i], "label": labels[i], "fold": ""}
        row |= {"predicted": task.predict(values, point)}
        rows.append(row | {c: task.write(v) for c, v in zip(task.columns, values, strict=True)})
    return rows


def test_settled_values_survive_json(name: str) -> None:
    task, labels = settled_task(name)
    again = restore_task(name, json.loads(json.dumps(task.settled)), dict(task.resolved))
    assert again.settled == task.settled
    assert torch.equal(again.targets(labels), task.targets(labels))
    part = find("tasks", name).settle(labels[:20], task.settled)
    assert restore_task(name, part, {}).common == task.common, "folds agree in it"
    with pytest.raises(OptionError):
        restore_task(name, task.settled | {"more": 1}, {})


def test_the_loss_has_gradients_and_its_constant_minimum_is_chance(name: str) -> None:
    task, labels = settled_task(name)
    target, k = task.targets(labels), sum(head.size for head in task.heads)
    logits = torch.randn(30, k, generator=torch.Generator().manual_seed(0)).requires_grad_()
    task.loss(logits, target).backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(0) > 0).all()
    torch.testing.assert_close(task.each_loss(logits, target).mean(), task.loss(logits, target))
    right = task.correct(logits, target)
    assert ((right >= 0) & (right <= 1)).all()
    assert float(task.loss(torch.zeros(30, k), target)) >= task.chance_loss(target) - 1e-5


def test_strata_keep_patients_whole_and_labels_without_a_target_are_refused(name: str) -> None:
    task, labels = settled_task(name)
    assert len(task.strata(labels, PATIENTS)) == 30
    assert not task.understands("no such label")
    assert not task.understands(None)
    assert list(task.tally([])) == list(task.tally(labels))


def test_predictions_are_decoded_scored_and_described(name: str) -> None:
    task, labels = settled_task(name)
    rows, others = random_predictions(task, labels, 0), random_predictions(task, labels, 1)
    assert len(task.columns) == len(task.deviation_columns)
    assert not set(task.columns) & set(task.deviation_columns)
    assert all(task.understands(row["predicted"]) for row in rows)
    scores = task.score(rows)
    assert set(scores) <= set(task.words)
    assert next(iter(scores)) == task.tabled[0] == task.headline(scores)
    for score in scores.values():
        assert score.lo <= score.value <= score.hi
        assert math.isfinite(score.value)
    metrics = json.loads(json.dumps(evaluate_rows(rows, task)))
    assert metrics["n_images"] == 30
    assert len(task.sentence(metrics["metrics"], 1)) > 20
    assert set(compare_rows(rows, others, task)) <= set(task.words)
    values = [float(rows[0][column]) for column in task.columns]
    assert task.explain(values, {})
    entry = {"label": labels[0], "predicted": rows[0]["predicted"], **task.record(values)}
    assert task.verdict(entry, rows[0]).word


@pytest.mark.parametrize("metrics", [{}, {"metrics": 3, "confusion": "x", "calibration": [1]}])
def test_figures_and_tables_accept_missing_predictions(
    name: str, metrics: dict[str, object]
) -> None:
    task, labels = settled_task(name)
    rows = random_predictions(task, labels, 0)
    for predictions, stored in ((rows, evaluate_rows(rows, task)), (rows, metrics), ([], metrics)):
        task.tables(stored, [{"threshold": 0.5}])
        for chart in task.charts(predictions, stored, [{}]):
            if chart.plot is None:
                assert chart.absent
                continue
            assert len(chart.alt) > 10
            figure = Figure()
            chart.plot(figure)
            assert figure.axes


def test_logits_are_named_by_class() -> None:
    graded = restore_task("multiclass", {"classes": ["a", "b", "c"]}, {})
    task = restore_task("binary", {"classes": ["a", "b"]}, {})
    assert tuple(graded.outputs) == ("a", "b", "c")
    assert tuple(task.outputs) == ("b",)
