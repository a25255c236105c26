"""The contract that every reader keeps, tested on every sample file that it recognises.

Readers are found, not listed: a new file in `foveate/readers` takes part without a line here.
"""

from __future__ import annotations

import atexit
import functools
import inspect
import itertools
import math
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from conftest import box_around
from foveate import parts
from foveate.errors import (
    FoveateError,
    MissingSpacing,
    UnreadableImage,
)
from foveate.geometry import Box, Frame
from foveate.images.image import AbstractImage
from foveate.images.respaced import RespacedImage
from foveate.readers import open_image
from foveate.readers.base import HEAD_BYTES, AbstractReader
from helpers.dicom import write_dicom, write_series
from helpers.dicom_slides import write_level

DATA = Path(__file__).resolve().parents[2] / "../shared/data"
EMULATED = DATA / "vendor_wsi_emulated"
NO_DATA = f"no sample slides at {DATA}"

SAMPLES = (
    "vendor_wsi/aperio/CMU-1-Small-Region.svs",
    "vendor_wsi/hamamatsu/test3-DAPI-2-(387).ndpi",
    "vendor_wsi/dicom_cmu1_pyramid/level-0-frames-0-30.dcm",
    "vendor_wsi/generic_tiff/boxes.tiff",
    "vendor_wsi/generic_tiff/test.tif",
    "vendor_wsi_emulated/aperio_jp2k_33005.svs",
    "vendor_wsi_emulated/flat.jpg",
    "vendor_wsi_emulated/flat_rgba.png",
    "vendor_wsi_emulated/flat_strips_deflate.tif",
    "vendor_wsi_emulated/leica.scn",
    "vendor_wsi_emulated/philips.tiff",
    "vendor_wsi_emulated/pyramid.ome.tif",
    "vendor_wsi_emulated/trestle.tif",
    "pathology_atlas/giga/BS9__HE1_1.56Gpx.svs",
    "pathology_atlas/slides_5x/BS25__HE.tif",
    "broken/made/images/sixteen_bit.png",
    "broken/made/images/grey_alpha.png",
    "mri_hippocampus/images/hippocampus_011.nii.gz",
    "dicom_mr_brain/Study3/11_HCropVolume/1.dcm",
    "broken/pydicom_corpus/CT_small.dcm",
)
MADE = (
    *("tiles.tif", "strips16.tif", "grey.png", "colour.jpg"),
    *("volume.nii.gz", "volume.nii", "IM0003", "xray.dcm", "ultrasound.dcm", "slide.dcm"),
    *("grey.npy", "volume.npz", "float.tif", "bits.tif"),
)


