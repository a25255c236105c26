"""Pictures through Pillow: modes, orientation, limits."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.errors import ImageTooLarge, UnreadableImage, UnsupportedFormat
from foveate.geometry import Box, Frame
from foveate.readers import open_image
from helpers.images import read_whole

GREY = np.random.default_rng(3).integers(0, 256, (31, 47), np.uint8)
COLOUR = np.random.default_rng(4).integers(0, 256, (31, 47, 3), np.uint8)


def read_picture(path):
    with open_image(path) as image:
        assert image.kind == "picture"
        assert image.spacing_um is None
        pixels = image.read(Box((0, 0), image.shape, Frame.PX, 0))
        assert pixels.shape[2] == image.channels
        assert pixels.dtype == image.dtype
        return pixels


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "webp"])
def test_grey_is_grey_in_every_lossless_format(tmp_path, suffix):
    Image.fromarray(GREY).save(tmp_path / f"a.{suffix}", lossless=True)
    pixels = read_picture(tmp_path / f"a.{suffix}")
    for channel in range(pixels.shape[2]):
        np.testing.assert_array_equal(pixels[..., channel], GREY)


@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_colour_is_read_in_every_lossless_format(tmp_path, suffix):
    Image.fromarray(COLOUR).save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_picture(tmp_path / f"a.{suffix}"), COLOUR)


def test_sixteen_bits_are_preserved(tmp_path):
    deep = GREY.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "a.png")
    pixels = read_picture(tmp_path / "a.png")
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels[..., 0], deep)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparent_pixels_are_white(tmp_path, mode):
    alpha = np.full_like(GREY, 255)
    alpha[:10] = 0
    alpha[10] = 128
    base = GREY[..., None] if mode == "LA" else COLOUR
    Image.fromarray(np.dstack([base, alpha])).save(tmp_path / "a.png")
    pixels = read_picture(tmp_path / "a.png")
    assert (pixels[:10] == 255).all()
    np.testing.assert_array_equal(pixels[11:], base[11:])
    half = base[10].astype(float) * 128 / 255 + 255 * (1 - 128 / 255)
    assert np.abs(pixels[10] - half).max() <= 0.51


def test_palette_one_bit_and_cmyk_are_converted(tmp_path):
    colour = Image.fromarray(COLOUR)
    colour.quantize(16).save(tmp_path / "p.png")
    np.testing.assert_array_equal(
        read_picture(tmp_path / "p.png"), np.asarray(colour.quantize(16).convert("RGB"))
    )
    Image.fromarray(GREY > 99).save(tmp_path / "1.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "1.png")[..., 0], (GREY > 99) * 255)
    flat = Image.new("RGB", (40, 30), (200, 100, 50))
    flat.convert("CMYK").save(tmp_path / "c.jpg", quality=100)
    assert np.abs(read_picture(tmp_path / "c.jpg").astype(int) - (200, 100, 50)).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_to_shape_and_pixels(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.fromarray(GREY)
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    stored.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png")[..., 0], GREY)


def test_dots_per_inch_are_not_read_as_spacing(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.jpg", dpi=(96, 96))
    read_picture(tmp_path / "a.jpg")


def test_the_size_limit_is_stated(tmp_path):
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ImageTooLarge, match=r"bomb\.png.*limit of"):
        open_image(tmp_path / "bomb.png")


def test_truncated_pictures_are_refused(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UnreadableImage, match=r"cut\.png"):
        read_picture(tmp_path / "cut.png")


def test_a_mirax_label_without_its_slide_is_not_the_slide(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "label.jpg")
    (tmp_path / "label.jpg").rename(tmp_path / "slide.mrxs")
    with pytest.raises(UnsupportedFormat, match=r"slide\.mrxs"):
        open_image(tmp_path / "slide.mrxs")


def test_pixels_are_decoded_once(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    with open_image(tmp_path / "a.png") as image:
        assert image.count.decoded_px == 0
        for _ in range(3):
            image.read(Box((1, 1), (4, 4), Frame.PX, 0))
        assert image.count.decoded_px == 31 * 47


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_bitmaps_are_read(tmp_path: Path, mode: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (31, 45, 3), np.uint8)
    stored = Image.fromarray(rgb).convert(mode)
    stored.save(tmp_path / "a.bmp")
    with open_image(tmp_path / "a.bmp") as image:
        assert image.channels == (1 if mode in ("1", "L") else 3)
        expected = np.asarray(stored.convert("L" if image.channels == 1 else "RGB"))
        np.testing.assert_array_equal(read_whole(image), expected.reshape(31, 45, -1))


@pytest.mark.parametrize("length", [12, 40, 52, 56, 64, 108, 124])
def test_bitmaps_with_every_header(tmp_path: Path, length: int) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    sides = struct.pack("<HHHH", 4, 2, 1, 24) if length == 12 else struct.pack("<iiHH", 4, 2, 1, 24)
    rest = sides + bytes(length - 4 - len(sides))
    head = b"BM" + struct.pack("<IHHII", 14 + length + 24, 0, 0, 14 + length, length)
    (tmp_path / "a.bmp").write_bytes(head + rest + pixels[::-1, :, ::-1].tobytes())
    with open_image(tmp_path / "a.bmp") as image:
        np.testing.assert_array_equal(read_whole(image), pixels)


def test_cut_off_bitmaps_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.bmp")
    content = (tmp_path / "a.bmp").read_bytes()
    (tmp_path / "a.bmp").write_bytes(content[: len(content) // 2])
    with open_image(tmp_path / "a.bmp") as image, pytest.raises(UnreadableImage, match=r"a\.bmp"):
        read_whole(image)
