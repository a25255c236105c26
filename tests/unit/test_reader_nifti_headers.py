"""Unusual NIfTI headers are read according to the standard, or refused with a message."""

from __future__ import annotations

import gzip
import logging
import struct
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest

from foveate.errors import FoveateError, ImageTooLarge, UnreadableImage
from foveate.geometry import Box, Frame
from foveate.readers import nifti, open_image

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])
Edit = tuple[int, str, tuple[float, ...]]
NO_SFORM: Edit = (254, "h", (0,))
QFORM: Edit = (252, "h", (1,))
NAN = float("nan")


def values() -> np.ndarray:
    return np.random.default_rng(0).normal(100, 30, (16, 14, 10)).astype(np.int16)


def written(path: Path, *edits: Edit, voxels: np.ndarray | None = None) -> Path:
    """Write a volume with some bytes of its header overwritten."""
    nibabel.save(nibabel.Nifti1Image(values() if voxels is None else voxels, AFFINE), path)
    content = bytearray(path.read_bytes())
    for at, code, numbers in edits:
        struct.pack_into("<" + code, content, at, *numbers)
    path.write_bytes(content)
    return path


def read(path: Path) -> tuple[np.ndarray, tuple[float, ...] | None]:
    with open_image(path) as image:
        return image.read(Box((0, 0, 0), image.shape, Frame.PX, 0)), image.spacing_um


@pytest.mark.parametrize(
    "edits",
    [
        (NO_SFORM, QFORM, (76, "f", (0.0,))),
        (NO_SFORM, QFORM, (76, "f", (2.0,))),
        (NO_SFORM, QFORM, (80, "fff", (1.0, -1.0, 2.0))),
        (QFORM, (280, "12f", (0.0,) * 12)),
        (QFORM, (280, "12f", (NAN,) * 12)),
        ((108, "f", (0.0,)),),
        ((108, "f", (348.0,)),),
    ],
    ids=["qfac 0", "qfac 2", "negative", "sform 0", "sform nan", "offset 0", "offset 348"],
)
def test_unusual_valid_headers_are_read_like_the_plain_one(
    tmp_path: Path, edits: tuple[Edit, ...]
) -> None:
    expected, spacing_um = read(written(tmp_path / "plain.nii"))
    actual, other_um = read(written(tmp_path / "odd.nii", *edits))
    assert spacing_um == (2000.0, 1000.0, 1000.0)
    assert other_um == pytest.approx(spacing_um)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        (((112, "ff", (1.0, NAN)),), "scl_inter"),
        (((123, "B", (4,)),), "unit.*code 4.*2 millimetre"),
        (((252, "h", (0,)), (280, "12f", (0.0,) * 12)), "sform.*which way.*set a qform"),
        ((NO_SFORM, QFORM, (256, "fff", (3.0, 3.0, 3.0))), "qform.*set a qform"),
        (((108, "f", (-1e9,)),), "begin at byte"),
        (((108, "f", (NAN,)),), "begin at byte nan"),
        (((108, "f", (100.0,)), (348, "B", (1,))), "extensions"),
        (((40, "h", (9,)),), "odd"),
        (((42, "h", (-5,)),), "odd"),
    ],
)
def test_impossible_headers_are_refused_with_a_message(
    tmp_path: Path, edits: tuple[Edit, ...], message: str
) -> None:
    path = written(tmp_path / "odd.nii", *edits)
    with pytest.raises(FoveateError, match=message) as caught:
        read(path)
    assert "Error" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_sform_that_contradicts_the_voxel_size_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "odd.nii", (80, "fff", (0.5, 0.5, 3.0)))
    with caplog.at_level(logging.WARNING, "foveate"):
        assert read(path)[1] == (2000.0, 1000.0, 1000.0)
        read(path)
    assert caplog.text.count("1 x 1 x 2, its pixdim 0.5 x 0.5 x 3") == 1


def test_an_sform_opposite_to_the_qform_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path / "odd.nii", QFORM, (280, "f", (-1.0,)))
    with caplog.at_level(logging.WARNING, "foveate"):
        read(path)
        read(written(tmp_path / "good.nii", QFORM))
    assert "left is right" in caplog.text
    assert "good.nii" not in caplog.text


@pytest.mark.parametrize("factor", [1e300, 1e-300, 4e305])
def test_values_beyond_single_precision_are_read(tmp_path: Path, factor: float) -> None:
    expected, _ = read(written(tmp_path / "a.nii", voxels=values().astype(np.float64)))
    actual, _ = read(written(tmp_path / "b.nii", voxels=values().astype(np.float64) * factor))
    assert np.abs(expected.astype(int) - actual).max() <= 1


@pytest.mark.parametrize("dtype", [np.int16, np.float64])
def test_a_large_packed_volume_is_unpacked_in_slabs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type
) -> None:
    affine = np.array([[0, 0, 2.5, 9], [-0.7, 0, 0, 3], [0, 1.1, 0, -5], [0, 0, 0, 1]])
    voxels = np.random.default_rng(0).integers(-900, 2000, (31, 13, 29)).astype(dtype)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "a.nii.gz")
    expected, _ = read(tmp_path / "a.nii.gz")
    monkeypatch.setattr(nifti, "_AT_ONCE_BYTES", 1 << 15)
    actual, _ = read(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(actual, expected)
    content = bytearray((tmp_path / "a.nii.gz").read_bytes())
    content[-6] ^= 1
    (tmp_path / "a.nii.gz").write_bytes(content)
    with pytest.raises(UnreadableImage, match="unpacked"):
        read(tmp_path / "a.nii.gz")


def test_a_small_file_that_unpacks_to_gigabytes_is_refused_at_once(tmp_path: Path) -> None:
    path = written(tmp_path / "a.nii", (42, "hhh", (1000, 1000, 500)), (70, "hh", (64, 64)))
    header = path.read_bytes()[:352]
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", 1) as file:
        file.write(header + bytes(1 << 24))
    begun = time.process_time()
    with pytest.raises(ImageTooLarge, match=r"4\.0 GB.*gunzip"):
        read(tmp_path / "bomb.nii.gz")
    assert time.process_time() - begun < 1
