"""A number as a label: its scale, answers in its unit, scores over patients, and its page."""

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
from foveate.table import read_cases, with_known_labels
from foveate.tasks import build_task, explain_unfit, restore_task
from foveate.tasks.regression import RegressionTask
from unit.test_tables import of_labels

LABELS = ["10", "12,5", "15", "20.0", "22", "25"]
TASK = RegressionTask(mean=20.0, spread=4.0)


def rows_of(truth: np.ndarray, answer: np.ndarray, patients: list[str], folds: int = 1) -> list:
    return [
        {
            "image_id": f"i{i}",
            "patient_id": patients[i],
            "label": repr(float(truth[i])),
            "predicted": f"{answer[i]:.4g}",
            "value": repr(float(answer[i])),
            "fold": str(i % folds),
        }
        for i in range(len(truth))
    ]


def drawn(n: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.normal(20, 4, n)
    return truth, truth + rng.normal(0, noise, n)


# -- labels ----------------------------------------------------------------------------------------


def test_the_scale_is_that_of_the_training_part_and_travels_with_the_model(tmp_path: Path) -> None:
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
def test_what_is_no_number_has_no_target(label: str) -> None:
    with pytest.raises(TableError, match="is no number"):
        TASK.parse(label)
    assert not TASK.understands(label)


def test_numbers_have_targets_in_their_unit() -> None:
    assert [TASK.parse(label) for label in ("3.5", "3,5", "-2e1", " 7 ")] == [3.5, 3.5, -20, 7]
    assert TASK.targets(["1", "2.5"]).tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["high", "low", "3"], "holds 1 numbers in 3 usable rows"),
        (["4", "4.0"], "holds one number only"),
    ],
)
def test_labels_without_a_scale_are_refused(labels: list[str], said: str) -> None:
    with pytest.raises(TableError, match=f"column 'size' {said}"):
        build_task("regression", labels, {}, "size")


@pytest.mark.parametrize("settled", [{}, {"mean": 0.0}, {"mean": 1.0, "spread": 0.0},
                                     {"mean": math.nan, "spread": 1.0},
                                     {"mean": "x", "spread": 1.0}])  # fmt: skip
def test_a_stored_scale_that_is_none_is_refused(settled: dict[str, object]) -> None:
    with pytest.raises(OptionError):
        restore_task("regression", settled, {})


def test_numbers_are_no_classes_unless_said_and_the_line_names_this_task(tmp_path: Path) -> None:
    labels = [f"{i / 7:.3f}" for i in range(40)]
    assert "--task regression" in str(explain_unfit("auto", labels, "size"))
    assert explain_unfit("regression", labels, "size") is None
    path = of_labels(tmp_path, labels, "size")
    with pytest.raises(TableError, match="which --task regression learns"):
        read_cases(path, label="size")
    assert len(read_cases(path, label="size", task="regression").cases) == 40


def test_rows_without_a_number_are_set_aside_and_said(tmp_path: Path) -> None:
    path = of_labels(tmp_path, [*LABELS, "pending"], "size")
    read = read_cases(path, label="size", task="regression")
    found = with_known_labels(read, TASK, {})
    assert len(found.cases) == 6
    assert [row.reason for row in found.set_aside] == ["label 'pending' is none of numbers"]
    assert "1 of 7 rows left out" in found.notes[-1]


