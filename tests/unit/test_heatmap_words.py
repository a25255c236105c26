"""Lines of the heatmap picture about what an answer rests on."""

from __future__ import annotations

import numpy as np
import pytest

from foveate.heatmaps.picture import _warnings
from foveate.heatmaps.raster import scale_of
from foveate.images.evidence import Evidence


def evidence(weight: list[float], remainder: float) -> Evidence:
    """Build evidence of patches in a row, 10 micrometres wide, on an image of 100 x 100."""
    origin = np.array([[0.0, 10.0 * i] for i in range(len(weight))])
    size = np.full_like(origin, 10.0)
    extent = np.array([100.0, 100.0])
    return Evidence(origin, size, np.array(weight), extent, remainder=remainder)


@pytest.mark.parametrize(("remainder", "n_warnings"), [(0.0, 0), (0.5, 0), (0.97, 1), (1.0, 1)])
def test_a_picture_warns_where_regions_hardly_count(remainder: float, n_warnings: int) -> None:
    peaked = evidence([0.7, 0.2, 0.1], remainder)
    lines = _warnings(scale_of(peaked), peaked)
    assert len(lines) == n_warnings
    assert all(f"{remainder:.0%} of this answer rests on the image as a whole" in x for x in lines)
