"""Sparse canvases equal a dense picture painted pixel by pixel; their files are checked."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.canvas import Canvas, _coarse, read_canvas, render, render_coarse, write_canvas
from foveate.errors import ImageNotFound, OptionError, UnreadableImage
from foveate.geometry import Box, Frame
from foveate.images.respaced import RespacedImage
from foveate.readers import open_image

BLENDS = ("overwrite", "add")


def random_canvas(seed, *, shape=(230, 310), n=40, blend="overwrite", ground=9, most_scale=4):
    """Return a canvas of shared and enlarged stamps that overlap and touch the edge."""
    rng = np.random.default_rng(seed)
    stamps = [rng.integers(0, 256, rng.integers(1, 20, 2), np.uint8) for _ in range(12)]
    ids = rng.integers(0, len(stamps), n)
    scales = rng.integers(1, most_scale + 1, n)
    sizes = np.array([stamp.shape for stamp in stamps])
    room = np.asarray(shape) - scales[:, None] * sizes[ids]
    origins = np.rint(rng.uniform(0, 1, (n, 2)) * room).astype(int)
    origins[: n // 10] = room[: n // 10]
    return Canvas.from_stamps(
        shape,
        stamps,
        origins,
        stamp_ids=ids,
        scales=scales,
        background=ground,
        blend=blend,
    )


def paint_densely(canvas):
    """Paint the canvas paste by paste in integers that cannot overflow."""
    out = np.full(canvas.shape, canvas.background, np.int64)
    for (y, x), i, scale in zip(canvas.origins, canvas.stamp_ids, canvas.scales, strict=True):
        height, width = canvas.stamp_sizes[i]
        begin = sum(int(h * w) for h, w in canvas.stamp_sizes[:i])
        stamp = canvas.stamp_pixels[begin : begin + height * width].reshape(height, width)
        block = np.kron(stamp.astype(np.int64), np.ones((scale, scale), np.int64))
        part = out[y : y + height * scale, x : x + width * scale]
        part[:] = np.minimum(part + block, 255) if canvas.blend == "add" else block
    return out


def block_means(pixels, factor, ground):
    """Return the means of all blocks; pixels outside are ground and halves are rounded up."""
    after = [(0, -n % factor) for n in pixels.shape]
    padded = np.pad(pixels, after, constant_values=ground)
    height, width = (n // factor for n in padded.shape)
    means = padded.reshape(height, factor, width, factor).mean((1, 3), dtype=np.float64)
    return np.floor(means + 0.5).astype(np.uint8)


@pytest.fixture
def force_sparse_rendering(monkeypatch):
    """Force the code path for large regions on regions of any size."""
    monkeypatch.setattr(_coarse, "_DENSE_PX", 300)
    monkeypatch.setattr(_coarse, "_CELL_PX", -(10**9))
    monkeypatch.setattr(_coarse, "_TABLE_PX", 500)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), blend=st.sampled_from(BLENDS), ground=st.integers(0, 255))
def test_regions_match_the_dense_picture(seed, blend, ground):
    canvas = random_canvas(seed, blend=blend, ground=ground)
    expected = np.pad(paint_densely(canvas), 50, constant_values=ground)
    y, x, height, width = np.random.default_rng(seed).integers((-50, -50, 1, 1), (230, 310, 51, 51))
    actual = render(canvas, (int(y), int(x)), (int(height), int(width)))
    assert actual.dtype == np.uint8
    np.testing.assert_array_equal(
        actual[:, :, 0], expected[y + 50 : y + 50 + height, x + 50 : x + 50 + width]
    )


def test_later_pastes_cover_earlier_ones_and_sums_saturate():
    stamps = [np.full((2, 2), 200, np.uint8), np.array([[0, 100], [100, 0]], np.uint8)]
    pasted = {
        blend: Canvas.from_stamps((3, 3), stamps, [[0, 0], [1, 1]], background=10, blend=blend)
        for blend in BLENDS
    }
    over = render(pasted["overwrite"], (0, 0), (3, 3))[:, :, 0]
    assert over.tolist() == [[200, 200, 10], [200, 0, 100], [10, 100, 0]]
    added = render(pasted["add"], (0, 0), (3, 3))[:, :, 0]
    assert added.tolist() == [[210, 210, 10], [210, 210, 110], [10, 110, 10]]


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("factor", [2, 4, 8, 64, 512])
@pytest.mark.parametrize("n", [0, 1, 3, 8, 200])
def test_coarse_views_are_block_means(force_sparse_rendering, blend, factor, n):
    for seed, ground in ((1, 0), (2, 77), (3, 255)):
        canvas = random_canvas(seed, n=n, blend=blend, ground=ground)
        expected = block_means(paint_densely(canvas), factor, ground)
        actual = render_coarse(canvas, factor, (0, 0), expected.shape)
        assert actual.dtype == np.uint8
        np.testing.assert_array_equal(actual[:, :, 0], expected)


def test_sparse_stamps_are_averaged_without_rendering(force_sparse_rendering, monkeypatch):
    stamps = [np.arange(54, dtype=np.uint8).reshape(6, 9), np.full((4, 9), 200, np.uint8)]
    places = [[3, 5], [100, 9], [60, 200], [190, 290 - 27]]
    canvas = Canvas.from_stamps(
        (200, 290), stamps, places, stamp_ids=[0, 1, 1, 0], scales=[1, 2, 1, 1], background=40
    )
    canvas = replace(canvas, origins=np.asarray(places))
    expected = block_means(paint_densely(canvas), 16, 40)

    def refuse(*_):
        raise AssertionError("rendered")

    monkeypatch.setattr(_coarse, "_dense_means", refuse)
    monkeypatch.setattr(_coarse, "_CELL_PX", 0)
    np.testing.assert_array_equal(
        render_coarse(canvas, 16, (0, 0), expected.shape)[:, :, 0], expected
    )


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.sampled_from([2, 4, 8]))
def test_coarse_regions_match_the_coarse_canvas(seed, factor):
    canvas = random_canvas(seed, n=6, most_scale=2)
    padded = np.pad(block_means(paint_densely(canvas), factor, 9), 9, constant_values=9)
    rng = np.random.default_rng(seed)
    y, x = (int(v) for v in rng.integers(-9, 20, 2))
    for dense in (0, 1 << 22):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_coarse, "_DENSE_PX", dense)
            actual = render_coarse(canvas, factor, (y, x), (8, 17))
        np.testing.assert_array_equal(actual[:, :, 0], padded[y + 9 : y + 17, x + 9 : x + 26])


def huge_canvas(n=100_000, side=131_072, seed=0):
    rng = np.random.default_rng(seed)
    bank = rng.integers(0, 256, (2000, 28, 28), np.uint8)
    return Canvas.from_stamps(
        (side, side),
        list(bank),
        rng.integers(0, side - 28, (n, 2)),
        stamp_ids=rng.integers(0, len(bank), n),
    )


def test_a_17_gigapixel_canvas_is_small_and_read_quickly(tmp_path):
    canvas = huge_canvas()
    path = tmp_path / "huge.sparse"
    write_canvas(path, canvas)
    assert path.stat().st_size < 4e6
    begun = time.perf_counter()
    with open_image(path) as image:
        assert image.n_pixels == 131_072**2
        assert image.kind == "picture"
        assert [level.shape[0] for level in image.levels] == [131_072 >> k for k in range(7)]
        spaced = RespacedImage(image, (1.0, 1.0), unit="px")
        glimpse = spaced.glimpse(64.0)
        assert glimpse.shape == (2048, 2048, 1)
        total = int(canvas.stamp_pixels.reshape(-1, 784).sum(1)[canvas.stamp_ids].sum())
        assert glimpse.sum() * 64**2 == pytest.approx(total, rel=0.03)
        y, x = canvas.origins[70_000].tolist()
        patch = image.read(Box((y - 11, x - 11), (50, 50), Frame.PX, 0))
        at = (y // 64 - 1, x // 64 - 1)
        near = spaced.read(Box(at, (3, 3), Frame.PX, 6))[:, :, 0]
    assert time.perf_counter() - begun < 20
    np.testing.assert_array_equal(patch, render(canvas, (y - 11, x - 11), (50, 50)))
    region = render(canvas, (at[0] * 64, at[1] * 64), (192, 192))[:, :, 0]
    np.testing.assert_array_equal(near, block_means(region, 64, 0))
    np.testing.assert_array_equal(near, glimpse[at[0] : at[0] + 3, at[1] : at[1] + 3, 0])


# -- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("blend", BLENDS)
def test_a_canvas_is_read_as_written(tmp_path, blend):
    canvas = random_canvas(5, blend=blend, ground=31)
    path = tmp_path / "anything.at.all"
    write_canvas(path, canvas)
    restored = read_canvas(path)
    assert (restored.shape, restored.background, restored.blend) == ((230, 310), 31, blend)
    for name in ("origins", "stamp_ids", "scales", "stamp_sizes", "stamp_pixels"):
        np.testing.assert_array_equal(getattr(restored, name), getattr(canvas, name))
    first = path.read_bytes()
    write_canvas(path, restored)
    assert path.read_bytes() == first
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_an_empty_canvas_shows_its_ground(tmp_path):
    path = tmp_path / "empty.sparse"
    write_canvas(path, Canvas.from_stamps((3000, 5000), [], [], background=200))
    with open_image(path) as image:
        assert image.background.tolist() == [200]
        assert (image.read(Box((0, 0), (1500, 2500), Frame.PX, 1)) == 200).all()


def test_truncated_and_extended_files_are_refused(tmp_path):
    path = tmp_path / "cut.sparse"
    write_canvas(path, random_canvas(6, n=4))
    content = path.read_bytes()
    for length in [*range(1, 260), *range(260, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(UnreadableImage, match=r"cut\.sparse"):
            read_canvas(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(UnreadableImage, match=r"cut\.sparse"):
        read_canvas(path)


def with_header(path, **changed):
    """Write the file again with changed header fields."""
    data = path.read_bytes()
    end = 12 + int.from_bytes(data[8:12], "little")
    known = {**json.loads(data[12:end]), **changed}
    header = json.dumps(known).encode()
    return data[:8] + len(header).to_bytes(4, "little") + header + data[end:]


@pytest.mark.parametrize(
    "changed",
    [
        {"version": 2},
        {"shape": [10, 10]},
        {"shape": [230]},
        {"shape": [-1, 5]},
        {"shape": [1 << 40, 1 << 40]},
        {"shape": "ab"},
        {"background": 256},
        {"background": None},
        {"blend": "multiply"},
        {"blend": ["add"]},
        {"pastes": -1},
        {"pastes": 1 << 62},
        {"pastes": 3.0},
        {"stamps": True},
        {"pixels": "12"},
    ],
    ids=str,
)
def test_a_wrong_header_is_an_error_that_names_the_file(tmp_path, changed):
    path = tmp_path / "liar.sparse"
    write_canvas(path, random_canvas(7, n=3))
    path.write_bytes(with_header(path, **changed))
    with pytest.raises(UnreadableImage, match=r"liar\.sparse"):
        read_canvas(path)


def test_a_garbled_header_is_an_error(tmp_path):
    path = tmp_path / "odd.sparse"
    for header in (b"[]", b"{}", b"nul", b'"a"', b"[" * 900, b"\xff\xfe{}"):
        path.write_bytes(b"\x89SPARSE\n" + len(header).to_bytes(4, "little") + header)
        with pytest.raises(UnreadableImage, match=r"odd\.sparse"):
            read_canvas(path)
    with pytest.raises(ImageNotFound):
        read_canvas(tmp_path / "absent.sparse")


def test_random_damage_is_an_error_or_harmless(tmp_path):
    path = tmp_path / "hit.sparse"
    write_canvas(path, random_canvas(8, n=20))
    content, rng = path.read_bytes(), np.random.default_rng(0)
    counts = {"error": 0, "fine": 0}
    for _ in range(300):
        data = bytearray(content)
        for place in rng.integers(8, len(content), 2):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            canvas = read_canvas(path)
        except UnreadableImage:
            counts["error"] += 1
            continue
        counts["fine"] += 1
        assert render(canvas, (0, 0), (60, 60)).shape == (60, 60, 1)
    assert min(counts.values()) > 10


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"origins": np.array([[0, 292], [0, 0]])}, "beyond"),
        ({"origins": np.array([[-1, 0], [0, 0]])}, "beyond"),
        ({"scales": np.array([1, 0])}, "scale"),
        ({"scales": np.array([1, 99])}, "beyond"),
        ({"stamp_ids": np.array([0, 2])}, "not there"),
        ({"stamp_ids": np.array([0, -1])}, "not there"),
        ({"stamp_ids": np.array([0])}, "length"),
        ({"stamp_sizes": np.array([[4, 0], [4, 4]])}, "size"),
        ({"stamp_pixels": np.zeros(31, np.uint8)}, "pixel counts"),
        ({"stamp_pixels": np.zeros(32)}, "float64"),
        ({"background": -1}, "background"),
        ({"blend": "mean"}, "blend"),
        ({"shape": (0, 5)}, "shape"),
    ],
)
def test_an_inconsistent_canvas_is_refused(changed, reason):
    good = Canvas.from_stamps((230, 295), [np.ones((4, 4), np.uint8)] * 2, [[0, 0], [226, 291]])
    with pytest.raises(OptionError, match=reason):
        replace(good, **changed)


def test_the_reader_counts_rendered_pixels(tmp_path):
    path = tmp_path / "count.sparse"
    write_canvas(path, random_canvas(9, shape=(5000, 4100)))
    with open_image(path) as image:
        image.read(Box((0, 0), (50, 40), Frame.PX, 0))
        image.read(Box((-10, -10), (50, 40), Frame.PX, 2))
        assert image.count.decoded_px == 50 * 40 + 40 * 30
        assert [level.shape for level in image.levels] == [(5000, 4100), (2500, 2050), (1250, 1025)]
