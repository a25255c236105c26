from __future__ import annotations

import json
import time
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.metrics import (
    auprc,
    auroc,
    calibration_bins,
    calibration_error,
    confusion,
    delong_auroc,
    kappa,
    paired_bootstrap,
    paired_delong,
    score_all,
    threshold_youden,
)
from foveate.metrics._resample import patient_weights
from foveate.metrics.base import Floats, Ints, numbered


def two(positive: object) -> Floats:
    p = np.asarray(positive, dtype=np.float64)
    return np.stack([1 - p, p], 1)


def names(n: int) -> list[str]:
    return [f"p{i}" for i in range(n)]


def test_one_class_only_leaves_ranks_out_and_gives_no_nan() -> None:
    prob, target = two([0.2, 0.9, 0.4]), np.zeros(3, np.int64)
    assert auroc(prob, target) is None
    assert auprc(prob, target) is None
    assert delong_auroc(prob[:, 1], target, names(3)) is None
    assert threshold_youden(prob[:, 1], target) is None
    assert paired_delong(prob[:, 1], prob[:, 1], target, names(3)) is None
    assert paired_bootstrap(prob, prob, target, names(3)) is None
    scores = score_all(prob, target, names(3))
    assert set(scores) == {"accuracy", "brier", "log_loss", "ece"}
    json.dumps({k: asdict(v) for k, v in scores.items()}, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 14), st.integers(2, 4), st.integers(0, 99), st.integers(1, 4))
def test_any_small_run_gives_finite_ordered_intervals(
    n: int, k: int, seed: int, n_patients: int
) -> None:
    rng = np.random.default_rng(seed)
    prob = rng.dirichlet(np.full(k, 0.3), n).round(1)
    prob = np.where(prob.sum(1, keepdims=True) > 0, prob, 1)
    prob /= prob.sum(1, keepdims=True)
    target = rng.integers(0, k, n)
    patients = [str(p) for p in rng.integers(0, n_patients, n)]
    for name, score in score_all(prob, target, patients, ordinal=True, n_boot=50).items():
        assert np.isfinite([score.value, score.lo, score.hi]).all(), name
        assert score.lo <= score.hi, name
        assert score.n == n


def test_a_perfect_score_does_not_claim_certainty() -> None:
    target = np.array([0, 1] * 5)
    scores = score_all(two(target * 0.8 + 0.1), target, names(10), ordinal=True)
    # Five positives, five negatives: 0.025 ** (1 / 5); ten patients: 0.025 ** (1 / 10).
    assert scores["auroc"].lo == scores["auroc_delong"].lo == pytest.approx(0.4782, abs=1e-4)
    assert scores["balanced_accuracy"].lo == pytest.approx(0.4782, abs=1e-4)
    assert scores["accuracy"].lo == pytest.approx(0.6915, abs=1e-4)
    for name in ("auroc", "auprc", "accuracy", "balanced_accuracy", "kappa", "kappa_quadratic"):
        assert scores[name].value == scores[name].hi == 1
        assert scores[name].lo < 0.8
        assert "Clopper-Pearson" in scores[name].method
    wrong = score_all(two(0.9 - target * 0.8), target, names(10))
    assert wrong["auroc"].value == 0
    assert wrong["auroc"].hi == pytest.approx(1 - 0.4782, abs=1e-4)


def test_perfect_bound_counts_patients_not_images() -> None:
    target = np.array([0, 1] * 20)
    few = score_all(two(target * 0.8 + 0.1), target, [f"p{i % 4}" for i in range(40)])
    many = score_all(two(target * 0.8 + 0.1), target, names(40))
    assert few["auroc"].lo == pytest.approx(0.025 ** (1 / 2))
    assert many["auroc"].lo == pytest.approx(0.025 ** (1 / 20))


def test_one_patient_in_a_class_gives_no_interval() -> None:
    scores = score_all(two([0.1, 0.2, 0.7, 0.6]), np.array([0, 0, 0, 1]), names(4))
    for name in ("auroc", "auroc_delong", "auprc"):
        assert (scores[name].lo, scores[name].hi) == (0, 1)
        assert "one patient" in scores[name].method


def test_constant_predictions() -> None:
    target = np.array([0, 1] * 10)
    scores = score_all(two(np.full(20, 0.5)), target, names(20))
    assert scores["auroc"].value == scores["auroc_delong"].value == 0.5
    assert scores["kappa"].value == scores["kappa"].hi == 0
    assert kappa(np.ones(3, np.int64), np.ones(3, np.int64)) == 0


def test_resamples_keep_patients_together_and_every_class() -> None:
    rng = np.random.default_rng(0)
    target = np.r_[rng.integers(0, 2, 38), 2, 2]
    patients = [f"p{i // 3}" for i in range(40)]
    owner = numbered(patients, 40)
    weight = patient_weights(target, owner, 500, 0)
    for p in np.unique(owner):
        assert (weight[:, owner == p] == weight[:, owner == p][:, :1]).all()
    for label in (0, 1, 2):
        assert (weight[:, target == label].sum(1) > 0).all()
    drawn = np.stack([weight[:, owner == p][:, 0] for p in np.unique(owner)], 1)
    assert (drawn.sum(1) == len(np.unique(owner))).all()


