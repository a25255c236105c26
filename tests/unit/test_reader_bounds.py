"""Files with huge claimed sizes are refused at once, or read as far as they are stored."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from foveate.errors import FoveateError, ImageTooLarge, UnreadableImage, UnsupportedFormat
from foveate.geometry import Box, Frame
from foveate.images.image import AbstractImage
from foveate.images.respaced import RespacedImage
from foveate.readers import open_image
from foveate.readers.openslide_ import OpenSlideReader

DAMAGED = Path(__file__).resolve().parents[1] / "fixtures" / "damaged"


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def sparse(path: Path, shape: tuple[int, int], tile: int, stored: dict[int, np.ndarray]) -> Path:
    """Write a slide of one level that stores only some tiles."""
    n = -(-shape[0] // tile) * -(-shape[1] // tile)
    first = np.full((tile, tile, 3), 250, np.uint8)
    with tifffile.TiffWriter(path) as file:
        file.write(
            (first if i == 0 else stored.get(i) for i in range(n)),
            shape=(*shape, 3),
            dtype=np.uint8,
            tile=(tile, tile),
            photometric="rgb",
            compression="zlib",
            metadata=None,
            resolution=(2e4, 2e4),
            resolutionunit="CENTIMETER",
        )
    return path


def glimpse(image: AbstractImage, side: int = 200) -> np.ndarray:
    placed = image if image.spacing_um is not None else RespacedImage(image, (1.0, 1.0), unit="px")
    return placed.glimpse(max(placed.box_um.size) / side)


def test_absent_tiles_of_a_canvas_cost_nothing(tmp_path: Path) -> None:
    """5 gigapixels, of which three tiles are stored, in one level."""
    dark = np.full((512, 512, 3), 40, np.uint8)
    path = sparse(tmp_path / "a.tif", (70_000, 70_000), 512, {70 * 137 + 60: dark})
    begun = time.process_time()
    with open_image(path) as image:
        pixels = glimpse(image)
        assert image.count.decoded_px < 40 * 512**2
    assert time.process_time() - begun < 5
    y, x = np.unravel_index(pixels[..., 0].argmin(), pixels.shape[:2])
    assert (y, x) == pytest.approx((70.5 * 512 / 350, 60.5 * 512 / 350), abs=1)
    assert np.median(pixels) == 255


@pytest.mark.parametrize("target_um", [3.0, 40.0, 900.0])
def test_scattered_stored_tiles_are_read_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target_um: float
) -> None:
    rng = np.random.default_rng(0)
    tiles = {i: rng.integers(0, 256, (64, 64, 3), np.uint8) for i in (5, 99, 130, 131, 400)}
    path = sparse(tmp_path / "a.tif", (1990, 1500), 64, tiles)
    with open_image(path) as image:
        usual = image.glimpse(target_um)
    monkeypatch.setattr("foveate.images.resample._SUM_PIXELS", 3000)
    monkeypatch.setattr("foveate.images.resample.MAX_REGION_PIXELS", 50_000)
    with open_image(path) as image:
        pieces = image.glimpse(target_um)
    assert np.abs(usual.astype(int) - pieces).max() <= 2


def test_a_thin_image_is_read_only_inside(tmp_path: Path) -> None:
    """One output pixel covers more than the height; only pixels inside are read."""
    pixels, path = noise((20, 30_000, 3)), tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(64, 64), metadata=None)
    with open_image(path) as image:
        paper = image.background
        actual = glimpse(image, 10)
        assert actual.shape == (1, 10, 3)
        assert image.count.decoded_px <= 4 * 64 * 30_000
    # The triangle around the centre at 1500 covers 20 rows of image; all others are paper.
    y = np.abs(np.arange(-1500, 4500) + 0.5 - 1500)
    share = np.maximum(0, 1 - y / 3000)
    inside = share[1500:1520].sum() / share.sum()
    mean = pixels[:, 12_000:18_000].mean((0, 1))
    expected = inside * mean + (1 - inside) * paper
    assert np.abs(actual[0, 4] - expected).max() <= 1.5


def test_shared_tile_bytes_are_decoded_once(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tile = noise((64, 64, 3))
    with tifffile.TiffWriter(path) as file:
        file.write(tile, tile=(64, 64), photometric="rgb", compression="zlib", metadata=None)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        offset, count = page.dataoffsets[0], page.databytecounts[0]
        for code, kind, values in ((324, 4, [offset] * 256), (325, 4, [count] * 256)):
            at = page.tags[code].offset
            struct.pack_into("<HHII", content, at, code, kind, 256, len(content))
            content += struct.pack("<256I", *values)
        for name, side in (("ImageWidth", 1024), ("ImageLength", 1024)):
            tag = page.tags[name]
            struct.pack_into("<HHII", content, tag.offset, tag.code, 4, 1, side)
    path.write_bytes(content)
    with open_image(path) as image:
        actual = image.read(Box((0, 0), (1024, 1024), Frame.PX, 0))
        assert image.count.decoded_px == 64 * 64
    np.testing.assert_array_equal(actual, np.tile(tile, (16, 16, 1)))


def test_a_glimpse_too_large_for_memory_is_refused(tmp_path: Path) -> None:
    path = sparse(tmp_path / "a.tif", (70_000, 70_000), 512, {})
    with open_image(path) as image, pytest.raises(ImageTooLarge, match=r"a\.tif.*pixel size"):
        image.glimpse(0.6)


def test_too_little_memory_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    path = sparse(tmp_path / "a.tif", (300, 300), 64, {})
    side = 1 << 24
    with open_image(path) as image, pytest.raises(ImageTooLarge, match=r"a\.tif.*coarser"):
        image.read(Box((0, 0), (side, side), Frame.PX, 0))  # 800 TB


def test_hostile_files_are_refused_at_once() -> None:
    """Each file once took minutes or ended in a traceback."""
    for path in sorted(DAMAGED.iterdir()):
        begun = time.process_time()
        with pytest.raises(FoveateError) as caught, open_image(path) as image:
            glimpse(image)
        assert time.process_time() - begun < 5
        assert path.name in str(caught.value)
        assert "again" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_damaged_files_are_not_passed_to_openslide() -> None:
    path = DAMAGED / "hang_onebyte_aperio.svs"
    with pytest.raises(UnreadableImage, match="24,585 blocks, the file lists 9"):
        open_image(path)
    with pytest.raises(UnreadableImage, match="24,585 tiles, the file lists 9"):
        OpenSlideReader(path)


def test_a_tile_larger_than_its_file_is_not_passed_to_openslide() -> None:
    """Found by the fuzz: OpenSlide reserves what the tile claims, or aborts."""
    with pytest.raises(UnreadableImage, match="a tile claims 4,079,361,924 bytes"):
        OpenSlideReader(DAMAGED / "tile_of_four_gigabytes_trestle.tif")


def test_tiles_that_crash_openslide_are_refused(tmp_path: Path) -> None:
    """Found by the fuzz: a tile of 536,870,976 x 64 pixels, an allocation that aborts."""
    path = tmp_path / "trestle.tif"
    tifffile.imwrite(
        path,
        noise((128, 128, 3)),
        photometric="rgb",
        tile=(64, 64),
        compression="jpeg",
        software="MedScan 1.0",
        description="Background Color=E6E6E6;White Balance=0;Objective Power=10;",
        metadata=None,
    )
    with open_image(path) as image:
        assert "trestle" in image.reader
    with tifffile.TiffFile(path) as file:
        at = file.pages[0].tags["TileLength"].offset
    with path.open("r+b") as raw:
        raw.seek(at)
        raw.write(struct.pack("<HHII", 323, 4, 1, 536_870_976))
    with pytest.raises(ImageTooLarge, match=r"trestle\.tif.*34,359,742,464 pixels"):
        open_image(path)


def test_a_slide_stays_readable_after_a_damaged_tile(tmp_path: Path) -> None:
    """OpenSlide refuses all reads after its first failure, also of intact tiles."""
    pixels, path = noise((512, 512, 3)), tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", tile=(128, 128), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[5], file.pages[0].databytecounts[5]
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * count)
    intact, damaged = Box((0, 0), (128, 128), Frame.PX, 0), Box((128, 128), (9, 9), Frame.PX, 0)
    with OpenSlideReader(path) as image:
        for _ in range(2):
            with pytest.raises(UnreadableImage, match=r"a\.tif.*level 0.*\(128, 128\).*again"):
                image.read(damaged)
            np.testing.assert_array_equal(image.read(intact), pixels[:128, :128])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html><body>Please sign in</body></html>", "web page"),
        (b"\n <HTML><head>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b'{"message": "You do not have access"}', "JSON"),
        (b"", "empty"),
    ],
)
def test_remains_of_failed_downloads_are_named(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(content)
    with pytest.raises(UnsupportedFormat, match=rf"a\.svs.*{message}"):
        open_image(path)


def test_a_pipe_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tif")
    with pytest.raises(UnsupportedFormat, match=r"a\.tif.*pipe"):
        open_image(tmp_path / "a.tif")


def test_impossible_names_and_broken_links_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.tif").symlink_to("loop.tif")
    (tmp_path / "dead.tif").symlink_to("nothing.tif")
    (tmp_path / "file").write_bytes(b"x")
    for name, message in {
        "loop.tif": "link leads back",
        "dead.tif": "a link to a file that is not there",
        "file/a.tif": "no such file",
        f"{'n' * 300}.tif": "cannot be read",
        "a\0.tif": "rename it",
    }.items():
        with pytest.raises(FoveateError, match=message) as caught:
            open_image(tmp_path / name)
        assert "Errno" not in str(caught.value)


def test_too_many_open_files_is_not_reported_as_damage(tmp_path: Path) -> None:
    program = (
        "import resource, sys; from foveate.readers import open_image\n"
        "open_image(sys.argv[1]).close()\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40)); held = []\n"
        "try:\n"
        "    while True: held.append(open_image(sys.argv[1]))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((64, 64, 3)), photometric="rgb", tile=(64, 64))
    run = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert "TooManyOpen" in run.stdout
    assert "ulimit" in run.stdout


def test_file_names_that_are_not_utf_8_are_read(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise((64, 64, 3)), photometric="rgb", tile=(64, 64))
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6), np.int16), np.eye(4)), tmp_path / "a.nii")
    Image.fromarray(noise((9, 9))).save(tmp_path / "a.png")
    for kind in ("tif", "nii", "png"):
        odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe." + kind.encode()))
        (tmp_path / f"a.{kind}").rename(odd)
        with open_image(odd) as image:
            image.read(Box((0,) * image.ndim, image.shape, Frame.PX, 0))


def test_large_pictures_are_read_silently_and_larger_ones_refused(tmp_path: Path) -> None:
    program = (
        "import sys, PIL.Image; from foveate.readers import open_image\n"
        "for side in (40, 60):\n"
        "    path = f'{sys.argv[1]}/{side}.png'\n"
        "    PIL.Image.new('L', (side, side), 7).save(path)\n"
        "PIL.Image.MAX_IMAGE_PIXELS = 1500\n"
        "with open_image(f'{sys.argv[1]}/40.png') as image: print(image.background)\n"
        "try: open_image(f'{sys.argv[1]}/60.png')\n"
        "except Exception as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "always", "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    read, refused = run.stdout.splitlines()
    assert read == "[7]"
    assert "60.png" in refused
    assert "tiled TIFF" in refused


def test_opening_many_files_adds_no_log_handlers(tmp_path: Path) -> None:
    """Each opened file once added a log handler, so that warnings were repeated."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((64, 64, 3)), photometric="rgb", tile=(64, 64))
    for _ in range(3):
        open_image(path).close()
    assert len(tifffile.logger().handlers) <= 1
