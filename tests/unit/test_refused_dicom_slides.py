"""DICOM slides that are damaged, incomplete, or of a kind that is not read are refused."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from foveate.errors import FoveateError, ImageTooLarge, UnreadableImage, UnsupportedFormat
from foveate.formats import dicom_slide_folder
from foveate.formats.dicom_frames import join_items
from foveate.formats.markers import DamagedBlock
from foveate.geometry import Box, Frame
from foveate.readers import open_image
from helpers.dicom_slides import smooth, write_level, write_slide
from helpers.images import build_pyramid, read_whole

PIXELS = smooth()
LEVELS = build_pyramid(PIXELS, (1, 4))


def one_file(tmp_path: Path, pixels=PIXELS, **options) -> Path:
    return write_level(tmp_path / "a.dcm", pixels, series=generate_uid(), **options)


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        (
            {"NumberOfFrames": 1 << 30},
            r"claims 1,073,741,824 frames of \(64, 64\) for \(200, 328\) pixels, in",
        ),
        ({"TotalPixelMatrixRows": 4_000_000_000}, "blocks, more than|need .* frames"),
        ({"TotalPixelMatrixRows": 500}, "pixels need 48 frames, there are 24"),
        ({"TotalPixelMatrixRows": 60}, "a stack of 4 focal planes or channels"),
        ({"TotalPixelMatrixFocalPlanes": 3}, "a stack of 3 focal planes or channels"),
        ({"NumberOfOpticalPaths": 2}, "a stack of 2 focal planes or channels"),
        ({"Rows": 0}, "claims 24 frames of \\(0, 64\\)"),
        ({"Rows": 65000}, "24 frames of .* bytes, its pixels have|need"),
        ({"BitsAllocated": 32}, "samples of 32 bits, or with a sign"),
        ({"SamplesPerPixel": 1}, "1 samples a pixel as RGB"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "3 samples a pixel as PALETTE COLOR"),
        ({"PhotometricInterpretation": "YBR_FULL"}, "YBR_FULL without compression"),
        ({"TotalPixelMatrixColumns": None}, "elements cannot be read"),
        ({"PixelData": None}, "holds no pixels"),
    ],
)
def test_impossible_headers(tmp_path: Path, elements: dict[str, object], words: str) -> None:
    path = one_file(tmp_path, **elements)
    with pytest.raises(FoveateError, match=words) as caught:
        open_image(path)
    assert str(path) in str(caught.value)


def test_a_compression_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = one_file(tmp_path, codec="jpegls")
    with pytest.raises(UnsupportedFormat, match=r"pixels as JPEG-LS Lossless.*export it with JPEG"):
        open_image(path)


def test_the_full_resolution_is_missing(tmp_path: Path) -> None:
    folder = write_slide(tmp_path / "S1", LEVELS)
    (folder / "0.dcm").unlink()
    with pytest.raises(UnreadableImage, match="its full resolution is missing; copy all files"):
        open_image(folder)


def test_two_levels_of_one_size_are_a_stack(tmp_path: Path) -> None:
    folder = write_slide(tmp_path / "S1", [PIXELS, PIXELS])
    with pytest.raises(UnsupportedFormat, match="stack of 2 pictures of one size, in separate"):
        open_image(folder)


def test_levels_of_other_proportions_are_another_slide(tmp_path: Path) -> None:
    folder = write_slide(tmp_path / "S1", [PIXELS, smooth(100, 100)])
    with pytest.raises(UnsupportedFormat, match="differ in proportions or in the kind of their"):
        open_image(folder)


def test_frames_of_several_depths_are_a_stack(tmp_path: Path) -> None:
    path = one_file(tmp_path, absent={0})
    header = dcmread(path)
    place = header.PerFrameFunctionalGroupsSequence[3].PlanePositionSlideSequence[0]
    place.ZOffsetInSlideCoordinateSystem = "2.5"
    header.save_as(path)
    with pytest.raises(UnsupportedFormat, match="a stack of 2 focal planes"):
        open_image(path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (2, "overlap or lie on no grid"),
        (64 * 9 + 1, "a frame lies outside of the slide"),
        (1, "a stack of 2 pictures in one place"),
    ],
)
def test_places_of_frames_that_cannot_be(tmp_path: Path, row: int, words: str) -> None:
    path = one_file(tmp_path, absent={20})
    header = dcmread(path)
    place = header.PerFrameFunctionalGroupsSequence[7].PlanePositionSlideSequence[0]
    place.RowPositionInTotalImagePixelMatrix = row
    header.save_as(path)
    with pytest.raises(FoveateError, match=words):
        open_image(path)


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("codec", ["jpeg", "none"])
def test_truncated_files(tmp_path: Path, codec: str, table: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    path = one_file(tmp_path, noise, codec=codec, table=table)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(FoveateError) as caught, open_image(path) as image:
        read_whole(image)
    assert "a.dcm" in str(caught.value)


def test_a_frame_that_is_no_jpeg_names_file_and_level(tmp_path: Path) -> None:
    path = one_file(tmp_path, codec="jpeg")
    content = path.read_bytes()
    last = content.rindex(b"\xff\xd8\xff")
    path.write_bytes(content[:last] + bytes(40) + content[last + 40 :])
    with open_image(path) as image:
        image.read(Box((0, 0), (64, 64), Frame.PX, 0))
        with pytest.raises(UnreadableImage, match=r"a\.dcm: level 0.*damaged or cut off"):
            read_whole(image)


def test_a_wrong_table_of_offsets_is_not_followed(tmp_path: Path) -> None:
    path = one_file(tmp_path, codec="jpeg", table="extended")
    header = dcmread(path)
    offsets = np.frombuffer(header.ExtendedOffsetTable, "<u8").copy()
    offsets[3] += 10
    offsets[5] = 1 << 63
    header.ExtendedOffsetTable = offsets.tobytes()
    header.save_as(path)
    with open_image(path) as image:
        image.read(Box((0, 0), (64, 64), Frame.PX, 0))
        with pytest.raises(UnreadableImage, match="a frame whose items are damaged"):
            image.read(Box((0, 192), (64, 64), Frame.PX, 0))
        with pytest.raises(UnreadableImage, match="truncated"):
            image.read(Box((0, 320), (9, 9), Frame.PX, 0))


def test_items_are_joined_or_refused() -> None:
    item = b"\xfe\xff\x00\xe0"
    one, two = item + b"\2\0\0\0ab", item + b"\1\0\0\0c"
    assert join_items(one) == b"ab"
    assert join_items(one + two) == b"abc"
    for damaged in (b"", b"ab", one[:-1], one + b"x", item + b"\xff\xff\xff\xff"):
        with pytest.raises(DamagedBlock):
            join_items(damaged)


def test_tiles_that_claim_more_than_memory_are_refused(tmp_path: Path) -> None:
    huge = imagecodecs.jpeg8_encode(np.zeros((8, 8, 3), np.uint8))
    path = one_file(
        tmp_path,
        PIXELS[:64, :64],
        codec="jpeg",
        encode=lambda _: huge,
        Rows=60000,
        Columns=60000,
        TotalPixelMatrixRows=60000,
        TotalPixelMatrixColumns=60000,
    )
    with pytest.raises(ImageTooLarge):
        open_image(path)


def test_places_are_stated_by_every_frame_or_by_none(tmp_path: Path) -> None:
    path = one_file(tmp_path, absent={20})
    header = dcmread(path)
    del header.PerFrameFunctionalGroupsSequence[7].PlanePositionSlideSequence
    header.save_as(path)
    with pytest.raises(UnreadableImage, match="not every frame states its place; the file is"):
        open_image(path)


def test_parts_of_a_level_that_differ(tmp_path: Path) -> None:
    for k in (1, 2):
        part = {"ConcatenationUID": "1.2.9", "InConcatenationNumber": k, "NumberOfFrames": 12}
        path = tmp_path / f"{k}.dcm"
        write_level(path, PIXELS[: 200 - k], series="1.2.3", **part)
    with pytest.raises(UnreadableImage, match="the parts of a level contradict each other"):
        open_image(tmp_path)


def test_a_level_of_very_many_parts_takes_no_memory(tmp_path: Path) -> None:
    path = one_file(tmp_path, ConcatenationUID="1.2.9")
    header = dcmread(path)
    header.add_new("InConcatenationTotalNumber", "UL", 5_000_000)
    header.save_as(path)
    tracemalloc.start()
    with pytest.raises(UnreadableImage, match="of a level in 5000000 parts, 1 are here"):
        open_image(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6


def change(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes of a file from the beginning of its pixels on."""
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x10\0OB")
    path.write_bytes(content[:at] + content[at:].replace(old, new, 1))


