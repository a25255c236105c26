"""TIFF of one bit, of floating-point numbers and of other measured values."""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from foveate.errors import FoveateError, OptionError, UnreadableImage, UnsupportedFormat
from foveate.formats.grey_scale import choose_scale
from foveate.geometry import Box, Frame
from foveate.images.bit_depth import used_bits
from foveate.readers import open_image
from helpers.images import read_whole

RNG = np.random.default_rng(0)
LAYOUTS = {"tiles": {"tile": (64, 96)}, "strips": {"rowsperstrip": 17}, "one": {}}


def waves(height: int = 150, width: int = 203) -> np.ndarray:
    """Return a smooth picture ``(y, x)`` of values from -1 to 1, without symmetry."""
    y, x = np.mgrid[:height, :width]
    return np.sin(y / 17) * np.cos(x / 23)


# -- one bit ---------------------------------------------------------------------------------------

BITS = waves() > 0.1


@pytest.mark.parametrize("codec", ["raw", "packbits", "tiff_lzw", "tiff_adobe_deflate"])
def test_bits_are_black_and_white(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(BITS).save(path, compression=codec)
    with open_image(path) as image:
        assert (image.kind, image.channels, image.dtype) == ("picture", 1, np.uint8)
        np.testing.assert_array_equal(read_whole(image)[..., 0], 255 * BITS)
        part = image.read(Box((33, 51), (40, 30), Frame.PX, 0))
        np.testing.assert_array_equal(part[..., 0], 255 * BITS[33:73, 51:81])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_layouts_of_bits(tmp_path: Path, photometric: str, layout: str) -> None:
    path = tmp_path / "a.tif"
    options = {"photometric": photometric, "metadata": None, **LAYOUTS[layout]}
    tifffile.imwrite(path, BITS, compression="zlib" if layout == "tiles" else None, **options)
    with open_image(path) as image:
        expected = BITS if photometric == "minisblack" else ~BITS
        np.testing.assert_array_equal(read_whole(image)[..., 0], 255 * expected)


def test_cut_off_bits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, BITS, metadata=None)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UnreadableImage, match=r"a\.tif: truncated"), open_image(path) as image:
        read_whole(image)


# -- measured values -------------------------------------------------------------------------------


def expected_greys(values: np.ndarray) -> np.ndarray:
    return choose_scale(values.astype(np.float64).ravel()).convert(values.astype(np.float64))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("codec", [None, "lzw", "zlib"])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i2", "i4", "u4"])
def test_measured_values_become_greys(
    tmp_path: Path, dtype: str, codec: str | None, byteorder: str
) -> None:
    values = (waves() * 100 + (100 if dtype == "u4" else 0)).astype(dtype)
    for (name, layout), predictor in itertools.product(LAYOUTS.items(), (False, True)):
        if predictor and codec is None:
            continue
        path = tmp_path / f"{name}{predictor}.tif"
        options = {"photometric": "minisblack", "metadata": None, "byteorder": byteorder}
        tifffile.imwrite(path, values, compression=codec, predictor=predictor, **options, **layout)
        with open_image(path) as image:
            assert (image.channels, image.dtype, image.scaled) == (1, np.uint16, True)
            assert used_bits(image) is None
            np.testing.assert_array_equal(read_whole(image)[..., 0], expected_greys(values))


def test_colours_of_measured_values_have_one_scale(tmp_path: Path) -> None:
    values = np.stack([waves(), waves() * 0.5, waves() * 0.25], -1).astype(np.float32)
    path = tmp_path / "a.tif"
    for planar in ("contig", "separate"):
        stored = values if planar == "contig" else np.moveaxis(values, 2, 0)
        tifffile.imwrite(path, stored, photometric="rgb", planarconfig=planar, metadata=None)
        with open_image(path) as image:
            np.testing.assert_array_equal(read_whole(image), expected_greys(values))


def test_dark_is_white_where_zero_is_white(tmp_path: Path) -> None:
    values = waves().astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite", metadata=None)
    with open_image(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(read_whole(image)[..., 0], 65535 - expected_greys(values))


def test_limits_give_all_images_one_scale(tmp_path: Path) -> None:
    for name, factor in (("bright", 1.0), ("dark", 0.25)):
        tifffile.imwrite(tmp_path / f"{name}.tif", (waves() * factor).astype(np.float32))
    read = []
    for name in ("bright", "dark"):
        options = {"tiff": {"limits": "-1,1"}}
        with open_image(tmp_path / f"{name}.tif", options) as image:
            read.append(read_whole(image)[..., 0].astype(float) / 65535 * 2 - 1)
    np.testing.assert_allclose(read[0], waves(), atol=1e-4)
    np.testing.assert_allclose(read[1], waves() / 4, atol=1e-4)
    for wrong in ("1,0", "a", "0", "nan,1", "0,inf", "0,1,2"):
        with pytest.raises(OptionError, match="expected the values of black and white, such as"):
            open_image(tmp_path / "dark.tif", {"tiff": {"limits": wrong}})


def test_no_finite_numbers_are_black_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = waves().astype(np.float32)
    values[:20] = np.nan
    values[20:30] = np.inf
    tifffile.imwrite(tmp_path / "a.tif", values, metadata=None)
    with caplog.at_level(logging.INFO), open_image(tmp_path / "a.tif") as image:
        read = read_whole(image)[..., 0]
        np.testing.assert_array_equal(read[30:], expected_greys(values[30:]))
        assert read[:30].max() == 0
        assert image.count.unknown_px == 30 * 203
    assert "pixels that are no finite numbers are read as black" in caplog.text
    assert "--reader.tiff.limits LOW,HIGH gives all images the same" in caplog.text
    tifffile.imwrite(tmp_path / "b.tif", np.full((9, 9), np.nan, np.float32), metadata=None)
    with open_image(tmp_path / "b.tif") as image, pytest.raises(UnreadableImage) as caught:
        read_whole(image)
    assert "holds no finite number; make the image again" in str(caught.value)


def test_the_scale_of_a_large_slide_comes_from_blocks_all_over_it(tmp_path: Path) -> None:
    values = np.zeros((2048, 2048), np.float32)
    values[:, 1024:] = np.linspace(0, 4, 1024)
    tifffile.imwrite(tmp_path / "a.tif", values, tile=(64, 64), metadata=None)
    with open_image(tmp_path / "a.tif") as image:
        assert image.kind == "slide"
        part = image.read(Box((100, 0), (9, 2048), Frame.PX, 0))[..., 0]
    assert part[:, 0].max() == 0
    assert (np.diff(part[0].astype(int)) >= 0).all()
    assert part[0, -1] == 65535
    assert abs(int(part[0, 1536]) - 32767) < 1500


def test_transparent_floats_are_not_read(tmp_path: Path) -> None:
    samples = np.zeros((9, 9, 4), np.float32)
    options = {"photometric": "rgb", "extrasamples": ["unassalpha"], "metadata": None}
    tifffile.imwrite(tmp_path / "a.tif", samples, **options)
    with pytest.raises(UnsupportedFormat, match="samples of 32 bits with compression none or tr"):
        open_image(tmp_path / "a.tif")


@pytest.mark.parametrize("share", [0.1, 0.6, 0.95])
def test_damaged_floats(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RNG.random((200, 200), np.float32), compression="zlib", predictor=True)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(FoveateError) as caught, open_image(path) as image:
        read_whole(image)
    assert "a.tif" in str(caught.value)
