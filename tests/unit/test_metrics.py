from __future__ import annotations

import json
import time
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import norm

from foveate.evaluation.scores import compare_rows, evaluate_rows
from foveate.metrics import (
    auroc,
    calibration_bins,
    compare_scores,
    confusion,
    proportion_interval,
    score_all,
    threshold_youden,
    wilson_interval,
)
from foveate.metrics.jackknife import group_patients
from foveate.metrics.types import Floats, Ints
from foveate.tasks.binary import BinaryTask


def two_classes(positive: object) -> Floats:
    p = np.asarray(positive, dtype=np.float64)
    return np.stack([1 - p, p], 1)


def class_names(n: int) -> list[str]:
    return [f"p{i}" for i in range(n)]


def ordered(n_pos: int, n_neg: int, n_swaps: int) -> tuple[Floats, Ints]:
    """Return scores in perfect order but for some swapped neighbours, and their targets."""
    score = np.arange(n_neg + n_pos, dtype=np.float64) / (n_neg + n_pos)
    target = np.r_[np.zeros(n_neg), np.ones(n_pos)].astype(np.int64)
    for k in range(n_swaps):  # each positive passes one negative more
        score[n_neg + k] = score[n_neg - 1 - k] - 1e-3
    return two_classes(score), target


def test_a_single_class_gives_no_ranking_and_no_nan() -> None:
    prob, target = two_classes([0.2, 0.9, 0.4]), np.zeros(3, np.int64)
    assert auroc(prob, target) is None
    assert threshold_youden(prob[:, 1], target) is None
    assert set(compare_scores(prob, prob, target, class_names(3))) == {"brier", "log_loss"}
    scores = score_all(prob, target, class_names(3))
    assert set(scores) == {"accuracy", "specificity", "brier", "log_loss", "ece"}
    json.dumps({k: asdict(v) for k, v in scores.items()}, allow_nan=False)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 14), st.integers(2, 4), st.integers(0, 99), st.integers(1, 4), st.integers(1, 3)
)
def test_any_small_run_gives_finite_ordered_intervals(
    n: int, k: int, seed: int, n_patients: int, n_folds: int
) -> None:
    rng = np.random.default_rng(seed)
    prob = rng.dirichlet(np.full(k, 0.3), n).round(1)
    prob = np.where(prob.sum(1, keepdims=True) > 0, prob, 1)
    prob /= prob.sum(1, keepdims=True)
    target = rng.integers(0, k, n)
    owner = rng.integers(0, n_patients, n)
    patients, folds = [str(p) for p in owner], [int(p) % n_folds for p in owner]
    for name, score in score_all(prob, target, patients, folds=folds, ordinal=True).items():
        assert np.isfinite([score.value, score.lo, score.hi]).all(), name
        assert score.lo <= score.value <= score.hi, name
        assert score.lo < score.hi, name
        assert score.n <= n


# -- intervals --------------------------------------------------------------------------------


def test_three_patients_give_wide_intervals() -> None:
    """Three of each patient's five images are right; the interval was once 0.600 to 0.600."""
    target = np.array([0, 0, 0, 1, 1] * 3)
    prob = two_classes(np.tile([0.2, 0.3, 0.7, 0.4, 0.8], 3))
    patients = [f"p{i // 5}" for i in range(15)]
    scores = score_all(prob, target, patients)
    assert scores["accuracy"].value == 0.6
    for name in ("auroc", "auprc", "accuracy", "balanced_accuracy", "kappa", "ece"):
        assert scores[name].hi - scores[name].lo > 0.3, name
    for name in ("brier", "log_loss"):
        assert scores[name].hi > 1.2 * scores[name].value, name


