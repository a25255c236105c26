"""Decision curves, operating point, and calibration before the temperature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy.special import expit

from foveate.evaluation.calibration import evaluate_uncalibrated, undo_temperature
from foveate.evaluation.scores import evaluate_rows
from foveate.metrics import measure_benefits, score_all
from foveate.tasks import restore_task
from foveate.tasks.base import AbstractTask


def names(n: int) -> list[str]:
    return [f"p{i}" for i in range(n)]


def rows_of(task: AbstractTask, labels: list[str], logits: torch.Tensor, temperature: float,
            fold: str = "0") -> list[dict[str, str]]:  # fmt: skip
    """Write answers of a model with this temperature as rows of ``predictions.csv``."""
    rows = []
    point = {"temperature": temperature}
    for i, values in enumerate(task.decode(logits, point).tolist()):
        row = {"image_id": f"i{i}", "patient_id": f"p{i}", "label": labels[i], "fold": fold}
        row |= {"predicted": task.predict(values, point)}
        rows.append(row | {c: task.write(v) for c, v in zip(task.columns, values, strict=True)})
    return rows


def test_net_benefit_worked_by_hand() -> None:
    prob, positive = np.array([0.9, 0.8, 0.3, 0.1]), np.array([1, 0, 1, 0])
    points = {round(p["threshold"], 2): p for p in measure_benefits(prob, positive, names(4))}
    assert points[0.5]["value"] == pytest.approx(1 / 4 - 1 / 4)
    assert points[0.2]["value"] == pytest.approx(2 / 4 - 1 / 4 * 0.25)
    assert points[0.2]["treat_all"] == pytest.approx(2 / 4 - 2 / 4 * 0.25)
    assert points[0.98]["value"] == 0, "nobody is treated"
    assert points[0.02]["value"] == points[0.02]["treat_all"], "everybody is treated"
    for point in points.values():
        assert point["lo"] <= point["value"] <= point["hi"] <= 1


def test_a_calibrated_model_is_of_use_and_its_band_narrows() -> None:
    rng = np.random.default_rng(0)
    widths = []
    for n in (100, 1600):
        logit = rng.normal(scale=2, size=n)
        positive = (rng.uniform(size=n) < expit(logit)).astype(np.int64)
        points = measure_benefits(expit(logit), positive, names(n))
        middle = [p for p in points if 0.2 <= p["threshold"] <= 0.8]
        assert np.mean([p["value"] - max(p["treat_all"], 0) for p in middle]) > 0.05
        widths.append(np.mean([p["hi"] - p["lo"] for p in middle]))
    assert widths[1] < widths[0] / 3


def test_images_of_a_patient_do_not_narrow_the_band() -> None:
    rng = np.random.default_rng(1)
    prob, positive = rng.uniform(size=40), rng.integers(0, 2, 40)
    once = measure_benefits(prob, positive, names(40))[24]
    thrice = measure_benefits(np.repeat(prob, 3), np.repeat(positive, 3),
                              [f"p{i // 3}" for i in range(120)])[24]  # fmt: skip
    assert thrice == pytest.approx(once)


def test_sensitivity_and_specificity_are_shares_of_their_class() -> None:
    target = np.array([1] * 10 + [0] * 30)
    predicted = np.array([1] * 8 + [0] * 2 + [1] * 3 + [0] * 27)
    prob = np.stack([1 - predicted * 0.9, predicted * 0.9], 1)
    scores = score_all(prob, target, names(40), predicted=predicted)
    assert (scores["sensitivity"].value, scores["sensitivity"].n) == (0.8, 10)
    assert (scores["specificity"].value, scores["specificity"].n) == (0.9, 30)
    # Agresti and Coull add two of each: (8 + 2) / 14 ± 2.26 · sqrt(0.714 · 0.286 / 14).
    assert scores["sensitivity"].lo == pytest.approx(0.714 - 2.26 * 0.1207, abs=0.02)
    assert scores["sensitivity"].hi == pytest.approx(0.714 + 2.26 * 0.1207, abs=0.02)
    only = score_all(prob[:10], target[:10], names(10), predicted=predicted[:10])
    assert "specificity" not in only
    three = score_all(np.eye(3)[target], target, names(40))
    assert "sensitivity" not in three


@pytest.mark.parametrize(
    ("name", "settled", "labels"),
    [
        ("binary", {"classes": ["a", "b"]}, ["a", "b"]),
        ("multiclass", {"classes": ["a", "b", "c"]}, ["a", "b", "c"]),
        ("multilabel", {"classes": ["a", "b"], "none": "none"}, ["a", "b", "a|b", "none"]),
    ],
)
def test_the_temperature_of_stored_answers_can_be_undone(
    name: str, settled: dict[str, object], labels: list[str]
) -> None:
    task = restore_task(name, settled, {})
    n = 60
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(n, sum(head.size for head in task.heads), generator=generator)
    texts = [labels[i % len(labels)] for i in range(n)]
    rows = rows_of(task, texts[:30], logits[:30], 2.5, "0")
    rows += rows_of(task, texts[30:], logits[30:], 0.5, "1")
    points = {"0": {"temperature": 2.5}, "1": {"temperature": 0.5}}
    expected = task.decode(logits, {}).numpy()
    plain = undo_temperature(rows, task.columns, points, exclusive=task.link == "softmax")
    undone = np.array([[float(row[c]) for c in task.columns] for row in plain])
    sure = expected.clip(1e-4, 1 - 1e-4) == expected  # six digits of a probability remain
    np.testing.assert_allclose(undone[sure], expected[sure], atol=3e-3)
    before = evaluate_uncalibrated(rows, task, points)["uncalibrated"]
    after = evaluate_rows(rows, task)
    assert before["metrics"]["log_loss"]["value"] != after["metrics"]["log_loss"]["value"]
    assert "auroc" not in before["metrics"]
    charts = {c.name: c for c in task.charts(rows, after | {"uncalibrated": before}, [])}
    assert "before the temperature" in charts["calibration"].caption
    for chart in ("calibration", "benefit"):
        figure = Figure(layout="constrained")
        plot = charts[chart].plot
        assert plot is not None
        plot(figure)
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert {"treat all", "treat none"} <= set(legend)


def test_a_temperature_of_one_changes_nothing() -> None:
    task = restore_task("binary", {"classes": ["a", "b"]}, {})
    logits = torch.linspace(-3, 3, 20)[:, None]
    rows = rows_of(task, ["a", "b"] * 10, logits, 1.0)
    before = evaluate_uncalibrated(rows, task, {"0": {"temperature": 1.0}})["uncalibrated"]
    after = evaluate_rows(rows, task)
    for name in ("ece", "brier", "log_loss"):
        stored = after["metrics"][name]["value"]
        assert before["metrics"][name]["value"] == pytest.approx(stored, abs=1e-5)


@pytest.mark.parametrize("name", ["ordinal", "regression"])
def test_other_answers_have_no_way_back(name: str) -> None:
    settled = {"ordinal": {"classes": ["G1", "G2"]}, "regression": {"mean": 0.0, "spread": 1.0}}
    task = restore_task(name, settled[name], {})
    label = {"ordinal": "G1", "regression": "1"}[name]
    assert task.scorable([{"label": label}])
    assert evaluate_uncalibrated([{"label": label, "fold": "0"}], task, {}) == {}


def test_damaged_curves_are_left_out() -> None:
    task = restore_task("binary", {"classes": ["a", "b"]}, {})
    good = {"threshold": 0.5, "value": 0.1, "lo": 0.0, "hi": 0.2, "treat_all": 0.0}
    for stored in (None, 3, [1], [{"points": 1}], [{"class": "b", "points": [{"lo": "x"}]}]):
        (chart,) = [c for c in task.charts([], {"benefit": stored}, []) if c.name == "benefit"]
        assert chart.plot is None
    (chart,) = [c for c in task.charts([], {"benefit": [{"class": "b", "points": [good, {}]}]}, [])
                if c.name == "benefit"]  # fmt: skip
    assert chart.alt == "Decision curves with 95 % bands: b"
