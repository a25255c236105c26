"""Conversions of points and lengths between micrometres, pixels, cells and sides of a patch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.geometry import (
    downsample_from_spacing_um,
    fine_px_from_coarse_px,
    index_px_from_um,
    length_patch_from_um,
    length_px_from_um,
    length_um_from_patch,
    length_um_from_px,
    points_px_from_um,
    points_um_from_px,
    region_coarse_from_fine,
    region_fine_from_coarse,
    shape_from_size_um,
    size_um_from_shape,
    spacing_um_from_downsample,
    spacing_um_from_shape,
)
from foveate.geometry.lattice import (
    Lattice,
    lattice_um_from_map,
    points_cell_from_px,
    points_px_from_cell,
    points_um_from_cell,
)

PLACES = st.floats(-1e6, 1e6)
STEPS = st.floats(1e-3, 1e3)


def test_lengths_are_scaled_by_the_spacing() -> None:
    assert length_px_from_um(10.0, 0.5) == 20.0
    assert length_um_from_px(20.0, 0.5) == 10.0
    assert length_patch_from_um(96.0, 64.0) == 1.5
    assert length_um_from_patch(1.5, 64.0) == 96.0


@given(place_um=PLACES, spacing_um=STEPS)
def test_a_length_comes_back(place_um: float, spacing_um: float) -> None:
    there = length_px_from_um(place_um, spacing_um)
    assert length_um_from_px(there, spacing_um) == pytest.approx(place_um, abs=1e-9)


def test_points_count_from_their_origin_along_each_axis() -> None:
    points_um = np.array([[10.0, 20.0], [14.0, 21.0]])
    points_px = points_px_from_um(points_um, (2.0, 0.5), (10.0, 20.0))
    assert points_px.tolist() == [[0.0, 0.0], [2.0, 2.0]]
    assert points_um_from_px(points_px, (2.0, 0.5), (10.0, 20.0)).tolist() == points_um.tolist()


def test_a_size_is_covered_by_pixels_of_a_spacing() -> None:
    assert shape_from_size_um((10.0, 10.1, 0.1), 5.0) == (2, 3, 1)
    # Rounding of a tenth adds no pixel.
    assert shape_from_size_um((3 * 0.1,), 0.1) == (3,)
    assert size_um_from_shape((2, 3), (0.5, 2.0)) == (1.0, 6.0)
    assert spacing_um_from_shape((1.0, 6.0), (2, 3)) == (0.5, 2.0)
    assert spacing_um_from_downsample((0.25, 0.5), (4.0, 2.0)) == (1.0, 1.0)
    assert downsample_from_spacing_um(2.0, 0.5) == 4.0


def test_a_place_lies_in_one_pixel() -> None:
    assert [index_px_from_um(z_um, 2.0) for z_um in (0.0, 1.9, 2.0, 4.1)] == [0, 0, 1, 2]
    # 0.3 / 0.1 is a little less than 3.
    assert index_px_from_um(0.3, 0.1) == 3


def test_the_lattice_of_a_map_lies_about_the_centres_of_its_cells() -> None:
    lattice = lattice_um_from_map((3, 2), stride_px=4, centre_px=1.5, spacing_um=0.5)
    assert lattice == Lattice((-0.25, -0.25), (2.0, 2.0), (3, 2))
    centres_um = points_um_from_cell(np.array([[0.5, 0.5], [2.5, 1.5]]), lattice)
    assert centres_um.tolist() == [[0.75, 0.75], [4.75, 2.75]]


@given(place_px=PLACES, stride_px=STEPS, centre_px=PLACES)
def test_a_cell_comes_back(place_px: float, stride_px: float, centre_px: float) -> None:
    cell = points_cell_from_px(place_px, stride_px=stride_px, centre_px=centre_px)
    there = points_px_from_cell(cell, stride_px=stride_px, centre_px=centre_px)
    assert there == pytest.approx(place_px, abs=1e-6)


def test_regions_of_levels_are_cut_where_the_level_ends() -> None:
    assert fine_px_from_coarse_px(3.0, 2.5) == 7.5
    assert region_coarse_from_fine((10, 10), (4, 18), (8, 4), (2.0, 2.0)) == ((2, 9), (4, 1))
    assert region_fine_from_coarse((19, 19), (2, 9), (4, 1), (2.0, 2.0)) == ((4, 18), (8, 1))
