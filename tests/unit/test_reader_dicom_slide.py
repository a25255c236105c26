"""The reader of DICOM slides on files written by the test: layouts, colours, missing parts."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, generate_uid

from foveate.errors import UnreadableImage, UnsupportedFormat
from foveate.formats import dicom_slide_folder
from foveate.formats.dicom_folder import read_state
from foveate.geometry import Box, Frame
from foveate.readers import is_image_folder, open_image
from foveate.readers.dicom_slide import DicomSlideReader
from foveate.table import cases_from_folder
from foveate.table.draft import draft_rows
from helpers.dicom import write_dicom
from helpers.dicom_slides import SLIDE, as_implicit, encode_jpeg, smooth, write_level, write_slide
from helpers.files import UNREADABLE, needs_proc
from helpers.images import build_pyramid, read_whole

PIXELS = smooth()
LEVELS = build_pyramid(PIXELS, (1, 4))


def opened(path: Path) -> DicomSlideReader:
    image = open_image(path)
    assert isinstance(image, DicomSlideReader)
    return image


def one_file(tmp_path: Path, pixels=PIXELS, **options) -> Path:
    return write_level(tmp_path / "a.dcm", pixels, series=generate_uid(), **options)


# -- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
@pytest.mark.parametrize("codec", ["jpeg2000", "none"])
def test_levels_in_several_files_are_one_slide(tmp_path: Path, codec: str, table: str) -> None:
    folder = write_slide(tmp_path / "S1", LEVELS, codec=codec, table=table)
    assert is_image_folder(folder)
    for path in (folder, folder / "0.dcm", folder / "1.dcm"):
        with opened(path) as image:
            assert (image.kind, image.channels, image.dtype) == ("slide", 3, np.uint8)
            assert [level.shape for level in image.levels] == [(200, 328), (50, 82)]
            assert image.levels[0].tile == (64, 64)
            assert image.spacing_um == pytest.approx((0.5, 0.5))
            for i, pixels in enumerate(LEVELS):
                np.testing.assert_array_equal(read_whole(image, i), pixels)
            part = image.read(Box((31, 50), (130, 211), Frame.PX, 0))
            np.testing.assert_array_equal(part, PIXELS[31:161, 50:261])


def test_grey_of_16_bits_planes_and_implicit_types(tmp_path: Path) -> None:
    grey = smooth(samples=1, dtype=np.uint16)
    with opened(one_file(tmp_path, grey)) as image:
        assert (image.channels, image.dtype) == (1, np.uint16)
        np.testing.assert_array_equal(read_whole(image), grey)
    path = one_file(tmp_path)
    as_implicit(path)
    with opened(path) as image:
        np.testing.assert_array_equal(read_whole(image), PIXELS)
    path = one_file(
        tmp_path, encode=lambda f: np.moveaxis(f, 2, 0).tobytes(), PlanarConfiguration=1
    )
    with opened(path) as image:
        np.testing.assert_array_equal(read_whole(image), PIXELS)


def test_inverted_grey_is_turned_over(tmp_path: Path) -> None:
    grey = smooth(samples=1)
    with opened(one_file(tmp_path, 255 - grey, photometric="MONOCHROME1")) as image:
        np.testing.assert_array_equal(read_whole(image), grey)


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("table", ["basic", "none"])
def test_frames_in_several_pieces(tmp_path: Path, table: str, pieces: int) -> None:
    path = one_file(tmp_path, codec="jpeg2000", table=table, pieces=pieces)
    with opened(path) as image:
        np.testing.assert_array_equal(read_whole(image), PIXELS)
    alone = one_file(tmp_path, PIXELS[:64, :64], codec="jpeg2000", table=table, pieces=pieces)
    with opened(alone) as image:
        np.testing.assert_array_equal(read_whole(image), PIXELS[:64, :64])


@pytest.mark.parametrize("implicit", [False, True])
def test_sparse_frames_lie_where_they_say(tmp_path: Path, implicit: bool) -> None:
    absent = {1, 6, 7, 20}
    path = one_file(tmp_path, absent=absent)
    if implicit:
        as_implicit(path)
    expected = PIXELS.copy()
    for i in absent:
        y, x = i // 6 * 64, i % 6 * 64
        expected[y : y + 64, x : x + 64] = 255
    with opened(path) as image:
        np.testing.assert_array_equal(read_whole(image), expected)
        assert image.background.tolist() == [255, 255, 255]
        assert image._stored_share(0, (0, 64), (64, 64)) == 0


def test_a_tile_that_a_level_lacks_is_read_from_the_finer_one(tmp_path: Path) -> None:
    series = generate_uid()
    write_level(tmp_path / "0.dcm", PIXELS, series=series)
    coarse = LEVELS[1]
    write_level(tmp_path / "1.dcm", coarse, series=series, resampled=True, absent={0})
    with opened(tmp_path) as image:
        difference = np.abs(read_whole(image, 1).astype(int) - coarse)
        assert difference[:, 64:].max() == 0
        assert difference[:, :64].max() <= 2


@pytest.mark.parametrize("sparse", [False, True])
def test_a_level_in_several_parts(tmp_path: Path, sparse: bool) -> None:
    series, whole = generate_uid(), generate_uid()
    cuts = [0, 7, 8, 24]
    for k, (low, high) in enumerate(itertools.pairwise(cuts)):
        write_level(
            tmp_path / f"{'cab'[k]}.dcm",
            PIXELS,
            series=series,
            codec="jpeg2000",
            frames=slice(low, high),
            absent=set() if sparse else None,
            ConcatenationUID=whole,
            InConcatenationNumber=k + 1,
            InConcatenationTotalNumber=3,
            ConcatenationFrameOffsetNumber=low,
        )
    with opened(tmp_path / "a.dcm") as image:
        np.testing.assert_array_equal(read_whole(image), PIXELS)
    (tmp_path / "a.dcm").unlink()
    with pytest.raises(UnreadableImage, match="of a level in 3 parts, 2 are here; copy all files"):
        open_image(tmp_path)


def test_labels_overviews_and_thumbnails_are_left_out(tmp_path: Path) -> None:
    folder = write_slide(tmp_path / "S1", LEVELS, series="1.2.3")
    for kind in ("LABEL", "OVERVIEW", "THUMBNAIL"):
        write_level(
            folder / f"{kind}.dcm",
            smooth(90, 130),
            series="1.2.3",
            ImageType=["ORIGINAL", "PRIMARY", kind, "NONE"],
        )
    with opened(folder) as image:
        assert [level.shape for level in image.levels] == [(200, 328), (50, 82)]
    with pytest.raises(UnsupportedFormat, match="shows the label of a slide"):
        open_image(folder / "LABEL.dcm")


def test_files_are_siblings_by_series_or_by_their_place_on_the_glass(tmp_path: Path) -> None:
    same = {"FrameOfReferenceUID": "1.2.3.4", "ContainerIdentifier": "GLASS 1"}
    write_level(tmp_path / "a.dcm", LEVELS[0], series="1.2.7", **same)
    write_level(tmp_path / "b.dcm", LEVELS[1], series="1.2.8", resampled=True, **same)
    write_slide(tmp_path / "other", [smooth(90, 130)])
    (tmp_path / "other/0.dcm").rename(tmp_path / "stranger.dcm")
    with opened(tmp_path / "b.dcm") as image:
        assert [level.shape for level in image.levels] == [(200, 328), (50, 82)]
    with opened(tmp_path / "stranger.dcm") as image:
        assert [level.shape for level in image.levels] == [(90, 130)]


def test_the_same_content_twice_is_read_once(tmp_path: Path) -> None:
    folder = write_slide(tmp_path / "S1", LEVELS)
    (folder / "copy.dcm").write_bytes((folder / "1.dcm").read_bytes())
    (folder / ".DS_Store").write_bytes(b"x")
    (folder / "Thumbs.db").write_bytes(b"x")
    with opened(folder) as image:
        assert len(image.levels) == 2


# -- folders and lists of images -------------------------------------------------------------------


def listed(folder: Path) -> list[str]:
    cases = cases_from_folder(folder, is_image_folder).cases
    return sorted(case.path.relative_to(folder).as_posix() for case in cases)


def test_a_folder_of_one_slide_is_one_image(tmp_path: Path) -> None:
    write_slide(tmp_path / "S1", LEVELS)
    write_slide(tmp_path / "deep/S2", LEVELS)
    (tmp_path / "S1/notes.txt").write_text("stained in March", encoding="utf-8")
    assert listed(tmp_path) == ["S1", "deep/S2"]
    assert listed(tmp_path / "S1") == ["."]
    assert [row.path.name for row in draft_rows(tmp_path, is_image_folder).rows] == ["S1", "S2"]


def test_slides_in_one_folder_are_listed_once_each(tmp_path: Path) -> None:
    for i, name in enumerate("ab"):
        folder = write_slide(tmp_path / name, LEVELS)
        for path in sorted(folder.iterdir()):
            path.rename(tmp_path / f"{9 - int(path.stem)}.{i}")
        folder.rmdir()
    assert not is_image_folder(tmp_path)
    assert listed(tmp_path) == ["9.0", "9.1"]
    Image.fromarray(PIXELS).save(tmp_path / "c.png")
    assert listed(tmp_path) == ["9.0", "9.1", "c.png"]
    with opened(tmp_path / "9.1") as image:
        assert len(image.levels) == 2


def test_other_images_beside_a_slide_are_not_hidden(tmp_path: Path) -> None:
    folder = write_slide(tmp_path / "S1", LEVELS)
    Image.fromarray(PIXELS).save(folder / "c.png")
    assert listed(tmp_path) == ["S1/0.dcm", "S1/c.png"]
    with pytest.raises(UnsupportedFormat, match="is a folder, not an image file"):
        open_image(folder)


def test_folders_below_a_slide_are_listed_and_no_part_of_it(tmp_path: Path) -> None:
    folder = write_slide(tmp_path / "S1", LEVELS)
    (folder / "@eaDir").mkdir()
    (folder / "@eaDir/c.png").touch()
    assert listed(tmp_path) == ["S1"]
    (folder / "more").mkdir()
    Image.fromarray(PIXELS).save(folder / "more/c.png")
    assert listed(tmp_path) == ["S1/0.dcm", "S1/more/c.png"]


def test_other_dicom_before_a_slide_in_the_order_of_names(tmp_path: Path) -> None:
    write_slide(tmp_path, LEVELS)
    for i in range(120):
        write_dicom(tmp_path / f"-{i}.dcm", smooth(8, 9, 1)[..., 0])
    files = listed(tmp_path)
    assert len(files) == 121
    assert "0.dcm" in files


@needs_proc
def test_files_that_cannot_be_read_end_no_list(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_slide(tmp_path, LEVELS)
    (tmp_path / "-.dcm").symlink_to(UNREADABLE)
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "nowhere.dcm")
    os.mkfifo(tmp_path / "pipe.dcm")
    header = (tmp_path / "1.dcm").read_bytes()[:132]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SLIDE
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    with (tmp_path / "deflate.dcm").open("wb") as file:
        file.write(header)
        write_file_meta_info(file, meta, enforce_standard=False)
        file.write(b"\xff" * 99)
    assert listed(tmp_path) == ["-.dcm", "0.dcm", "deflate.dcm", "gone.dcm", "pipe.dcm"]
    assert not is_image_folder(tmp_path)
    with opened(tmp_path / "0.dcm") as image:
        assert len(image.levels) == 2
    assert "may lack a level, because -.dcm cannot be read" in caplog.text
    with pytest.raises(UnreadableImage, match=r"deflate\.dcm: its DICOM elements cannot be read"):
        open_image(tmp_path / "deflate.dcm")


def test_headers_beside_a_slide_are_read_once(tmp_path: Path) -> None:
    folder = write_slide(tmp_path / "S1", LEVELS)
    opened(folder / "0.dcm").close()
    asked = [(path, read_state(path)) for path in sorted(folder.iterdir())]
    first = [dicom_slide_folder._read_content(path, state) for path, state in asked]
    again = [dicom_slide_folder._read_content(path) for path, _ in asked]
    assert [content.kind for content in first] == ["slide", "slide"]
    assert all(a is b for a, b in zip(first, again, strict=True))
    write_slide(folder, [PIXELS[:180], LEVELS[1]])
    changed = dicom_slide_folder._read_content(folder / "0.dcm")
    assert changed.member is not None
    assert changed.member.stated_px == 180 * 328


# -- colours ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422", "YBR_FULL"])
@pytest.mark.parametrize("inside", ["ycbcr", "ycbcr 4:2:0", "rgb marked"])
def test_the_marks_inside_a_jpeg_decide_about_colours(
    tmp_path: Path, inside: str, photometric: str
) -> None:
    options = {
        "ycbcr": {"subsampling": "444"},
        "ycbcr 4:2:0": {"subsampling": "420"},
        "rgb marked": {"outcolorspace": "rgb"},
    }[inside]
    path = one_file(
        tmp_path, codec="jpeg", encode=lambda f: encode_jpeg(f, **options), photometric=photometric
    )
    with opened(path) as image:
        assert np.abs(read_whole(image).astype(int) - PIXELS).mean() < 3


def without_marks(jpeg: bytes) -> bytes:
    """Remove the JFIF and Adobe markers of a JPEG."""
    at, kept = 2, jpeg[:2]
    while jpeg[at + 1] != 0xDA:
        n = 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        kept += b"" if jpeg[at + 1] in (0xE0, 0xEE) else jpeg[at : at + n]
        at += n
    return kept + jpeg[at:]


@pytest.mark.parametrize(
    ("photometric", "options"),
    [
        ("RGB", {"outcolorspace": "rgb"}),
        ("RGB", {"subsampling": "420"}),  # only YCbCr has components of several resolutions
        ("YBR_FULL_422", {"subsampling": "420"}),
        ("YBR_FULL", {"subsampling": "444"}),
    ],
)
def test_a_jpeg_without_marks_has_the_colours_of_the_header(
    tmp_path: Path, photometric: str, options: dict[str, str]
) -> None:
    path = one_file(
        tmp_path,
        codec="jpeg",
        encode=lambda f: without_marks(encode_jpeg(f, **options)),
        photometric=photometric,
    )
    with opened(path) as image:
        assert np.abs(read_whole(image).astype(int) - PIXELS).mean() < 3


@pytest.mark.parametrize("photometric", ["RGB", "YBR_RCT", "YBR_ICT", "YBR_FULL"])
def test_the_codestream_of_jpeg_2000_decides_about_colours(
    tmp_path: Path, photometric: str
) -> None:
    with opened(one_file(tmp_path, codec="jpeg2000", photometric=photometric)) as image:
        np.testing.assert_array_equal(read_whole(image), PIXELS)

    def encode_unmixed(frame):
        return imagecodecs.jpeg2k_encode(frame, level=0, codecformat="j2k", mct=False)

    path = one_file(tmp_path, codec="jpeg2000", encode=encode_unmixed, photometric=photometric)
    if photometric == "RGB":
        with opened(path) as image:
            np.testing.assert_array_equal(read_whole(image), PIXELS)
    else:
        with pytest.raises(UnsupportedFormat, match="JPEG 2000 whose colours are YCbCr"):
            open_image(path)


# -- spacing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stated", "volume_mm", "expected"),
    [
        (0.25, None, (0.25, 0.25)),
        (None, (0.1, 0.164), (0.5, 0.5)),
        (352.8, (0.1, 0.164), (0.5, 0.5)),
        (352.8, None, None),
        (None, (100.0, 164.0), None),
    ],
)
def test_spacing_of_pixel_measures_or_of_the_volume(tmp_path, stated, volume_mm, expected) -> None:
    sides = {}
    if volume_mm is not None:
        sides = {"ImagedVolumeHeight": volume_mm[0], "ImagedVolumeWidth": volume_mm[1]}
    with opened(one_file(tmp_path, spacing_um=stated, **sides)) as image:
        assert image.spacing_um == (None if expected is None else pytest.approx(expected))