def test_parts_of_the_patients_span_the_range() -> None:
    """Ranges of ten patients or more; all images of a patient count as their mean."""
    labels = [str(i // 2 + (i % 2) * 1000) for i in range(60)]
    patients = [f"p{i // 2}" for i in range(60)]
    strata = TASK.strata(labels, patients)
    assert len(set(strata)) == 3
    for p in set(patients):
        assert len({s for s, owner in zip(strata, patients, strict=True) if owner == p}) == 1
    assert set(TASK.strata(labels[:8], patients[:8])) == {"1: 500 to 503"}


# -- loss and answers ------------------------------------------------------------------------------


def test_the_loss_is_the_squared_error_in_spreads_and_answers_are_in_the_unit() -> None:
    logits = torch.tensor([[0.0], [1.0], [-2.0]])
    target = torch.tensor([20.0, 20.0, 12.0])
    assert TASK.each_loss(logits, target).tolist() == [0.0, 1.0, 0.0]
    assert float(TASK.loss(logits, target)) == pytest.approx(1 / 3)
    assert TASK.decode(logits, {})[:, 0].tolist() == [20.0, 24.0, 12.0]
    assert TASK.predict([24.0], {}) == "24"
    assert TASK.correct(logits, target).tolist() == pytest.approx([1.0, math.exp(-1), 1.0])
    assert TASK.truth(target) is None


def test_chance_is_the_variance_on_the_settled_scale() -> None:
    target = TASK.targets(LABELS)
    expected = float(target.var(correction=0)) / 16
    assert TASK.chance_loss(target) == pytest.approx(expected, rel=1e-4)


def test_a_validation_part_is_judged_by_error_and_ranking() -> None:
    truth, good = drawn(60, 1.0)
    _, bad = drawn(60, 8.0, seed=1)
    target = torch.tensor(truth, dtype=torch.float32)
    found = {}
    for name, answer in (("good", good), ("bad", bad)):
        logits = torch.tensor((answer - 20) / 4, dtype=torch.float32)[:, None]
        found[name] = TASK.validate(logits, target, 1.0)
        assert found[name]["val_spearman"] == pytest.approx(spearmanr(truth, answer)[0], abs=1e-5)
    assert found["good"]["val_score"] < found["bad"]["val_score"]
    assert TASK.learnt([found["good"]] * 4)
    assert not TASK.learnt([{"val_spearman": 0.1}] * 4)
    assert not TASK.learnt([{}])


# -- scores ----------------------------------------------------------------------------------------


def test_scores_are_those_of_the_books() -> None:
    truth, answer = drawn(80, 2.0)
    rows = rows_of(truth, answer, [f"p{i}" for i in range(80)])
    scores = TASK.score(rows)
    assert scores["spearman"].value == pytest.approx(spearmanr(truth, answer)[0])
    assert scores["mae"].value == pytest.approx(np.abs(truth - answer).mean())
    assert scores["mae_constant"].value == pytest.approx(np.abs(truth - np.median(truth)).mean())
    for score in scores.values():
        assert score.lo < score.value < score.hi


def test_intervals_hold_the_truth_and_count_patients() -> None:
    """Two images of a patient are alike: the interval must not take them for four patients."""
    hits, n = {"spearman": 0, "mae": 0}, 120
    rng = np.random.default_rng(0)

    def cohort(n_patients: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
        own = rng.normal(size=(2, n_patients, 1)) + 0.3 * rng.normal(size=(2, n_patients, 3))
        truth, answer = own[0].ravel(), (0.6 * own[0] + 0.8 * own[1]).ravel()
        return truth, answer, [f"p{i // 3}" for i in range(3 * n_patients)]

    truth, answer, _ = cohort(60_000)
    known = {"spearman": spearmanr(truth, answer)[0], "mae": np.abs(truth - answer).mean()}
    for _ in range(n):
        scores = TASK.score(rows_of(*cohort(25)))
        for name in hits:
            hits[name] += scores[name].lo <= known[name] <= scores[name].hi
    assert min(hits.values()) >= 0.88 * n, hits


def test_ranks_are_compared_within_folds() -> None:
    """Two models that know nothing but have means of their own rank nobody."""
    truth, answer = drawn(60, 2.0)
    patients = [f"p{i}" for i in range(60)]
    single = TASK.score(rows_of(truth, answer, patients, folds=2))["spearman"]
    shifted = rows_of(truth, answer + 100 * (np.arange(60) % 2), patients, folds=2)
    assert TASK.score(shifted)["spearman"].value == pytest.approx(single.value)
    found = evaluate_rows(shifted, TASK)
    assert [fold["n_images"] for fold in found["folds"]] == [30, 30]
    assert "one fold only" in found["pooling"]


def test_a_comparison_says_which_is_better() -> None:
    truth, good = drawn(80, 1.0)
    _, bad = drawn(80, 8.0, seed=1)
    patients = [f"p{i}" for i in range(80)]
    found = compare_rows(rows_of(truth, good, patients), rows_of(truth, bad, patients), TASK)
    assert found["spearman"]["lo"] > 0
    assert found["mae"]["hi"] < 0
    same = rows_of(truth, good, patients)
    assert compare_rows(same, same, TASK)["mae"]["value"] == 0


@pytest.mark.parametrize("n", [1, 2])
def test_a_few_images_have_an_error_but_no_order(n: int) -> None:
    scores = TASK.score(rows_of(*drawn(n, 1.0), [f"p{i}" for i in range(n)]))
    assert "spearman" not in scores
    assert scores["mae"].lo <= scores["mae"].value <= scores["mae"].hi


# -- words -----------------------------------------------------------------------------------------


def test_the_sentence_holds_the_constant_and_cautions_are_said() -> None:
    scores = {"spearman": {"value": 0.1, "lo": -0.2, "hi": 0.4},
              "mae": {"value": 3.0}, "mae_constant": {"value": 2.5}}  # fmt: skip
    assert "off by 3 on average, where the median label" in TASK.sentence(scores, 1)
    said = " ".join(TASK.cautions(scores))
    assert "cannot be told from chance" in said
    assert "A constant answer would be off by no more" in said
    assert TASK.sentence({}, 1) == ""
    assert not TASK.cautions({})


def test_the_largest_errors_come_first() -> None:
    near, far, unknown = (
        TASK.verdict({"label": label, "values": {"value": 20.0}}, {}) for label in ("21", "30", "")
    )
    assert far.rank > near.rank > unknown.rank
    assert far.word == "off by 10"
    assert unknown.kind == "unlabelled"


def test_the_scatter_is_drawn_of_what_is_there() -> None:
    from matplotlib.figure import Figure

    rows = [*rows_of(*drawn(9, 1.0), [f"p{i}" for i in range(9)]), {"label": "x", "value": "?"}]
    (chart,) = TASK.charts(rows, {}, [])
    assert chart.draw is not None
    figure = Figure()
    chart.draw(figure)
    (dots,) = figure.axes[0].collections
    assert len(dots.get_offsets()) == 9
    (empty,) = TASK.charts([], {}, [])
    assert empty.draw is None
    assert empty.absent
