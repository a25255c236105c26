"""Every metric against scikit-learn, torchmetrics, published numbers or a slow obvious version."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from scipy.stats import norm
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

from foveate import metrics
from foveate.metrics._delong import auroc_covariance
from foveate.metrics._resample import patient_weights
from foveate.metrics.base import Floats, Ints, numbered


def run(n: int, k: int, seed: int, *, ties: bool = False) -> tuple[Floats, Ints]:
    rng = np.random.default_rng(seed)
    target = np.r_[np.arange(k), rng.integers(0, k, n - k)]
    score = rng.normal(size=(n, k)) + np.eye(k)[target] * 1.2
    if ties:
        score = np.round(score)
    prob = np.exp(score)
    return prob / prob.sum(1, keepdims=True), target


CASES = [(n, k, ties) for n in (10, 60, 200) for k in (2, 3, 5) for ties in (False, True)]


@pytest.mark.parametrize(("n", "k", "ties"), CASES)
def test_values_are_those_of_scikit_learn(n: int, k: int, ties: bool) -> None:
    prob, target = run(n, k, n + k, ties=ties)
    predicted = prob.argmax(1)
    many = {"multi_class": "ovr", "labels": range(k)} if k > 2 else {}
    ranks = prob[:, 1] if k == 2 else prob
    onehot = target if k == 2 else np.eye(k)[target]
    expected = {
        "auroc": sk.roc_auc_score(target, ranks, **many),
        "auprc": sk.average_precision_score(onehot, ranks),
        "accuracy": sk.accuracy_score(target, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(target, predicted),
        "kappa": sk.cohen_kappa_score(target, predicted),
        "kappa_linear": sk.cohen_kappa_score(target, predicted, weights="linear"),
        "kappa_quadratic": sk.cohen_kappa_score(target, predicted, weights="quadratic"),
        "log_loss": sk.log_loss(target, prob, labels=range(k)),
        "brier": sk.brier_score_loss(target, prob[:, 1])
        if k == 2
        else np.mean(((prob - np.eye(k)[target]) ** 2).sum(1)),
    }
    scores = metrics.score_all(prob, target, [str(i) for i in range(n)], ordinal=True, n_boot=20)
    assert {name: scores[name].value for name in expected} == pytest.approx(expected, abs=1e-12)
    plain = {
        "auroc": metrics.auroc(prob, target),
        "auprc": metrics.auprc(prob, target),
        "accuracy": metrics.accuracy(predicted, target),
        "balanced_accuracy": metrics.balanced_accuracy(predicted, target),
        "kappa": metrics.kappa(predicted, target),
        "kappa_linear": metrics.kappa(predicted, target, power=1),
        "kappa_quadratic": metrics.kappa(predicted, target, power=2),
        "log_loss": metrics.log_loss(prob, target),
        "brier": metrics.brier(prob, target),
    }
    assert plain == pytest.approx(expected, abs=1e-12)
    assert np.array_equal(
        metrics.confusion(predicted, target, k),
        sk.confusion_matrix(target, predicted, labels=range(k)),
    )


@pytest.mark.parametrize("n_bins", [5, 10, 15])
def test_calibration_error_is_that_of_torchmetrics(n_bins: int) -> None:
    prob, target = run(200, 2, 1)
    theirs = binary_calibration_error(
        torch.tensor(prob[:, 1]), torch.tensor(target), n_bins=n_bins, norm="l1"
    )
    assert metrics.calibration_error(prob, target, n_bins=n_bins) == pytest.approx(
        float(theirs), abs=1e-6
    )
    prob, target = run(200, 4, 2)
    theirs = multiclass_calibration_error(
        torch.tensor(prob), torch.tensor(target), num_classes=4, n_bins=n_bins, norm="l1"
    )
    assert metrics.calibration_error(prob, target, n_bins=n_bins) == pytest.approx(
        float(theirs), abs=1e-6
    )


def test_calibration_bins_give_the_error_and_the_curve_of_scikit_learn() -> None:
    from sklearn.calibration import calibration_curve

    prob, target = run(200, 2, 3)
    bins = metrics.calibration_bins(prob, target, 10)
    fraction, mean_prob = calibration_curve(target, prob[:, 1], n_bins=10)
    assert [b["fraction"] for b in bins] == pytest.approx(list(fraction))
    assert [b["mean_prob"] for b in bins] == pytest.approx(list(mean_prob))
    gap = sum(b["n"] * abs(b["mean_prob"] - b["fraction"]) for b in bins) / 200
    assert gap == pytest.approx(metrics.calibration_error(prob, target))


def test_youden_is_the_best_of_the_roc_curve() -> None:
    prob, target = run(100, 2, 4, ties=True)
    fpr, tpr, _ = sk.roc_curve(target, prob[:, 1])
    threshold = metrics.threshold_youden(prob[:, 1], target)
    above = prob[:, 1] >= threshold
    gain = above[target == 1].mean() - above[target == 0].mean()
    assert gain == pytest.approx((tpr - fpr).max())


# -- DeLong -----------------------------------------------------------------------------------


def slow_covariance(scores: Floats, positive: Ints, patients: Ints) -> tuple[Floats, Floats]:
    """Obuchowski's equations, pair by pair and patient by patient."""
    pos, neg = np.flatnonzero(positive == 1), np.flatnonzero(positive == 0)
    m, n = len(pos), len(neg)

    def order(a: float, b: float) -> float:
        return 1.0 if a > b else 0.5 if a == b else 0.0

    auroc, a, b = [], [], []
    everybody = sorted(set(patients.tolist()))
    for s in scores:
        theta = sum(order(s[i], s[j]) for i in pos for j in neg) / (m * n)
        v10 = {i: sum(order(s[i], s[j]) for j in neg) / n for i in pos}
        v01 = {j: sum(order(s[i], s[j]) for i in pos) / m for j in neg}
        auroc.append(theta)
        a.append([sum(v10[i] - theta for i in pos if patients[i] == p) for p in everybody])
        b.append([sum(v01[j] - theta for j in neg if patients[j] == p) for p in everybody])
    i10, i01, i = len({*patients[pos]}), len({*patients[neg]}), len(everybody)
    cov = np.zeros((len(scores), len(scores)))
    for r, q in itertools.product(range(len(scores)), repeat=2):
        s10 = i10 / ((i10 - 1) * m) * sum(x * y for x, y in zip(a[r], a[q], strict=True))
        s01 = i01 / ((i01 - 1) * n) * sum(x * y for x, y in zip(b[r], b[q], strict=True))
        s11 = sum(x * y for x, y in zip(a[r], b[q], strict=True)) * i / (i - 1)
        s11 += sum(x * y for x, y in zip(a[q], b[r], strict=True)) * i / (i - 1)
        cov[r, q] = s10 / m + s01 / n + s11 / (m * n)
    return np.array(auroc), cov


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("per_patient", [1, 2, 3])
def test_delong_is_its_slow_version(ties: bool, per_patient: int) -> None:
    a, target = run(36, 2, 5, ties=ties)
    b, _ = run(36, 2, 6, ties=ties)
    scores, patients = np.stack([a[:, 1], b[:, 1]]), np.arange(36) // per_patient
    fast = auroc_covariance(scores, target, patients)
    slow = slow_covariance(scores, target, patients)
    np.testing.assert_allclose(fast[0], slow[0], atol=1e-12)
    np.testing.assert_allclose(fast[1], slow[1], atol=1e-12)
    assert fast[0][0] == pytest.approx(sk.roc_auc_score(target, a[:, 1]))


