"""Each vendor's format is named rightly, with advice that fits it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile

from foveate.errors import FoveateError, UnsupportedFormat
from foveate.readers import is_image_folder, open_image
from foveate.table import cases_from_folder
from helpers.dicom_slides import smooth
from helpers.images import build_pyramid, read_whole

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
AS_OME = "not a plain TIFF; export it as OME-TIFF"
QPI_NAME = "PerkinElmer-QPI-ImageDescription"
QPI = f"<?xml version='1.0'?><{QPI_NAME}/>"
CHANNELS = "Akoya QPTIFF of several channels"
SIS, UIC1 = 33560, 33628
"""Tags of Olympus and of MetaMorph."""

TIFFS: dict[str, tuple[str, int | None, dict[str, Any]]] = {
    "a.qptiff": (CHANNELS, None, {"software": "PerkinElmer-QPI"}),
    "b.qptiff": (CHANNELS, None, {"description": QPI}),
    "c.qptiff": (CHANNELS, SIS, {"software": "PerkinElmer-QPI"}),
    "d.qptiff": (CHANNELS, SIS, {"description": QPI}),
    "a.vsi": ("Olympus VSI", None, {}),
    "sis.tif": ("Olympus SIS", SIS, {}),
    "a.stk": ("MetaMorph STK", UIC1, {}),
}
"""By the name of a file: the vendor, a tag of a vendor, and what tifffile writes into it."""


@pytest.mark.parametrize("name", TIFFS)
def test_vendors_layouts_of_tiff(tmp_path: Path, name: str) -> None:
    vendor, code, marks = TIFFS[name]
    path = tmp_path / name
    date = "2026:01:01 00:00:00"
    pixels = PIXELS[..., 0] if vendor == CHANNELS else PIXELS
    tifffile.imwrite(path, pixels, metadata=None, datetime=date, **marks)
    if code is not None:
        with tifffile.TiffFile(path) as file:
            at = file.pages[0].tags["DateTime"].offset
        content = bytearray(path.read_bytes())
        struct.pack_into("<H", content, at, code)  # the tag of a vendor in the date's place
        path.write_bytes(content)
    with pytest.raises(FoveateError) as caught:
        open_image(path)
    assert f"a vendor's own layout ({vendor}), {AS_OME}" in str(caught.value)


def test_brightfield_qptiff_is_a_pyramid(tmp_path: Path) -> None:
    """Its pages: the slide, a thumbnail, smaller levels, an overview of the glass."""
    full = build_pyramid(smooth(512, 768), (1, 2, 4, 8))
    pages = [
        ("FullResolution", full[0]),
        ("Thumbnail", full[3]),
        ("ReducedResolution", full[1]),
        ("ReducedResolution", full[2]),
        ("Overview", smooth(200, 300)),
    ]
    with tifffile.TiffWriter(tmp_path / "a.qptiff", bigtiff=True) as file:
        for i, (kind, pixels) in enumerate(pages):
            words = f"<{QPI_NAME}><ImageType>{kind}</ImageType>\n</{QPI_NAME}>"
            options = {"tile": None if kind == "Thumbnail" else (64, 64), "photometric": "rgb"}
            resolution = {"resolution": (20000 / 2**i, 20000 / 2**i), "resolutionunit": 3}
            file.write(
                pixels,
                description=words,
                software="PerkinElmer-QPI",
                metadata=None,
                **options,
                **resolution,
            )
    with open_image(tmp_path / "a.qptiff") as image:
        assert [level.shape for level in image.levels] == [(512, 768), (256, 384), (128, 192)]
        assert (image.kind, image.spacing_um) == ("slide", pytest.approx((0.5, 0.5)))
        np.testing.assert_array_equal(read_whole(image), full[0])


CONTENTS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "report.dcm": (bytes(128) + b"DICM", ("without pixels (a report, plan or index)",)),
    "a.czi": (b"ZISRAWFILE", ("CZI", "export it from ZEN as OME-TIFF")),
    "a.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n", ("JPEG 2000", "convert it to tiled TIFF")),
    "a.img": (bytes(344) + b"ni1\0", ("NIfTI in two files", "save it as one .nii.gz")),
}
"""By the name of a file: its first bytes, and what its refusal says."""


@pytest.mark.parametrize("name", CONTENTS)
def test_formats_that_are_not_read(tmp_path: Path, name: str) -> None:
    content, words = CONTENTS[name]
    (tmp_path / name).write_bytes(content + bytes(2000))
    with pytest.raises(FoveateError) as caught:
        open_image(tmp_path / name)
    for word in words:
        assert word in str(caught.value)
    assert "Olympus" not in str(caught.value)


@pytest.mark.parametrize("mark", [".zattrs", ".zgroup", "zarr.json"])
def test_a_store_of_zarr_is_one_image_that_is_not_read(tmp_path: Path, mark: str) -> None:
    store = tmp_path / "a.ome.zarr"
    (store / "0/c").mkdir(parents=True)
    (store / mark).write_text("{}", encoding="utf-8")
    (store / "0/c/0").write_bytes(bytes(100))
    assert [case.path for case in cases_from_folder(tmp_path, is_image_folder).cases] == [store]
    with pytest.raises(UnsupportedFormat) as caught:
        open_image(store)
    assert "a.ome.zarr: OME-Zarr is not readable; export the image as OME-TIFF" in str(caught.value)


def test_an_image_in_hdf5_is_to_be_exported(tmp_path: Path) -> None:
    """Imaris stores images in HDF5, as the programs that store features do."""
    with h5py.File(tmp_path / "a.ims", "w") as file:
        file["DataSet/ResolutionLevel 0/TimePoint 0/Channel 0/Data"] = np.zeros((4, 8, 8), np.uint8)
    with pytest.raises(UnsupportedFormat, match="an image in it must be exported as TIFF"):
        open_image(tmp_path / "a.ims")


def test_a_series_of_mr_does_not_become_a_picture(shared_data: Path) -> None:
    path = next(iter(sorted((shared_data / "dicom_mr_brain").rglob("*.dcm"))), None)
    if path is None:
        pytest.skip("no DICOM is here")
    with open_image(path) as image:
        assert image.kind == "volume"
