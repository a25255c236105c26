"""The shared code of all images, tested on a pyramid in memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foveate.errors import BoxError, MissingSpacing
from foveate.geometry import Box, Frame
from foveate.images.image import glimpse_shape
from foveate.images.respaced import RespacedImage, fit_to_shape
from helpers.images import PyramidImage


def noise(shape, dtype=np.uint8, seed=1):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, shape, dtype, endpoint=True)


def expected_read_at(pixels, background, origin_px, step, shape):
    """Compute the expected result of `read_at` from one level with a dense matrix."""
    pad = 40 + math.ceil(
        max(abs(o) + s * n for o, s, n in zip(origin_px, step, shape, strict=True))
    )
    widths = [(pad, pad)] * (pixels.ndim - 1)
    out = np.stack(
        [
            np.pad(pixels[..., c].astype(float), widths, constant_values=background[c])
            for c in range(pixels.shape[-1])
        ],
        -1,
    )
    for axis, (o, s, n) in enumerate(zip(origin_px, step, shape, strict=True)):
        radius, index = max(s, 1.0), np.arange(out.shape[axis]) + 0.5 - pad
        centres = o + (np.arange(n) + 0.5) * s
        rows = np.maximum(0, 1 - np.abs(index[None] - centres[:, None]) / radius)
        rows /= rows.sum(1, keepdims=True)
        out = np.moveaxis(np.tensordot(rows, out, axes=(1, axis)), 0, axis)
    return out


PAPER = (200.0, 210.0, 220.0)


@pytest.mark.parametrize("origin", [(5, 7), (-4, -6), (30, 40), (-10, 20), (100, 0), (-50, -50)])
def test_regions_inside_across_and_outside_are_read(origin):
    pixels = noise((40, 50, 3))
    image = PyramidImage(pixels, background=PAPER)
    actual = image.read(Box(origin, (13, 17), Frame.PX, 0))
    np.testing.assert_array_equal(
        actual, expected_read_at(pixels, PAPER, origin, (1.0, 1.0), (13, 17)).astype(np.uint8)
    )


@pytest.mark.parametrize(
    "box",
    [
        Box((0, 0), (4, 4), Frame.UM),
        Box((0, 0), (4, 4), Frame.PX0),
        Box((0.5, 0), (4, 4), Frame.PX, 0),
        Box((0, 0), (4.5, 4), Frame.PX, 0),
    ],
)
def test_read_requires_integer_pixels_of_a_level(box):
    with pytest.raises(BoxError):
        PyramidImage(noise((8, 8, 3))).read(box)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.tuples(st.floats(-20, 50), st.floats(-20, 60)),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.sampled_from([0.2014, 0.2528, 0.31, 0.4942, 0.7, 1.3]),
    st.tuples(st.floats(0.2, 0.6), st.floats(0.2, 0.6)),
)
def test_read_at_agrees_with_the_dense_matrix(origin_um, shape, target_um, spacing_um):
    pixels = noise((60, 71, 3))
    image = PyramidImage(pixels, spacing_um=spacing_um, background=PAPER)
    size = tuple(n * target_um for n in shape)
    actual = image.read_at(Box(origin_um, size, Frame.UM), shape)
    origin_px = [o / s for o, s in zip(origin_um, spacing_um, strict=True)]
    step = [target_um / s for s in spacing_um]
    assert np.abs(actual - expected_read_at(pixels, PAPER, origin_px, step, shape)).max() <= 1.01


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.floats(-9, 30), st.floats(-9, 30)),
    st.floats(0.3, 4.0),
    st.integers(2, 14),
    st.integers(1, 13),
)
def test_reading_in_pieces_equals_reading_at_once(origin_um, target_um, n, cut):
    cut = min(cut, n - 1)
    image = PyramidImage(noise((50, 40, 3)), spacing_um=(0.31, 0.2528), background=PAPER)
    full = image.read_at(Box(origin_um, (n * target_um,) * 2, Frame.UM), (n, n))
    upper = Box(origin_um, (cut * target_um, n * target_um), Frame.UM)
    below = (origin_um[0] + cut * target_um, origin_um[1])
    lower = Box(below, ((n - cut) * target_um, n * target_um), Frame.UM)
    pieces = np.concatenate([image.read_at(upper, (cut, n)), image.read_at(lower, (n - cut, n))])
    assert np.abs(full.astype(int) - pieces).max() <= 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("target_um", [0.9, 1.0, 3.7, 21.0, 149.0])
def test_a_small_region_limit_changes_nothing(monkeypatch, dtype, target_um):
    image = PyramidImage(noise((300, 290, 3), dtype), background=PAPER)
    full = image.glimpse(target_um)
    monkeypatch.setattr("foveate.images.resample.MAX_REGION_PIXELS", 1500)
    image.largest_read_px = 0
    stitched = image.glimpse(target_um)
    # Both lie within one grey level of the exact value, on noise that is full of ties.
    assert np.abs(full.astype(int) - stitched).max() <= 2
    assert image.largest_read_px <= 1500


def test_volumes_are_read_by_the_same_code():
    pixels = noise((12, 20, 22, 1), np.uint16)
    image = PyramidImage(pixels, spacing_um=(5.0, 1.0, 1.0), background=(7.0,))
    actual = image.read_at(Box((3.0, 2.2, -4.0), (40.0, 12.0, 30.0), Frame.UM), (5, 7, 9))
    exact = expected_read_at(pixels, (7.0,), (0.6, 2.2, -4.0), (40 / 25, 12 / 7, 30 / 9), (5, 7, 9))
    assert np.abs(actual - exact).max() <= 0.6


def test_the_coarsest_sufficient_level_is_used():
    base = noise((256, 256, 3))
    pyramid = [base, base[::2, ::2], base[::8, ::8]]
    image = PyramidImage(*pyramid, spacing_um=(0.25, 0.25))
    assert [image.level_for((t, t)) for t in (0.2, 0.25, 0.49, 0.5, 1.9, 2.0, 30.0)] == [
        0,
        0,
        0,
        1,
        1,
        2,
        2,
    ]
    assert image.level_for((2.0, 0.3)) == 0
    image.levels_read.clear()
    image.read_at(Box((0, 0), (32.0, 32.0), Frame.UM), (64, 64))
    assert image.levels_read == {1}


def test_glimpse_covers_the_whole_image_at_exactly_this_spacing():
    image = PyramidImage(
        np.full((101, 203, 3), 9, np.uint8), spacing_um=(0.5, 0.25), background=PAPER
    )
    shape = glimpse_shape(image, 7.0)
    assert shape == (8, 8)
    glimpse = image.glimpse(7.0)
    assert glimpse.shape == (8, 8, 3)
    assert (glimpse[1:6, 1:6] == 9).all()
    assert (glimpse[-1, -1] > 9).all()


def test_the_default_background_is_the_border_colour():
    pixels = np.full((200, 300, 3), 240, np.uint8)
    pixels[40:160, 40:260] = 10
    assert PyramidImage(pixels).background.tolist() == [240, 240, 240]


def test_missing_spacing_error_names_file_and_remedy():
    image = PyramidImage(noise((9, 9, 3)), spacing_um=None)
    with pytest.raises(MissingSpacing, match=r"memory.*--spacing-um"):
        image.glimpse(1.0)


def test_respaced_and_fitted_images_read_the_same_pixels():
    pixels = noise((40, 30, 3))
    image = PyramidImage(pixels, spacing_um=None, background=PAPER)
    placed = RespacedImage(image, (1.0, 1.0), unit="px")
    np.testing.assert_array_equal(placed.glimpse(1.0), pixels)
    square = fit_to_shape(image, (20, 20))
    assert square.glimpse(1.0).shape == (20, 20, 3)
    exact = expected_read_at(pixels, PAPER, (0.0, 0.0), (2.0, 1.5), (20, 20))
    assert np.abs(square.glimpse(1.0) - exact).max() <= 1.01
    assert placed.count is image.count


def test_requested_and_decoded_pixels_are_counted_separately():
    image = PyramidImage(noise((100, 100, 3)), background=PAPER)
    image.read_at(Box((10, 10), (40.0, 40.0), Frame.UM), (10, 10))
    assert image.count.asked_px == 100
    assert image.count.decoded_px >= 1600