@pytest.mark.parametrize(("n_pos", "n_neg"), [(5, 5), (12, 18), (4, 16), (50, 50), (10, 90)])
def test_a_worse_result_has_no_narrower_interval(n_pos: int, n_neg: int) -> None:
    """It was once 0.735 to 1.000 in perfect order and 0.972 to 1.000 with one pair swapped."""
    scores = []
    for n_swaps in (0, 1, 2):
        prob, target = ordered(n_pos, n_neg, n_swaps)
        scores.append(score_all(prob, target, class_names(len(target)), predicted=target))
    perfect, *worse = scores
    for name in ("auroc", "auprc"):
        assert perfect[name].value == perfect[name].hi == 1
        for score in (run[name] for run in worse):
            assert score.value < 1
            width = perfect[name].hi - perfect[name].lo
            assert score.hi - score.lo >= width - 1e-9
            assert score.lo <= perfect[name].lo


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "kappa"])
@pytest.mark.parametrize("n", [6, 20, 100])
def test_intervals_change_smoothly_at_the_first_error(name: str, n: int) -> None:
    target = np.array([0, 1] * (n // 2))
    prob, scores = two_classes(target * 0.8 + 0.1), []
    for n_wrong in range(4):
        predicted = target.copy()
        predicted[:n_wrong] = 1 - predicted[:n_wrong]
        scores.append(score_all(prob, target, class_names(n), predicted=predicted)[name])
    lows, widths = [s.lo for s in scores], [s.hi - s.lo for s in scores]
    assert scores[0].value == scores[0].hi == 1
    assert lows == sorted(lows, reverse=True)
    assert widths == sorted(widths)


def test_perfect_ranking_of_few_patients_has_a_wide_interval() -> None:
    target = np.array([0, 1] * 5)
    scores = score_all(two_classes(target * 0.8 + 0.1), target, class_names(10))
    # Solved by hand: (1 - a)^2 = 1.96^2 a (1 - a) (1 + 4 ((1 - a) / (2 - a) + a / (1 + a))) / 25.
    a = scores["auroc"].lo
    clump = (1 - a) / (2 - a) + a / (1 + a)
    assert (1 - a) == pytest.approx(norm.ppf(0.975) ** 2 * a * (1 + 4 * clump) / 25)
    assert a == pytest.approx(0.6427, abs=1e-4)
    wrong = score_all(two_classes(0.9 - target * 0.8), target, class_names(10))
    assert wrong["auroc"].value == wrong["auroc"].lo == 0
    assert wrong["auroc"].hi == pytest.approx(1 - 0.6427, abs=1e-4)


def test_the_bound_of_a_perfect_ranking_counts_patients() -> None:
    target = np.array([0, 1] * 20)
    few = score_all(two_classes(target * 0.8 + 0.1), target, [f"p{i % 4}" for i in range(40)])
    many = score_all(two_classes(target * 0.8 + 0.1), target, class_names(40))
    for name in ("auroc", "auprc", "accuracy", "kappa"):
        assert few[name].lo < many[name].lo - 0.2, name


def test_one_patient_per_class_is_reported_with_a_wide_interval() -> None:
    scores = score_all(two_classes([0.1, 0.2, 0.3, 0.6]), np.array([0, 0, 0, 1]), class_names(4))
    for name in ("auroc", "auprc"):
        assert scores[name].hi - scores[name].lo > 0.6
        assert "one patient" in scores[name].method


def test_intervals_cover_in_the_hardest_settings() -> None:
    """A small `benchmarks/coverage.py`, where the percentile bootstrap covered 0.79."""
    rng, missed = np.random.default_rng(12), {}
    for n, n_pos, area in ((20, 4, 0.97), (20, 10, 0.9), (50, 10, 0.75)):
        gap = np.sqrt(2) * norm.ppf(area)
        owner = np.repeat(np.arange(n), 2)
        target = (owner < n_pos).astype(np.int64)
        recall, base = norm.cdf(gap / 2), n_pos / n
        accuracy_, called = recall, base * recall + (1 - base) * (1 - recall)
        chance = base * called + (1 - base) * (1 - called)
        truth = {
            "auroc": area,
            "accuracy": accuracy_,
            "balanced_accuracy": recall,
            "kappa": (accuracy_ - chance) / (1 - chance),
        }
        for _ in range(200):
            score = gap * target + 0.7 * rng.normal(size=n)[owner] + 0.714 * rng.normal(size=2 * n)
            prob = two_classes(expit(gap * (score - gap / 2)))
            scores = score_all(prob, target, [str(p) for p in owner])
            for name, true in truth.items():
                contains = scores[name].lo <= true <= scores[name].hi
                missed[name, n, n_pos] = missed.get((name, n, n_pos), 0) + (not contains)
    assert max(missed.values()) <= 20, missed
    assert sum(missed.values()) / (200 * len(missed)) <= 0.06, missed


# -- folds ------------------------------------------------------------------------------------


def five_folds(seed: int, offset: float, gap: float = 1.0) -> tuple[Floats, Ints, list[int]]:
    """Draw a hundred patients; the logits of each fold's model have an offset of their own."""
    rng = np.random.default_rng(seed)
    target, fold = np.arange(100) % 2, np.arange(100) // 2 % 5
    logit = gap * target + rng.normal(size=100) + offset * rng.normal(size=5)[fold]
    return two_classes(expit(logit)), target, fold.tolist()


def test_shifted_models_do_not_lower_the_score() -> None:
    for seed in range(20):
        plain, target, fold = five_folds(seed, 0.0)
        shifted, _, _ = five_folds(seed, 2.0)
        for name in ("auroc", "auprc"):
            a, b = (
                score_all(p, target, class_names(100), folds=fold)[name] for p in (plain, shifted)
            )
            assert a.value == pytest.approx(b.value, abs=1e-12)
            assert (a.lo, a.hi) == pytest.approx((b.lo, b.hi), abs=1e-9)


def test_identical_models_score_the_same_pooled_or_not() -> None:
    within, pooled = [], []
    for seed in range(100):
        prob, target, fold = five_folds(seed, 0.0)
        within.append(score_all(prob, target, class_names(100), folds=fold)["auroc"].value)
        pooled.append(score_all(prob, target, class_names(100))["auroc"].value)
    assert np.mean(within) == pytest.approx(np.mean(pooled), abs=0.004)
    assert np.mean(within) == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.01)


def test_folds_of_different_scales_are_not_pooled() -> None:
    """Areas of 1, 0 and 1 in three folds gave 0.370 when pooled; within folds they are 2/3."""
    prob = two_classes([0.1, 0.2, 0.3, 0.4, 0.9, 0.8, 0.7, 0.6, 0.45, 0.5, 0.55, 0.58])
    target = np.array([0, 0, 1, 1] * 3)
    fold = np.repeat([0, 1, 2], 4)
    scores = score_all(prob, target, class_names(12), folds=fold.tolist())
    assert scores["auroc"].value == pytest.approx(2 / 3)
    assert scores["auroc"].lo < 0.4
    assert "within a fold" in scores["auroc"].method


def test_a_fold_of_one_class_is_excluded() -> None:
    prob, target = two_classes([0.1, 0.9, 0.2, 0.7, 0.95]), np.array([0, 1, 0, 1, 0])
    score = score_all(prob, target, class_names(5), folds=[0, 0, 1, 1, 2])["auroc"]
    assert (score.value, score.n) == (1.0, 4)
    assert "2 of 3 folds" in score.method
    assert "auroc" not in score_all(prob[:2], target[:2], class_names(2), folds=[0, 1])


TASK = BinaryTask(classes=("a", "b"))


def make_rows(prob: Floats, target: Ints, fold: list[int]) -> list[dict[str, str]]:
    return [
        {
            "image_id": f"i{i}",
            "patient_id": f"p{i}",
            "label": "ab"[target[i]],
            "predicted": "ab"[int(prob[i, 1] >= 0.5)],
            "prob_a": f"{prob[i, 0]:.9f}",
            "prob_b": f"{prob[i, 1]:.9f}",
            "fold": str(fold[i]),
        }
        for i in range(len(target))
    ]


def test_metrics_contain_the_folds_and_name_the_headline() -> None:
    prob, target, fold = five_folds(0, 2.0)
    scores = evaluate_rows(make_rows(prob, target, fold), TASK)
    areas = [entry["metrics"]["auroc"]["value"] for entry in scores["folds"]]
    assert [entry["fold"] for entry in scores["folds"]] == ["0", "1", "2", "3", "4"]
    assert scores["metrics"]["auroc"]["value"] == pytest.approx(np.mean(areas))
    assert "one fold only" in scores["pooling"]
    single = evaluate_rows(make_rows(prob, target, [0] * 100), TASK)
    assert "folds" not in single
    assert single["metrics"]["auroc"]["value"] < scores["metrics"]["auroc"]["value"]


def test_a_comparison_respects_the_folds_of_both_runs() -> None:
    plain, target, fold = five_folds(3, 0.0)
    shifted, _, _ = five_folds(3, 3.0)
    ours, theirs = (make_rows(p, target, fold) for p in (plain, shifted))
    difference = compare_rows(ours, theirs, TASK)["auroc"]
    assert difference["value"] == pytest.approx(0, abs=1e-9)
    # A run without folds against one with: only pairs that both ranked by one model count.
    alone = make_rows(plain, target, [0] * 100)
    assert compare_rows(alone, theirs, TASK)["auroc"]["value"] == pytest.approx(0, abs=1e-9)


def test_random_labels_give_chance() -> None:
    alarms = 0
    for seed in range(300):
        prob, target, fold = five_folds(seed, 1.0, gap=0.0)
        score = score_all(prob, target, class_names(100), folds=fold)["auroc"]
        alarms += not score.lo <= 0.5 <= score.hi
    assert alarms <= 0.06 * 300


# -- the rest ---------------------------------------------------------------------------------


def test_accuracy_metrics_match_textbook_formulas() -> None:
    assert proportion_interval(0, 0) == wilson_interval(0, 0) == (0.0, 1.0)
    assert proportion_interval(5, 5)[0] == pytest.approx(0.025 ** (1 / 5))
    z2, n, p = norm.ppf(0.975) ** 2, 10, 0.3
    middle, half = p + z2 / (2 * n), np.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n)))
    expected = np.array([middle - half, middle + half]) / (1 + z2 / n)
    assert wilson_interval(3, 10) == pytest.approx(tuple(expected))


