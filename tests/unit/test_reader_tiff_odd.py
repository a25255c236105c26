"""Unusual TIFFs that libtiff reads give the pixels of the original picture."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from foveate.errors import UnreadableImage
from foveate.geometry import Box, Frame
from foveate.readers import open_image
from foveate.readers.tiff import TiffReader

Tag = tuple[int, int, list[int]]
NONE, JPEG, DEFLATE, JPEG2000, WEBP = 1, 7, 8, 34712, 50001
RGB, YCBCR = 2, 6


def picture(height: int = 256, width: int = 256, seed: int = 0) -> np.ndarray:
    """Return a smooth picture with all values per channel and four different corners."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / (31 + 7 * s) + seed) * np.cos(x / (43 + 5 * s)) for s in range(3)]
    return np.clip(np.stack(waves, -1) * 90 + 120 + (x + y)[..., None] / 12, 0, 255).astype(
        np.uint8
    )


def written(
    path: Path,
    blocks: list[bytes],
    *,
    shape: tuple[int, int] = (256, 256),
    block: tuple[int, int] = (128, 128),
    coding: int = NONE,
    photometric: int = RGB,
    strips: bool = False,
    counts: list[int] | None = None,
    extra: tuple[Tag, ...] = (),
) -> Path:
    """Write a TIFF of these stored blocks; `counts` of [] leaves the tag out."""
    out = bytearray(b"II*\0\0\0\0\0")
    offsets = []
    for data in blocks:
        offsets.append(len(out))
        out += data + b"\0" * (len(data) % 2)
    counts = [len(data) for data in blocks] if counts is None else counts
    tags: list[Tag] = [
        (256, 4, [shape[1]]),
        (257, 4, [shape[0]]),
        (258, 3, [8, 8, 8]),
        (259, 3, [coding]),
        (262, 3, [photometric]),
        (277, 3, [3]),
        (284, 3, [1]),
        *([(273, 4, offsets), (278, 3, [block[0]]), (279, 4, counts)] if strips else []),
        *([] if strips else [(322, 3, [block[1]]), (323, 3, [block[0]])]),
        *([] if strips else [(324, 4, offsets), (325, 4, counts)]),
        *extra,
    ]
    entries = b""
    for number, kind, values in sorted(tag for tag in tags if tag[2]):
        raw = struct.pack("<" + {1: "B", 3: "H", 4: "I"}[kind] * len(values), *values)
        if len(raw) > 4:
            at = len(out)
            out += raw
            raw = struct.pack("<I", at)
        entries += struct.pack("<HHI", number, kind, len(values)) + raw.ljust(4, b"\0")
    struct.pack_into("<I", out, 4, len(out))
    path.write_bytes(bytes(out) + struct.pack("<H", len(entries) // 12) + entries + b"\0" * 4)
    return path


def cut(pixels: np.ndarray, side: int = 128) -> list[np.ndarray]:
    """Cut a picture into tiles; tiles at the far edges are truncated."""
    return [
        np.ascontiguousarray(pixels[y : y + side, x : x + side])
        for y in range(0, pixels.shape[0], side)
        for x in range(0, pixels.shape[1], side)
    ]


def rows(pixels: np.ndarray, n: int = 10) -> list[bytes]:
    return [pixels[y : y + n].tobytes() for y in range(0, pixels.shape[0], n)]


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def without_jfif_marker(data: bytes) -> bytes:
    """Return a JPEG without its JFIF marker."""
    return data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]


def read_tiff(path: Path) -> np.ndarray:
    with open_image(path) as image:
        assert isinstance(image, TiffReader)
        return image.read(Box((0, 0), image.shape, Frame.PX, 0))


# -- strips ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", ["zeros", "absent"])
@pytest.mark.parametrize("coding", [NONE, DEFLATE])
def test_strips_without_byte_counts_are_read(tmp_path: Path, counts: str, coding: int) -> None:
    pixels = picture()
    blocks = rows(pixels)
    if coding == DEFLATE:
        blocks = [zlib.compress(block) for block in blocks]
    stated = [0] * len(blocks) if counts == "zeros" else []
    path = written(
        tmp_path / "a.tif", blocks, block=(10, 256), coding=coding, strips=True, counts=stated
    )
    np.testing.assert_array_equal(read_tiff(path), pixels)


def test_padded_raw_strips_are_read(tmp_path: Path) -> None:
    pixels = picture()
    blocks = [block + b"\7" * 16 for block in rows(pixels)]
    path = written(tmp_path / "a.tif", blocks, block=(10, 256), strips=True)
    np.testing.assert_array_equal(read_tiff(path), pixels)


def test_a_full_length_last_strip_is_read(tmp_path: Path) -> None:
    pixels = picture()
    blocks = [zlib.compress(block) for block in rows(pixels)[:-1]]
    blocks.append(zlib.compress(rows(pixels)[-1] + b"\7" * 256 * 3 * 4))
    path = written(tmp_path / "a.tif", blocks, block=(10, 256), coding=DEFLATE, strips=True)
    np.testing.assert_array_equal(read_tiff(path), pixels)


def test_a_tile_of_no_bytes_is_background(tmp_path: Path) -> None:
    pixels = picture()
    blocks = [block.tobytes() for block in cut(pixels)]
    counts = [len(block) for block in blocks]
    counts[3] = 0
    actual = read_tiff(written(tmp_path / "a.tif", blocks, counts=counts))
    assert (actual[128:, 128:] == 255).all()
    np.testing.assert_array_equal(actual[:128], pixels[:128])


# -- tiles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", [NONE, DEFLATE, JPEG, JPEG2000, WEBP])
def test_truncated_edge_tiles_are_read(tmp_path: Path, coding: int) -> None:
    pixels = picture(200, 210)
    encode = {
        NONE: lambda a: a.tobytes(),
        DEFLATE: lambda a: zlib.compress(a.tobytes()),
        JPEG: jpeg,
        JPEG2000: lambda a: imagecodecs.jpeg2k_encode(a, level=0, codecformat="j2k"),
        WEBP: lambda a: imagecodecs.webp_encode(a, lossless=True),
    }[coding]
    photometric = YCBCR if coding == JPEG else RGB
    path = written(
        tmp_path / "a.tif",
        [encode(tile) for tile in cut(pixels)],
        shape=(200, 210),
        coding=coding,
        photometric=photometric,
    )
    assert np.abs(read_tiff(path).astype(int) - pixels).mean() < (2 if coding == JPEG else 1e-9)


def test_a_tile_that_is_too_short_is_refused(tmp_path: Path) -> None:
    blocks = [zlib.compress(tile.tobytes()[:-3000]) for tile in cut(picture())]
    with pytest.raises(UnreadableImage, match=r"a\.tif.*expected.*again"):
        read_tiff(written(tmp_path / "a.tif", blocks, coding=DEFLATE))


# -- JPEG ------------------------------------------------------------------------------------------

COMMENT = b"\xff\xfe\0\x32" + b"c" * 48
ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\x01"


@pytest.mark.parametrize("mark", ["jfif", "adobe", "tables"])
def test_a_jpeg_colour_marker_after_a_comment_is_used(tmp_path: Path, mark: str) -> None:
    pixels = picture()
    tiles = [jpeg(tile) for tile in cut(pixels)]
    extra: tuple[Tag, ...] = ()
    if mark == "tables":
        tiles = [without_jfif_marker(tile) for tile in tiles]
        tables = b"\xff\xd8" + COMMENT + ADOBE + b"\xff\xd9"
        extra = ((347, 1, list(tables)),)
    elif mark == "adobe":
        tiles = [without_jfif_marker(tile) for tile in tiles]
        tiles = [tile[:2] + COMMENT + ADOBE + tile[2:] for tile in tiles]
    else:
        tiles = [tile[:2] + COMMENT + tile[2:] for tile in tiles]
    path = written(tmp_path / "a.tif", tiles, coding=JPEG, photometric=RGB, extra=extra)
    assert np.abs(read_tiff(path).astype(int) - pixels).mean() < 2


def test_fill_bytes_before_a_jpeg_marker_are_skipped(tmp_path: Path) -> None:
    pixels = picture()
    tiles = [without_jfif_marker(jpeg(tile)) for tile in cut(pixels)]
    tiles = [tile[:2] + b"\xff\xff" + tile[2:] for tile in tiles]
    path = written(tmp_path / "a.tif", tiles, coding=JPEG, photometric=YCBCR)
    assert np.abs(read_tiff(path).astype(int) - pixels).mean() < 2


# -- which way up ----------------------------------------------------------------------------------

UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("layout", ["strips", "tiles"])
def test_orientation_tags_are_applied(tmp_path: Path, orientation: int, layout: str) -> None:
    pixels, path = picture(200, 310), tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        pixels,
        photometric="rgb",
        metadata=None,
        resolution=(2e4, 4e4),
        resolutionunit="CENTIMETER",
        extratags=[(274, "H", 1, orientation, True)],
        **({"tile": (64, 96)} if layout == "tiles" else {"rowsperstrip": 7}),
    )
    upright = UPRIGHT[orientation](pixels)
    with open_image(path) as image:
        assert image.shape == upright.shape[:2]
        assert image.spacing_um == pytest.approx((0.5, 0.25) if orientation > 4 else (0.25, 0.5))
        np.testing.assert_array_equal(image.read(Box((0, 0), image.shape, Frame.PX, 0)), upright)
        part = image.read(Box((33, 21), (90, 110), Frame.PX, 0))
        np.testing.assert_array_equal(part, upright[33:123, 21:131])
    with Image.open(path) as other:
        np.testing.assert_array_equal(np.asarray(other), upright)


