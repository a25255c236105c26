"""Messages about image files: each names the file, what is wrong with it and what to do."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from foveate.errors import FoveateError, TooManyOpen, UnreadableImage, converting
from foveate.formats import tiff_grid
from foveate.geometry import Box, Frame
from foveate.readers import nifti, open_image

PIXELS = np.random.default_rng(0).integers(0, 255, (64, 48, 3), np.uint8)
VOXELS = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)


def read_whole(path: Path) -> object:
    with open_image(path) as image:
        return image.read(Box((0,) * image.ndim, image.shape, Frame.PX, 0))


def refused(path: Path, words: str, call: Callable[[Path], object] = read_whole) -> None:
    """Check that a file is refused with its name and these words in the message."""
    with pytest.raises(FoveateError) as caught:
        call(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def volume(path: Path, values: np.ndarray = VOXELS, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def patched(path: Path, at: int, code: str, *values: float) -> Path:
    """Change numbers in a file that is not packed."""
    content = bytearray(path.read_bytes())
    struct.pack_into(code, content, at, *values)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("words", "at", "code", "values"),
    [
        ("a volume of (-4, 7, 8) voxels", 42, "<h", (-4,)),
        ("voxels of type", 70, "<h", (32,)),
        ("its header makes no sense", 70, "<h", (9999,)),
        ("the number that its header adds to every voxel", 112, "<ff", (2.0, np.nan)),
        ("in a unit that does not exist (code 5 in xyzt_units); set it", 123, "<B", (5,)),
        ("4 axes (6, 7, 8, 5), a series of volumes: save one of them", 40, "<5h", (4, 6, 7, 8, 5)),
        ("2 axes (6, 7), not a volume: save it as a picture", 40, "<h", (2,)),
        ("truncated: its header promises", 42, "<h", (3000,)),
    ],
)
def test_volumes(words: str, at: int, code: str, values: tuple, tmp_path: Path) -> None:
    refused(patched(volume(tmp_path / "v.nii"), at, code, *values), words)


def test_complex_volumes_are_refused_by_their_type(tmp_path: Path) -> None:
    path = volume(tmp_path / "v.nii", VOXELS.astype(np.complex64))
    refused(path, "are not readable, only grey ones; save one channel alone")


def test_volumes_without_a_finite_voxel(tmp_path: Path) -> None:
    path = volume(tmp_path / "v.nii", np.full((5, 5, 5), np.nan, np.float32))
    refused(path, "holds no finite number; make the volume again from its source")


@pytest.mark.parametrize(
    ("words", "spoil"),
    [
        ("truncated inside its packed voxels", lambda content: gzip.compress(content[:-9])),
        ("cannot be unpacked", lambda content: gzip.compress(content)[:-20]),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_packed_volumes(
    words: str,
    spoil: Callable[[bytes], bytes],
    at_once: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not at_once:
        monkeypatch.setattr(nifti, "_AT_ONCE_BYTES", 64)
    content = volume(tmp_path / "v.nii").read_bytes()
    (tmp_path / "w.nii.gz").write_bytes(spoil(content))
    refused(tmp_path / "w.nii.gz", words)


def test_pictures_that_promise_something_else(tmp_path: Path) -> None:
    """An animation whose canvas differs from what its header says."""
    Image.fromarray(PIXELS).save(tmp_path / "p.png")
    path = tmp_path / "p.png"
    with open_image(path) as image:
        Image.fromarray(PIXELS[:10]).save(path)
        with pytest.raises(UnreadableImage, match="its header promised"):
            image.read(Box((0, 0), image.shape, Frame.PX, 0))


def tiff(path: Path, *pages: np.ndarray, **options: object) -> Path:
    with tifffile.TiffWriter(path) as file:
        for page in pages:
            file.write(page, **options)  # type: ignore[arg-type]
    return path


def set_tag(path: Path, name: str, value: int) -> Path:
    """Overwrite a tag of the first directory."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags[name].overwrite(value)
    return path


