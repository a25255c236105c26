"""Numbers and figures that once said more than was known: intervals, folds, maps."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import norm

from foveate.heatmaps.picture import _warnings
from foveate.heatmaps.raster import scale_of
from foveate.images.evidence import Evidence
from foveate.metrics import score_all
from foveate.metrics.types import Floats, Ints

# -- intervals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "share", "area"), [(20, 0.2, 0.9), (20, 0.5, 0.75)])
def test_intervals_of_losses_cover_the_truth(n: int, share: float, area: float) -> None:
    """The percentile bootstrap of the Brier score covered 0.79.

    The model is too confident, and three images of a patient are nearly alike.
    """
    rng, gap = np.random.default_rng(3), float(np.sqrt(2) * norm.ppf(area))
    n_pos, n_draws = round(share * n), 150

    def stated(target: Ints, noise: Floats) -> Floats:
        """Return probabilities of the positive class, of twice the logit that is true."""
        score = gap * target + noise
        return np.asarray(expit(2 * (logit(share) + gap * score - gap**2 / 2)))

    many = np.arange(200_000) % n < n_pos
    p = stated(many.astype(np.int64), rng.normal(size=len(many)))
    of_label = np.where(many, p, 1 - p)
    truth = {"brier": np.mean((1 - of_label) ** 2), "log_loss": -np.mean(np.log(of_label))}
    owner = np.repeat(np.arange(n), 3)
    target = (owner < n_pos).astype(np.int64)
    covered = dict.fromkeys(truth, 0)
    for _ in range(n_draws):
        noise = np.sqrt(0.9) * rng.normal(size=n)[owner] + np.sqrt(0.1) * rng.normal(size=3 * n)
        p = stated(target, noise)
        scores = score_all(np.stack([1 - p, p], 1), target, [str(i) for i in owner])
        for name in truth:
            covered[name] += scores[name].lo <= truth[name] <= scores[name].hi
    assert all(count >= 0.86 * n_draws for count in covered.values()), covered


# -- folds -----------------------------------------------------------------------------------------


def test_classes_are_ranked_within_folds() -> None:
    """Three classes; the models of the folds state probabilities of different scales."""
    rng = np.random.default_rng(1)
    target, fold = np.tile([0, 1, 2], 20), np.repeat([0, 1, 2, 3, 4], 12)
    logits = rng.normal(size=(60, 3)) + 1.5 * np.eye(3)[target]
    logits += 3.0 * rng.normal(size=(5, 3))[fold]
    prob = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    patients = [f"p{i}" for i in range(60)]
    within = score_all(prob, target, patients, folds=fold.tolist())
    pooled = score_all(prob, target, patients)
    for name in ("auroc", "auprc"):
        single = []
        for k in range(5):
            mine = fold == k
            own_patients = [p for p, is_mine in zip(patients, mine, strict=True) if is_mine]
            single.append(score_all(prob[mine], target[mine], own_patients)[name].value)
        assert within[name].value == pytest.approx(np.mean(single))
        assert within[name].value > pooled[name].value + 0.05
        assert "within a fold" in within[name].method
    assert within["accuracy"].value == pooled["accuracy"].value, "decisions are pooled"


# -- maps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("peak", "indifferent"), [(1.01, True), (1.2, True), (1.6, False)])
def test_a_picture_says_that_its_map_prefers_no_place(peak: float, indifferent: bool) -> None:
    rng = np.random.default_rng(0)
    weight = rng.uniform(0.995, 1.005, 64)
    weight[17] = peak
    origin = np.array([[10.0 * (i // 8), 10.0 * (i % 8)] for i in range(64)])
    evidence = Evidence(origin, np.full_like(origin, 10.0), weight / weight.sum())
    lines = _warnings(scale_of(evidence), evidence)
    assert [line for line in lines if "so the model preferred no place" in line] == (
        lines if indifferent else []
    )
    assert len(lines) == indifferent
    strength = scale_of(evidence).strength(evidence.weight)
    assert strength.max() < (0.1 if peak < 1.25 else 0.5), "colours show the distance from even"
