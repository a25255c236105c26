"""NIfTI volumes: orientation, brightness, and errors."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest

from foveate.errors import ImageTooLarge, MissingSpacing, UnreadableImage, UnsupportedFormat
from foveate.geometry import Box, Frame
from foveate.images.image import AbstractImage
from foveate.loading.scan import open_case
from foveate.readers import nifti, open_image
from foveate.table import Case

SHAPE = (12, 14, 10)
DATA = Path(__file__).resolve().parents[2] / "../shared/data"


def written(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def read_volume(image: AbstractImage) -> np.ndarray:
    return image.read(Box((0, 0, 0), image.shape, Frame.PX, 0))[..., 0]


def ramp() -> np.ndarray:
    return np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


def test_axes_follow_the_affine(tmp_path: Path) -> None:
    """A bright voxel is read at the left, back and top for every orientation of the file."""
    values = np.zeros(SHAPE, np.uint8)
    values[1, 2, 3] = 200
    values[0, 0, 0] = 1  # else all but one voxel are alike
    # File axes run to the right (3 mm), to the front (2 mm), up (1 mm).
    ras = written(tmp_path / "ras.nii.gz", values, np.diag([3.0, 2.0, 1.0, 1.0]))
    with open_image(ras) as image:
        assert image.shape == (10, 14, 12)
        assert image.spacing_um == (1000.0, 2000.0, 3000.0)
        where = np.unravel_index(read_volume(image).argmax(), image.shape)
    assert where == (3, 14 - 1 - 2, 12 - 1 - 1)
    again = nibabel.load(ras).as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    nibabel.save(again, tmp_path / "other.nii")
    with open_image(ras) as one, open_image(tmp_path / "other.nii") as other:
        np.testing.assert_array_equal(read_volume(one), read_volume(other))
        assert one.spacing_um == other.spacing_um


def test_region_by_region_equals_the_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "v.nii", ramp(), np.diag([-1.0, 1.0, -2.0, 1.0]))
    with open_image(path) as image:
        expected = read_volume(image)
    monkeypatch.setattr(nifti, "_CACHE_BYTES", 100)
    with open_image(path) as image:
        assert not image._small
        np.testing.assert_array_equal(read_volume(image), expected)
        part = image.read(Box((2, 3, 4), (5, 4, 3), Frame.PX, 0))[..., 0]
        np.testing.assert_array_equal(part, expected[2:7, 3:7, 4:7])
        assert image.count.decoded_px == expected.size + part.size
    packed = written(tmp_path / "v.nii.gz", ramp())
    with pytest.raises(ImageTooLarge, match="unpack"):
        open_image(packed)


def test_brightness_follows_percentiles_and_slope(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(1000, 50, SHAPE).astype(np.float32)
    volume = nibabel.Nifti1Image(values, np.eye(4))
    volume.set_data_dtype(np.int16)  # stored with slope and offset
    nibabel.save(volume, tmp_path / "v.nii.gz")
    low, high = np.percentile(values, (0.5, 99.5))
    with open_image(tmp_path / "v.nii.gz") as image:
        laid = values[::-1, ::-1].transpose(2, 1, 0)
        expected = np.clip((laid - low) / (high - low), 0, 1)
        np.testing.assert_allclose(read_volume(image) / 65535, expected, atol=2e-3)


def test_a_few_voxels_on_an_even_background_are_visible(tmp_path: Path) -> None:
    values = np.zeros((40, 40, 40), np.uint8)
    values[5, 6, 7] = 3
    with open_image(written(tmp_path / "v.nii.gz", values)) as image:
        pixels = read_volume(image)
    assert pixels.max() == 65535
    assert (pixels > 0).sum() == 1


def test_a_small_structure_keeps_its_values(tmp_path: Path) -> None:
    """In a nearly empty volume, the 99.5th percentile of all voxels is background."""
    values = np.zeros((40, 40, 40), np.float32)
    values[10:16, 10:16, 10:16] = np.linspace(100, 900, 216).reshape(6, 6, 6)
    assert np.percentile(values, 99.5) == 0
    with open_image(written(tmp_path / "v.nii.gz", values)) as image:
        pixels = read_volume(image)[:, ::-1, ::-1].transpose(2, 1, 0)
    inside = pixels[10:16, 10:16, 10:16].ravel() / 65535
    assert (pixels > 0).sum() == 216
    np.testing.assert_allclose(inside[5:-5], np.linspace(100, 900, 216)[5:-5] / 900, atol=0.01)


@pytest.mark.parametrize("share", [0.003, 0.02, 0.6])
def test_a_mask_is_black_and_white(tmp_path: Path, share: float) -> None:
    mask = np.random.default_rng(0).random((40, 40, 40)) < share
    with open_image(written(tmp_path / "v.nii.gz", mask.astype(np.uint8) * 255)) as image:
        pixels = read_volume(image)
    assert set(np.unique(pixels)) == {0, 65535}
    assert (pixels > 0).sum() == mask.sum()


def test_label_values_stay_distinct(tmp_path: Path) -> None:
    """A rare second label is brighter than the first, although percentiles ignore it."""
    labels = np.zeros((40, 40, 40), np.uint8)
    labels[:20] = 1
    labels[3, 3, 3:9] = 2
    with open_image(written(tmp_path / "v.nii.gz", labels)) as image:
        assert {*map(int, np.unique(read_volume(image)))} == {0, 32768, 65535}


def chest_ct(rng: np.random.Generator, tissue: float) -> np.ndarray:
    """Return Hounsfield units of air, soft tissue, lung and bone, with padding outside."""
    values = rng.normal(-1000, 10, (40, 40, 40))
    values[8:32, 8:32] = rng.normal(tissue, 10, (24, 24, 40))
    values[12:18, 12:26] = rng.normal(-800, 40, (6, 14, 40))
    values[26:29, 18:21] = 700
    values[:2] = -3024
    return values.round().astype(np.int16)


def test_ct_brightness_is_fixed_by_hounsfield_units(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same tissue has the same brightness in every file."""
    rng, means = np.random.default_rng(0), []
    for i, (tissue, metal) in enumerate([(30, False), (30, True), (90, False)]):
        values = chest_ct(rng, tissue)
        if metal:
            values[30, 10:31] = 8000
        with (
            caplog.at_level(logging.INFO, "foveate"),
            open_image(written(tmp_path / f"{i}.nii.gz", values)) as image,
        ):
            pixels = read_volume(image)[:, ::-1, ::-1].transpose(2, 1, 0) / 65535
        assert "Hounsfield" in caplog.text
        caplog.clear()
        means.append(pixels[20:25, 20:30].mean())
        assert pixels[:2].max() == 0  # padding is no darker than air can be
        assert pixels[3:7].mean() < pixels[13:17, 13:25].mean() < 0.25 < pixels[20, 20].mean()
        assert pixels[27, 19].mean() == pytest.approx(0.75 + 0.25 * 460 / 2831, abs=1e-3)
    # From -160 to 240 a unit is an 800th of the scale.
    assert means[0] == pytest.approx(0.25 + 190 / 800, abs=2e-3)
    assert means[1] == pytest.approx(means[0], abs=1e-3)
    assert means[2] - means[0] == pytest.approx(60 / 800, abs=2e-3)


