"""The audit of heatmaps: covered boxes, curves, masks, and agreement between models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from foveate.errors import TableError
from foveate.evaluation import faithfulness
from foveate.evaluation.faithfulness import SHARES, compute_area, explain_unranked, trace_curves
from foveate.evaluation.localisation import measure_agreement, read_mask
from foveate.evaluation.stability import correlate_answers, correlate_evidence, spread_on_grid
from foveate.geometry import Box, Frame
from foveate.images.covered import Cover, CoveredImage
from foveate.images.evidence import Evidence
from foveate.images.stored import Recipe, StoredPatches
from foveate.metrics import measure_mean
from foveate.workflows.audit_words import describe_audit
from helpers.images import PyramidImage, build_pyramid


def grid_evidence(weight: object, side: float = 8.0, n: int = 4) -> Evidence:
    """Evidence of n by n boxes side by side, with weights row by row."""
    at = np.stack(np.meshgrid(np.arange(n), np.arange(n), indexing="ij"), -1).reshape(-1, 2) * side
    size = np.full_like(at, side)
    return Evidence(at, size, np.asarray(weight, float), extent_um=np.full(2, side * n))


# -- covering --------------------------------------------------------------------------------------


def test_covered_boxes_have_the_background_at_every_level() -> None:
    pixels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64, 1) + 1
    image = PyramidImage(*build_pyramid(pixels, (1, 2)), spacing_um=(0.5, 0.5), background=[0])
    cover = Cover(np.array([[4.0, 8.0], [30.0, 30.0]]), np.array([[6.0, 3.0], [50.0, 50.0]]))
    covered = CoveredImage(image, cover)
    for level, scale in ((0, 2), (1, 1)):
        shape = image.levels[level].shape
        seen = covered.read(Box((0, 0), shape, Frame.PX, level))[..., 0]
        hidden = np.zeros(shape, bool)
        hidden[4 * scale : 10 * scale, 8 * scale : 11 * scale] = True
        hidden[30 * scale :, 30 * scale :] = True
        np.testing.assert_array_equal(seen == 0, hidden)
        plain = image.read(Box((0, 0), shape, Frame.PX, level))[..., 0]
        np.testing.assert_array_equal(seen[~hidden], plain[~hidden])
    # A region is covered as the whole is.
    part = covered.read(Box((6, 14), (9, 11), Frame.PX, 0))
    whole = covered.read(Box((0, 0), (64, 64), Frame.PX, 0))
    np.testing.assert_array_equal(part, whole[6:15, 14:25])
    np.testing.assert_array_equal(image.pixels, pixels)


def test_volumes_are_covered_alike() -> None:
    image = PyramidImage(np.ones((6, 6, 6, 1), np.uint8), spacing_um=(1.0,) * 3, background=[0])
    cover = Cover(np.array([[1.0, 2.0, 3.0]]), np.array([[2.0, 2.0, 2.0]]))
    seen = CoveredImage(image, cover).read(Box((0, 0, 0), (6, 6, 6), Frame.PX, 0))
    assert seen.sum() == 6**3 - 8
    assert not seen[1:3, 2:4, 3:5].any()


def test_stored_patches_in_covered_boxes_have_the_mean_vector() -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    corners = np.array([[0.0, 0.0], [0.0, 8.0], [8.0, 0.0], [8.0, 8.0]])
    image = PyramidImage(np.ones((16, 16, 1), np.uint8), spacing_um=(0.5, 0.5), background=[0])
    image.stored = StoredPatches(
        Recipe("e", 3), corners, 8.0, 8, False, True, lambda rows: vectors[rows]
    )
    covered = CoveredImage(image, Cover(np.array([[0.0, 4.0]]), np.array([[4.0, 4.0]])))
    assert covered.stored is not None
    seen = covered.stored.read(np.array([3, 1, 0]))
    np.testing.assert_allclose(seen, [vectors[3], vectors.mean(0), vectors[0]])
    np.testing.assert_array_equal(image.stored.read(np.arange(4)), vectors)


# -- faithfulness ----------------------------------------------------------------------------------


def trace(weight: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> faithfulness.ImageCurves:
    """Trace a model whose probability is the sum of bright pixels of its image."""
    truth = np.linspace(0, 1, 16) ** 4
    pixels = np.repeat(np.repeat((255 * truth).reshape(4, 4), 8, 0), 8, 1).astype(np.uint8)
    image = PyramidImage(pixels[..., None], background=[0])
    item = SimpleNamespace(image=image, glimpse=pixels[::4, ::4, None])

    def predict(models, opened, on_progress=None):
        seen = opened.item.image.read(Box((0, 0), (32, 32), Frame.PX, 0))
        assert (opened.item.glimpse == seen[::4, ::4]).all()
        p = float(seen.sum() / pixels.sum())
        return SimpleNamespace(values=(1 - p, p), evidence=grid_evidence(weight))

    monkeypatch.setattr(faithfulness, "predict_open", predict)
    monkeypatch.setattr(faithfulness, "replace", replace_namespace)
    task = SimpleNamespace(columns=("prob_no", "prob_yes"), predict=lambda values, point: "yes")
    view = SimpleNamespace(glimpse_spacing_um=4.0)
    opened = SimpleNamespace(item=item, loader=SimpleNamespace(view=view))
    models = SimpleNamespace(task=task, point={})
    return trace_curves(models, opened, predict(models, opened))


def replace_namespace(value, **changes):
    if isinstance(value, SimpleNamespace):
        return SimpleNamespace(**{**vars(value), **changes})
    return replace(value, **changes)


def test_true_weights_are_faithful_and_reversed_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    curves = trace(np.linspace(0, 1, 16) ** 4, monkeypatch)
    assert curves.deletion[0] == curves.insertion[-1] == 1.0
    assert curves.deletion[-1] == curves.insertion[0] == 0.0
    assert list(curves.deletion) == sorted(curves.deletion, reverse=True)
    assert curves.deletion_gain > 0.1
    assert curves.insertion_gain > 0.1
    wrong = trace(np.linspace(1, 0, 16) ** 4, monkeypatch)
    assert wrong.deletion_gain < -0.1
    assert wrong.insertion_gain < -0.1
    assert wrong.random_deletion == curves.random_deletion


def test_areas_are_those_of_trapezoids() -> None:
    assert compute_area([1.0] * len(SHARES)) == pytest.approx(1.0)
    assert compute_area(SHARES) == pytest.approx(0.5)


def test_evidence_without_preference_is_named() -> None:
    assert "same weight" in explain_unranked(grid_evidence(np.full(16, 0.1)))
    assert "fewer than 4 boxes" in explain_unranked(
        Evidence(np.zeros((1, 2)), np.ones((1, 2)), np.ones(1))
    )
    assert explain_unranked(grid_evidence(np.arange(16))) == ""


# -- localisation ----------------------------------------------------------------------------------


def quarter_mask() -> np.ndarray:
    mask = np.zeros((64, 64), bool)
    mask[:32, :32] = True  # the four boxes of the upper left quarter
    return mask


def weights_of(*heavy: int) -> np.ndarray:
    weight = np.full(16, 0.01)
    weight[list(heavy)] = 1.0
    return weight


def test_agreement_with_a_mask_is_measured() -> None:
    path = Path("m.png")
    good = measure_agreement(grid_evidence(weights_of(0, 1, 4, 5)), quarter_mask(), path)
    assert good is not None
    assert good.peak_in_mask == good.heaviest_in_mask == 1.0
    assert good.weight_in_mask == pytest.approx(4 / 4.12)
    assert good.average_precision == pytest.approx(1.0)
    assert good.mask_share == 0.25
    bad = measure_agreement(grid_evidence(weights_of(10, 11, 14, 15)), quarter_mask(), path)
    assert bad is not None
    assert bad.peak_in_mask == bad.heaviest_in_mask == 0.0
    assert bad.average_precision == pytest.approx(0.25, abs=0.01)
    flat = measure_agreement(grid_evidence(np.full(16, 0.1)), quarter_mask(), path)
    assert flat is not None
    assert flat.average_precision == pytest.approx(0.25)
    assert flat.weight_in_mask == pytest.approx(0.25)


def test_half_a_box_in_the_mask_counts_half() -> None:
    mask = np.zeros((64, 64), bool)
    mask[:, :8] = True  # half of each box of the first column
    agreement = measure_agreement(grid_evidence(weights_of(0)), mask, Path("m.png"))
    assert agreement is not None
    assert agreement.heaviest_in_mask == pytest.approx(0.5)


def test_a_mask_that_no_box_covers_lowers_the_precision() -> None:
    evidence = grid_evidence(weights_of(0))
    seen = evidence.pick(np.arange(16) == 0)
    agreement = measure_agreement(seen, quarter_mask(), Path("m.png"))
    assert agreement is not None
    assert agreement.average_precision == pytest.approx(0.25 * 1 + 0.75 * 0.25)


def test_masks_that_do_not_fit_are_refused() -> None:
    evidence = grid_evidence(np.arange(16))
    with pytest.raises(TableError, match=r"wide\.png: the mask has 10 x 40 pixels"):
        measure_agreement(evidence, np.ones((10, 40), bool), Path("wide.png"))
    with pytest.raises(TableError, match="3 axes, expected 2"):
        measure_agreement(evidence, np.ones((4, 4, 4), bool), Path("m.nii"))
    assert measure_agreement(evidence, np.zeros((8, 8), bool), Path("m.png")) is None


def test_a_mask_is_read_from_a_picture(tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[5:9, 7:30, 1] = 3
    Image.fromarray(pixels).save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png")
    np.testing.assert_array_equal(mask, pixels.any(-1))


# -- stability -------------------------------------------------------------------------------------


def test_weights_are_spread_by_area() -> None:
    weight = np.arange(16.0)
    grid = spread_on_grid(grid_evidence(weight), np.full(2, 32.0))
    assert grid.shape == (24, 24)
    assert grid.sum() == pytest.approx(weight.sum())
    np.testing.assert_allclose(grid[:6, 6:12], 1 / 36)


def test_like_evidence_correlates() -> None:
    weight = np.random.default_rng(0).permutation(16).astype(float)
    same = correlate_evidence([grid_evidence(weight), grid_evidence(2 * weight)])
    assert same == pytest.approx(1.0)
    assert correlate_evidence([grid_evidence(weight), grid_evidence(15 - weight)]) == pytest.approx(
        -1.0
    )
    assert correlate_evidence([grid_evidence(weight)]) is None


def test_answers_are_ranked_over_images() -> None:
    first = np.linspace(0.1, 0.9, 6)
    answers = np.stack([np.stack([1 - p, p], 1) for p in (first, first**2, first[::-1])])
    assert correlate_answers(answers[:2]) == pytest.approx(1.0)
    assert correlate_answers(answers) == pytest.approx(-1 / 3)
    assert correlate_answers(answers[:, :4]) is None


# -- means and words -------------------------------------------------------------------------------


def test_means_have_intervals_over_patients() -> None:
    score = measure_mean([1.0, 3.0, 5.0, 5.0], ["a", "b", "c", "c"])
    assert (score.value, score.n) == (3.0, 4)
    assert score.hi - 3.0 == pytest.approx(4.30265 * 2 / 3**0.5, rel=1e-4)
    assert measure_mean([2.0], ["a"]).hi == np.inf


def test_missing_measures_are_said() -> None:
    content = {
        "n_images": 3, "faithfulness": None, "unranked": {"all boxes have the same weight": 3},
        "localisation": None, "stability": None, "cost": {"seconds": 2.0, "decoded_fraction": 0.1},
    }  # fmt: skip
    faithful, localised, stable, cost = describe_audit(content)
    assert "3 images left out: all boxes have the same weight" in faithful
    assert "no test image has a mask" in localised
    assert "one model answers" in stable
    assert "2.0 s on average, and 10 %" in cost