def test_delong_without_groups_is_the_textbook_covariance() -> None:
    """DeLong et al. (1988), equations 4 to 6: S10 / m + S01 / n with sample covariances."""
    a, target = run(50, 2, 7)
    b, _ = run(50, 2, 8)
    v10, v01 = [], []
    for s in (a[:, 1], b[:, 1]):
        psi = np.heaviside(s[target == 1][:, None] - s[target == 0][None], 0.5)
        v10.append(psi.mean(1))
        v01.append(psi.mean(0))
    expected = np.cov(v10) / len(v10[0]) + np.cov(v01) / len(v01[0])
    scores = np.stack([a[:, 1], b[:, 1]])
    np.testing.assert_allclose(auroc_covariance(scores, target, np.arange(50))[1], expected)


def test_hanley_and_mcneil_published_ct_ratings() -> None:
    """Hanley and McNeil, Radiology 143 (1982), 29, table 1: 58 normal and 51 abnormal CTs.

    The published area is 0.893 with a standard error of 0.032; `delong_auroc` is not their
    exponential approximation, so the error is only as close as the methods are.
    """
    normal, abnormal = (33, 6, 6, 11, 2), (3, 2, 2, 11, 33)
    rating = np.repeat([1, 2, 3, 4, 5] * 2, normal + abnormal) / 6
    target = np.repeat([0, 1], [58, 51])
    assert metrics.auroc(np.c_[1 - rating, rating], target) == pytest.approx(0.893, abs=5e-4)
    _, cov = auroc_covariance(rating[None], target, np.arange(109))
    assert math.sqrt(cov[0, 0]) == pytest.approx(0.032, abs=2e-3)