@pytest.mark.parametrize("kind", ["phase", "narrow phase", "scores", "shifted"])
def test_volumes_that_only_resemble_ct_are_not_read_as_ct(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    values = {
        "phase": rng.integers(-4096, 4096, (30, 30, 30)),
        "narrow phase": rng.integers(-1000, 1000, (30, 30, 30)),
        "scores": rng.normal(0, 300, (30, 30, 30)),
        "shifted": chest_ct(rng, 30) + 1024,
    }[kind].astype(np.float32)
    with (
        caplog.at_level(logging.INFO, "foveate"),
        open_image(written(tmp_path / "v.nii.gz", values)) as image,
    ):
        pixels = read_volume(image)
    assert "Hounsfield" not in caplog.text
    assert pixels.max() == 65535


def test_nan_voxels_are_black_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = ramp().astype(np.float32)
    values[3, 4, 5], values[0, 0, 0] = np.nan, np.inf
    with (
        caplog.at_level(logging.WARNING, "foveate"),
        open_image(written(tmp_path / "v.nii.gz", values)) as image,
    ):
        pixels = read_volume(image)
    assert pixels[5, 14 - 1 - 4, 12 - 1 - 3] == 0
    assert caplog.text.count("no finite numbers") == 1
    all_nan = np.full(SHAPE, np.nan, np.float32)
    with (
        open_image(written(tmp_path / "n.nii.gz", all_nan)) as image,
        pytest.raises(UnreadableImage, match="no finite"),
    ):
        read_volume(image)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((8, 9), "2 axes"), ((8, 9, 5, 4), "series"), ((8, 9, 5, 1, 3), "series")],
)
def test_several_volumes_in_a_file_are_refused(
    tmp_path: Path, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UnsupportedFormat, match=message):
        open_image(written(tmp_path / "v.nii.gz", np.zeros(shape, np.int16)))