def test_constant_predictions_are_scored_at_chance() -> None:
    target = np.array([0, 1] * 10)
    scores = score_all(two_classes(np.full(20, 0.5)), target, class_names(20))
    assert scores["auroc"].value == 0.5
    assert scores["auroc"].lo < 0.5 < scores["auroc"].hi
    assert scores["kappa"].value == 0


def test_the_jackknife_leaves_out_patients_or_groups_of_patients() -> None:
    rng = np.random.default_rng(0)
    target = np.r_[rng.integers(0, 2, 38), 2, 2]
    owner = np.arange(40) // 3
    cohort = group_patients(target, owner, np.zeros(40, np.int64))
    assert cohort.n_groups == 14
    for weight in cohort.leave_one_out_weights():
        assert len(set(owner[weight == 0])) == 1
        assert (np.isin(owner, owner[weight == 0]) == (weight == 0)).all()
    many = np.r_[np.zeros(5000), np.ones(20)].astype(np.int64)
    grouped = group_patients(many, np.arange(5020), np.arange(5020) % 5)
    assert grouped.n_groups < 500
    assert (grouped.stratum == 1).sum() == 20  # a rare class keeps all its patients apart


def test_grouped_jackknife_intervals_match_single_patients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = np.arange(400) % 2
    prob = two_classes(expit(target + np.random.default_rng(6).normal(size=400)))
    single = score_all(prob, target, class_names(400))["auroc"]
    monkeypatch.setattr("foveate.metrics.jackknife._MAX_GROUPS", 100)
    grouped = score_all(prob, target, class_names(400))["auroc"]
    assert grouped.hi - grouped.lo == pytest.approx(single.hi - single.lo, rel=0.15)


