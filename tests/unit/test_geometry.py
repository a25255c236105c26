"""Boxes and converters: round trips, frames, and refusals."""

from __future__ import annotations

import itertools
import math

import numpy as np
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
    um_from_px0,
)
from foveate.geometry.boxes import group_by_size, place_boxes

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


@given(box_and_ratio(Frame.UM), st.data())
def test_boxes_in_pixels_of_a_level_are_micrometres_divided_by_its_spacing(box_and_spacing, data):
    box, spacing = box_and_spacing
    shape = [data.draw(st.integers(1, 999)) for _ in spacing]
    ((size_um, rows, origin_um),) = group_by_size([box, box], Frame.UM, box.ndim)
    origin_px, step_px = place_boxes(origin_um, size_um, shape, spacing)
    assert rows.tolist() == [0, 1]
    assert origin_px * spacing == pytest.approx(np.array([box.origin] * 2), rel=1e-9, abs=1e-3)
    size_px = [n * s for n, s in zip(shape, step_px, strict=True)]
    assert [n * s for n, s in zip(size_px, spacing, strict=True)] == pytest.approx(box.size)


def test_coordinates_and_steps_that_are_nearly_whole_become_whole():
    origin_um = np.array([[0.3 * 7, 0.1 * 3], [1.05, 2.0]])
    origin_px, step_px = place_boxes(origin_um, (0.3 * 11, 0.1 * 5), (11, 5), (0.3, 0.1))
    assert origin_px[0].tolist() == [7.0, 3.0]
    assert origin_px[1].tolist() == pytest.approx([3.5, 20.0])
    assert step_px == (1.0, 1.0)
    assert place_boxes(origin_um, (3.3, 1.0), (11, 5), (0.3, 0.1))[1] == pytest.approx((1.0, 2.0))


def test_boxes_are_grouped_by_size_in_their_order():
    boxes = [Box((i, 2 * i), (3, 3 + i % 2), Frame.UM) for i in range(4)]
    groups = [(size, rows.tolist()) for size, rows, _ in group_by_size(boxes, Frame.UM, 2)]
    assert groups == [((3, 3), [0, 2]), ((3, 4), [1, 3])]


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
