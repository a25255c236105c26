"""Voxel sizes in any unit of NIfTI are read; a size that cannot be is named with its unit."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from foveate.errors import MissingSpacing
from foveate.loading.scan import open_case
from foveate.readers import open_image
from foveate.table import Case


def written(path: Path, side: float, unit: str) -> Path:
    """Write a volume with voxels of one side, in a unit."""
    values = np.random.default_rng(0).normal(100, 20, (8, 9, 10)).astype(np.float32)
    image = nibabel.Nifti1Image(values, np.diag([side, side, side, 1.0]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize(
    ("side", "unit", "um"),
    [(0.001, "meter", 1000.0), (0.05, "meter", 5e4), (1.5, "mm", 1500.0), (20.0, "micron", 20.0)],
)
def test_a_voxel_size_is_read_in_its_unit(
    tmp_path: Path, side: float, unit: str, um: float
) -> None:
    with open_image(written(tmp_path / "v.nii", side, unit)) as image:
        assert image.spacing_um == pytest.approx((um,) * 3, rel=1e-5)
        assert image.disbelieved == ""


@pytest.mark.parametrize(
    ("side", "unit", "words"),
    [
        (1.0, "meter", "states voxels of 1 x 1 x 1 m, outside the 1 um to 100 mm"),
        (0.5, "micron", "states voxels of 0.5 x 0.5 x 0.5 um, outside"),
        (500.0, "mm", "states voxels of 500 x 500 x 500 mm, outside"),
        (1e6, "unknown", "states voxels of 1e+06 x 1e+06 x 1e+06 mm (no unit is stated), outside"),
    ],
)
def test_a_voxel_size_that_cannot_be_is_named_with_its_unit(
    tmp_path: Path, side: float, unit: str, words: str
) -> None:
    path = written(tmp_path / "v.nii", side, unit)
    with pytest.raises(MissingSpacing) as caught:
        open_case(Case("v", "v", path, "a"))
    for message in (str(caught.value), complaint(path)):
        assert words in message
        assert "xyzt_units: 1 is metre, 2 millimetre, 3 micrometre" in message
        assert "column 'mpp'" in message
        assert "no pixel size" not in message


def complaint(path: Path) -> str:
    with open_image(path) as image, pytest.raises(MissingSpacing) as caught:
        _ = image.known_spacing_um
    return str(caught.value)


def test_a_spacing_of_the_table_replaces_one_that_cannot_be(tmp_path: Path) -> None:
    path = written(tmp_path / "v.nii", 1.0, "meter")
    with open_case(Case("v", "v", path, "a", spacing_um=(1000.0,))) as image:
        assert image.known_spacing_um == (1000.0,) * 3
