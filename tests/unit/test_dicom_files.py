"""DICOM files are recognised by their first bytes and decoded as pydicom decodes them."""

from __future__ import annotations

import time
import tracemalloc
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from foveate.errors import FoveateError, ImageTooLarge, UnreadableImage, UnsupportedFormat
from foveate.formats.dicom_codec import read_pixels
from foveate.formats.dicom_header import (
    HEAD_BYTES,
    SLIDE,
    is_dicom,
    read_header,
    read_sop_class,
    transfer_syntax,
)
from foveate.geometry import Box, Frame
from foveate.readers import open_image
from foveate.readers.dicom import DicomReader
from helpers.dicom import make_dicom, write_dicom

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def sample(name: str) -> Path:
    """Return a file of pydicom's wheel; skip the test where this version does not ship it."""
    path = get_testdata_file(name, download=False)
    if path is None:
        pytest.skip(f"pydicom does not ship {name}")
    return Path(str(path))


# -- headers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "ExplVR_BigEndNoMeta.dcm",
        "ExplVR_LitEndNoMeta.dcm",
        "rtstruct.dcm",
        "MR_small_implicit.dcm",
        "image_dfl.dcm",
        "no_meta_group_length.dcm",
    ],
)
def test_dicom_is_recognised_with_and_without_a_preamble(name: str) -> None:
    assert is_dicom(sample(name).read_bytes()[:HEAD_BYTES])


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x08\x00",
        b"\x08\x00" * 300,
        b"II*\x00\x08\x00\x00\x00" * 40,
        b"\x89PNG\r\n\x1a\n" * 9,
        b"\x02\x00\x00\x00" * 99,
        bytes(500),
        b"\xff\xd8\xff\xe0" * 99,
        b"BM\x08\x00" * 99,
    ],
)
def test_other_files_are_no_dicom(head: bytes) -> None:
    assert not is_dicom(head)


def test_headers_state_class_and_coding(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, "MR")
    assert read_sop_class(path) == "1.2.840.10008.5.1.4.1.1.4"
    header = read_header(path, ["Rows", "Modality"])
    assert transfer_syntax(header) == "1.2.840.10008.1.2.1"
    assert (header.Rows, header.Modality, "Columns" in header) == (64, "MR", False)
    assert "PixelData" not in read_header(path)
    assert transfer_syntax(read_header(sample("ExplVR_LitEndNoMeta.dcm"))) == ""


def test_slides_are_left_to_another_reader(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, "OT", SOPClassUID=SLIDE)
    assert not DicomReader.recognises(path, path.read_bytes()[:HEAD_BYTES])
    assert not DicomReader.recognises(tmp_path, b"")


def test_a_packed_bomb_is_refused_without_unpacking_it(tmp_path: Path) -> None:
    dataset = make_dicom(RAMP)
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1.99")
    dataset.save_as(tmp_path / "a.dcm", implicit_vr=False, little_endian=True)
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.dcm")[0], RAMP)
    whole = (tmp_path / "a.dcm").read_bytes()
    begin = whole.index(b"1.2.840.10008.1.2.1.99") + 22
    squeezed = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = squeezed.compress(bytes(1 << 20)) + squeezed.flush(zlib.Z_FULL_FLUSH)
    (tmp_path / "bomb.dcm").write_bytes(whole[:begin] + zeros * 150 + squeezed.flush())
    tracemalloc.start()
    with pytest.raises(ImageTooLarge, match=r"bomb\.dcm: unpacks to more than 128 MiB"):
        read_pixels(tmp_path / "bomb.dcm")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 300 << 20


