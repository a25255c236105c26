"""Kinds of input that once gave a wrong answer in silence: labels, workbooks, volumes, slides."""

from __future__ import annotations

import gzip
import time
import tracemalloc
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import openpyxl
import pytest
import tifffile

from foveate.errors import UnreadableImage, UnsupportedFormat
from foveate.geometry import Box, Frame
from foveate.readers import open_image
from foveate.readers.openslide_ import OpenSlideReader
from foveate.table import read_cases

# -- workbooks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stated", ["A1:B9", "A1:C5", "A1", "A1:A1"])
def test_a_workbook_with_a_wrong_range_keeps_its_patients(tmp_path: Path, stated: str) -> None:
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    sheet.append(("path", "label", "patient"))
    for i in range(8):
        (tmp_path / f"{i}.tif").write_bytes(bytes([i]))
        sheet.append((f"{i}.tif", ("benign", "malignant")[i // 2 % 2], f"P{i // 2}"))
    book.save(tmp_path / "right.xlsx")
    with zipfile.ZipFile(tmp_path / "right.xlsx") as right:
        members = {name: right.read(name) for name in right.namelist()}
    name = "xl/worksheets/sheet1.xml"
    assert b'ref="A1:C9"' in members[name]
    members[name] = members[name].replace(b'ref="A1:C9"', f'ref="{stated}"'.encode())
    with zipfile.ZipFile(tmp_path / "wrong.xlsx", "w") as wrong:
        for member, content in members.items():
            wrong.writestr(member, content)
    cases = read_cases(tmp_path / "wrong.xlsx").cases
    assert [case.patient_id for case in cases] == [f"P{i // 2}" for i in range(8)]


# -- volumes ---------------------------------------------------------------------------------------


def test_a_packed_volume_is_unpacked_only_as_far_as_its_header_says(tmp_path: Path) -> None:
    """64 KB of a file whose stream holds 128 MB more than its voxels."""
    voxels = np.random.default_rng(0).normal(100, 30, (16, 14, 10)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
    with gzip.open(tmp_path / "long.nii.gz", "wb", 6) as file:
        file.write((tmp_path / "a.nii").read_bytes())
        for _ in range(32):
            file.write(bytes(1 << 22))

    def read(name: str) -> np.ndarray:
        with open_image(tmp_path / name) as image:
            return image.read(Box((0, 0, 0), image.shape, Frame.PX, 0))

    expected = read("a.nii")
    tracemalloc.start()
    begun = time.process_time()
    actual = read("long.nii.gz")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(actual, expected)
    assert time.process_time() - begun < 0.5
    assert peak_bytes < 16 << 20


# -- slides and other files ------------------------------------------------------------------------


def test_openslide_names_the_level_that_is_damaged(tmp_path: Path) -> None:
    """The other level, and intact tiles of the damaged one, stay readable."""
    path = tmp_path / "a.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    small = pixels[::2, ::2]
    options = {"photometric": "rgb", "tile": (128, 128), "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, **options)
        file.write(small, subfiletype=1, **options)
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[1].dataoffsets[3], file.pages[1].databytecounts[3]
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * count)
    with OpenSlideReader(path) as image:
        assert [level.shape for level in image.levels] == [(512, 512), (256, 256)]
        with pytest.raises(UnreadableImage, match=r"a\.tif.*level 1"):
            image.read(Box((128, 128), (128, 128), Frame.PX, 1))
        np.testing.assert_array_equal(image.read(Box((0, 0), (512, 512), Frame.PX, 0)), pixels)
        np.testing.assert_array_equal(
            image.read(Box((0, 0), (128, 128), Frame.PX, 1)), small[:128, :128]
        )


def test_a_dicom_file_without_pixels_is_named_as_one(tmp_path: Path) -> None:
    path = tmp_path / "IM0001"
    path.write_bytes(bytes(128) + b"DICM" + bytes(200))
    with pytest.raises(UnsupportedFormat, match=r"IM0001: a DICOM file without pixels"):
        open_image(path)
