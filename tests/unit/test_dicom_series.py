"""Series of DICOM slices are right volumes, or refused: order, distance, tilt, gaps, doubles."""

from __future__ import annotations

import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK

from foveate.errors import (
    FoveateError,
    ImageTooLarge,
    OptionError,
    UnreadableImage,
    UnsupportedFormat,
)
from foveate.geometry import Box, Frame
from foveate.readers import check_options, is_image_folder, open_image
from foveate.readers.dicom import DicomReader
from helpers.dicom import AXIAL, write_dicom, write_series, write_twin
from helpers.files import UNREADABLE, needs_proc

CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
_C, _S = np.cos(0.3), np.sin(0.3)
OBLIQUE = (1.0, 0.0, 0.0, 0.0, float(_C), float(_S))
MIRRORED = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def noise(shape: tuple[int, ...] = (9, 20, 16), low: int = 0, high: int = 1000) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, shape).astype(np.int16)


def read(path: Path, **options: Any) -> np.ndarray:
    """Return all voxels ``(z, y, x)``, or pixels, of an image."""
    with open_image(path, {"dicom": options}) as image:
        return image.read(Box((0,) * image.ndim, image.shape, Frame.PX, 0))[..., 0]


def spacing(path: Path) -> tuple[float, ...] | None:
    with open_image(path) as image:
        return image.spacing_um


# -- the twin in NIfTI -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("directions", "step_mm"),
    [
        (AXIAL, (0, 0, 2.5)),
        (AXIAL, (0, 0, -2.5)),
        (MIRRORED, (0, 0, 2.5)),
        (CORONAL, (0, 2.5, 0)),
        (SAGITTAL, (-2.5, 0, 0)),
        (OBLIQUE, (0.0, -2.5 * float(_S), 2.5 * float(_C))),
    ],
    ids=["axial", "from head to feet", "mirrored", "coronal", "sagittal", "oblique"],
)
def test_a_series_and_its_nifti_twin_are_the_same_array(
    tmp_path: Path, directions: tuple[float, ...], step_mm: tuple[float, ...]
) -> None:
    values = noise()
    place = {"directions": directions, "step_mm": step_mm}
    series = write_series(tmp_path / "series", values, **place)
    twin = write_twin(tmp_path / "twin.nii", values, **place)
    assert is_image_folder(series)
    np.testing.assert_array_equal(read(series), read(twin))
    assert spacing(series) == pytest.approx(spacing(twin), rel=1e-6)