# -- levels ----------------------------------------------------------------------------------------

TILED = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib", "metadata": None}


@pytest.mark.parametrize("marked", [False, True])
def test_a_page_of_another_picture_is_not_a_level(tmp_path: Path, marked: bool) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(picture(512, 512), **TILED)
        file.write(picture(256, 256, seed=2)[::-1], subfiletype=int(marked), **TILED)
    with open_image(path) as image:
        assert [level.shape for level in image.levels] == [(512, 512)]


@pytest.mark.parametrize("quality", [None, 40])
def test_unmarked_levels_are_recognised_by_their_pixels(
    tmp_path: Path, quality: int | None
) -> None:
    pixels, path = picture(768, 1024), tmp_path / "a.tif"
    lossy = {"compression": "jpeg", "compressionargs": {"level": quality}}
    coding = TILED | ({} if quality is None else lossy)
    with tifffile.TiffWriter(path) as file:
        for step in (1, 2, 8):
            small = pixels.reshape(768 // step, step, 1024 // step, step, 3).mean((1, 3))
            file.write(small.round().astype(np.uint8), **coding)
    with open_image(path) as image:
        assert [level.downsample[0] for level in image.levels] == [1, 2, 8]


def test_missing_tiles_of_a_level_are_read_from_the_finer_one(tmp_path: Path) -> None:
    """Scanners omit tiles at the edges of reduced levels, where there may be tissue."""
    pixels, path = picture(512, 512), tmp_path / "a.tif"
    small = pixels.reshape(128, 4, 128, 4, 3).mean((1, 3)).round().astype(np.uint8)
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, **TILED)
        tiles = cut(small, 64)
        file.write(
            (tile if i in (0, 1) else None for i, tile in enumerate(tiles)),
            shape=small.shape,
            dtype=np.uint8,
            subfiletype=1,
            **TILED,
        )
    with open_image(path) as image:
        assert len(image.levels) == 2
        actual = image.read(Box((0, 0), (128, 128), Frame.PX, 1)).astype(int)
    np.testing.assert_array_equal(actual[:64], small[:64])
    assert np.abs(actual[64:] - small[64:]).mean() < 1


