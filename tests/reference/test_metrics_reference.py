"""Every metric against scikit-learn, published numbers or a slow obvious version."""

from __future__ import annotations

import math

import numpy as np
import pytest
import sklearn.metrics as sk
from scipy.stats import norm

from foveate import metrics
from foveate.metrics import weighted
from foveate.metrics.intervals import auroc_variance
from foveate.metrics.jackknife import group_patients, measure_leaving_out
from foveate.metrics.types import Floats, Ints


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
def test_values_match_scikit_learn(n: int, k: int, ties: bool) -> None:
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
    scores = metrics.score_all(prob, target, [str(i) for i in range(n)], ordinal=True)
    assert {name: scores[name].value for name in expected} == pytest.approx(expected, abs=1e-12)
    assert metrics.auroc(prob, target) == pytest.approx(expected["auroc"], abs=1e-12)
    assert np.array_equal(
        metrics.confusion(predicted, target, k),
        sk.confusion_matrix(target, predicted, labels=range(k)),
    )


def ece(prob: Floats, target: Ints) -> float:
    patients = [str(i) for i in range(len(target))]
    return metrics.score_all(prob, target, patients)["ece"].value


def test_calibration_error_matches_another_library() -> None:
    """The numbers are those of torchmetrics 1.9.0, with ten bins and the norm l1.

    It is not imported, because with it in the environment every process of Fabric starts slowly.
    """
    assert ece(*run(200, 2, 1)) == pytest.approx(0.07873579465422573, abs=1e-12)
    assert ece(*run(200, 4, 2)) == pytest.approx(0.06862317770719528, abs=1e-6)


def test_calibration_bins_match_scikit_learn() -> None:
    from sklearn.calibration import calibration_curve

    prob, target = run(200, 2, 3)
    bins = metrics.calibration_bins(prob, target)
    fraction, mean_prob = calibration_curve(target, prob[:, 1], n_bins=10)
    assert [b["fraction"] for b in bins] == pytest.approx(list(fraction))
    assert [b["mean_prob"] for b in bins] == pytest.approx(list(mean_prob))
    gap = sum(b["n"] * abs(b["mean_prob"] - b["fraction"]) for b in bins) / 200
    assert gap == pytest.approx(ece(prob, target))


def test_youden_threshold_maximises_the_roc_curve() -> None:
    prob, target = run(100, 2, 4, ties=True)
    fpr, tpr, _ = sk.roc_curve(target, prob[:, 1])
    threshold = metrics.threshold_youden(prob[:, 1], target)
    above = prob[:, 1] >= threshold
    gain = above[target == 1].mean() - above[target == 0].mean()
    assert gain == pytest.approx((tpr - fpr).max())


# -- variances --------------------------------------------------------------------------------


def influences(score: Floats, target: Ints, owner: Ints, fold: Ints | None = None) -> Floats:
    """Return the influence of each patient on the AUROC, by the product's jackknife."""
    fold = np.zeros_like(target) if fold is None else fold
    cohort = group_patients(target, owner, fold)
    one = target.astype(float)

    def measure(weight: Floats) -> Floats:
        return weighted.auroc(score, one, weight, fold)

    full = float(measure(np.ones((1, len(score))))[0])
    return cohort.compute_influence(full, measure_leaving_out(cohort, measure))


def test_jackknife_variance_matches_delong() -> None:
    """DeLong et al. (1988), equations 4 to 6: S10 / m + S01 / n with sample covariances."""
    for seed, ties in ((7, False), (8, True)):
        prob, target = run(50, 2, seed, ties=ties)
        score = prob[:, 1]
        psi = np.heaviside(score[target == 1][:, None] - score[target == 0][None], 0.5)
        m, n = psi.shape
        expected = psi.mean(1).var(ddof=1) / m + psi.mean(0).var(ddof=1) / n
        actual = influences(score, target, np.arange(50))
        assert (actual**2).sum() == pytest.approx(expected, rel=1e-9)


def test_hanley_and_mcneil_published_ct_ratings() -> None:
    """Hanley and McNeil, Radiology 143 (1982), 29, table 1: 58 normal and 51 abnormal CTs.

    The published area is 0.893 with a standard error of 0.032, which is also about what the
    expected variance (`auroc_variance`) says of this many patients.
    """
    normal, abnormal = (33, 6, 6, 11, 2), (3, 2, 2, 11, 33)
    rating = np.repeat([1, 2, 3, 4, 5] * 2, normal + abnormal) / 6
    target = np.repeat([0, 1], [58, 51])
    assert metrics.auroc(np.c_[1 - rating, rating], target) == pytest.approx(0.893, abs=5e-4)
    actual = influences(rating, target, np.arange(109))
    assert math.sqrt((actual**2).sum()) == pytest.approx(0.032, abs=2e-3)
    cohort = group_patients(target, np.arange(109), np.zeros(109, np.int64))
    assert math.sqrt(auroc_variance(cohort, [1])(0.893)) == pytest.approx(0.032, abs=1e-3)