def test_kappa_published_by_cohen() -> None:
    """Cohen, Educational and Psychological Measurement 20 (1960), 37, table 1: kappa 0.492."""
    table = np.array([[88, 14, 18], [10, 40, 10], [2, 6, 12]])
    target, predicted = (np.repeat(axis.ravel(), table.ravel()) for axis in np.indices((3, 3)))
    assert metrics.kappa(predicted, target) == pytest.approx(0.492, abs=5e-4)


@pytest.mark.parametrize("per_patient", [1, 2, 4])
def test_delong_variance_is_that_of_the_bootstrap(per_patient: int) -> None:
    rng = np.random.default_rng(9)
    n = 240
    patients = [f"p{i // per_patient}" for i in range(n)]
    owner = numbered(patients, n)
    target = (owner % 2).astype(np.int64)
    # A patient's images share most of their luck.
    score = target * 1.2 + rng.normal(size=n // per_patient)[owner] + 0.3 * rng.normal(size=n)
    _, cov = auroc_covariance(score[None], target, owner)
    weight = patient_weights(target, owner, 4000, 0)
    resampled = metrics._weighted.auroc(score, target.astype(float), weight)  # type: ignore[attr-defined]
    assert math.sqrt(cov[0, 0]) == pytest.approx(resampled.std(), rel=0.08)


def test_paired_tests_agree_and_find_a_difference() -> None:
    rng = np.random.default_rng(10)
    n = 300
    target = np.r_[np.zeros(n // 2), np.ones(n // 2)].astype(np.int64)
    common = rng.normal(size=n)
    good, bad = (
        1 / (1 + np.exp(-(gain * target + common + 0.7 * rng.normal(size=n)))) for gain in (2, 1)
    )
    patients = [str(i) for i in range(n)]
    delong = metrics.paired_delong(good, bad, target, patients)
    boot = metrics.paired_bootstrap(np.c_[1 - good, good], np.c_[1 - bad, bad], target, patients)
    assert delong is not None
    assert boot is not None
    assert delong.value == pytest.approx(boot.value)
    assert (delong.lo, delong.hi) == pytest.approx((boot.lo, boot.hi), abs=0.01)
    assert delong.p_value < 0.01
    assert boot.p_value < 0.01
    assert delong.lo > 0


# -- resampling -------------------------------------------------------------------------------


def test_weights_are_the_same_as_repeated_images() -> None:
    """A weighting must score exactly as the resample it stands for."""
    prob, target = run(40, 3, 11, ties=True)
    patients = [f"p{i // 2}" for i in range(40)]
    weight = patient_weights(target, numbered(patients, 40), 30, 3)
    from foveate.metrics._scores import _values

    predicted = prob.argmax(1)
    fast = _values(prob, predicted, target, weight, True)
    for row, w in enumerate(weight.astype(int)):
        again = np.repeat(np.arange(40), w)
        one = np.ones((1, len(again)))
        slow = _values(prob[again], predicted[again], target[again], one, True)
        for name, value in slow.items():
            assert fast[name][row] == pytest.approx(value[0], abs=1e-12), name


def simulated(rng: np.random.Generator, n: int, gap: float) -> tuple[Floats, Ints, list[str]]:
    """Two images of each patient; the true AUROC is that of normals `gap` apart."""
    owner = np.repeat(np.arange(n), 2)
    target = (owner % 2).astype(np.int64)
    score = gap * target + 0.8 * rng.normal(size=n)[owner] + 0.6 * rng.normal(size=2 * n)
    prob = 1 / (1 + np.exp(-score))
    return np.c_[1 - prob, prob], target, [str(p) for p in owner]


@pytest.mark.parametrize(("n", "gap"), [(20, 1.0), (60, 1.0), (20, 2.5), (60, 2.5)])
def test_intervals_cover_the_true_auroc(n: int, gap: float) -> None:
    truth = norm.cdf(gap / math.sqrt(2))
    rng = np.random.default_rng(12)
    covered = {"auroc": 0, "auroc_delong": 0}
    for seed in range(200):
        prob, target, patients = simulated(rng, n, gap)
        scores = metrics.score_all(prob, target, patients, seed=seed, n_boot=400)
        for name in covered:
            covered[name] += scores[name].lo <= truth <= scores[name].hi
    assert covered["auroc"] / 200 >= 0.88
    assert covered["auroc_delong"] / 200 >= 0.91


def test_bound_of_a_perfect_score_covers() -> None:
    """The bound may be missed by the truth in 2.5 % of all draws at most, whatever the truth."""
    rng = np.random.default_rng(13)
    for gap in (1.0, 2.0, 3.0):
        truth, missed = norm.cdf(gap / math.sqrt(2)), 0
        for _ in range(2000):
            prob, target, patients = simulated(rng, 8, gap)
            score = metrics.delong_auroc(prob[:, 1], target, patients)
            assert score is not None
            missed += score.value == 1 and truth < score.lo
        assert missed / 2000 <= 0.03