ITEM = b"\xfe\xff\x00\xe0"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (ITEM, b"\xfe\xff\x00\xe1", "its compressed pixels do not begin with an item"),
        (ITEM + b"\0\0\0\0", ITEM + b"\2\0\0\0", "no compressed frame begins at byte"),
        (b"\xff\xff\xff\xff", b"\x10\0\0\0", "24 frames of 12,288 bytes, its pixels have 16"),
    ],
)
def test_damaged_items(tmp_path: Path, old: bytes, new: bytes, words: str) -> None:
    path = one_file(tmp_path, codec="jpeg", table="none")
    change(path, old, new)
    with pytest.raises(UnreadableImage, match=words):
        open_image(path)


def test_a_damaged_table_of_offsets(tmp_path: Path) -> None:
    path = one_file(tmp_path, codec="jpeg", table="extended")
    content = path.read_bytes()
    at = content.index(b"\xe0\x7f\x01\0OV")
    path.write_bytes(content[: at + 8] + b"\1\0\0\0" + content[at + 12 :])
    with pytest.raises(UnreadableImage, match="the elements of its pixels are damaged"):
        open_image(path)


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        (23, "its header states 23 frames, 24 are stored; the file is damaged"),
        (1, "claims too many pieces of frames"),
    ],
)
def test_the_number_of_frames_is_wrong(tmp_path: Path, stated: int, words: str) -> None:
    pixels = PIXELS if stated > 1 else np.zeros((64, 64 * 80, 3), np.uint8)
    path = one_file(tmp_path, pixels, codec="jpeg", table="none", NumberOfFrames=stated)
    with pytest.raises(UnreadableImage, match=words):
        open_image(path)


def test_a_slide_of_too_many_files(tmp_path: Path, monkeypatch) -> None:
    folder = write_slide(tmp_path / "S1", LEVELS)
    monkeypatch.setattr(dicom_slide_folder, "_MAX_FILES", 1)
    with pytest.raises(UnsupportedFormat, match="more than 1 files of one slide; remove those"):
        open_image(folder)


def test_a_folder_of_labels_alone(tmp_path: Path) -> None:
    kind = ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]
    one_file(tmp_path, ImageType=kind)
    with pytest.raises(UnsupportedFormat, match="name a file of the slide itself, or its folder"):
        open_image(tmp_path)
