"""The TIFF reader on files written by the test: codecs, layouts, spacing, geometry, errors."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from conftest import box_around
from foveate.geometry import Box, Frame
from foveate.readers import open_image
from foveate.readers.tiff import TiffReader
from helpers.images import read_whole


def picture(height=300, width=401, samples=3, dtype=np.uint8, seed=0):
    """Return a smooth picture with noise; a single sample has no channel axis."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    top = np.iinfo(dtype).max
    waves = [np.sin(y / (17 + 3 * s)) * np.cos(x / (23 + 5 * s)) for s in range(samples)]
    values = (np.stack(waves, -1) * 0.4 + 0.5) * top + rng.normal(0, top / 100, (height, width, 1))
    values = np.clip(values, 0, top).astype(dtype)
    return values[..., 0] if samples == 1 else values


def opened(path) -> TiffReader:
    image = open_image(path)
    assert isinstance(image, TiffReader)
    return image


LOSSLESS = ["none", "lzw", "zlib", "zstd", "packbits"]
LAYOUTS = {
    "tiles": {"tile": (64, 96)},
    "strips": {"rowsperstrip": 17},
    "one strip": {"rowsperstrip": 300},
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("codec", LOSSLESS)
def test_lossless_codings_return_what_was_written(tmp_path, codec, layout, samples, dtype):
    pixels = picture(samples=samples, dtype=dtype)
    for predictor in (False, True) if codec in ("lzw", "zlib", "zstd") else (False,):
        path = tmp_path / f"{predictor}.tif"
        tifffile.imwrite(
            path,
            pixels,
            photometric="rgb" if samples == 3 else "minisblack",
            compression=codec,
            predictor=predictor,
            **LAYOUTS[layout],
        )
        with opened(path) as image:
            assert (image.channels, image.dtype) == (samples, dtype)
            np.testing.assert_array_equal(read_whole(image).squeeze(), pixels)
            part = image.read(Box((33, 50), (130, 211), Frame.PX, 0))
            np.testing.assert_array_equal(part.squeeze(), pixels[33:163, 50:261])


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("codec", ["none", "zlib"])
def test_both_byte_orders_and_bigtiff_are_read(tmp_path, byteorder, bigtiff, codec):
    pixels = picture(samples=1, dtype=np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        pixels,
        byteorder=byteorder,
        bigtiff=bigtiff,
        tile=(64, 64),
        compression=codec,
        predictor=codec == "zlib",
    )
    with opened(path) as image:
        assert image.dtype == np.dtype(np.uint16)
        np.testing.assert_array_equal(read_whole(image)[..., 0], pixels)


@pytest.mark.parametrize("inside", ["rgb", "ycbcr"])
@pytest.mark.parametrize("layout", ["tiles", "strips"])
def test_jpeg_colours_match_the_written_ones(tmp_path, inside, layout):
    pixels = picture(height=304, width=400)
    path = tmp_path / "a.tif"
    layout_ = {"tiles": {"tile": (64, 96)}, "strips": {"rowsperstrip": 16}}[layout]
    tifffile.imwrite(
        path,
        pixels,
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": 95, "outcolorspace": inside},
        **layout_,
    )
    with opened(path) as image:
        assert np.abs(read_whole(image).astype(float) - pixels).mean() < 6
        with tifffile.TiffFile(path) as file:
            np.testing.assert_array_equal(read_whole(image), file.asarray())


@pytest.mark.parametrize("codec", ["jpeg2000", "webp"])
def test_other_picture_codecs_are_read(tmp_path, codec):
    pixels = picture(height=256, width=384)
    path = tmp_path / "a.tif"
    args = {"level": 0} if codec == "jpeg2000" else {"lossless": True}
    tifffile.imwrite(
        path, pixels, photometric="rgb", tile=(128, 128), compression=codec, compressionargs=args
    )
    with opened(path) as image:
        np.testing.assert_array_equal(read_whole(image), pixels)


@pytest.mark.parametrize("layout", ["tiles", "strips"])
@pytest.mark.parametrize("codec", ["none", "zlib", "jpeg"])
def test_separate_planes_are_read(tmp_path, layout, codec):
    pixels = picture()
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        np.moveaxis(pixels, -1, 0),
        photometric="rgb",
        planarconfig="separate",
        compression=codec,
        **({"tile": (64, 96)} if layout == "tiles" else {"rowsperstrip": 16}),
    )
    with opened(path) as image, tifffile.TiffFile(path) as file:
        np.testing.assert_array_equal(read_whole(image), np.moveaxis(file.asarray(), 0, -1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_transparent_pixels_show_white(tmp_path, dtype):
    top = np.iinfo(dtype).max
    pixels = np.concatenate([picture(dtype=dtype), np.full((300, 401, 1), top, dtype)], axis=2)
    pixels[:100, :, 3] = 0
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=["unassalpha"], tile=(64, 64))
    with opened(path) as image:
        actual = read_whole(image)
        assert (actual[:100] == top).all()
        np.testing.assert_array_equal(actual[100:], pixels[100:, :, :3])
        assert image.background.tolist() == [top] * 3


def test_inverted_and_palette_images_are_converted(tmp_path):
    grey = picture(samples=1)
    tifffile.imwrite(tmp_path / "w.tif", grey, photometric="miniswhite", tile=(64, 64))
    with opened(tmp_path / "w.tif") as image:
        np.testing.assert_array_equal(read_whole(image)[..., 0], 255 - grey)
    table = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "p.tif", grey, photometric="palette", colormap=table, tile=(64, 64))
    with opened(tmp_path / "p.tif") as image:
        np.testing.assert_array_equal(read_whole(image), (table.T[grey] // 257).astype(np.uint8))


# -- pyramids ------------------------------------------------------------------------------------


def shrunk(pixels, n):
    """Average n × n pixels; the last pixels are repeated if the size is no multiple of n."""
    pads = [(0, -s % n) for s in pixels.shape[:2]] + [(0, 0)]
    padded = np.pad(pixels.astype(np.float64), pads, mode="edge")
    h, w, c = padded.shape
    return np.rint(padded.reshape(h // n, n, w // n, n, c).mean((1, 3))).astype(pixels.dtype)


def write_pyramid(path, pixels, *, um=(0.25, 0.25), steps=(4, 16), sub=False, extra=()):
    resolution = (1e4 / um[1], 1e4 / um[0])
    with tifffile.TiffWriter(path) as file:
        common = {"photometric": "rgb", "tile": (64, 64), "metadata": None}
        file.write(
            pixels,
            resolution=resolution,
            resolutionunit="CENTIMETER",
            subifds=len(steps) if sub else None,
            **common,
        )
        for step in steps:
            file.write(shrunk(pixels, step), subfiletype=1, **common)
        for words, small in extra:
            file.write(small, description=words, **common)


@pytest.mark.parametrize("sub", [False, True])
def test_pyramids_as_pages_and_as_sub_directories_are_read(tmp_path, sub):
    pixels = picture(701, 1003)
    write_pyramid(tmp_path / "a.tif", pixels, sub=sub)
    with opened(tmp_path / "a.tif") as image:
        assert [level.shape for level in image.levels] == [(701, 1003), (176, 251), (44, 63)]
        assert [level.downsample for level in image.levels] == [(1, 1), (4, 4), (16, 16)]
        assert image.kind == "slide"
        assert image.spacing_um == pytest.approx((0.25, 0.25))
        for level, step in enumerate((1, 4, 16)):
            np.testing.assert_array_equal(read_whole(image, level), shrunk(pixels, step))


def test_labels_macros_and_thumbnails_are_not_levels(tmp_path):
    pixels = picture(701, 1003)
    extra = [
        ("label 80x60", picture(60, 80)),
        ("macro", shrunk(pixels, 8)),
        ("Thumbnail", shrunk(pixels, 32)),
        ("", picture(200, 150)),
    ]
    write_pyramid(tmp_path / "a.tif", pixels, extra=extra)
    with opened(tmp_path / "a.tif") as image:
        assert [level.shape for level in image.levels] == [(701, 1003), (176, 251), (44, 63)]


def test_absent_tiles_are_background(tmp_path):
    pixels = np.full((512, 512, 3), 230, np.uint8)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        dark = pixels[:128, :128] // 2
        light = pixels[:128, :128].copy()  # the writer takes the shape of tiles from the first
        tiles = (light if i == 0 else dark if i in (5, 6, 9, 10) else None for i in range(16))
        file.write(
            tiles,
            shape=pixels.shape,
            dtype=np.uint8,
            tile=(128, 128),
            photometric="rgb",
            compression="zlib",
        )
        pixels[128:384, 128:384] = 115
        file.write(pixels[::4, ::4], subfiletype=1, tile=(64, 64), photometric="rgb")
    with opened(path) as image:
        np.testing.assert_array_equal(read_whole(image), pixels)


def bright_spot(shape, centre_px0, sigma_px0, dtype=np.uint8):
    y, x = (np.arange(n) + 0.5 for n in shape)
    falls = [
        np.exp(-((axis - c) ** 2) / (2 * s * s))
        for axis, c, s in zip((y, x), centre_px0, sigma_px0, strict=True)
    ]
    spot = 0.98 * np.iinfo(dtype).max * falls[0][:, None] * falls[1][None]
    return np.repeat(np.rint(spot).astype(dtype)[:, :, None], 3, 2)


@pytest.mark.parametrize("target_um", [0.2014, 0.2528, 0.31, 0.4942, 0.81, 2.3, 4.1])
@pytest.mark.parametrize("um", [(0.2014, 0.31), (0.4942, 0.2528), (0.25, 0.25)])
@pytest.mark.parametrize(("dtype", "within_px"), [(np.uint8, 0.12), (np.uint16, 0.01)])
def test_a_bright_spot_is_at_the_centre_of_its_patch(tmp_path, um, target_um, dtype, within_px):
    """The spot is centred at every level and odd spacing, for anisotropic, odd sizes."""
    centre_px0 = (411.3, 1203.8)
    sigma_px0 = tuple(9.0 / u for u in um)
    pixels = bright_spot((907, 1531), centre_px0, sigma_px0, dtype)
    path = tmp_path / "spot.tif"
    write_pyramid(path, pixels, um=um, steps=(2, 4, 8))
    with opened(path) as image:
        assert image.spacing_um == pytest.approx(um, rel=1e-6)
        centre_um = tuple(c * s for c, s in zip(centre_px0, image.known_spacing_um, strict=True))
        n = int(80 / target_um) // 2 * 2 + 1
        patch = image.read_at(box_around(centre_um, (n * target_um,) * 2), (n, n))
        weight = patch[:, :, 0].astype(float)
        place = np.arange(n) + 0.5
        centre = [(weight.sum(1 - a) * place).sum() / weight.sum() for a in (0, 1)]
        assert centre == pytest.approx([n / 2, n / 2], abs=within_px)


@pytest.mark.parametrize("level", range(4))
def test_the_spot_is_at_its_place_in_the_pixels_of_every_level(tmp_path, level):
    centre_px0 = (411.3, 1203.8)
    write_pyramid(
        tmp_path / "spot.tif", bright_spot((907, 1531), centre_px0, (40.0, 30.0)), steps=(2, 4, 8)
    )
    with opened(tmp_path / "spot.tif") as image:
        weight = read_whole(image, level)[:, :, 0].astype(float)
        for axis in (0, 1):
            place = np.arange(weight.shape[axis]) + 0.5
            centre = (weight.sum(1 - axis) * place).sum() / weight.sum()
            assert centre * image.levels[level].downsample[axis] == pytest.approx(
                centre_px0[axis], abs=0.2
            )


# -- counting and cache ----------------------------------------------------------------------------


def test_only_what_is_decoded_is_counted(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, picture(256, 256), photometric="rgb", tile=(64, 64), compression="zlib")
    with open_image(path) as image:
        box = Box((32, 32), (64, 64), Frame.PX, 0)
        first = image.read(box)
        assert image.count.decoded_px == 4 * 64 * 64
        second = image.read(box)
        assert image.count.decoded_px == 4 * 64 * 64
        np.testing.assert_array_equal(first, second)
        second[:] = 0
        np.testing.assert_array_equal(image.read(box), first)


def test_a_single_strip_file_is_read_in_constant_memory(tmp_path):
    """An uncompressed picture in one strip is read by rows, not as one block."""
    path = tmp_path / "flat.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(shape=(20_000, 8_000, 3), dtype=np.uint8, photometric="rgb", rowsperstrip=20_000)
    with open_image(path) as image:
        assert image.kind == "slide"
        patch = image.read(Box((10_000, 100), (256, 256), Frame.PX, 0))
        assert patch.shape == (256, 256, 3)
        assert image.count.decoded_px < 8_000 * 400