def test_more_images_of_a_patient_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(1)
    target = np.array([0, 1] * 20)
    prob = two(1 / (1 + np.exp(-(target + rng.normal(size=40)))))
    once = score_all(prob, target, names(40))
    thrice = score_all(np.repeat(prob, 3, 0), np.repeat(target, 3), list(np.repeat(names(40), 3)))
    for name in ("auroc", "auroc_delong", "accuracy", "brier"):
        assert thrice[name].value == pytest.approx(once[name].value)
        width = once[name].hi - once[name].lo
        assert thrice[name].hi - thrice[name].lo == pytest.approx(width, rel=0.1)


def test_same_seed_same_numbers_and_no_global_state() -> None:
    rng = np.random.default_rng(2)
    target = rng.integers(0, 2, 50)
    prob = two(rng.random(50))
    before = np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    assert score_all(prob, target, names(50), seed=5) == score_all(prob, target, names(50), seed=5)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]
    assert score_all(prob, target, names(50), seed=6) != score_all(prob, target, names(50), seed=5)


def test_a_class_that_does_not_occur_is_left_out_of_means() -> None:
    prob = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1]])
    target = np.array([0, 1, 0, 1])
    scores = score_all(prob, target, names(4), ordinal=True)
    assert scores["auroc"].value == 1
    assert scores["balanced_accuracy"].value == 1


def test_chosen_predictions_are_used() -> None:
    target = np.array([0, 0, 1, 1])
    prob = two([0.1, 0.2, 0.3, 0.4])
    assert score_all(prob, target, names(4))["accuracy"].value == 0.5
    chosen = score_all(prob, target, names(4), predicted=np.array([0, 0, 1, 1]))
    assert chosen["accuracy"].value == 1


def test_threshold_lies_between_scores() -> None:
    threshold = threshold_youden(np.array([0.1, 0.3, 0.6, 0.9]), np.array([0, 0, 1, 1]))
    assert threshold == pytest.approx(0.45)
    # Nothing is gained by any: the lowest score, where all are positive, is a choice as well.
    assert threshold_youden(np.full(4, 0.2), np.array([0, 1, 0, 1])) == pytest.approx(0.2)


def test_calibration_bins_hold_their_edges() -> None:
    prob, target = two([0.0, 0.1, 0.95, 1.0]), np.array([0, 0, 1, 1])
    bins = calibration_bins(prob, target, 10)
    assert [b["n"] for b in bins] == [1, 1, 2]
    assert bins[2] == {"mean_prob": pytest.approx(0.975), "fraction": 1.0, "n": 2}
    assert calibration_error(two([0.0, 1.0]), np.array([0, 1])) == 0


def test_confusion_has_truth_in_rows() -> None:
    assert confusion(np.array([1, 1, 0]), np.array([0, 1, 2]), 3).tolist() == [
        [0, 1, 0], [0, 1, 0], [1, 0, 0],
    ]  # fmt: skip


def test_identical_runs_differ_by_nothing() -> None:
    rng = np.random.default_rng(3)
    target = rng.integers(0, 2, 40)
    prob = two(rng.random(40))
    delong = paired_delong(prob[:, 1], prob[:, 1], target, names(40))
    boot = paired_bootstrap(prob, prob, target, names(40), metric="brier")
    assert delong is not None
    assert boot is not None
    assert delong.value == boot.value == 0
    assert delong.p_value == boot.p_value == 1
    assert delong.lo < 0 < delong.hi


def test_perfect_against_hopeless_is_judged_by_a_sign_test() -> None:
    target = np.array([0, 1] * 4)
    found = paired_delong(target * 1.0, 1.0 - target, target, names(8))
    assert found is not None
    assert found.value == 1
    assert found.p_value == pytest.approx(2 * 0.5**4)


@pytest.mark.parametrize(
    ("prob", "target", "message"),
    [
        (np.zeros((0, 2)), np.zeros(0, np.int64), "shape"),
        (np.ones((3, 1)), np.zeros(3, np.int64), "shape"),
        (two([0.1, 0.2]), np.zeros(3, np.int64), "targets for 2 rows"),
        (np.array([[0.1, np.nan]]), np.zeros(1, np.int64), "finite"),
        (np.array([[0.4, 0.4]]), np.zeros(1, np.int64), "sum to 1"),
        (two([0.1]), np.array([2]), "whole numbers from 0 to 1"),
        (two([0.1]), np.array([0.5]), "whole numbers"),
    ],
)
def test_impossible_inputs(prob: Floats, target: Ints, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_all(prob, target, names(len(target)))


def test_other_impossible_inputs() -> None:
    prob, target = two([0.1, 0.9]), np.array([0, 1])
    with pytest.raises(ValueError, match="1 patients for 2 images"):
        score_all(prob, target, ["a"])
    with pytest.raises(ValueError, match="metric: got 'f1'"):
        paired_bootstrap(prob, prob, target, names(2), metric="f1")


def test_two_hundred_images_take_less_than_three_seconds() -> None:
    rng = np.random.default_rng(4)
    prob, target = rng.dirichlet(np.ones(5), 200), rng.integers(0, 5, 200)
    begun = time.perf_counter()
    score_all(prob, target, names(200), ordinal=True, n_boot=1000)
    assert time.perf_counter() - begun < 3
