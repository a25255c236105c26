"""Resampling equals multiplication with a dense matrix of filter weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.images.resample import resample, resample_slow, support, weights


def matrix(start: float, step: float, n_out: int, n_in: int) -> np.ndarray:
    """Return the matrix ``(n_out, n_in)`` of triangle weights, normalised inside the image."""
    rows = np.zeros((n_out, n_in))
    radius = max(step, 1.0)
    for j in range(n_out):
        centre = start + (j + 0.5) * step
        for i in range(n_in):
            rows[j, i] = max(0.0, 1 - abs(i + 0.5 - centre) / radius)
        rows[j] /= rows[j].sum()
    return rows


def dense(region: np.ndarray, start, step, shape) -> np.ndarray:
    out = region.astype(np.float64)
    for axis, (o, s, n) in enumerate(zip(start, step, shape, strict=True)):
        mat = matrix(o, s, n, region.shape[axis])
        out = np.moveaxis(np.tensordot(mat, out, axes=(1, axis)), 0, axis)
    return out


def noise(shape, dtype=np.uint8, seed=0) -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, shape, dtype, endpoint=True)


STEPS = st.floats(0.3, 7.0)
STARTS = st.floats(0.0, 5.0)
COUNTS = st.integers(1, 9)


@settings(max_examples=60, deadline=None)
@given(STARTS, STARTS, STEPS, STEPS, COUNTS, COUNTS, st.sampled_from([1, 3]))
def test_pictures_agree_with_the_matrix_within_one_grey_level(y, x, sy, sx, ny, nx, channels):
    height, width = int(np.ceil(y + sy * ny)), int(np.ceil(x + sx * nx))
    region = noise((height, width, channels))
    fast = resample(region, (y, x), (sy, sx), (ny, nx))
    exact = dense(region, (y, x), (sy, sx), (ny, nx))
    assert fast.shape == (ny, nx, channels)
    assert fast.dtype == np.uint8
    assert np.abs(fast - exact).max() <= 1.01


@settings(max_examples=40, deadline=None)
@given(STARTS, STARTS, STEPS, STEPS, COUNTS, COUNTS)
def test_sixteen_bits_agree_with_the_matrix(y, x, sy, sx, ny, nx):
    region = noise((int(np.ceil(y + sy * ny)), int(np.ceil(x + sx * nx)), 1), np.uint16)
    slow = resample(region, (y, x), (sy, sx), (ny, nx))
    assert slow.dtype == np.uint16
    assert np.abs(slow - dense(region, (y, x), (sy, sx), (ny, nx))).max() <= 0.6


def test_volumes_agree_with_the_matrix():
    region = noise((9, 11, 13, 2), np.uint16)
    start, step, shape = (0.3, 1.2, 0.0), (2.1, 0.7, 1.5), (3, 9, 8)
    out = resample(region, start, step, shape)
    assert np.abs(out - dense(region, start, step, shape)).max() <= 0.6


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_integer_shift_with_step_one_copies_the_source(dtype):
    region = noise((8, 9, 3), dtype)
    out = resample(region, (2.0, 3.0), (1.0, 1.0), (4, 5))
    np.testing.assert_array_equal(out, region[2:6, 3:8])
    np.testing.assert_array_equal(resample_slow(region, (2.0, 3.0), (1.0, 1.0), (4, 5)), out)


def test_a_grid_that_leaves_the_region_is_renormalised_not_squeezed():
    region = noise((20, 20, 3))
    start, step, shape = (-0.7, 17.2), (1.3, 1.3), (5, 3)
    out = resample(region, start, step, shape)
    assert np.abs(out - dense(region, start, step, shape)).max() <= 1.01


def test_a_grid_far_outside_is_an_error():
    with pytest.raises(ValueError, match="beyond the region"):
        resample(noise((8, 8, 3)), (20.0, 0.0), (1.0, 1.0), (2, 2))


def test_a_fourth_channel_is_not_treated_as_alpha():
    region = noise((16, 16, 4))
    out = resample(region, (0.0, 0.0), (2.0, 2.0), (8, 8))
    assert np.abs(out - dense(region, (0.0, 0.0), (2.0, 2.0), (8, 8))).max() <= 1.01


def test_extreme_values_do_not_wrap():
    region = np.zeros((12, 12, 1), np.uint16)
    region[6:] = 65535
    out = resample(region, (0.25, 0.25), (0.9, 0.9), (10, 10))
    assert out.min() == 0
    assert out.max() == 65535


@given(STARTS, STEPS)
def test_weights_equal_a_row_of_the_matrix(start, step):
    n = int(np.ceil(start + step + support(step))) + 1
    before = int(support(step)) + 2
    (row,) = weights(start, step, 1, -before, before + n)
    assert row.sum() == pytest.approx(1)
    inside = row[before:]
    np.testing.assert_allclose(inside / inside.sum(), matrix(start, step, 1, n)[0], atol=1e-12)
    (cut,) = weights(start, step, 1, 1, n - 1)
    np.testing.assert_array_equal(cut, inside[1:])


def test_strong_reduction_is_exact_for_few_outputs():
    """The two code paths for few and many output pixels agree."""
    region = np.random.default_rng(0).integers(0, 1 << 16, (300, 40, 1), np.uint16)
    actual = resample_slow(region, (0.0, 0.0), (100.0, 1.0), (3, 40))
    exact = matrix(0.0, 100.0, 3, 300) @ region[..., 0]
    assert np.abs(actual[..., 0] - exact).max() <= 0.6