def test_more_images_of_a_patient_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(1)
    target = np.array([0, 1] * 20)
    prob = two_classes(1 / (1 + np.exp(-(target + rng.normal(size=40)))))
    once = score_all(prob, target, class_names(40))
    thrice = score_all(
        np.repeat(prob, 3, 0), np.repeat(target, 3), list(np.repeat(class_names(40), 3))
    )
    for name in ("auroc", "auprc", "accuracy", "brier"):
        assert thrice[name].value == pytest.approx(once[name].value)
        width = once[name].hi - once[name].lo
        assert thrice[name].hi - thrice[name].lo == pytest.approx(width, rel=0.1)


def test_a_class_that_does_not_occur_is_left_out_of_means() -> None:
    prob = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]])
    target = np.array([0, 1, 0, 1])
    scores = score_all(prob, target, class_names(4), ordinal=True)
    assert scores["auroc"].value == 1
    assert scores["balanced_accuracy"].value == 1


def test_given_decisions_are_used() -> None:
    target = np.array([0, 0, 1, 1])
    prob = two_classes([0.1, 0.2, 0.3, 0.4])
    assert score_all(prob, target, class_names(4))["accuracy"].value == 0.5
    chosen = score_all(prob, target, class_names(4), predicted=np.array([0, 0, 1, 1]))
    assert chosen["accuracy"].value == 1