@functools.cache
def made_files() -> Path:
    """Write a few files, so that the contract is tested without the samples too."""
    folder = Path(tempfile.mkdtemp(prefix="made"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    rng = np.random.default_rng(0)
    pixels = rng.integers(100, 255, (300, 420, 3), np.uint8)
    tifffile.imwrite(
        folder / "tiles.tif",
        pixels,
        photometric="rgb",
        tile=(64, 64),
        compression="zlib",
        resolution=(1e4 / 0.31, 1e4 / 0.4942),
        resolutionunit="CENTIMETER",
    )
    grey = rng.integers(0, 1 << 16, (211, 305), np.uint16)
    tifffile.imwrite(folder / "strips16.tif", grey, rowsperstrip=10, compression="lzw")
    Image.fromarray(pixels[:, :, 0]).save(folder / "grey.png")
    Image.fromarray(pixels).save(folder / "colour.jpg")
    affine = np.array([[0, 0, 2.5, 9], [-0.7, 0, 0, 3], [0, 1.1, 0, -5], [0, 0, 0, 1]])
    volume = nibabel.Nifti1Image(rng.integers(-900, 2000, (61, 43, 29), np.int16), affine)
    nibabel.save(volume, folder / "volume.nii.gz")
    nibabel.save(volume, folder / "volume.nii")
    write_series(
        folder,
        rng.integers(0, 900, (11, 31, 27), np.int16),
        directions=(1, 0, 0, 0, 0, -1),
        step_mm=(0, 2.5, 0),
    )
    write_dicom(folder / "xray.dcm", grey // 16, PhotometricInterpretation="MONOCHROME1")
    write_dicom(folder / "ultrasound.dcm", pixels, "OT")
    np.save(folder / "grey.npy", grey)
    np.savez_compressed(folder / "volume.npz", volume=rng.normal(0, 1, (21, 33, 29)))
    tifffile.imwrite(folder / "float.tif", rng.normal(0, 1, (211, 305)), compression="zlib")
    tifffile.imwrite(folder / "bits.tif", pixels[:, :, 0] > 180, tile=(64, 64), metadata=None)
    write_level(folder / "slide.dcm", pixels, series="1.2.3", codec="jpeg", spacing_um=0.4)
    return folder


@functools.cache
def read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def readers_with_samples() -> list[tuple[str, str]]:
    """List every reader with each sample file it recognises; absent files are skipped later."""
    samples = []
    for reader, name in itertools.product(parts.names("readers"), [*MADE, *SAMPLES]):
        path = made_files() / name if name in MADE else DATA / name
        if not path.is_file() or parts.find("readers", reader).recognises(path, read_head(path)):
            samples.append((reader, name))
    return samples


def sample(name: str, made: Path) -> Path:
    path = made / name if name in MADE else DATA / name
    if not path.is_file():
        pytest.skip(NO_DATA)
    return path


@pytest.fixture(scope="session")
def made() -> Path:
    return made_files()


@pytest.fixture(params=parts.names("readers"))
def reader(request: pytest.FixtureRequest) -> type[AbstractReader]:
    reader_class: type[AbstractReader] = parts.find("readers", request.param)
    return reader_class


@pytest.fixture(params=readers_with_samples(), ids="-".join)
def image(request, made):
    reader, path = parts.find("readers", request.param[0]), sample(request.param[1], made)
    if not reader.recognises(path, read_head(path)):
        pytest.skip(f"{reader.__name__} does not take {path.name}")
    with reader(path) as opened:
        yield opened


def with_spacing(image: AbstractImage) -> AbstractImage:
    """Return the image with a spacing; one without gets 1 per pixel."""
    if image.spacing_um is not None:
        return image
    return RespacedImage(image, (1.0,) * image.ndim, unit="px")


def some_boxes(image: AbstractImage) -> list[Box]:
    """Return boxes inside, across every border and outside, on every level."""
    boxes = []
    for level, facts in enumerate(image.levels):
        size = tuple(min(n, 150) + 3 for n in facts.shape)
        middle = tuple(n // 2 - s // 3 for n, s in zip(facts.shape, size, strict=True))
        corner = tuple(-s // 2 for s in size)
        far = tuple(n - s // 2 for n, s in zip(facts.shape, size, strict=True))
        away = tuple(n + 10 for n in facts.shape)
        boxes += [Box(o, size, Frame.PX, level) for o in (middle, corner, far, away)]
    return boxes


def test_a_reader_is_documented_and_imports_its_library_lazily(reader):
    assert inspect.getdoc(reader)
    assert isinstance(reader.priority, int)


def test_shapes_levels_and_spacing_are_consistent(image):
    assert image.kind in ("slide", "picture", "volume")
    assert image.channels in (1, 3)
    assert image.dtype in (np.uint8, np.uint16)
    assert image.reader
    assert image.levels[0].downsample == (1.0,) * image.ndim
    for finer, coarser in zip(image.levels, image.levels[1:], strict=False):
        assert all(a >= b for a, b in zip(finer.shape, coarser.shape, strict=True))
    for level in image.levels:
        assert all(isinstance(n, int) and n > 0 for n in level.shape)
        assert all(isinstance(d, float) for d in level.downsample)
        explained = [
            abs(n / d - m)
            for n, d, m in zip(image.shape, level.downsample, level.shape, strict=True)
        ]
        assert max(explained) < 1
    if image.spacing_um is not None:
        most = 20 if image.reader.startswith(("tifffile", "OpenSlide")) else 1e5
        assert all(0.05 <= s <= most for s in image.spacing_um)


def test_regions_match_one_picture_surrounded_by_background(image):
    for box in some_boxes(image):
        pixels = image.read(box)
        assert pixels.shape == (*map(int, box.size), image.channels)
        assert pixels.dtype == image.dtype
        level = image.levels[box.level].shape
        where = np.indices(pixels.shape[:-1]).reshape(image.ndim, -1).T + np.array(box.origin, int)
        outside = ((where < 0) | (where >= level)).any(1).reshape(pixels.shape[:-1])
        assert (pixels[outside] == image.background).all()


def test_a_region_equals_its_pieces(image):
    for level, facts in enumerate(image.levels):
        if not all(float(d).is_integer() for d in facts.downsample):
            continue
        size = tuple(min(n, 200) for n in facts.shape)
        origin = tuple((n - s) // 2 for n, s in zip(facts.shape, size, strict=True))
        full = image.read(Box(origin, size, Frame.PX, level))
        cut = size[1] * 2 // 5 or 1
        if cut == size[1]:
            continue
        left = image.read(Box(origin, (size[0], cut, *size[2:]), Frame.PX, level))
        right_at = (origin[0], origin[1] + cut, *origin[2:])
        right = image.read(Box(right_at, (size[0], size[1] - cut, *size[2:]), Frame.PX, level))
        stitched = np.concatenate([left, right], 1)
        np.testing.assert_array_equal(full, stitched)


def test_glimpse_and_read_at_have_the_requested_shapes(image):
    spaced = with_spacing(image)
    extent = spaced.box_um.size
    glimpse = spaced.glimpse(max(extent) / 150)
    assert max(glimpse.shape[:-1]) in (150, 151)
    centre = spaced.box_um.centre
    side = min(extent) / 4
    shape = (61,) * image.ndim
    patch = spaced.read_at(box_around(centre, (side,) * image.ndim), shape)
    assert patch.shape == (*shape, image.channels)
    assert patch.dtype == image.dtype


def test_eight_threads_read_the_same_as_one(image):
    boxes = some_boxes(image)
    serial = [image.read(box) for box in boxes]
    with type(image)(image.path) as fresh, ThreadPoolExecutor(8) as pool:
        for expected, actual in zip(serial * 4, pool.map(fresh.read, boxes * 4), strict=True):
            np.testing.assert_array_equal(expected, actual)


def test_read_pixels_are_counted(image):
    before = image.count.decoded_px
    size = tuple(min(n, 64) for n in image.shape)
    image.read(Box((0,) * image.ndim, size, Frame.PX, 0))
    first = image.count.decoded_px - before
    assert first >= math.prod(size)
    assert first <= max(image.n_pixels, 1 << 20) * 1.2


def test_returned_arrays_are_not_shared(image):
    box = Box((0,) * image.ndim, tuple(min(n, 40) for n in image.shape), Frame.PX, 0)
    first = image.read(box)
    copied = first.copy()
    first[:] = 7
    np.testing.assert_array_equal(image.read(box), copied)


def test_a_closed_image_can_be_closed_again_and_refuses_reads(image):
    image.close()
    image.close()
    with pytest.raises(UnreadableImage, match="closed"):
        image.read(Box((0,) * image.ndim, (1,) * image.ndim, Frame.PX, 0))


def test_a_missing_spacing_is_an_error_that_names_the_file(image):
    if image.spacing_um is None:
        with pytest.raises(MissingSpacing, match=image.path.name[:5]):
            image.glimpse(1.0)


def test_damaged_files_raise_unreadable_image(reader, made, tmp_path):
    for name in MADE:
        data = sample(name, made).read_bytes()
        for share in (0.02, 0.3, 0.9):
            path = tmp_path / f"{share}" / f"{share}_{name}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data[: int(len(data) * share)])
            if not reader.recognises(path, read_head(path)):
                continue
            with pytest.raises(FoveateError) as caught, open_image(path) as opened:
                opened.read(Box((0,) * opened.ndim, opened.shape, Frame.PX, 0))
            assert path.name in str(caught.value)


# -- one picture in many layouts -------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["aperio_jp2k_33005.svs", "leica.scn", "philips.tiff", "pyramid.ome.tif", "trestle.tif"],
)
def test_all_layouts_of_a_picture_read_the_same(name):
    if not EMULATED.is_dir():
        pytest.skip(NO_DATA)
    with open_image(EMULATED / "flat.jpg") as flat, open_image(EMULATED / name) as image:
        assert image.spacing_um == pytest.approx((0.2528, 0.2528))
        corner = (0.0, 0.0) if image.bounds_px0 is None else image.bounds_px0.origin
        size = flat.shape if image.bounds_px0 is None else image.bounds_px0.size
        assert tuple(map(int, size)) == flat.shape
        expected = flat.read(Box((700, 900), (800, 900), Frame.PX, 0)).astype(float)
        actual = image.read(Box((corner[0] + 700, corner[1] + 900), (800, 900), Frame.PX, 0))
        assert np.abs(actual - expected).mean() < 3
        assert np.abs((actual - expected).mean((0, 1))).max() < 0.5
        assert image.background.min() > 100


@pytest.mark.parametrize("name", [s for s in SAMPLES if "svs" in s or "generic" in s or "_5x" in s])
def test_stored_blocks_match_openslide(name):
    if not (DATA / name).is_file():
        pytest.skip(NO_DATA)
    tiff, slide = parts.find("readers", "tiff"), parts.find("readers", "openslide")
    with tiff(DATA / name) as ours, slide(DATA / name) as theirs:
        assert [a.shape for a in ours.levels] == [b.shape for b in theirs.levels]
        assert [a.downsample for a in ours.levels] == [b.downsample for b in theirs.levels]
        assert ours.spacing_um == pytest.approx(theirs.spacing_um) or ours.spacing_um is None
        size = tuple(min(n, 400) for n in ours.shape)
        origin = tuple((n - s) // 3 for n, s in zip(ours.shape, size, strict=True))
        box = Box(origin, size, Frame.PX, 0)
        np.testing.assert_array_equal(ours.read(box), theirs.read(box))
        level = len(ours.levels) - 1
        full_box = Box((0, 0), ours.levels[level].shape, Frame.PX, level)
        assert np.abs(ours.read(full_box).astype(int) - theirs.read(full_box)).mean() < 2


def test_leica_bounds_contain_the_scan_on_white():
    if not EMULATED.is_dir():
        pytest.skip(NO_DATA)
    with open_image(EMULATED / "leica.scn") as image:
        assert image.bounds_px0 is not None
        assert image.bounds_px0.origin == (1151.0, 1535.0)
        assert (image.read(Box((0, 0), (100, 100), Frame.PX, 0)) == 255).all()


def test_the_gigapixel_slide_is_read_in_place():
    path = DATA / "pathology_atlas/giga/BS9__HE1_1.56Gpx.svs"
    if not path.is_file():
        pytest.skip(NO_DATA)
    with open_image(path) as image:
        assert image.n_pixels == 70_779 * 22_023
        glimpse = image.glimpse(64.0).mean(2)
        darkest = np.unravel_index(glimpse.argmin(), glimpse.shape)
        tissue = box_around([(p + 0.5) * 64.0 for p in darkest], (400.0, 300.0))
        fine = image.read_at(tissue, (200, 150))
        with RespacedImage(image, image.known_spacing_um, unit="um") as alone:
            alone.levels = image.levels[:1]
            exact = alone.read_at(tissue, (200, 150))
        assert fine.std() > 5
        assert np.abs(fine.astype(int) - exact).mean() < 3