def test_an_axis_of_length_one_is_accepted(tmp_path: Path) -> None:
    with open_image(written(tmp_path / "v.nii.gz", ramp()[..., None])) as image:
        assert image.shape == SHAPE[::-1]


def test_colours_are_refused(tmp_path: Path) -> None:
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(UnsupportedFormat, match="grey"):
        open_image(written(tmp_path / "v.nii.gz", rgb))


@pytest.mark.parametrize("name", ["v.nii", "v.nii.gz"])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, np.random.default_rng(0).integers(0, 999, SHAPE, np.int16))
    path.write_bytes(path.read_bytes()[:-300])
    with (
        pytest.raises(UnreadableImage, match=f"{name}.*(truncated|unpacked)"),
        open_image(path) as image,
    ):
        read_volume(image)


def test_a_packed_file_of_another_checksum_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "v.nii.gz", ramp())
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # of the checksum: every voxel can be read, and none be trusted
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match="unpacked"), open_image(path) as image:
        read_volume(image)


def test_gzip_is_detected_by_content(tmp_path: Path) -> None:
    path = written(tmp_path / "v.nii.gz", ramp())
    (tmp_path / "packed.nii").write_bytes(path.read_bytes())
    (tmp_path / "plain.nii.gz").write_bytes(gzip.decompress(path.read_bytes()))
    with open_image(path) as image:
        expected = read_volume(image)
    for name in ("packed.nii", "plain.nii.gz"):
        with open_image(tmp_path / name) as image:
            np.testing.assert_array_equal(read_volume(image), expected)


def test_nifti_2_files_are_read(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(ramp(), np.eye(4)), tmp_path / "v.nii.gz")
    with open_image(tmp_path / "v.nii.gz") as image:
        assert read_volume(image)[0, -1, -1] == 0


def test_a_voxel_size_of_zero_is_treated_as_missing(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(ramp(), None), tmp_path / "v.nii")
    content = bytearray((tmp_path / "v.nii").read_bytes())
    content[80:92] = bytes(12)  # pixdim 1 to 3
    (tmp_path / "v.nii").write_bytes(content)
    with open_image(tmp_path / "v.nii") as image:
        assert image.spacing_um is None
    with pytest.raises(MissingSpacing, match="volume"):
        open_case(Case("v", "v", tmp_path / "v.nii"))


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no sample volumes at {DATA}")
def test_real_volumes_are_read() -> None:
    paths = sorted((DATA / "mri_hippocampus/images").glob("*.nii.gz"))[:5]
    for path in paths:
        with open_image(path) as image:
            volume = nibabel.load(path)
            assert image.spacing_um == (1000.0,) * 3
            assert image.shape == volume.shape[::-1]
            values = np.asarray(volume.dataobj)[::-1, ::-1].transpose(2, 1, 0)
            assert np.corrcoef(values.ravel(), read_volume(image).ravel())[0, 1] > 0.97
