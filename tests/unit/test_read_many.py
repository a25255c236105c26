"""Many boxes read at once equal the boxes read one by one, and what the file stores."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.errors import BoxError, UnreadableImage
from foveate.formats.tiff_blocks import plan_blocks, used_px
from foveate.formats.tiff_grid import BlockGrid
from foveate.geometry import Box, Frame
from foveate.images.covered import Cover, CoveredImage
from foveate.images.resample import resample_from, resample_slow
from foveate.images.respaced import RespacedImage
from foveate.readers import open_image
from foveate.readers.tiff import TiffReader
from helpers.images import PyramidImage, build_pyramid

PAPER = (200.0, 210.0, 220.0)
RNG = np.random.default_rng(5)
NOISE = RNG.integers(0, 256, (211, 307, 3), np.uint8)


def one_by_one(image, boxes, shape):
    return np.stack([image.read_at(box, shape) for box in boxes])


def box(origin, size):
    return Box(tuple(origin), tuple(size), Frame.UM)


@st.composite
def boxes_of_a_batch(draw):
    """Boxes of up to three sizes, at whole and at other pixels, also beyond the image."""
    place = st.one_of(st.integers(-40, 330).map(float), st.floats(-40, 330))
    shape = draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    steps = draw(st.lists(st.sampled_from([0.4, 0.97, 1.0, 1.37, 2.0, 5.3]), min_size=1))
    n = draw(st.integers(1, 12))
    return shape, [
        box(draw(st.tuples(place, place)), [m * steps[i % len(steps)] for m in shape])
        for i in range(n)
    ]


@settings(max_examples=60, deadline=None)
@given(boxes_of_a_batch(), st.sampled_from([np.uint8, np.uint16]))
def test_many_boxes_equal_boxes_read_one_by_one(batch, dtype):
    shape, boxes = batch
    pixels = NOISE.astype(dtype) * np.asarray(257 if dtype == np.uint16 else 1, dtype)
    image = PyramidImage(*build_pyramid(pixels, (1, 2.01, 4)), background=PAPER)
    np.testing.assert_array_equal(
        image.read_many(boxes, shape), one_by_one(image, boxes, shape), strict=True
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("step", [(1.37, 1.37), (2.0, 2.0), (0.6, 1.0), (0.9, 3.3), (1.004, 0.999)])
def test_boxes_that_share_weights_are_within_a_grey_level_of_the_exact_ones(step, channels):
    black_white = RNG.integers(0, 2, (400, 420, channels), np.uint8) * np.uint8(255)
    image = PyramidImage(black_white, background=(0.0,) * channels)
    shape = (61, 50)
    origins = [(20, 30), (21, 200), (60, 77)]
    boxes = [box(o, np.multiply(shape, step)) for o in origins]
    actual = image.read_many(boxes, shape)
    for origin, pixels in zip(origins, actual, strict=True):
        exact = resample_slow(black_white.astype(np.float64), origin, step, shape)
        assert np.abs(pixels - exact).max() <= 1.01
        single = resample_from(image._source(0), origin, step, shape)
        assert np.abs(single.astype(int) - pixels).max() <= 1


def test_volumes_and_wrapped_images_are_read_by_the_same_code():
    volume = PyramidImage(
        RNG.integers(0, 9999, (20, 30, 40, 1), np.uint16),
        spacing_um=(2.0, 1.0, 1.0),
        background=(7.0,),
    )
    places = [(0.0, 1.0, 2.0), (4.0, 3.0, 3.0), (30.0, 20.5, 35.0), (-3.0, 0.0, 0.0)]
    boxes = [box(place, (8.0, 6.0, 6.0)) for place in places]
    np.testing.assert_array_equal(
        volume.read_many(boxes, (4, 6, 6)), one_by_one(volume, boxes, (4, 6, 6))
    )
    plain = PyramidImage(NOISE, background=PAPER)
    covered = CoveredImage(plain, Cover(np.array([[10.0, 12.0]]), np.array([[30.0, 20.0]])))
    boxes = [box((5.0 * i, 4.0 * i), (16.0, 16.0)) for i in range(8)]
    for image in (covered, RespacedImage(plain, (0.5, 0.7), unit="um")):
        np.testing.assert_array_equal(
            image.read_many(boxes, (16, 16)), one_by_one(image, boxes, (16, 16))
        )
    assert not np.array_equal(covered.read_many(boxes, (16, 16)), plain.read_many(boxes, (16, 16)))


def test_no_boxes_give_an_empty_array_and_other_frames_are_refused():
    image = PyramidImage(NOISE)
    assert image.read_many([], (4, 5)).shape == (0, 4, 5, 3)
    for wrong in (Box((0, 0), (4, 4), Frame.PX0), Box((0, 0, 0), (4, 4, 4), Frame.UM)):
        with pytest.raises(BoxError, match=r"expected boxes in frame um with 2 axes, got box 1"):
            image.read_many([box((0, 0), (4, 4)), wrong], (4, 4))


def test_a_smaller_limit_of_regions_changes_nothing(monkeypatch):
    image = PyramidImage(NOISE, background=PAPER)
    boxes = [box((3 * i, 7 * i % 250), (27.4, 27.4)) for i in range(30)]
    at_once = image.read_many(boxes, (20, 20))
    monkeypatch.setattr("foveate.images.resample_many._REGION_BYTES", 5000)
    np.testing.assert_array_equal(image.read_many(boxes, (20, 20)), at_once)


# -- stored tiles --------------------------------------------------------------------------------


def write_tiles(path, *, orientation=1, absent=(), repeated=False):
    """Write a pyramid of JPEG tiles of 64 x 96 with levels 1 and 3; return what level 0 stores."""
    levels = build_pyramid(RNG.integers(90, 160, (500, 700, 3), np.uint8), (1, 3))
    with tifffile.TiffWriter(path) as file:
        for i, pixels in enumerate(levels):
            height, width = pixels.shape[:2]
            places = list(itertools.product(range(0, height, 64), range(0, width, 96)))
            tiles = [pixels[y : y + 64, x : x + 96] for y, x in places]
            tiles = [np.pad(t, ((0, 64 - len(t)), (0, 96 - t.shape[1]), (0, 0))) for t in tiles]
            file.write(
                iter(tiles),
                shape=pixels.shape,
                dtype=np.uint8,
                tile=(64, 96),
                photometric="rgb",
                compression="jpeg",
                subfiletype=int(i > 0),
                resolution=(1e4, 1e4),
                resolutionunit="CENTIMETER",
                extratags=[(274, 3, 1, orientation, True)],
                metadata=None,
            )
    with tifffile.TiffFile(path, mode="r+b") as file:
        page = file.pages[0]
        counts, offsets = list(page.databytecounts), list(page.dataoffsets)
        for n in absent:
            counts[n] = offsets[n] = 0
        if repeated:
            counts[9], offsets[9] = counts[10], offsets[10]
        page.tags["TileByteCounts"].overwrite(counts)
        page.tags["TileOffsets"].overwrite(offsets)
    with tifffile.TiffFile(path) as file:
        return file.pages[0].asarray()


SCATTERED = [
    *(box((64 * i, 96 * i), (64, 96)) for i in range(5)),
    *(box((37 * i - 20, 61 * i - 30), (64, 96)) for i in range(11)),
    *(box((19.5 * i, 31.25 * i), (64, 96)) for i in range(6)),
    *(box((11 * i, 17 * i), (96, 144)) for i in range(6)),
    *(box((40 * i, 50 * i), (200, 300)) for i in range(4)),
]


@pytest.mark.parametrize(
    "layout",
    [{}, {"orientation": 6}, {"absent": (2, 9, 10)}, {"repeated": True}],
    ids=["plain", "turned", "absent", "repeated"],
)
def test_tiles_give_the_same_pixels_to_many_boxes_as_to_each(tmp_path, layout):
    write_tiles(tmp_path / "a.tif", **layout)
    with TiffReader(tmp_path / "a.tif") as image, TiffReader(tmp_path / "a.tif") as fresh:
        assert [level.downsample[0] for level in image.levels] == pytest.approx([1, 3], rel=0.01)
        expected = one_by_one(image, SCATTERED, (64, 96))
        np.testing.assert_array_equal(fresh.read_many(SCATTERED, (64, 96)), expected)
        np.testing.assert_array_equal(image.read_many(SCATTERED[::-1], (64, 96)), expected[::-1])


def test_boxes_on_whole_pixels_are_what_the_file_stores(tmp_path):
    full = write_tiles(tmp_path / "a.tif")
    origins = RNG.integers(0, [500 - 80, 700 - 70], (40, 2))
    with TiffReader(tmp_path / "a.tif") as image:
        actual = image.read_many([box(o, (80, 70)) for o in origins.tolist()], (80, 70))
    for (y, x), pixels in zip(origins.tolist(), actual, strict=True):
        np.testing.assert_array_equal(pixels, full[y : y + 80, x : x + 70])


def test_every_touched_tile_is_decoded_once_whatever_the_order_of_boxes(tmp_path):
    write_tiles(tmp_path / "a.tif")
    boxes = [box((y, x), (32, 48)) for y in range(0, 384, 32) for x in range(0, 576, 48)]
    shuffled = [boxes[i] for i in RNG.permutation(len(boxes))]
    for batch, n_tiles in ((boxes, 36), (shuffled, 36), ([box((30, 70), (10, 10))] * 5, 1)):
        with TiffReader(tmp_path / "a.tif") as image:
            before = image.count.decoded_px
            image.read_many(batch, (int(batch[0].size[0]), int(batch[0].size[1])))
            assert image.count.decoded_px - before == n_tiles * 64 * 96


def test_a_damaged_tile_is_named_with_the_box_that_shows_it(tmp_path):
    write_tiles(tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        at = file.pages[0].dataoffsets[8 + 3]
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[at : at + 300] = bytes(300)
    (tmp_path / "a.tif").write_bytes(data)
    boxes = [box((64 * i, 96 * i), (64, 96)) for i in range(3)] + [box((70, 300), (64, 96))]
    with TiffReader(tmp_path / "a.tif") as image:
        with pytest.raises(UnreadableImage, match=r"a\.tif: level 0, region \(64, 96\) at \(70, 3"):
            image.read_many(boxes, (64, 96))
        assert image.read_many(boxes[:3], (64, 96)).shape == (3, 64, 96, 3)


def test_eight_threads_read_the_same_as_one(tmp_path):
    write_tiles(tmp_path / "a.tif", absent=(3,))
    groups = [SCATTERED[i::4] for i in range(4)] * 6
    with TiffReader(tmp_path / "a.tif") as image:
        serial = [image.read_many(group, (64, 96)) for group in groups[:4]] * 6
    with TiffReader(tmp_path / "a.tif") as image, ThreadPoolExecutor(8) as pool:
        parallel = pool.map(lambda group: image.read_many(group, (64, 96)), groups)
        for expected, actual in zip(serial, parallel, strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_strips_are_read_by_the_same_plan(tmp_path):
    tifffile.imwrite(tmp_path / "s.tif", NOISE, photometric="rgb", rowsperstrip=9)
    with open_image(tmp_path / "s.tif") as stored:
        image = RespacedImage(stored, (1.0, 1.0), unit="px")
        boxes = [box((7 * i, 11 * i), (40, 50)) for i in range(20)]
        actual = image.read_many(boxes, (40, 50))
    for i, pixels in enumerate(actual):
        np.testing.assert_array_equal(pixels, NOISE[7 * i : 7 * i + 40, 11 * i : 11 * i + 50])


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 80)), min_size=1, max_size=6),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 17), st.integers(1, 23)),
)
def test_a_plan_covers_every_pixel_of_every_region_once(origins, size, block):
    shape = (100, 120)
    counts = tuple(-(-n // b) for n, b in zip(shape, block, strict=True))
    index = np.arange(1, counts[0] * counts[1] + 1)
    grid = BlockGrid(shape, block, counts, index, index, tiled=True, coding=None)
    covered = np.zeros((len(origins), *size), int)
    blocks = []
    for stored, uses in plan_blocks(grid, np.array(origins), size):
        blocks.append(stored.offsets[0])
        assert used_px(uses) > 0
        for use in uses:
            rows = origins[use.region][0] + np.arange(size[0])[use.inside[0]]
            columns = origins[use.region][1] + np.arange(size[1])[use.inside[1]]
            covered[use.region][use.inside] += 1
            assert (rows // block[0] == stored.row).all()
            assert (columns // block[1] == stored.column).all()
            assert rows[0] % block[0] == use.within[0].start
            assert columns[0] % block[1] == use.within[1].start
            assert stored.offsets == (stored.row * counts[1] + stored.column + 1,)
    assert (covered == 1).all()
    assert blocks == sorted(set(blocks))
