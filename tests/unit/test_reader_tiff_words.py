"""Metadata of TIFFs: the pixel size, and clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from foveate.errors import FoveateError, UnreadableImage, UnsupportedFormat
from foveate.geometry import Box, Frame
from foveate.readers import open_image
from helpers.images import read_whole


def picture(height=300, width=401, samples=3):
    shape = (height, width) if samples == 1 else (height, width, samples)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


# -- what a file says about the size of a pixel ----------------------------------------------------


@pytest.mark.parametrize(
    ("resolution", "unit", "expected"),
    [
        ((4e4, 2e4), "CENTIMETER", (0.5, 0.25)),
        ((25400 / 0.5, 25400 / 0.5), "INCH", (0.5, 0.5)),
        ((72, 72), "INCH", None),
        ((96, 96), "INCH", None),
        ((300, 300), "INCH", None),
        ((1, 1), "NONE", None),
        ((40000, 40000), "NONE", None),
        ((1e7, 1e7), "CENTIMETER", None),
    ],
)
def test_spacing_is_read_from_resolution_tags(tmp_path, resolution, unit, expected):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(), photometric="rgb", resolution=resolution, resolutionunit=unit)
    with open_image(path) as image:
        assert image.spacing_um == (None if expected is None else pytest.approx(expected))
        assert image.kind == ("picture" if expected is None else "slide")


@pytest.mark.parametrize(
    ("unit", "size", "expected"),
    [("µm", 0.4942, 0.4942), ("nm", 250.0, 0.25), ("mm", 0.0005, 0.5), ("pixel", 1.0, None)],
)
def test_spacing_is_read_from_ome_xml(tmp_path, unit, size, expected):
    path = tmp_path / "a.ome.tif"
    metadata = {
        "axes": "YXS",
        "PhysicalSizeX": size,
        "PhysicalSizeXUnit": unit,
        "PhysicalSizeY": 2 * size,
        "PhysicalSizeYUnit": unit,
    }
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(
            picture(512, 512), photometric="rgb", tile=(64, 64), subifds=1, metadata=metadata
        )
        file.write(picture(256, 256), photometric="rgb", tile=(64, 64), subfiletype=1)
    with open_image(path) as image:
        assert len(image.levels) == 2
        spacing_um = None if expected is None else pytest.approx((2 * expected, expected))
        assert image.spacing_um == spacing_um


def test_spacing_is_read_from_imagej(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, picture(samples=1), imagej=True, resolution=(4.0, 2.0), metadata={"unit": "um"}
    )
    with open_image(path) as image:
        assert image.spacing_um == pytest.approx((0.5, 0.25))


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "arguments", "reason"),
    [
        (np.zeros((64, 64), np.uint64), {}, "64 bits"),
        (np.zeros((64, 64), np.complex64), {}, "format 6"),
        (np.zeros((64, 64, 4), np.uint8), {"photometric": "separated"}, "CMYK"),
        (np.zeros((5, 64, 64), np.uint8), {"photometric": "minisblack"}, "stack"),
        (np.zeros((5, 64, 64), np.uint16), {"imagej": True}, "stack"),
        (np.zeros((5, 64, 64), np.uint16), {"ome": True, "metadata": {"axes": "CYX"}}, "stack"),
    ],
)
def test_unsupported_files_are_refused_with_the_reason(tmp_path, array, arguments, reason):
    path = tmp_path / "odd.tif"
    tifffile.imwrite(path, array, **arguments)
    with pytest.raises(UnsupportedFormat, match=reason) as caught:
        open_image(path)
    assert "odd.tif" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_named_at_the_first_missing_block(tmp_path):
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, picture(), photometric="rgb", tile=(64, 64), compression="zlib")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 3000])
    with pytest.raises(FoveateError, match=r"cut\.tif"), open_image(path) as image:
        read_whole(image)


def test_a_damaged_block_is_an_error(tmp_path):
    path = tmp_path / "bad.tif"
    tifffile.imwrite(path, picture(), photometric="rgb", tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[3], file.pages[0].databytecounts[3]
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * count)
    with open_image(path) as image:
        image.read(Box((0, 0), (64, 64), Frame.PX, 0))
        with pytest.raises(UnreadableImage, match=r"bad\.tif.*level 0"):
            read_whole(image)
