"""Values of volumes become greys, in Hounsfield units on one scale for all files and formats."""

from __future__ import annotations

import math

import numpy as np
import pytest

from foveate.formats.grey_scale import HOUNSFIELD, choose_scale, sampling_step


def ct(*, shift: float = 0.0) -> np.ndarray:
    """Return values of air, lung, soft tissue and bone, all moved by `shift`."""
    rng = np.random.default_rng(0)
    tissues = [(-1000, 10, 400), (-800, 60, 200), (40, 30, 350), (700, 200, 50)]
    return np.concatenate([rng.normal(*tissue) for tissue in tissues]) + shift


@pytest.mark.parametrize(
    ("value_hu", "grey"),
    [
        (-2000, 0),
        (-1024, 0),
        (-160, 16384),
        (40, 32768),
        (240, 49151),
        (3071, 65535),
        (9999, 65535),
    ],
)
def test_hounsfield_units_have_one_scale(value_hu: float, grey: int) -> None:
    assert HOUNSFIELD.convert(np.array([[float(value_hu)]])) == [[grey]]


def test_half_of_the_greys_show_soft_tissue() -> None:
    low, high = HOUNSFIELD.convert(np.array([-160.0, 240.0])).tolist()
    assert (high - low) / 65535 == pytest.approx(0.5, abs=1e-4)


def test_ct_is_recognised_by_its_values() -> None:
    assert choose_scale(ct()) is HOUNSFIELD
    padded = np.concatenate([ct(), np.full(400, -3024.0)])
    assert choose_scale(padded) is HOUNSFIELD
    assert choose_scale(ct(shift=1024)) is not HOUNSFIELD
    soft = ct()[600:]
    assert choose_scale(soft) is not HOUNSFIELD


def test_a_mask_is_white_at_its_largest_value() -> None:
    scale = choose_scale(np.array([0.0, 0.0, 1.0, 3.0]))
    assert scale.convert(np.array([0.0, 1.0, 3.0])).tolist() == [0, 21845, 65535]


def test_a_volume_without_a_unit_is_clipped_at_its_percentiles() -> None:
    values = np.random.default_rng(0).gamma(2.0, 100.0, 10_000)
    scale = choose_scale(values)
    assert scale.values == pytest.approx(np.percentile(values, (0.5, 99.5)))


@pytest.mark.parametrize(
    ("shape", "step"),
    [((1024, 1024), 1), ((40_000, 25_000), 31), ((128, 128, 64), 1), ((1000, 1000, 1000), 10)],
)
def test_about_a_million_values_are_sampled(shape: tuple[int, ...], step: int) -> None:
    assert sampling_step(shape) == step
    assert math.prod(len(range(0, n, step)) for n in shape) == pytest.approx(1 << 20, rel=0.05)


def test_a_volume_of_one_value_is_black() -> None:
    scale = choose_scale(np.full(10, 7.0))
    assert scale.convert(np.array([7.0])).tolist() == [0]