def test_very_many_elements_are_refused_in_time(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    content = path.read_bytes()
    at = content.index(b"\x28\x00\x02\x00")
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * 200_000
    nested = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + items + b"\xfe\xff\xdd\xe0\0\0\0\0"
    path.write_bytes(content[:at] + nested + content[at:])
    begun = time.process_time()
    with pytest.raises(UnreadableImage, match=r"a\.dcm: has more than 43,690 DICOM elements"):
        open_image(path)
    assert time.process_time() - begun < 10


# -- pixels ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "693_J2KI.dcm",
        "CT_small.dcm",
        "ExplVR_BigEnd.dcm",
        "GDCMJ2K_TextGBR.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "JPEG2000.dcm",
        "JPEGLSNearLossless_08.dcm",
        "JPEGLSNearLossless_16.dcm",
        "JPGExtended.dcm",
        "MR_small_RLE.dcm",
        "MR_small_expb.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
        "SC_rgb_rle_16bit.dcm",
        "SC_rgb_small_odd_big_endian.dcm",
        "SC_rgb_jls_lossy_line.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "liver_expb_1frame.dcm",
        "examples_palette.dcm",
    ],
)
def test_codings_decode_to_the_values_of_pydicom(name: str) -> None:
    """Where pydicom needs a decoder that is not here, values are those of the uncompressed file."""
    path = sample(name)
    pixels, dataset = read_pixels(path)
    assert pixels.shape[:2] == (dataset.Rows, dataset.Columns)
    try:
        theirs = pydicom.pixels.pixel_array(path, index=0, decoding_plugin="")
    except RuntimeError:
        pytest.skip("pydicom has no decoder for this file here")
    np.testing.assert_array_equal(pixels, theirs)


@pytest.mark.parametrize(
    "name",
    [
        "SC_jpeg_no_color_transform.dcm",
        "SC_jpeg_no_color_transform_2.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_rgb_jpeg_lossy_gdcm.dcm",
    ],
)
def test_colours_of_a_jpeg_are_those_that_its_markers_state(name: str) -> None:
    pixels, dataset = read_pixels(sample(name))
    theirs = pydicom.pixels.pixel_array(sample(name), index=0)
    assert dataset.SamplesPerPixel == 3
    np.testing.assert_allclose(pixels.astype(int), theirs, atol=2)


@pytest.mark.parametrize(
    ("syntax", "encode", "tolerance"),
    [
        ("1.2.840.10008.1.2.4.51", lambda a: imagecodecs.jpeg8_encode(a, 99, bitspersample=12), 24),
        ("1.2.840.10008.1.2.4.70", imagecodecs.ljpeg_encode, 0),
        ("1.2.840.10008.1.2.4.80", imagecodecs.jpegls_encode, 0),
        ("1.2.840.10008.1.2.4.90", lambda a: imagecodecs.jpeg2k_encode(a, reversible=True), 0),
    ],
    ids=["JPEG of 12 bits", "lossless JPEG", "JPEG-LS", "JPEG 2000"],
)
def test_compressed_grey_has_the_values_that_were_stored(
    tmp_path: Path, syntax: str, encode: object, tolerance: int
) -> None:
    dataset = make_dicom(RAMP, BitsStored=12, HighBit=11)
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = encapsulate([bytes(encode(RAMP))])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "a.dcm", implicit_vr=False, little_endian=True)
    pixels, _ = read_pixels(tmp_path / "a.dcm")
    np.testing.assert_allclose(pixels.astype(int), RAMP, atol=tolerance)
    content = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "cut.dcm").write_bytes(content[: len(content) * 9 // 10])
    with pytest.raises(UnreadableImage, match=r"cut\.dcm"):
        read_pixels(tmp_path / "cut.dcm")


def test_all_files_of_pydicom_are_read_or_refused_in_one_line() -> None:
    folder = Path(str(sample("CT_small.dcm"))).parent
    n_read, refused = 0, {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            with open_image(path) as image:
                image.read(Box((0,) * image.ndim, (1,) * image.ndim, Frame.PX, 0))
                n_read += 1
        except FoveateError as error:
            refused[path.name] = str(error)
    assert n_read > 50
    assert all(name in message and "\n" not in message for name, message in refused.items())


def test_a_report_is_named_as_one_without_pixels() -> None:
    with pytest.raises(UnsupportedFormat, match="without pixels"):
        open_image(sample("reportsi.dcm"))
