"""Volumes with voxels that are no numbers, and headers that scale them by none."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from foveate.errors import FoveateError
from foveate.images.likeness import describe_unlikeness
from foveate.readers import nifti, open_image
from helpers.images import read_whole

SLOPE, INTENT = (112, "<f"), (68, "<h")


def voxels() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 20, (20, 22, 24)).astype(np.float32)


def written(path: Path, values: np.ndarray, *edits: tuple[tuple[int, str], float]) -> Path:
    """Write a volume with some numbers of its header overwritten."""
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    content = bytearray(path.read_bytes())
    for (at, code), number in edits:
        struct.pack_into(code, content, at, number)
    path.write_bytes(content)
    return path


def unlikeness(path: Path) -> str:
    with open_image(path) as image:
        return describe_unlikeness(image, read_whole(image), None)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("n", "share"), [(1, "less than 0.1 %"), (10 * 22 * 24, "50 %"), (19 * 22 * 24, "95 %")]
)
def test_voxels_without_a_number_mark_the_image(
    tmp_path: Path, n: int, share: str, number: float
) -> None:
    values = voxels()
    values.ravel()[:n] = number
    text = unlikeness(written(tmp_path / "v.nii", values))
    assert text == f"{share} of the voxels are no finite numbers, read as black"


def test_volumes_that_are_read_by_region_are_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nifti, "_CACHE_BYTES", 1000)
    values = voxels()
    values[:10] = np.nan
    assert unlikeness(written(tmp_path / "v.nii", values)).startswith("50 % of the voxels")


def test_a_sound_volume_is_not_marked(tmp_path: Path) -> None:
    assert unlikeness(written(tmp_path / "v.nii", voxels())) == ""


@pytest.mark.parametrize("value", [0, 7, -3e5])
def test_a_volume_of_one_value_is_blank(tmp_path: Path, value: float) -> None:
    values = np.full((20, 20, 20), value, np.float32)
    assert unlikeness(written(tmp_path / "v.nii", values)) == "blank"


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_volume_without_any_number_is_refused(tmp_path: Path, number: float) -> None:
    path = written(tmp_path / "v.nii", np.full((20, 20, 20), number, np.float32))
    with pytest.raises(FoveateError, match="holds no finite number"):
        unlikeness(path)


@pytest.mark.parametrize("slope", [np.inf, -np.inf])
def test_an_infinite_slope_is_refused(tmp_path: Path, slope: float) -> None:
    path = written(tmp_path / "v.nii", voxels().astype(np.int16), (SLOPE, slope))
    with pytest.raises(FoveateError, match=r"scl_slope\) is infinite; set it") as caught:
        open_image(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("slope", [np.nan, 0.0])
def test_a_slope_of_zero_or_nan_means_no_scaling(tmp_path: Path, slope: float) -> None:
    values = voxels().astype(np.int16)
    with open_image(written(tmp_path / "v.nii", values, (SLOPE, slope))) as image:
        pixels = read_whole(image)
    with open_image(written(tmp_path / "w.nii", values, (SLOPE, 1.0))) as image:
        np.testing.assert_array_equal(pixels, read_whole(image))


@pytest.mark.parametrize(
    ("code", "kind"), [(1005, "matrices"), (1007, "vectors"), (2003, "colours"), (2004, "colours")]
)
def test_an_intent_of_several_numbers_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, code: int, kind: str
) -> None:
    path = written(tmp_path / "v.nii", voxels().astype(np.int16), (INTENT, code))
    with caplog.at_level(logging.WARNING, "foveate"), open_image(path):
        pass
    assert f"its header declares {kind}, but a voxel holds one number" in caplog.text


def test_colours_are_named_in_plain_words(tmp_path: Path) -> None:
    rgb = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(FoveateError, match="voxels of type RGB are not readable"):
        open_image(written(tmp_path / "v.nii", rgb))
