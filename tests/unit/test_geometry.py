"""Boxes and converters: round trips, frames, and refusals."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.errors import BoxError
from foveate.geometry import (
    Box,
    Frame,
    long_side,
    mean_spacing,
    px0_from_um,
    px_from_px0,
    px_from_um,
    um_from_px0,
)

PLACES = st.floats(-1e6, 1e6)
SIZES = st.floats(1e-3, 1e6)
RATIOS = st.floats(0.01, 300.0)
NDIM = st.integers(2, 3)


@st.composite
def boxes(draw, frame, ndim, level=None):
    origin = tuple(draw(PLACES) for _ in range(ndim))
    size = tuple(draw(SIZES) for _ in range(ndim))
    return Box(origin, size, frame, level)


@st.composite
def box_and_ratio(draw, frame, level=None):
    ndim = draw(NDIM)
    return draw(boxes(frame, ndim, level)), tuple(draw(RATIOS) for _ in range(ndim))


def is_same_box(a: Box, b: Box) -> bool:
    assert (a.frame, a.level) == (b.frame, b.level)
    pairs = zip(a.origin + a.size, b.origin + b.size, strict=True)
    return all(math.isclose(x, y, rel_tol=1e-9, abs_tol=1e-6) for x, y in pairs)


@given(box_and_ratio(Frame.PX0))
def test_conversion_to_um_can_be_inverted(box_and_downsample):
    box, spacing = box_and_downsample
    assert is_same_box(px0_from_um(um_from_px0(box, spacing), spacing), box)


@given(box_and_ratio(Frame.PX0))
def test_level_pixels_are_level_0_pixels_divided_by_the_downsample(box_and_downsample):
    box, downsample = box_and_downsample
    level_box = px_from_px0(box, downsample, 2)
    back = (
        tuple(v * d for v, d in zip(values, downsample, strict=True))
        for values in (level_box.origin, level_box.size)
    )
    assert (level_box.frame, level_box.level) == (Frame.PX, 2)
    assert is_same_box(Box(*back, Frame.PX0), box)


@given(box_and_ratio(Frame.UM), st.data())
def test_direct_conversion_to_a_level_equals_two_steps(box_and_downsample, data):
    box, spacing = box_and_downsample
    downsample = tuple(data.draw(RATIOS) for _ in spacing)
    straight = px_from_um(box, spacing, downsample, 1)
    assert is_same_box(straight, px_from_px0(px0_from_um(box, spacing), downsample, 1))


@given(st.lists(PLACES, min_size=2, max_size=2), st.integers(2, 9))
def test_a_box_is_the_union_of_its_pieces(origin, n):
    union = Box(tuple(origin), (float(n), float(n)), Frame.PX0)
    pieces = [Box((origin[0] + i, origin[1]), (1.0, float(n)), Frame.PX0) for i in range(n)]
    assert pieces[0].origin == union.origin
    assert pieces[-1].end == pytest.approx(union.end)
    for upper, lower in itertools.pairwise(pieces):
        assert upper.end[0] == pytest.approx(lower.origin[0])


@pytest.mark.parametrize(
    ("origin", "size", "frame", "level"),
    [
        ((0, 0), (1, 0), Frame.PX0, None),
        ((0, 0), (1, -1), Frame.PX0, None),
        ((0, math.nan), (1, 1), Frame.PX0, None),
        ((0, 0), (1, math.inf), Frame.PX0, None),
        ((0, 0), (1,), Frame.PX0, None),
        ((), (), Frame.PX0, None),
        ((0, 0), (1, 1), Frame.PX, None),
        ((0, 0), (1, 1), Frame.UM, 0),
    ],
)
def test_impossible_boxes_are_refused(origin, size, frame, level):
    with pytest.raises(BoxError):
        Box(origin, size, frame, level)


def test_converters_refuse_wrong_frames_and_axes():
    box = Box((0, 0), (1, 1), Frame.UM)
    with pytest.raises(BoxError, match="px0"):
        um_from_px0(box, (1.0, 1.0))
    with pytest.raises(BoxError, match="axes"):
        px0_from_um(box, (1.0, 1.0, 1.0))


def test_the_mean_spacing_keeps_the_volume_of_a_pixel() -> None:
    assert mean_spacing((2.0, 0.5)) == pytest.approx(1.0)
    assert mean_spacing((4.0, 1.0, 2.0)) ** 3 == pytest.approx(8.0)


def test_the_long_side_is_measured_as_a_length() -> None:
    assert long_side((100, 30), (1.0, 4.0)) == 120.0