def test_threshold_lies_between_scores() -> None:
    threshold = threshold_youden(np.array([0.1, 0.3, 0.6, 0.9]), np.array([0, 0, 1, 1]))
    assert threshold == pytest.approx(0.45)
    # Nothing is gained by any: the lowest score, where all are positive, is a choice as well.
    assert threshold_youden(np.full(4, 0.2), np.array([0, 1, 0, 1])) == pytest.approx(0.2)


def test_calibration_bins_include_their_edges() -> None:
    prob, target = two_classes([0.0, 0.1, 0.95, 1.0]), np.array([0, 0, 1, 1])
    bins = calibration_bins(prob, target)
    assert [b["n"] for b in bins] == [1, 1, 2]
    assert bins[2] == {"mean_prob": pytest.approx(0.975), "fraction": 1.0, "n": 2}
    assert score_all(two_classes([0.0, 1.0]), np.array([0, 1]), class_names(2))["ece"].value == 0


def test_confusion_matrix_rows_are_the_truth() -> None:
    assert confusion(np.array([1, 1, 0]), np.array([0, 1, 2]), 3).tolist() == [
        [0, 1, 0], [0, 1, 0], [1, 0, 0],
    ]  # fmt: skip


def test_identical_runs_differ_by_nothing() -> None:
    rng = np.random.default_rng(3)
    target = rng.integers(0, 2, 40)
    prob = two_classes(rng.random(40))
    for difference in compare_scores(prob, prob, target, class_names(40)).values():
        assert (difference.value, difference.lo, difference.hi, difference.p_value) == (0, 0, 0, 1)


def test_two_perfect_runs_are_not_sure_to_be_equal() -> None:
    target = np.array([0, 1] * 6)
    other = target * 0.7 + np.linspace(0, 0.2, 12)
    difference = compare_scores(
        two_classes(target * 0.8 + 0.1), two_classes(other), target, class_names(12)
    )["auroc"]
    assert difference.value == 0
    assert difference.lo < -0.1
    assert difference.hi > 0.1
    assert difference.p_value == 1


def test_a_p_value_and_its_interval_agree() -> None:
    rng = np.random.default_rng(5)
    for _ in range(40):
        target = np.arange(60) % 2
        a, b = (two_classes(expit(g * target + rng.normal(size=60))) for g in (1.5, 0.5))
        for difference in compare_scores(a, b, target, class_names(60)).values():
            assert (difference.p_value < 0.05) == (difference.lo > 0 or difference.hi < 0)


@pytest.mark.parametrize(
    ("prob", "target", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, np.int64), "shape"),
        (np.ones((3, 1)), np.zeros(3, np.int64), "shape"),
        (two_classes([0.1, 0.2]), np.zeros(3, np.int64), "targets for 2 rows"),
        (np.array([[0.1, np.nan]]), np.zeros(1, np.int64), "finite"),
        (np.array([[0.4, 0.4]]), np.zeros(1, np.int64), "sum to 1"),
        (two_classes([0.1]), np.array([2]), "whole numbers from 0 to 1"),
        (two_classes([0.1]), np.array([0.5]), "whole numbers"),
    ],
)
def test_impossible_inputs_are_refused(prob: Floats, target: Ints, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_all(prob, target, class_names(len(target)))


def test_inconsistent_inputs_are_refused() -> None:
    prob, target = two_classes([0.1, 0.9]), np.array([0, 1])
    with pytest.raises(ValueError, match="1 patients for 2 images"):
        score_all(prob, target, ["a"])
    with pytest.raises(ValueError, match="1 folds for 2 images"):
        score_all(prob, target, class_names(2), folds=[0])


def test_two_hundred_images_take_less_than_three_seconds() -> None:
    rng = np.random.default_rng(4)
    prob, target = rng.dirichlet(np.ones(5), 200), rng.integers(0, 5, 200)
    begun = time.perf_counter()
    score_all(prob, target, class_names(200), ordinal=True)
    assert time.perf_counter() - begun < 3