def test_ct_and_its_nifti_twin_are_the_same_array(tmp_path: Path) -> None:
    values = noise(low=-1024, high=-700)
    values[:, 8:] = noise((9, 12, 16), -100, 100)
    rescale = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    series = write_series(tmp_path / "ct", (values + 1024) // 2, "CT", **rescale)
    twin = write_twin(tmp_path / "twin.nii", ((values + 1024) // 2) * 2 - 1024)
    np.testing.assert_array_equal(read(series), read(twin))
    with open_image(series) as image:
        image.read(Box((0, 0, 0), (1, 1, 1), Frame.PX, 0))
        assert image.count.values == "hounsfield"


def test_a_region_of_any_orientation_is_cut_from_the_whole(tmp_path: Path) -> None:
    series = write_series(tmp_path, noise(), directions=SAGITTAL, step_mm=(2.5, 0, 0))
    whole = read(series)
    with open_image(series) as image:
        part = image.read(Box((3, 2, 4), (5, 6, 3), Frame.PX, 0))[..., 0]
    np.testing.assert_array_equal(part, whole[3:8, 2:8, 4:7])


def test_simpleitk_orders_and_measures_a_series_alike(shared_data: Path) -> None:
    folder = shared_data / "dicom_mr_brain/Study3/11-T1post-18670"
    if not folder.is_dir():
        pytest.skip("no DICOM is here")
    names = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    theirs = SimpleITK.ReadImage(names)
    theirs = SimpleITK.DICOMOrient(theirs, "LPS")
    values = SimpleITK.GetArrayFromImage(theirs).astype(float)
    low, high = np.percentile(values, (0.5, 99.5))
    assert spacing(folder) == pytest.approx([1e3 * s for s in theirs.GetSpacing()[::-1]], rel=1e-4)
    expected = 65535 * np.clip((values - low) / (high - low), 0, 1)
    actual = read(folder)
    assert actual.shape == values.shape
    assert np.abs(actual - expected).max() < 700  # percentiles are of a sample


# -- place of the slices ---------------------------------------------------------------------------


def test_any_slice_stands_for_its_series(tmp_path: Path) -> None:
    series = write_series(tmp_path / "a", noise())
    whole = read(series)
    for name in ("IM0000", "IM0007"):
        np.testing.assert_array_equal(read(series / name), whole)
    with open_image(series / "IM0003", {"dicom": {"stack": False}}) as image:
        assert image.kind == "picture"
        assert image.spacing_um == pytest.approx((800, 700))


def test_files_of_the_system_are_no_slices(tmp_path: Path) -> None:
    series = write_series(tmp_path, noise())
    whole = read(series)
    (series / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (series / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" * 200)
    shutil.copy(series / "IM0001", series / ".hidden")
    np.testing.assert_array_equal(read(series), whole)


def test_a_missing_slice_is_refused(tmp_path: Path) -> None:
    series = write_series(tmp_path, noise())
    z_mm = {p: pydicom.dcmread(p).ImagePositionPatient[2] for p in series.iterdir()}
    ordered = sorted(z_mm, key=lambda p: z_mm[p])
    ordered[4].unlink()
    names = f"{ordered[3].name} and {ordered[5].name}"
    message = f"a slice is missing between {names}, which are 5 mm apart where others are 2.5 mm"
    with pytest.raises(UnsupportedFormat, match=message):
        open_image(series)
    ordered[5].unlink()
    with pytest.raises(UnsupportedFormat, match="2 slices are missing"):
        open_image(series)


def test_uneven_gaps_are_refused_and_rounded_positions_are_not(tmp_path: Path) -> None:
    def at(places: list[float], folder: str) -> Path:
        position_mm = {"ImagePositionPatient": lambda i: [0, 0, places[i]]}
        return write_series(tmp_path / folder, noise((6, 9, 9)), **position_mm)

    with pytest.raises(UnsupportedFormat, match=r"slices are 1 to 1\.5 mm apart, the farthest"):
        open_image(at([0, 1, 2, 3, 4.5, 6], "uneven"))
    assert spacing(at([0, 0.6, 1.3, 1.9, 2.5, 3.1], "rounded")) == pytest.approx((620, 800, 700))


def test_a_doubled_slice_is_dropped_where_it_is_a_copy_and_refused_where_not(
    tmp_path: Path,
) -> None:
    series = write_series(tmp_path, noise())
    whole = read(series)
    shutil.copy(series / "IM0002", series / "IM0002 (1)")
    np.testing.assert_array_equal(read(series), whole)
    dataset = pydicom.dcmread(series / "IM0002")
    dataset.PixelData = bytes(len(dataset.PixelData))
    dataset.save_as(series / "IM0002 (1)")
    with pytest.raises(UnsupportedFormat, match=r"IM0002.*same place and show different pixels"):
        open_image(series)


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient"])
def test_slices_without_positions_are_refused(tmp_path: Path, keyword: str) -> None:
    series = write_series(tmp_path, noise(), **{keyword: None})
    assert is_image_folder(series)
    with pytest.raises(
        UnsupportedFormat, match=r"9 of 9 slices of a series \(IM\d+, say\) state no position"
    ):
        open_image(series)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        (
            {"ImageOrientationPatient": lambda i: list(CORONAL if i == 4 else AXIAL)},
            "slices of one series lie in different directions",
        ),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "are not at right angles or not of"),
        (
            {"PixelSpacing": lambda i: [1, 1 + (i == 5)]},
            "slices of one series differ in pixel spacing",
        ),
        ({"RescaleType": lambda i: "HU" if i else "US"}, "differ in the unit"),
        ({"ImagePositionPatient": [0, 0, 0]}, "all slices of the series lie at the same place"),
        (
            {"ImagePositionPatient": lambda i: [900 * i, 0, 2.5 * i]},
            "its slices lie beside each other and make no volume",
        ),
    ],
)
def test_slices_that_make_no_volume_are_refused(
    tmp_path: Path, elements: dict[str, Any], message: str
) -> None:
    series = write_series(tmp_path, noise(), **elements)
    with pytest.raises(FoveateError, match=message):
        open_image(series)


def test_slices_of_two_sizes_are_refused(tmp_path: Path) -> None:
    series = write_series(tmp_path, noise())
    dataset = pydicom.dcmread(series / "IM0004")
    dataset.Rows, dataset.PixelData = 10, dataset.PixelData[:320]
    dataset.save_as(series / "IM0004")
    with pytest.raises(UnsupportedFormat, match=r"differ in \(\d+, 16\) and \(\d+, 16\) pixels"):
        open_image(series)


def test_a_damaged_slice_is_not_left_out(tmp_path: Path) -> None:
    series = write_series(tmp_path, noise())
    content = (series / "IM0006").read_bytes()
    (series / "IM0006").write_bytes(content[:-100])
    with open_image(series) as image, pytest.raises(UnreadableImage, match="IM0006"):
        image.read(Box((0, 0, 0), image.shape, Frame.PX, 0))
    for damaged in (content[:400] + b"\xff" * 400, content[:300], b""):
        (series / "IM0006").write_bytes(damaged)
        with pytest.raises(
            UnreadableImage,
            match="may lack a slice, because the DICOM header of IM0006 cannot be read",
        ):
            open_image(series)


@needs_proc
def test_a_slice_that_cannot_be_read_is_not_left_out(tmp_path: Path) -> None:
    series = write_series(tmp_path, noise())
    (series / "IM0009").symlink_to(UNREADABLE)
    assert is_image_folder(series)
    words = "may lack a slice, because the DICOM header of IM0009 cannot be read"
    with pytest.raises(UnreadableImage, match=words):
        open_image(series)
    (series / "IM0009").rename(series / "notes.bin")
    assert read(series).shape == (9, 20, 16)


def test_names_that_are_identifiers_are_alike(tmp_path: Path) -> None:
    series = write_series(tmp_path, noise())
    for i, path in enumerate(sorted(series.iterdir())):
        path.rename(series / f"1.2.{i}")
    (series / "1.2.9").touch()
    with pytest.raises(UnreadableImage, match=r"may lack a slice, .* of 1\.2\.9 cannot be read"):
        open_image(series)


def test_one_damaged_file_does_not_stop_the_other_series_of_a_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    series = write_series(tmp_path, noise(), SeriesNumber=1, SeriesInstanceUID="1.2.3")
    other = write_dicom(tmp_path / "x", noise((5, 6)), "MR", SeriesInstanceUID="1.2.4")
    content = (series / "IM0006").read_bytes()
    (series / "broken").write_bytes(content[:300])
    assert read(series).shape == (9, 20, 16)
    assert "may lack a slice, because the DICOM header of broken cannot be read" in caplog.text
    other.unlink()
    with pytest.raises(
        UnreadableImage, match="copy, download or export it again, or move it away if it is none"
    ):
        open_image(series)


def test_a_volume_of_unbelievable_voxels_has_no_spacing(tmp_path: Path) -> None:
    for name, sides in {"none": None, "zero": [0, 0]}.items():
        series = write_series(tmp_path / name, noise(), PixelSpacing=sides)
        with open_image(series) as image:
            assert image.spacing_um is None
            assert image.disbelieved


# -- gantry tilt -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tilt_deg", [-20.0, 15.0])
def test_a_tilted_ct_is_shifted_upright(
    tmp_path: Path, tilt_deg: float, caplog: pytest.LogCaptureFixture
) -> None:
    """A column that stands upright in the patient stands upright in the volume.

    The table moves along z, and the slices are tilted around x: the first pixel moves within the
    planes of the slices by the sine of the tilt.
    """
    angle = np.deg2rad(tilt_deg)
    directions = (1.0, 0.0, 0.0, 0.0, float(np.cos(angle)), float(np.sin(angle)))
    normal = np.cross(directions[:3], directions[3:])
    table_mm = 5.0
    n, rows, columns, side_mm = 11, 70, 24, 1.0
    stored = np.zeros((n, rows, columns), np.int16)
    for i in range(n):
        along_mm = i * table_mm * np.sin(angle)  # of the table's way, within the plane
        rows_mm = np.arange(rows) * side_mm + along_mm
        stored[i] = np.interp(rows_mm, [28, 30, 40, 42], [0, 1000, 1000, 0])[:, None]
    stored[:, :, :3] = 0
    with caplog.at_level(logging.INFO):
        series = write_series(
            tmp_path,
            stored,
            "CT",
            directions=directions,
            step_mm=(0, 0, table_mm),
            spacing_mm=(side_mm, side_mm),
            RescaleSlope=1,
            RescaleIntercept=-1000,
        )
        with open_image(series, {"dicom": {"window": "-500,1000"}}) as image:
            voxels = image.read(Box((0, 0, 0), image.shape, Frame.PX, 0))[..., 0].astype(float)
    moved = abs((n - 1) * table_mm * np.sin(angle)) / side_mm
    assert image.shape == (n, rows + int(np.ceil(moved)), columns)
    assert image.spacing_um == pytest.approx((1e3 * table_mm * normal[2], 1000, 1000))
    inside = voxels[:, :, 3:].mean(2)
    centre = (inside * np.arange(inside.shape[1])).sum(1) / inside.sum(1)
    np.testing.assert_allclose(centre, centre.mean(), atol=0.1)
    assert (voxels[:, :, :3] == 0).all()
    assert f"tilted by {abs(tilt_deg):.1f} degrees" in caplog.text


# -- several series --------------------------------------------------------------------------------


def test_two_series_in_a_folder_are_named_and_one_can_be_chosen(tmp_path: Path) -> None:
    first, second = noise(), noise() + 7
    write_series(tmp_path, first, SeriesNumber=2, SeriesDescription="T1 post")
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(f"a{path.name}"))
    uid = pydicom.uid.generate_uid()
    write_series(
        tmp_path,
        second[:7],
        SeriesNumber=11,
        SeriesDescription="FLAIR",
        SeriesInstanceUID=uid,
    )
    with pytest.raises(UnsupportedFormat) as caught:
        open_image(tmp_path)
    message = str(caught.value)
    assert "2 series: 2 'T1 post' (MR, 9 slices), 11 'FLAIR' (MR, 7 slices)" in message
    assert "or train with --reader.dicom.series and a number or name" in message
    for wanted in ("11", "flair", uid):
        options = check_options({"dicom": {"series": wanted}})["dicom"]
        assert read(tmp_path, **options).shape == (7, 20, 16)
    assert read(tmp_path / "aIM0003").shape == (9, 20, 16)
    with pytest.raises(
        UnsupportedFormat, match=r"no series is called 'T2' .*; give one of 2 'T1 post'"
    ):
        read(tmp_path, series="T2")


def test_a_localizer_and_a_report_beside_a_series_do_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    series = write_series(tmp_path, noise(), "CT", RescaleSlope=1, RescaleIntercept=0)
    whole = read(series)
    scout = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImagePositionPatient": [0, 0, 0]}
    for i in range(2):
        write_dicom(series / f"scout{i}", noise((5, 6)), "CT", SeriesInstanceUID="1.2", **scout)
    write_dicom(series / "dose", noise((5, 6)), "OT", PixelData=None, Rows=None)
    np.testing.assert_array_equal(read(series), whole)
    assert not caplog.text
    with open_image(series / "scout1") as image:
        assert image.kind == "picture"


def test_pictures_beside_a_series_are_named_as_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_series(tmp_path, noise())
    write_dicom(tmp_path / "xray", noise((5, 6)), "DX", SeriesInstanceUID="1.2")
    assert read(tmp_path).shape == (9, 20, 16)
    assert "other DICOM images beside the series are left out: xray" in caplog.text


def test_a_folder_of_xrays_is_no_image(tmp_path: Path) -> None:
    for i in range(3):
        write_dicom(tmp_path / f"x{i}.dcm", noise((8, 9)), SeriesInstanceUID="1.2.3")
    assert not is_image_folder(tmp_path)
    with pytest.raises(UnsupportedFormat, match="is a folder"):
        open_image(tmp_path)
    with pytest.raises(OptionError, match=r"reader\.dicom\.stack: got no, expected yes for the"):
        read(write_series(tmp_path / "s", noise()), stack=False)


def test_a_series_that_is_not_stacked_is_a_folder_of_files(tmp_path: Path) -> None:
    series = write_series(tmp_path, noise())
    assert is_image_folder(series, {"dicom": {"series": "3"}})
    assert not is_image_folder(series, check_options({"dicom": {"stack": "no"}}))


def test_a_slice_finds_its_series_among_many_other_files(tmp_path: Path) -> None:
    for i in range(120):
        (tmp_path / f"A{i:03d}.txt").write_bytes(b"no DICOM")
    series = write_series(tmp_path, noise())
    assert not is_image_folder(series)
    assert read(series / "IM0005").shape == (9, 20, 16)
    (series / "IM0004").rename(series / ".IM0004")
    assert read(series / ".IM0004", stack=False).shape == (20, 16)


@pytest.mark.slow
def test_folders_of_very_many_files_are_refused_if_they_are_dicom(tmp_path: Path) -> None:
    for i in range(20_001):
        (tmp_path / f"tile_{i}.png").touch()
    assert not is_image_folder(tmp_path)
    write_series(tmp_path, noise())
    assert not is_image_folder(tmp_path)  # its files are listed, so that X-rays can be predicted
    with pytest.raises(UnsupportedFormat, match="is a folder, not an image file; give its files"):
        open_image(tmp_path)
    with pytest.raises(ImageTooLarge, match="holds more than 20,000 DICOM files; put each series"):
        open_image(tmp_path / "IM0000")
    with pytest.raises(ImageTooLarge, match="holds more than 20,000 DICOM files; put each series"):
        DicomReader(tmp_path)


def test_a_folder_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    series = write_series(tmp_path, noise(), step_mm=(0, 0, 2.5))
    assert read(series).shape == (9, 20, 16)
    write_dicom(
        series / "new",
        noise((20, 16)),
        "MR",
        SeriesInstanceUID=pydicom.dcmread(series / "IM0000").SeriesInstanceUID,
        ImagePositionPatient=[-10, -20, 30 + 9 * 2.5],
        ImageOrientationPatient=list(AXIAL),
        PixelSpacing=[0.8, 0.7],
    )
    assert read(series).shape == (10, 20, 16)


# -- values ----------------------------------------------------------------------------------------


def test_hounsfield_units_have_a_scale_or_a_window(tmp_path: Path) -> None:
    hounsfield = np.array([-2000, -1024, -600, -160, 0, 40, 240, 3071], np.int16)
    stored = np.broadcast_to(hounsfield + 1024, (3, 4, 8)).astype(np.int16)
    series = write_series(tmp_path, stored, "CT", RescaleSlope=1, RescaleIntercept=-1024)
    expected = [0, 0, np.nan, 0.25, 0.45, 0.5, 0.75, 1.0]
    for share, grey in zip(expected, read(series)[1, 2], strict=True):
        assert np.isnan(share) or grey == pytest.approx(65535 * share, abs=1)
    for window in ("soft", "40,400", " 40, 400 "):
        grey = read(series, window=window)[0, 0]
        assert grey[3] == 0  # the lower edge of 40 ± 200 lies above
        assert grey[5] == pytest.approx(65535 / 2, abs=1)
        assert grey[6] == 65535
    lung = read(series, window="lung")[0, 0]
    assert lung[2] == pytest.approx(65535 / 2, abs=1)
    assert list(lung[4:]) == [pytest.approx(65535 * 0.9, abs=1), *lung[5:]]


@pytest.mark.parametrize(("modality", "n_decoded"), [("MR", 2), ("CT", 1)])
def test_threads_decode_each_slice_once(tmp_path: Path, modality: str, n_decoded: int) -> None:
    """A volume without a unit is decoded once more, for its scale."""
    values = noise((6, 60, 50))
    series = write_series(tmp_path, values, modality, RescaleSlope=1, RescaleIntercept=-1024)
    together = threading.Barrier(8)
    with open_image(series) as image, ThreadPoolExecutor(8) as threads:

        def read_all(_: int) -> np.ndarray:
            together.wait()
            return image.read(Box((0, 0, 0), image.shape, Frame.PX, 0))

        greys = list(threads.map(read_all, range(8)))
        assert image.count.decoded_px == n_decoded * values.size
    for other in greys:
        np.testing.assert_array_equal(other[..., 0], read(series))


def test_every_slice_is_rescaled_as_it_states(tmp_path: Path) -> None:
    """PET has a slope for each slice."""
    activity = noise((5, 8, 8), 1, 30) * 60
    rescale = {"RescaleSlope": lambda i: float(i + 1), "RescaleIntercept": 0}
    stored = np.stack([plane // (i + 1) for i, plane in enumerate(activity)]).astype(np.int16)
    series = write_series(tmp_path, stored, "PT", **rescale)
    twin = write_twin(tmp_path / "twin.nii", activity.astype(np.int16))
    np.testing.assert_array_equal(read(series), read(twin))


def test_monochrome1_is_inverted_but_not_hounsfield_units(tmp_path: Path) -> None:
    values = noise()
    dark = {"PhotometricInterpretation": "MONOCHROME1"}
    plain, inverted = (
        read(write_series(tmp_path / f"mr{len(extra)}", values, **extra)) for extra in ({}, dark)
    )
    np.testing.assert_array_equal(inverted, 65535 - plain)
    units = {"RescaleSlope": 1, "RescaleIntercept": -1024}
    ct = [write_series(tmp_path / f"ct{len(e)}", values, "CT", **units, **e) for e in ({}, dark)]
    np.testing.assert_array_equal(read(ct[0]), read(ct[1]))


def test_padding_is_black_and_does_not_count(tmp_path: Path) -> None:
    values = noise(low=100)
    padded = values.copy()
    padded[:, :2] = -32768
    series = write_series(tmp_path, padded, PixelPaddingValue=-32768)
    bare = write_series(tmp_path / "bare", 0 * noise(), PixelPaddingValue=0)
    with pytest.raises(UnreadableImage, match="its series holds padding only, no values"):
        read(bare)
    low, high = np.percentile(values[:, 2:], (0.5, 99.5))
    expected = np.rint(65535 * np.clip((values[:, 2:] - low) / (high - low), 0, 1))
    actual = read(series)
    assert (actual[:, :2] == 0).all()
    assert np.abs(actual[:, 2:] - expected).max() <= 1


def test_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    mr = write_series(tmp_path / "mr", noise())
    with pytest.raises(OptionError, match=r"reader\.dicom\.window: is in Hounsfield units"):
        read(mr, window="lung")
    with pytest.raises(OptionError, match=r"reader\.dicom\.scale.*does not say how"):
        read(mr, scale="hounsfield")
    with pytest.raises(OptionError, match="'lut' is for single pictures"):
        read(mr, scale="lut")
    ct = write_series(tmp_path / "ct", noise(), "CT", RescaleSlope=1, RescaleIntercept=0)
    for window in ("liver", "40", "40,0", "40,nan", "1,2,3"):
        with pytest.raises(
            OptionError,
            match=r"expected lung, bone, soft, brain, or centre and width in Hounsfield",
        ):
            read(ct, window=window)
    with pytest.raises(OptionError, match=r"window: does not go with reader.dicom.scale 'range'"):
        read(ct, scale="range", window="lung")
    values = read(ct, scale="range")
    assert (values.min(), values.max()) == (0, 65535)
    np.testing.assert_array_equal(read(ct, scale="percentiles"), read(mr))


def test_slices_without_rescale_beside_others_are_refused(tmp_path: Path) -> None:
    series = write_series(
        tmp_path,
        noise(),
        "CT",
        RescaleSlope=lambda i: 1.0 if i < 4 else None,
        RescaleIntercept=lambda i: -1024.0 if i < 4 else None,
    )
    with pytest.raises(UnsupportedFormat, match="whether they say how their numbers are rescaled"):
        open_image(series)


def test_a_slice_behind_a_broken_link_is_not_left_out(tmp_path: Path) -> None:
    series = write_series(tmp_path / "s", noise())
    (series / "IM0008").rename(tmp_path / "moved")
    (series / "IM0008").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FoveateError, match="IM0008"):
        open_image(series)
