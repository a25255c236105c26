"""Regression: the label scale, predictions in its unit, scores over patients, and the page."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from foveate.errors import OptionError, TableError
from foveate.evaluation.scores import compare_rows, evaluate_rows
from foveate.runs.card import ModelCard
from foveate.runs.checkpoint import build_model, load_model, save_model
from foveate.table import LabelRules, NamedColumns, read_cases, with_known_labels
from foveate.tasks import build_task, explain_unfit, restore_task
from foveate.tasks.regression import RegressionTask
from unit.test_tables import read_labels

LABELS = ["10", "12,5", "15", "20.0", "22", "25"]
TASK = RegressionTask(mean=20.0, spread=4.0)


def make_rows(
    truth: np.ndarray, predicted: np.ndarray, patients: list[str], folds: int = 1
) -> list:
    return [
        {
            "image_id": f"i{i}",
            "patient_id": patients[i],
            "label": repr(float(truth[i])),
            "predicted": f"{predicted[i]:.4g}",
            "value": repr(float(predicted[i])),
            "fold": str(i % folds),
        }
        for i in range(len(truth))
    ]


def drawn(n: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(20, 4, n)
    return truth, truth + rng.normal(0, noise, n)


# -- labels ----------------------------------------------------------------------------------------


def test_the_scale_comes_from_the_training_part_and_is_stored(tmp_path: Path) -> None:
    task = build_task("regression", LABELS, {})
    values = [10, 12.5, 15, 20, 22, 25]
    assert task.settled == {"mean": np.mean(values), "spread": pytest.approx(np.std(values))}
    fold = RegressionTask.settle(LABELS[:3], shared=task.settled)
    assert fold["mean"] == pytest.approx(12.5), "of the part, not of the table"
    card = ModelCard("mil_mean", {}, "small", {"width": 8, "dim": 16}, "regression", {}, fold,
                     _view())  # fmt: skip
    model = build_model(card, pretrained=False)
    save_model(tmp_path, card, model.method.state_dict())
    assert load_model(tmp_path).task.settled == fold


def _view():
    from foveate.batch import View

    return View(spacing_um=0.5, patch_px=64, glimpse_spacing_um=16.0)


@pytest.mark.parametrize("label", ["n/a", "", "nan", "inf", "1_0", "1,2,3", "12 mm"])
def test_labels_that_are_no_numbers_have_no_target(label: str) -> None:
    with pytest.raises(TableError, match="is no number"):
        TASK.parse(label)
    assert not TASK.understands(label)


def test_numbers_have_targets_in_their_unit() -> None:
    assert [TASK.parse(label) for label in ("3.5", "3,5", "-2e1", " 7 ")] == [3.5, 3.5, -20, 7]
    assert TASK.targets(["1", "2.5"]).tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["high", "low", "3"], "holds 1 numbers in 3 usable rows"),
        (["4", "4.0"], "holds one number only"),
    ],
)
def test_labels_without_a_scale_are_refused(labels: list[str], message: str) -> None:
    with pytest.raises(TableError, match=f"column 'size' {message}"):
        build_task("regression", labels, {}, "size")


@pytest.mark.parametrize("settled", [{}, {"mean": 0.0}, {"mean": 1.0, "spread": 0.0},
                                     {"mean": math.nan, "spread": 1.0},
                                     {"mean": "x", "spread": 1.0}])  # fmt: skip
def test_an_invalid_stored_scale_is_refused(settled: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        restore_task("regression", settled, {})


def test_numeric_labels_need_the_task_and_the_error_names_it(tmp_path: Path) -> None:
    labels = [f"{i / 7:.3f}" for i in range(40)]
    assert "--task regression" in str(explain_unfit("auto", labels, "size"))
    assert explain_unfit("regression", labels, "size") is None
    path = read_labels(tmp_path, labels, "size")
    with pytest.raises(TableError, match="which --task regression learns"):
        read_cases(path, columns=NamedColumns(label="size"))
    assert (
        len(
            read_cases(
                path, columns=NamedColumns(label="size"), labels=LabelRules(task="regression")
            ).cases
        )
        == 40
    )


def test_rows_without_a_number_are_set_aside_and_reported(tmp_path: Path) -> None:
    path = read_labels(tmp_path, [*LABELS, "large"], "size")
    read = read_cases(
        path, columns=NamedColumns(label="size"), labels=LabelRules(task="regression")
    )
    table = with_known_labels(read, TASK)
    assert len(table.cases) == 6
    assert [row.reason for row in table.set_aside] == ["label 'large' is none of numbers"]
    assert "1 of 7 rows left out" in table.notes[-1]


def test_every_part_spans_the_range_of_labels() -> None:
    """Every part of ten or more patients covers the range of the patients' mean labels."""
    labels = [str(i // 2 + (i % 2) * 1000) for i in range(60)]
    patients = [f"p{i // 2}" for i in range(60)]
    strata = TASK.strata(labels, patients)
    assert len(set(strata)) == 3
    for p in set(patients):
        assert len({s for s, owner in zip(strata, patients, strict=True) if owner == p}) == 1
    assert set(TASK.strata(labels[:8], patients[:8])) == {"1: 500 to 503"}


# -- loss and answers ------------------------------------------------------------------------------


def test_the_loss_is_standardised_and_predictions_are_in_the_unit() -> None:
    logits = torch.tensor([[0.0], [1.0], [-2.0]])
    target = torch.tensor([20.0, 20.0, 12.0])
    assert TASK.each_loss(logits, target).tolist() == [0.0, 1.0, 0.0]
    assert float(TASK.loss(logits, target)) == pytest.approx(1 / 3)
    assert TASK.decode(logits, {})[:, 0].tolist() == [20.0, 24.0, 12.0]
    assert TASK.predict([24.0], {}) == "24"
    assert TASK.correct(logits, target).tolist() == pytest.approx([1.0, math.exp(-1), 1.0])
    assert TASK.truth(target) is None


def test_chance_loss_is_the_variance_on_the_fitted_scale() -> None:
    target = TASK.targets(LABELS)
    expected = float(target.var(correction=0)) / 16
    assert TASK.chance_loss(target) == pytest.approx(expected, rel=1e-4)


def test_validation_scores_combine_error_and_ranking() -> None:
    truth, good = drawn(60, 1.0)
    _, bad = drawn(60, 8.0, seed=1)
    target = torch.tensor(truth, dtype=torch.float32)
    scores = {}
    for name, predicted in (("good", good), ("bad", bad)):
        logits = torch.tensor((predicted - 20) / 4, dtype=torch.float32)[:, None]
        scores[name] = TASK.validate(logits, target, 1.0)
        assert scores[name]["val_spearman"] == pytest.approx(
            spearmanr(truth, predicted)[0], abs=1e-5
        )
    assert scores["good"]["val_score"] < scores["bad"]["val_score"]
    assert TASK.learnt([scores["good"]] * 4)
    assert not TASK.learnt([{"val_spearman": 0.1}] * 4)
    assert not TASK.learnt([{}])


# -- scores ----------------------------------------------------------------------------------------


def test_scores_match_textbook_formulas() -> None:
    truth, predicted = drawn(80, 2.0)
    rows = make_rows(truth, predicted, [f"p{i}" for i in range(80)])
    scores = TASK.score(rows)
    assert scores["spearman"].value == pytest.approx(spearmanr(truth, predicted)[0])
    assert scores["mae"].value == pytest.approx(np.abs(truth - predicted).mean())
    assert scores["mae_constant"].value == pytest.approx(np.abs(truth - np.median(truth)).mean())
    for score in scores.values():
        assert score.lo < score.value < score.hi


def test_intervals_cover_the_truth_and_count_patients() -> None:
    """Two images of a patient are similar and must not count as two patients."""
    hits, n = {"spearman": 0, "mae": 0}, 120
    rng = np.random.default_rng(0)

    def cohort(n_patients: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        noise = rng.normal(size=(2, n_patients, 1)) + 0.3 * rng.normal(size=(2, n_patients, 3))
        truth, predicted = noise[0].ravel(), (0.6 * noise[0] + 0.8 * noise[1]).ravel()
        return truth, predicted, [f"p{i // 3}" for i in range(3 * n_patients)]

    truth, predicted, _ = cohort(60_000)
    known = {"spearman": spearmanr(truth, predicted)[0], "mae": np.abs(truth - predicted).mean()}
    for _ in range(n):
        scores = TASK.score(make_rows(*cohort(25)))
        for name in hits:
            hits[name] += scores[name].lo <= known[name] <= scores[name].hi
    assert min(hits.values()) >= 0.88 * n, hits


def test_ranks_are_compared_within_folds() -> None:
    """Two uninformative models with different means give no ranking."""
    truth, predicted = drawn(60, 2.0)
    patients = [f"p{i}" for i in range(60)]
    single = TASK.score(make_rows(truth, predicted, patients, folds=2))["spearman"]
    shifted = make_rows(truth, predicted + 100 * (np.arange(60) % 2), patients, folds=2)
    assert TASK.score(shifted)["spearman"].value == pytest.approx(single.value)
    metrics = evaluate_rows(shifted, TASK)
    assert [fold["n_images"] for fold in metrics["folds"]] == [30, 30]
    assert "one fold only" in metrics["pooling"]


def test_a_comparison_states_which_run_is_better() -> None:
    truth, good = drawn(80, 1.0)
    _, bad = drawn(80, 8.0, seed=1)
    patients = [f"p{i}" for i in range(80)]
    comparison = compare_rows(
        make_rows(truth, good, patients), make_rows(truth, bad, patients), TASK
    )
    assert comparison["spearman"]["lo"] > 0
    assert comparison["mae"]["hi"] < 0
    same = make_rows(truth, good, patients)
    assert compare_rows(same, same, TASK)["mae"]["value"] == 0


@pytest.mark.parametrize("n", [1, 2])
def test_few_images_have_an_error_but_no_ranking(n: int) -> None:
    scores = TASK.score(make_rows(*drawn(n, 1.0), [f"p{i}" for i in range(n)]))
    assert "spearman" not in scores
    assert scores["mae"].lo <= scores["mae"].value <= scores["mae"].hi


# -- words -----------------------------------------------------------------------------------------


def test_the_summary_names_the_constant_and_cautions() -> None:
    scores = {"spearman": {"value": 0.1, "lo": -0.2, "hi": 0.4},
              "mae": {"value": 3.0}, "mae_constant": {"value": 2.5}}  # fmt: skip
    assert "off by 3 on average, where the median label" in TASK.sentence(scores, 1)
    text = " ".join(TASK.cautions(scores))
    assert "cannot be told from chance" in text
    assert "A constant answer would be off by no more" in text
    assert TASK.sentence({}, 1) == ""
    assert not TASK.cautions({})


def test_the_largest_errors_come_first() -> None:
    near, far, unknown = (
        TASK.verdict({"label": label, "values": {"value": 20.0}}, {}) for label in ("21", "30", "")
    )
    assert far.rank > near.rank > unknown.rank
    assert far.word == "off by 10"
    assert unknown.kind == "unlabelled"


def test_the_scatter_plot_accepts_missing_values() -> None:
    from matplotlib.figure import Figure

    rows = [*make_rows(*drawn(9, 1.0), [f"p{i}" for i in range(9)]), {"label": "x", "value": "?"}]
    (chart,) = TASK.charts(rows, {}, [])
    assert chart.plot is not None
    figure = Figure()
    chart.plot(figure)
    (dots,) = figure.axes[0].collections
    assert len(dots.get_offsets()) == 9
    (empty,) = TASK.charts([], {}, [])
    assert empty.plot is None
    assert empty.absent