def test_kappa_matches_cohens_published_example() -> None:
    """Cohen, Educational and Psychological Measurement 20 (1960), 37, table 1: kappa 0.492."""
    table = np.array([[88, 14, 18], [10, 40, 10], [2, 6, 12]])
    assert weighted.kappa(table[None].astype(float), 0)[0] == pytest.approx(0.492, abs=5e-4)


@pytest.mark.parametrize("per_patient", [1, 2, 4])
@pytest.mark.parametrize("n_folds", [1, 5])
def test_jackknife_variance_matches_simulated_cohorts(per_patient: int, n_folds: int) -> None:
    """Images of a patient are strongly correlated; cohorts are drawn many times."""
    rng = np.random.default_rng(9)
    n = 240
    owner = np.arange(n) // per_patient
    target = (owner % 2).astype(np.int64)
    fold = owner // 2 % n_folds
    areas, variances = [], []
    for k in range(1000):
        score = target * 1.2 + rng.normal(size=n // per_patient)[owner] + 0.3 * rng.normal(size=n)
        one = np.ones((1, n))
        areas.append(weighted.auroc(score, target.astype(float), one, fold)[0])
        if k < 60:
            variances.append((influences(score, target, owner, fold) ** 2).sum())
    # In small folds DeLong's variance is known to be too large: a few negatives rank each positive.
    ratio = np.sqrt(np.mean(variances)) / np.std(areas)
    assert 0.92 < ratio < (1.08 if n_folds == 1 else 1.2)


def test_zero_weight_equals_removal() -> None:
    """Weights of 0 and 1 give the same score as the images of weight 1 alone."""
    prob, target = run(40, 2, 11, ties=True)
    owner, fold = np.arange(40) // 2, np.arange(40) // 2 % 3
    weight = group_patients(target, owner, fold).leave_one_out_weights()
    positive = target.astype(float)
    for curve in (weighted.auroc, weighted.average_precision):
        fast = curve(prob[:, 1], positive, weight, fold)
        for row, w in enumerate(weight):
            inside = w > 0
            one = np.ones((1, int(inside.sum())))
            slow = curve(prob[inside, 1], positive[inside], one, fold[inside])
            assert fast[row] == pytest.approx(slow[0], abs=1e-12)


def test_fold_areas_are_averaged_by_number_of_pairs() -> None:
    prob, target = run(90, 2, 12)
    fold = np.repeat([0, 1, 2], [20, 30, 40])
    one, positive = np.ones((1, 90)), target.astype(float)
    for curve, theirs in (
        (weighted.auroc, sk.roc_auc_score),
        (weighted.average_precision, sk.average_precision_score),
    ):
        areas = [theirs(target[fold == f], prob[fold == f, 1]) for f in range(3)]
        pairs = [(target[fold == f] == 1).sum() * (target[fold == f] == 0).sum() for f in range(3)]
        actual = curve(prob[:, 1], positive, one, fold)[0]
        assert actual == pytest.approx(np.average(areas, weights=pairs))


def test_comparison_matches_delongs_paired_test_for_many_patients() -> None:
    rng = np.random.default_rng(10)
    n = 300
    target = np.r_[np.zeros(n // 2), np.ones(n // 2)].astype(np.int64)
    common = rng.normal(size=n)
    good, bad = (
        1 / (1 + np.exp(-(gain * target + common + 0.7 * rng.normal(size=n)))) for gain in (2, 1)
    )
    patients = [str(i) for i in range(n)]
    actual = metrics.compare_scores(np.c_[1 - good, good], np.c_[1 - bad, bad], target, patients)[
        "auroc"
    ]
    change = influences(good, target, np.arange(n)) - influences(bad, target, np.arange(n))
    half = norm.ppf(0.975) * math.sqrt((change**2).sum())
    areas = [sk.roc_auc_score(target, score) for score in (good, bad)]
    assert actual.value == pytest.approx(areas[0] - areas[1])
    assert (actual.lo, actual.hi) == pytest.approx(
        (actual.value - half, actual.value + half), abs=0.015
    )
    assert actual.p_value < 0.01
