"""Single DICOM pictures: greys by table, window or range; colours; spacing; what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi_lut
from pydicom.uid import JPEGLSLossless, generate_uid

from foveate.errors import (
    FoveateError,
    ImageTooLarge,
    OptionError,
    UnreadableImage,
    UnsupportedFormat,
)
from foveate.geometry import Box, Frame
from foveate.images.bit_depth import used_bits
from foveate.loading.scan import ViewOptions, choose_view, scan_cases
from foveate.readers import open_image
from foveate.table import Case
from helpers.dicom import make_dicom, write_dicom

TOP = 65535
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
"""All values of 12 bits."""
OF_12_BITS = {"BitsStored": 12, "HighBit": 11}


def read(path: Path, **options: Any) -> np.ndarray:
    """Return all pixels ``(y, x)``, or of colours ``(y, x, 3)``."""
    with open_image(path, {"dicom": options}) as image:
        pixels = image.read(Box((0, 0), image.shape, Frame.PX, 0))
    return pixels if pixels.shape[2] == 3 else pixels[..., 0]


def table(entries: np.ndarray, first: int, bits: int) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor = [len(entries) % 65536, first, bits]
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return [item]


# -- greys -----------------------------------------------------------------------------------------


def test_without_a_window_greys_span_the_range_in_use(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP // 4 + 100, **OF_12_BITS)
    greys = read(path)
    assert greys.dtype == np.uint16
    np.testing.assert_allclose(greys, TOP * ((RAMP // 4) / 1023), atol=1)
    flat = write_dicom(tmp_path / "flat.dcm", np.full((9, 9), 7, np.uint16))
    assert (read(flat) == 0).all()


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_follow_the_formulas_of_pydicom(tmp_path: Path, function: str | None) -> None:
    window = {"WindowCenter": [1500, 10], "WindowWidth": [900, 20], "VOILUTFunction": function}
    path = write_dicom(tmp_path / "a.dcm", RAMP, **OF_12_BITS, **window)
    theirs = apply_voi_lut(RAMP, pydicom.dcmread(path)).astype(float)
    np.testing.assert_allclose(read(path), theirs / 4095 * TOP, atol=1)


def test_a_window_is_in_rescaled_values(tmp_path: Path) -> None:
    units = {"RescaleSlope": 2, "RescaleIntercept": -1000}
    window = {"WindowCenter": 1000, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"}
    path = write_dicom(tmp_path / "a.dcm", RAMP, **OF_12_BITS, **units, **window)
    share = np.clip((RAMP * 2.0 - 1000 - 500) / 1000, 0, 1)
    np.testing.assert_allclose(read(path), TOP * share, atol=1)


@pytest.mark.parametrize(("first", "bits"), [(0, 12), (500, 16), (0, 10)])
def test_tables_are_looked_up(tmp_path: Path, first: int, bits: int) -> None:
    entries = np.rint(np.sqrt(np.arange(2048) / 2047) * (2**bits - 1)).astype(np.uint16)
    elements = {"VOILUTSequence": table(entries, first, bits), "WindowCenter": 3, "WindowWidth": 9}
    path = write_dicom(tmp_path / "a.dcm", RAMP, **OF_12_BITS, **elements)
    theirs = apply_voi_lut(RAMP, pydicom.dcmread(path), prefer_lut=True).astype(float)
    np.testing.assert_allclose(read(path), theirs / (2**bits - 1) * TOP, atol=1)


def test_a_table_of_8_bits_and_one_of_more_bits_than_stated_are_read(tmp_path: Path) -> None:
    entries = np.arange(4096) // 16
    path = write_dicom(tmp_path / "a.dcm", RAMP, VOILUTSequence=table(entries, 0, 8))
    np.testing.assert_allclose(read(path), (RAMP // 16) * 257, atol=1)
    path = write_dicom(tmp_path / "b.dcm", RAMP, VOILUTSequence=table(np.arange(4096), 0, 8))
    np.testing.assert_allclose(read(path), RAMP / 4095 * TOP, atol=1)


def test_a_modality_table_comes_before_the_window(tmp_path: Path) -> None:
    elements = {"ModalityLUTSequence": table(4095 - np.arange(4096), 0, 12)}
    path = write_dicom(tmp_path / "a.dcm", RAMP, "CR", **OF_12_BITS, **elements)
    np.testing.assert_allclose(read(path), TOP * (1 - RAMP / 4095), atol=1)
    elements |= {"WindowCenter": 1000, "WindowWidth": 2000, "VOILUTFunction": "LINEAR_EXACT"}
    path = write_dicom(tmp_path / "b.dcm", RAMP, "CR", **OF_12_BITS, **elements)
    np.testing.assert_allclose(read(path), TOP * np.clip((4095 - RAMP) / 2000, 0, 1), atol=1)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 1500, "WindowWidth": 900}])
def test_monochrome1_is_inverted_last(tmp_path: Path, window: dict[str, Any]) -> None:
    units = {"RescaleSlope": 1, "RescaleIntercept": 100}
    plain, dark = (
        read(write_dicom(tmp_path / kind, RAMP, **window, **units, PhotometricInterpretation=kind))
        for kind in ("MONOCHROME2", "MONOCHROME1")
    )
    np.testing.assert_array_equal(dark, TOP - plain)


def test_grey_of_8_bits_stays_as_it_is_stored(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(20, 99, (7, 9), np.uint8)
    path = write_dicom(tmp_path / "a.dcm", pixels, "OT")
    assert read(path).dtype == np.uint8
    np.testing.assert_array_equal(read(path), pixels)
    dark = write_dicom(tmp_path / "b.dcm", pixels, "OT", PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read(dark), 255 - pixels)
    identity = {"WindowCenter": 128, "WindowWidth": 256}
    shown = read(write_dicom(tmp_path / "c.dcm", pixels, "OT", **identity))
    np.testing.assert_array_equal(shown, pixels.astype(np.uint16) * 257)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_not_in_the_range(tmp_path: Path, photometric: str) -> None:
    pixels = RAMP.copy()
    pixels[:5] = 60_000
    elements = {"PixelPaddingValue": 59_000, "PixelPaddingRangeLimit": 60_000}
    path = write_dicom(
        tmp_path / "a.dcm", pixels, **elements, PhotometricInterpretation=photometric
    )
    greys = read(path)
    assert (greys[:5] == 0).all()
    assert (greys[5:].min(), greys[5:].max()) == (0, TOP)
    bare = write_dicom(tmp_path / "b.dcm", np.full_like(pixels, 60_000), **elements)
    with pytest.raises(UnreadableImage, match=r"b\.dcm: holds padding only, no values"):
        read(bare)


def test_a_lone_slice_is_a_picture_in_its_units(tmp_path: Path) -> None:
    stored = np.linspace(0, 4095, 4096).astype(np.int16).reshape(64, 64)
    units = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    path = write_dicom(tmp_path / "ct.dcm", stored, "CT", **units)
    greys = read(path)
    assert greys[(stored == 1024 - 160)] == pytest.approx(TOP / 4, abs=1)
    assert greys[(stored == 1024 + 240)] == pytest.approx(3 * TOP / 4, abs=1)
    assert read(path, window="brain")[stored == 1024 + 40] == pytest.approx(TOP / 2, abs=1)
    greys = read(write_dicom(tmp_path / "mr.dcm", stored, "MR"))
    low, high = np.percentile(stored, (0.5, 99.5))
    np.testing.assert_allclose(greys, TOP * np.clip((stored - low) / (high - low), 0, 1), atol=1)


def test_the_scale_can_be_chosen(tmp_path: Path) -> None:
    window = {"WindowCenter": 1500, "WindowWidth": 900}
    path = write_dicom(tmp_path / "a.dcm", RAMP, **OF_12_BITS, **window)
    np.testing.assert_array_equal(read(path, scale="lut"), read(path))
    np.testing.assert_allclose(read(path, scale="range"), TOP * (RAMP / 4095), atol=1)
    share = np.clip((RAMP - 20.475) / (4074.525 - 20.475), 0, 1)
    np.testing.assert_allclose(read(path, scale="percentiles"), TOP * share, atol=1)
    bare = write_dicom(tmp_path / "b.dcm", RAMP)
    with pytest.raises(OptionError, match=r"b\.dcm states no table or window"):
        read(bare, scale="lut")
    with pytest.raises(OptionError, match=r"window: is in Hounsfield units.*b\.dcm \(DX\)"):
        read(bare, window="bone")


def test_pictures_use_all_bits_also_where_they_are_dark(tmp_path: Path) -> None:
    """A dark picture is not stretched by the numbers of bits that its greys happen to need."""
    window = {"WindowCenter": 20_000, "WindowWidth": 40_000}
    path = write_dicom(tmp_path / "dark.dcm", RAMP // 8, **window)
    with open_image(path) as image:
        assert used_bits(image) is None
    scan = scan_cases([Case("a", "a", path)], ViewOptions())
    assert choose_view(scan.facts.values(), ViewOptions()).bits is None


# -- colours ---------------------------------------------------------------------------------------


def test_colours_are_rgb_of_8_bits(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    path = write_dicom(tmp_path / "a.dcm", pixels, "OT")
    np.testing.assert_array_equal(read(path), pixels)
    planar = write_dicom(
        tmp_path / "b.dcm",
        pixels,
        "OT",
        PlanarConfiguration=1,
        PixelData=pixels.transpose(2, 0, 1).tobytes() + b"\0",
    )
    np.testing.assert_array_equal(read(planar), pixels)
    wide = write_dicom(tmp_path / "c.dcm", pixels.astype(np.uint16) * 257, "OT")
    np.testing.assert_array_equal(read(wide), pixels)


@pytest.mark.parametrize("modality", ["OT", "CT"])
def test_colours_have_no_hounsfield_units(tmp_path: Path, modality: str) -> None:
    pixels = np.zeros((7, 9, 3), np.uint8)
    path = write_dicom(tmp_path / "a.dcm", pixels, modality, RescaleSlope=1, RescaleIntercept=0)
    for name, value in {"scale": "hounsfield", "window": "lung"}.items():
        with pytest.raises(OptionError, match=rf"dicom\.{name}: .*a\.dcm shows colours \(RGB\)"):
            read(path, **{name: value})
    np.testing.assert_array_equal(read(path), pixels)


def test_a_lone_ct_slice_takes_a_window_or_a_scale(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, "CT", RescaleSlope=1, RescaleIntercept=-1024)
    with pytest.raises(OptionError, match=r"window: does not go with .*scale 'percentiles'"):
        read(path, scale="percentiles", window="lung")
    np.testing.assert_array_equal(
        read(path, scale="hounsfield", window="lung"), read(path, window="lung")
    )


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    numbers = np.arange(64, dtype=np.uint8).reshape(8, 8)
    colours = np.random.default_rng(0).integers(0, 256, (3, 64), np.uint8)
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, entries in zip(("Red", "Green", "Blue"), colours, strict=True):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [64, 0, 8]
        elements[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    path = write_dicom(tmp_path / "a.dcm", numbers, "OT", **elements)
    np.testing.assert_array_equal(read(path), colours.T[numbers])


# -- spacing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elements", "spacing_um"),
    [
        ({}, None),
        ({"PixelSpacing": [0.2, 0.1], "ImagerPixelSpacing": [9, 9]}, (200, 100)),
        ({"ImagerPixelSpacing": [0.1, 0.1]}, (100, 100)),
        (
            {"ImagerPixelSpacing": [0.1, 0.1], "EstimatedRadiographicMagnificationFactor": 1.25},
            (80, 80),
        ),
        ({"NominalScannedPixelSpacing": [0.17, 0.17]}, (170, 170)),
        ({"PixelSpacing": [0, 0]}, None),
        ({"PixelSpacing": [1000, 1000]}, None),
    ],
)
def test_the_spacing_of_xrays(
    tmp_path: Path, elements: dict[str, Any], spacing_um: tuple[float, ...] | None
) -> None:
    with open_image(write_dicom(tmp_path / "a.dcm", RAMP, "MG", **elements)) as image:
        assert image.spacing_um == (spacing_um and pytest.approx(spacing_um))
        assert bool(image.disbelieved) == (spacing_um is None and bool(elements))
        if image.disbelieved:
            assert image.disbelieved.endswith("mm, outside the 0.001 to 100 mm that are possible")


# -- refused ---------------------------------------------------------------------------------------


def test_a_file_without_preamble_is_dicom(tmp_path: Path) -> None:
    dataset = make_dicom(RAMP)
    for name, implicit in {"explicit": False, "implicit": True}.items():
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.save_as(tmp_path / name, implicit_vr=implicit, little_endian=True)
        assert (tmp_path / name).read_bytes()[:2] == b"\x08\x00"
        np.testing.assert_allclose(read(tmp_path / name), TOP * (RAMP / 4095), atol=1)


@pytest.mark.parametrize(
    ("elements", "error", "message"),
    [
        ({"PixelData": None}, UnreadableImage, "holds no complete pixels"),
        ({"Rows": None}, UnsupportedFormat, "a DICOM file without pixels"),
        (
            {"NumberOfFrames": 2, "PixelData": bytes(16384)},
            UnsupportedFormat,
            r"holds 2 frames \(a film, or a stack in one file\)",
        ),
        ({"PixelData": bytes(99)}, UnreadableImage, r"a\.dcm.*damaged or cut off"),
        (
            {"Rows": 65535, "Columns": 65535},
            ImageTooLarge,
            "claims 65535 x 65535 pixels, more than the limit of",
        ),
        ({"SamplesPerPixel": 3}, UnreadableImage, r"a\.dcm"),
        ({"BitsAllocated": 13}, UnreadableImage, r"a\.dcm"),
    ],
)
def test_what_is_no_picture_is_refused(
    tmp_path: Path, elements: dict[str, Any], error: type[FoveateError], message: str
) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, **elements)
    with pytest.raises(error, match=message):
        read(path)


def test_encrypted_and_unknown_codings_are_named(tmp_path: Path) -> None:
    path = write_dicom(
        tmp_path / "a.dcm", RAMP, PixelData=None, EncryptedAttributesSequence=[Dataset()]
    )
    with pytest.raises(UnsupportedFormat, match="missing or encrypted"):
        read(path)
    for syntax, name in {
        "1.2.840.10008.1.2.4.100": "MPEG2",
        "1.3.6.1.4.99": "1.3.6.1.4.99",
    }.items():
        dataset = make_dicom(RAMP)
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
        dataset.PixelData = pydicom.encaps.encapsulate([b"\0\0\1\xb3" * 9])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(tmp_path / "b.dcm", implicit_vr=False, little_endian=True)
        with pytest.raises(
            UnsupportedFormat, match=f"its pixels are stored as {name}.*which is not read"
        ):
            read(tmp_path / "b.dcm")


def test_a_frame_of_another_size_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    import imagecodecs

    dataset = make_dicom(RAMP)
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    frame = imagecodecs.jpegls_encode(RAMP[:32])
    dataset.PixelData = pydicom.encaps.encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    dataset.SOPInstanceUID = generate_uid()
    dataset.save_as(tmp_path / "a.dcm", implicit_vr=False, little_endian=True)
    with pytest.raises(UnreadableImage, match=r"a\.dcm"):
        read(tmp_path / "a.dcm")


def test_more_pixels_than_the_header_promises_are_refused(tmp_path: Path) -> None:
    pixels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    for name, elements in {
        "rows": {"Rows": 63},
        "bits": {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
    }.items():
        path = write_dicom(tmp_path / name, pixels, PixelData=pixels.tobytes(), **elements)
        with pytest.raises(UnreadableImage, match="its header promised"), open_image(path) as image:
            image.read(Box((0, 0), image.shape, Frame.PX, 0))


def test_a_palette_of_16_bits_may_hold_8(tmp_path: Path) -> None:
    table = np.arange(256, dtype="<u2")
    numbers = np.arange(256, dtype=np.uint8).reshape(16, 16)
    elements = {
        f"{colour}PaletteColorLookupTable{part}": value
        for colour in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [256, 0, 16]), ("Data", table.tobytes()))
    }
    path = write_dicom(
        tmp_path / "p.dcm", numbers, "OT", PhotometricInterpretation="PALETTE COLOR", **elements
    )
    with open_image(path) as image:
        read = image.read(Box((0, 0), image.shape, Frame.PX, 0))
    np.testing.assert_array_equal(read[..., 0], numbers)