def test_tiffs(tmp_path: Path) -> None:
    (tmp_path / "none.tif").write_bytes(b"II*\0" + bytes(200))
    refused(tmp_path / "none.tif", "the TIFF holds no readable directory")
    (tmp_path / "tags.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + bytes(200))
    refused(tmp_path / "tags.tif", "claims a size of (0, 0) in blocks of")
    refused(
        tiff(tmp_path / "two.tif", PIXELS, PIXELS, tile=(32, 32)),
        "pages of the same size (a stack, or channels in separate pages)",
    )
    wide = tiff(tmp_path / "wide.tif", PIXELS, tile=(32, 32), compression="zlib")
    refused(set_tag(wide, "ImageWidth", 1 << 31), "blocks")
    stack = "ImageJ=1.53\nimages=7\nslices=7\n"
    path = tiff(tmp_path / "stack.tif", PIXELS, description=stack, metadata=None)
    refused(path, "a stack of 7 planes; save one flat picture")


def test_tiffs_that_claim_too_much(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", PIXELS, tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["TileWidth"].overwrite(1 << 15)
        file.pages[0].tags["TileLength"].overwrite(1 << 15)
    refused(path, "GB of pixels in")


def test_tiffs_beyond_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiff(tmp_path / "a.tif", PIXELS, tile=(32, 32), compression="zlib")
    monkeypatch.setattr(tiff_grid, "MAX_BLOCK_BYTES", 100)
    refused(path, "pixels, more than 0 MiB; convert it to a tiled TIFF")
    monkeypatch.setattr(tiff_grid, "_MAX_BLOCKS", 3)
    refused(path, "claims 4 blocks, more than 3; use larger tiles")


def test_layouts_of_vendors(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.vsi", PIXELS)
    refused(path, "a vendor's own layout (Olympus VSI), not a plain TIFF; export it as OME-TIFF")


@pytest.mark.parametrize(
    ("words", "coding", "photometric"),
    [("a JPEG without a frame header", 7, "ycbcr"), ("a JPEG 2000 without a size", 34712, "rgb")],
)
def test_tiles_of_another_coding(words: str, coding: int, photometric: str, tmp_path: Path) -> None:
    """Tiles of zlib that the directory calls tiles of JPEG."""
    path = tiff(tmp_path / "a.tif", PIXELS, tile=(32, 32), compression="zlib")
    set_tag(path, "Compression", coding)
    refused(path, words)


def test_volumes_that_are_too_large_to_unpack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = volume(tmp_path / "v.nii.gz")
    monkeypatch.setattr(nifti, "_CACHE_BYTES", 10)
    refused(path, "unpack the file (gunzip), then it is read region by region")


def test_names_that_no_file_can_have() -> None:
    refused(Path("a\0b"), "no file can have this name; rename it")


def test_slides_that_openslide_cannot_open(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "Slidedat.ini").write_text("[GENERAL]\nSLIDE_ID = x\n")
    (tmp_path / "s.mrxs").write_bytes(b"\xff\xd8\xff" + bytes(50))
    refused(tmp_path / "s.mrxs", "OpenSlide takes it for a slide and cannot open it")


def test_blocks_beyond_the_end_and_damaged_blocks(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", PIXELS, tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offsets = file.pages[0].dataoffsets
    damaged = path.read_bytes()
    (tmp_path / "b.tif").write_bytes(
        damaged[: offsets[0]] + b"\xff" * 64 + damaged[offsets[0] + 64 :]
    )
    refused(tmp_path / "b.tif", "region (64, 48) at (0, 0)")
    with tifffile.TiffFile(path, mode="r+b") as file:
        counts = list(file.pages[0].databytecounts)
        file.pages[0].tags["TileByteCounts"].overwrite([60_000, *counts[1:]])
    refused(path, "bytes, the file ends at")


def test_any_error_inside_is_converted_once(tmp_path: Path) -> None:
    """The one place that catches all errors: errors of this tree pass, others are explained."""
    path = tmp_path / "a.tif"

    def raising(error: Exception, *convert: object) -> Callable[[Path], object]:
        def call(about: Path) -> None:
            with converting(about, *convert):  # type: ignore[arg-type]
                raise error

        return call

    refused(path, "its content is not what its reader expects", raising(KeyError("x")))
    refused(path, "memory does not suffice for this image", raising(MemoryError()))
    refused(path, "the disk is full; make room", raising(OSError(28, "No space left")))
    with pytest.raises(TooManyOpen, match="too many files are open"):
        raising(OSError(24, "Too many open files"))(path)
    with pytest.raises(UnreadableImage, match=r"^as it was$"):
        raising(UnreadableImage("as it was"))(path)
    with pytest.raises(KeyError):
        raising(KeyError("x"), lambda error, about: None)(path)
