"""Two pictures one after the other in one file: refused if the second is another one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from foveate.errors import UnsupportedFormat
from foveate.readers import open_image
from helpers.images import read_whole
from unit.test_several_pictures import frames, written

KINDS = ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP")
BEHIND = "stands behind the end of the first"


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    """Return a picture as the bytes of a file."""
    file = io.BytesIO()
    if kind == "TIFF" and options:
        tifffile.imwrite(file, np.asarray(picture), photometric="rgb", **options)
    else:
        picture.save(file, kind, **options)
    return file.getvalue()


def read(path: Path) -> np.ndarray:
    with open_image(path) as image:
        return read_whole(image)


@pytest.mark.parametrize("gap", [b"", b"\0" * 7])
@pytest.mark.parametrize(
    ("first", "second", "options"),
    [
        ("JPEG", "JPEG", {}),
        ("JPEG", "JPEG", {"progressive": True}),
        ("JPEG", "PNG", {}),
        ("PNG", "PNG", {}),
        ("PNG", "JPEG", {}),
        ("BMP", "BMP", {}),
        ("BMP", "JPEG", {}),
        ("GIF", "GIF", {}),
        ("GIF", "WEBP", {}),
        ("WEBP", "WEBP", {}),
        ("WEBP", "BMP", {}),
        ("PNG", "GIF", {}),
        ("TIFF", "TIFF", {}),
        ("TIFF", "TIFF", {"tile": (16, 16)}),
        ("TIFF", "TIFF", {"byteorder": ">"}),
    ],
)
def test_another_picture_behind_the_first_is_refused(
    tmp_path: Path, first: str, second: str, options: dict[str, object], gap: bytes
) -> None:
    one, other = frames(64, 60)
    path = tmp_path / f"a.{first.lower()}"
    head = encode(one, first, **options)
    path.write_bytes(head + gap + encode(other, second, **(options if second == first else {})))
    with pytest.raises(UnsupportedFormat, match=BEHIND) as caught:
        read(path)
    assert str(path) in str(caught.value)
    path.write_bytes(head + gap + encode(one, first, **options))
    assert read(path).shape == (64, 64, 3), "a copy of the first picture changes nothing"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "tail", [b"\0" * 5000, b"II*\0", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"note " * 300]
)
def test_other_bytes_behind_a_picture_are_ignored(tmp_path: Path, kind: str, tail: bytes) -> None:
    (one,) = frames(64)
    path, plain = tmp_path / "a.img", tmp_path / "b.img"
    plain.write_bytes(encode(one, kind))
    path.write_bytes(encode(one, kind) + tail)
    np.testing.assert_array_equal(read(path), read(plain))


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_preview_behind_a_picture_is_ignored(tmp_path: Path, kind: str) -> None:
    one, preview = frames(64, 32)
    (tmp_path / "a.img").write_bytes(encode(one, kind) + encode(preview, kind))
    assert read(tmp_path / "a.img").shape == (64, 64, 3)


def test_a_damaged_thumbnail_beyond_the_file_does_not_hide_the_picture(tmp_path: Path) -> None:
    one, preview = frames(64, 32)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for picture in (one, preview):
            file.write(np.asarray(picture), photometric="rgb", metadata=None)
    with tifffile.TiffFile(path, mode="r+b") as stored:
        stored.pages[1].aspage().tags["StripOffsets"].overwrite(2**63 + 5)
    np.testing.assert_array_equal(read(path), np.asarray(one))


def test_a_preview_within_a_jpeg_is_no_end(tmp_path: Path) -> None:
    """EXIF blocks hold a JPEG with an end mark of its own, before the pixels."""
    one, preview = frames(64, 60)
    inner = encode(preview, "JPEG", quality=30)
    block = b"\xff\xe1" + (len(inner) + 8).to_bytes(2, "big") + b"Exif\0\0" + inner
    content = encode(one, "JPEG")
    (tmp_path / "a.jpg").write_bytes(content[:2] + block + content[2:])
    (tmp_path / "b.jpg").write_bytes(content)
    np.testing.assert_array_equal(read(tmp_path / "a.jpg"), read(tmp_path / "b.jpg"))


def test_views_of_similar_sizes_in_one_jpeg_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jpg", frames(64, 60), format="MPO")
    with pytest.raises(UnsupportedFormat, match="holds 2 pages of similar size"):
        open_image(path)