# -- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "um"),
    [
        *((word, 1.0) for word in ("micron", "microns", "micrometer", "Micrometers", "micrometre")),
        *((word, 1e3) for word in ("millimeter", "millimetres", "mm")),
        ("nanometer", 1e-3),
        ("inches", 25400.0),
        ("pixel", None),
    ],
)
def test_spelled_out_units_are_read(tmp_path: Path, unit: str, um: float | None) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        picture(64, 64),
        photometric="rgb",
        metadata=None,
        resolution=(2.0 * (um or 1),) * 2,
        resolutionunit="NONE",
        description=f"ImageJ=1.54f\nunit={unit}\n",
    )
    with open_image(path) as image:
        assert image.spacing_um == (None if um is None else pytest.approx((0.5, 0.5), rel=1e-3))


@pytest.mark.parametrize(
    ("words", "um"),
    [("0.499", 0.499), ("4.99e-1", 0.499), ("0,499", 0.499), ("0.499 um", None), ("4.99.1", None)],
)
def test_a_garbled_pixel_size_is_not_read(tmp_path: Path, words: str, um: float | None) -> None:
    path = tmp_path / "a.svs"
    tifffile.imwrite(
        path,
        picture(64, 64),
        photometric="rgb",
        tile=(64, 64),
        metadata=None,
        description=f"Aperio Image Library v11\r\n64x64|AppMag = 20|MPP = {words}|Left = 2",
    )
    with open_image(path) as image:
        assert image.spacing_um == (None if um is None else pytest.approx((um, um)))
