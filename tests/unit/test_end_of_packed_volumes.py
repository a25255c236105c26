"""A packed volume whose stream is longer than its header says is still checked by its checksum."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from foveate.errors import UnreadableImage
from foveate.geometry import Box, Frame
from foveate.readers import open_image


def test_surplus_bytes_do_not_hide_a_wrong_checksum(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).normal(100, 30, (16, 14, 10)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
    packed = bytearray(gzip.compress((tmp_path / "a.nii").read_bytes() + b"xyz"))
    (tmp_path / "good.nii.gz").write_bytes(packed)
    with open_image(tmp_path / "good.nii.gz") as image:
        image.read(Box((0, 0, 0), image.shape, Frame.PX, 0))
    packed[-8] ^= 1  # the checksum
    (tmp_path / "bad.nii.gz").write_bytes(packed)
    with (
        pytest.raises(UnreadableImage, match="cannot be unpacked"),
        open_image(tmp_path / "bad.nii.gz") as image,
    ):
        image.read(Box((0, 0, 0), image.shape, Frame.PX, 0))
