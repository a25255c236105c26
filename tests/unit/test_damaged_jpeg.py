"""JPEGs with overwritten bytes are refused, in pictures and in tiles; undamaged ones are read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from foveate.errors import UnreadableImage
from foveate.geometry import Box, Frame
from foveate.readers import open_image

SIDE_PX = 192


def tissue(side_px: int = SIDE_PX) -> Image.Image:
    """Draw a smooth picture with texture, ``(side_px, side_px)``, in colour."""
    rng = np.random.default_rng(3)
    coarse = rng.integers(60, 230, (12, 12, 3), np.uint8)
    smooth = np.asarray(
        Image.fromarray(coarse).resize((side_px, side_px), Image.Resampling.BICUBIC)
    )
    noisy = smooth + rng.normal(0, 6, smooth.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def encoded(picture: Image.Image, **options: Any) -> bytes:
    """Encode a picture as JPEG with Pillow."""
    file = io.BytesIO()
    picture.save(file, "JPEG", **options)
    return file.getvalue()


def scan_begin(data: bytes) -> int:
    """Return the first byte of the pixels of a JPEG with one scan header before them."""
    at = data.index(b"\xff\xda") + 2
    return at + int.from_bytes(data[at : at + 2], "big")


def overwritten(data: bytes, share: float, new: bytes) -> bytes:
    """Overwrite bytes of the scan of a JPEG, from a share of its length on."""
    begin = scan_begin(data)
    at = begin + int(share * (len(data) - 2 - begin))
    assert at + len(new) < len(data) - 2
    return data[:at] + new + data[at + len(new) :]


def read_all(path: Path) -> np.ndarray[Any, Any]:
    """Read all pixels of an image at full resolution."""
    with open_image(path) as image:
        return image.read(Box((0, 0), image.shape, Frame.PX, 0))


def refuse(path: Path) -> str:
    """Read an image that is damaged, and return the message."""
    with pytest.raises(UnreadableImage) as caught:
        read_all(path)
    return str(caught.value)


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


NOISE = np.random.default_rng(8).bytes(4096)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7])
@pytest.mark.parametrize("new", [bytes(64), bytes(1000), NOISE[:1000], NOISE[1000:1900]])
@pytest.mark.parametrize("options", [{}, {"optimize": True, "quality": 95}, {"subsampling": 0}])
def test_a_picture_with_overwritten_bytes_is_refused(
    tmp_path: Path, share: float, new: bytes, options: dict[str, Any]
) -> None:
    data = overwritten(encoded(tissue(), **options), share, new)
    message = refuse(written(tmp_path / "a.jpg", data))
    assert str(tmp_path / "a.jpg") in message
    assert "copy, download or export it again" in message


def test_a_picture_says_where_zeros_and_markers_lie(tmp_path: Path) -> None:
    data = encoded(tissue())
    at = scan_begin(data) + 500
    zeros = data[:at] + bytes(100) + data[at + 100 :]
    assert f"100 zero bytes at byte {at:,}" in refuse(written(tmp_path / "a.jpg", zeros))
    marker = data[:at] + b"\x10\xff\x3f\x10" + data[at + 4 :]
    assert f"marker FF3F among the pixels at byte {at + 1:,}" in refuse(
        written(tmp_path / "b.jpg", marker)
    )


@pytest.mark.parametrize(("cut", "more"), [(400, b""), (0, b"\x5a\x31" * 200)])
def test_a_picture_of_another_length_than_its_pixels_is_refused(
    tmp_path: Path, cut: int, more: bytes
) -> None:
    """libjpeg ignores bytes that are left over, and fills missing blocks with grey."""
    data = encoded(tissue())
    end = len(data) - 2
    data = data[: end - cut] + more + data[end:]
    message = refuse(written(tmp_path / "a.jpg", data))
    assert ("more bytes than its pixels need" in message) is bool(more)


def test_a_progressive_picture_with_zeros_is_refused(tmp_path: Path) -> None:
    data = encoded(tissue(), progressive=True, quality=90)
    second = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    third = data.index(b"\xff\xda", second + 2)
    at = (second + third) // 2
    data = data[:at] + bytes(200) + data[at + 200 :]
    assert "JPEG data are damaged" in refuse(written(tmp_path / "a.jpg", data))


def test_restart_markers_out_of_order_are_refused(tmp_path: Path) -> None:
    data = encoded(tissue(), restart_marker_rows=1)
    read_all(written(tmp_path / "good.jpg", data))
    at = data.index(b"\xff\xd1")
    data = data[:at] + b"\xff\xd4" + data[at + 2 :]
    assert "restart markers are out of order" in refuse(written(tmp_path / "a.jpg", data))


@pytest.mark.parametrize("colour", [(128, 128, 128), (0, 0, 0), (255, 255, 255), None])
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    "options",
    [
        {"quality": 5, "optimize": True},
        {"quality": 95},
        {"progressive": True, "quality": 5},
        {"progressive": True, "optimize": True},
        {"restart_marker_blocks": 3},
        {"subsampling": 0, "quality": 100},
    ],
)
def test_undamaged_pictures_are_read(
    tmp_path: Path,
    colour: tuple[int, int, int] | None,
    mode: str,
    options: dict[str, Any],
) -> None:
    """Pictures of one colour have long runs of zeros in some codings, or are grey to their end."""
    picture = tissue(100) if colour is None else Image.new("RGB", (100, 100), colour)
    data = encoded(picture.convert(mode), **options)
    path = written(tmp_path / "a.jpg", data)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(read_all(path).squeeze(), expected)


@pytest.mark.parametrize("padding", [b"\0" * 300, b"\xff" * 5, b"\x5a\x31", b""])
def test_padding_around_the_end_marker_is_no_damage(tmp_path: Path, padding: bytes) -> None:
    data = encoded(tissue())
    plain = read_all(written(tmp_path / "a.jpg", data))
    padded = data[:-2] + padding + data[-2:] + b"whatever follows \xff\xd8\xff\xc0"
    np.testing.assert_array_equal(read_all(written(tmp_path / "b.jpg", padded)), plain)


# -- tiles -----------------------------------------------------------------------------------------


def slide(path: Path, picture: Image.Image, **options: Any) -> tuple[list[int], list[int]]:
    """Write a tiled TIFF coded with JPEG; return the first bytes and the sizes of its tiles."""
    tifffile.imwrite(
        path,
        np.asarray(picture),
        tile=(96, 96),
        compression="jpeg",
        photometric="rgb",
        resolution=(20000, 20000),
        resolutionunit="CENTIMETER",
        **options,
    )
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        return list(page.dataoffsets), list(page.databytecounts)


def describe_philips() -> str:
    """Write the description of a Philips slide with one level, of which OpenSlide reads this."""

    def attribute(name: str, group: int, element: int, kind: str, value: str) -> str:
        place = f'Group="0x{group:04X}" Element="0x{element:04X}" PMSVR="{kind}"'
        return f'<Attribute Name="{name}" {place}>{value}</Attribute>'

    def item(kind: str, *parts: str) -> str:
        return f'<DataObject ObjectType="{kind}">{"".join(parts)}</DataObject>'

    sides = "&quot;0.0005&quot; &quot;0.0005&quot;"
    spacing = attribute("DICOM_PIXEL_SPACING", 0x28, 0x30, "IDoubleArray", sides)
    number = attribute("PIIM_PIXEL_DATA_REPRESENTATION_NUMBER", 0x1001, 0x8B02, "IUInt16", "0")
    levels = f"<Array>{item('PixelDataRepresentation', spacing, number)}</Array>"
    image = item(
        "DPScannedImage",
        attribute("PIM_DP_IMAGE_TYPE", 0x301D, 0x1004, "IString", "WSI"),
        attribute(
            *("PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", 0x1001, 0x8B01, "IDataObjectArray"), levels
        ),
    )
    images = attribute(
        *("PIM_DP_SCANNED_IMAGES", 0x301D, 0x1003, "IDataObjectArray"), f"<Array>{image}</Array>"
    )
    return '<?xml version="1.0" encoding="UTF-8" ?>' + item("DPUfsImport", images)


@pytest.mark.parametrize("new", [bytes(64), NOISE[:600]])
def test_a_tile_of_philips_with_overwritten_bytes_is_refused(tmp_path: Path, new: bytes) -> None:
    """OpenSlide decodes it, and libjpeg fills the rest of the tile with grey."""
    path = tmp_path / "a.tiff"
    about = {"software": "Philips DP v1.0", "description": describe_philips(), "metadata": None}
    offsets, sizes = slide(path, tissue(), **about)
    with open_image(path) as image:
        assert "philips" in image.reader
        assert image.read(Box((0, 0), image.shape, Frame.PX, 0)).shape == (SIDE_PX, SIDE_PX, 3)
    data, begin = path.read_bytes(), offsets[3]
    tile = overwritten(data[begin : begin + sizes[3]], 0.4, new)
    path.write_bytes(data[:begin] + tile + data[begin + sizes[3] :])
    assert "its JPEG data are damaged" in refuse(path)
    with open_image(path) as image:  # the other tiles are read
        assert image.read(Box((0, 0), (96, 192), Frame.PX, 0)).shape == (96, 192, 3)


@pytest.mark.parametrize("new", [bytes(40), bytes(500), NOISE[:600], NOISE[2000:3000]])
def test_a_tile_with_overwritten_bytes_is_refused(tmp_path: Path, new: bytes) -> None:
    path = tmp_path / "a.tif"
    offsets, sizes = slide(path, tissue())
    assert read_all(path).shape == (SIDE_PX, SIDE_PX, 3)
    data, begin = path.read_bytes(), offsets[3]
    tile = overwritten(data[begin : begin + sizes[3]], 0.4, new)
    path.write_bytes(data[:begin] + tile + data[begin + sizes[3] :])
    assert "level 0" in refuse(path)
    with open_image(path) as image:  # the other tiles are read
        assert image.read(Box((0, 0), (96, 192), Frame.PX, 0)).shape == (96, 192, 3)


def test_a_tile_that_ends_early_is_refused(tmp_path: Path) -> None:
    """libjpeg fills the rest with grey; the marker at the end hides that bytes are missing."""
    path = tmp_path / "a.tif"
    offsets, sizes = slide(path, tissue())
    data, begin = path.read_bytes(), offsets[2]
    tile = data[begin : begin + sizes[2]]
    half = (scan_begin(tile) + len(tile)) // 2
    cut = (tile[:half] + b"\xff\xd9").ljust(len(tile), b"\0")
    path.write_bytes(data[:begin] + cut + data[begin + len(tile) :])
    assert "they end before the last pixel" in refuse(path)


def test_a_tile_of_the_grey_of_missing_blocks_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    slide(path, Image.new("RGB", (SIDE_PX, SIDE_PX), (128, 128, 128)))
    assert (read_all(path) == 128).all()
