"""Box means and mean shift against summing pixels."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.geometry.lattice import Lattice
from foveate.images.tiling import cell_means


@pytest.mark.parametrize("shape", [(13, 17), (6, 7, 5)])
def test_cell_means_of_whole_pixels(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).random(shape)
    lattice = Lattice((0.0,) * len(shape), (2.0,) * len(shape), tuple(-(-n // 2) for n in shape))
    actual = cell_means(values, lattice, spacing_um=1.0)
    for cell in np.ndindex(*lattice.shape):
        part = values[tuple(slice(2 * c, 2 * c + 2) for c in cell)]
        assert actual[cell] == pytest.approx(part.sum() / 2 ** len(shape))


def test_cell_means_of_fractions_of_pixels() -> None:
    values = np.random.default_rng(1).random((8, 8))
    fine = np.kron(values, np.ones((10, 10)))
    lattice = Lattice((0.5, 0.5), (1.7, 1.7), (4, 4))
    actual = cell_means(values, lattice, spacing_um=1.0)
    for y, x in np.ndindex(4, 4):
        top, left = 5 + 17 * y, 5 + 17 * x
        part = fine[top : top + 17, left : left + 17]
        assert actual[y, x] == pytest.approx(part.sum() / 17**2)
