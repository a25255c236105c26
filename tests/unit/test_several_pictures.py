"""Files with several pictures of the same size are refused, whatever their format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from foveate.errors import FoveateError, UnreadableImage, UnsupportedFormat
from foveate.readers import open_image
from helpers.images import read_whole

SAME_SIZE = r"holds 3 pages of the same size \(.*stack.*\); save one flat picture"


def frames(*sides: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)) for n in sides]


def written(path: Path, pictures: list[Image.Image], **options: object) -> Path:
    first, *others = pictures
    first.save(path, save_all=True, append_images=others, **options)
    return path


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_animations_are_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, frames(40, 40, 40), duration=100)
    with pytest.raises(UnsupportedFormat, match=SAME_SIZE):
        open_image(path)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_a_picture_in_a_format_of_animations_is_read(tmp_path: Path, name: str) -> None:
    with open_image(written(tmp_path / name, frames(40))) as image:
        assert image.shape == (40, 40)


def test_a_stack_of_tiff_pages_is_refused_in_the_same_words(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for frame in frames(40, 40, 40):
            file.write(np.asarray(frame), photometric="rgb", metadata=None)
    with pytest.raises(UnsupportedFormat, match=SAME_SIZE):
        open_image(path)


def test_tiff_pages_of_similar_sizes_are_refused(tmp_path: Path) -> None:
    """Two crops in one file; the larger one would be answered alone."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for frame in frames(60, 56):
            file.write(np.asarray(frame), photometric="rgb", metadata=None)
    with pytest.raises(UnsupportedFormat, match="holds 2 pages of similar size"):
        open_image(path)


def test_a_thumbnail_beside_a_flat_tiff_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for frame in frames(60, 30):
            file.write(np.asarray(frame), photometric="rgb", metadata=None)
    with open_image(path) as image:
        assert image.shape == (60, 60)


def test_a_jpeg_with_several_views_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jpg", frames(40, 40, 40), format="MPO")
    with pytest.raises(UnsupportedFormat, match=SAME_SIZE):
        open_image(path)


def test_a_jpeg_with_a_smaller_preview_shows_the_picture(tmp_path: Path) -> None:
    large, small = frames(64, 16)
    with open_image(written(tmp_path / "a.jpg", [large, small], format="MPO")) as image:
        pixels = read_whole(image)
    large.save(tmp_path / "plain.jpg")
    expected = np.asarray(Image.open(tmp_path / "plain.jpg"))
    assert np.abs(pixels.astype(int) - expected).mean() < 3


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_a_truncated_animation_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, frames(40, 40, 40), duration=100)
    content = path.read_bytes()
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(FoveateError, match=name) as caught, open_image(path) as image:
            read_whole(image)
        assert isinstance(caught.value, UnsupportedFormat | UnreadableImage)
        assert "\n" not in str(caught.value)
