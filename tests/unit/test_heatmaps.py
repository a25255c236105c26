"""A spot at a known place is at that place in every map, picture and file."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveate.errors import BoxError, MissingSpacing
from foveate.exports.geojson import build_geojson
from foveate.files.atomic import write_bytes, write_json
from foveate.geometry import Box, Frame
from foveate.heatmaps import render_heatmap
from foveate.heatmaps.fields import aim, overview
from foveate.heatmaps.glass import on_foreground, paintable_mask
from foveate.heatmaps.overlay import blend_evidence
from foveate.heatmaps.raster import at_slice, nice_length, scale_of, splat
from foveate.images.evidence import Evidence
from foveate.images.respaced import RespacedImage
from helpers.images import PyramidImage, build_pyramid

SHAPE = (611, 1097)
SPOT_PX0 = (447.3, 902.7)
SPACINGS = (0.2014, 0.2528, 0.31, 0.4942)


def array_image(pixels, spacing_um, downsamples=(1,), *, kind="slide", paper=None):
    """Return a pyramid made from one array, whose file name needs escaping in HTML."""
    levels = build_pyramid(pixels, downsamples)
    path = Path("spot <1>.svs")
    return PyramidImage(*levels, spacing_um=spacing_um, kind=kind, path=path, background=paper)


def spot_image(spacing=0.2528, ratio=1.3, downsamples=(1, 2.3, 5), place=SPOT_PX0):
    """Return a black image with one bright bell of 12 pixels around `place`."""
    y, x = (np.arange(n) + 0.5 for n in SHAPE)
    bell = np.exp(-((y[:, None] - place[0]) ** 2 + (x[None] - place[1]) ** 2) / (2 * 12.0**2))
    pixels = np.repeat(np.rint(255 * bell).astype(np.uint8)[..., None], 3, -1)
    return array_image(pixels, (spacing * ratio, spacing), downsamples, paper=(0, 0, 0))


def boxes(origin, size, weight):
    origin = np.asarray(origin, np.float64)
    size = np.broadcast_to(np.asarray(size, np.float64), origin.shape).copy()
    return Evidence(origin, size, np.asarray(weight, np.float64))


def centroid(values):
    values = np.nan_to_num(np.asarray(values, np.float64))
    return tuple(
        float((values.sum(1 - a) * (np.arange(n) + 0.5)).sum() / values.sum())
        for a, n in enumerate(values.shape)
    )


def build_evidence(image, spacing_um, side_um=24.0):
    """Build evidence on a lattice of boxes, weighted by their brightness."""
    height, width = image.box_um.size
    step = side_um / 4
    grid = np.stack(
        np.meshgrid(
            np.arange(-3.1, height, step), np.arange(-1.7, width, step), indexing="ij"
        ), -1
    ).reshape(-1, 2)  # fmt: skip
    n = max(1, round(side_um / spacing_um))
    weight = [
        float(image.read_at(Box(tuple(o), (side_um, side_um), Frame.UM), (n, n)).mean())
        for o in grid
    ]
    return boxes(grid, side_um, weight)


# -- the spot lands where it is -------------------------------------------------------------------


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("read_factor", [1.0, 2.3, 5.0])
def test_the_spot_is_at_its_place_in_map_picture_and_geojson(spacing, read_factor, tmp_path):
    image = spot_image(spacing)
    assert (
        image.level_for([spacing * read_factor * 1.3] * 2) == {1.0: 0, 2.3: 1, 5.0: 2}[read_factor]
    )
    evidence = build_evidence(image, spacing * read_factor * 1.3)
    true_um = np.array(SPOT_PX0) * image.known_spacing_um

    # The weights are symmetric about the spot, so their centroid finds it far below a cell.
    shape = (193, 311)
    mapped = mean_map(evidence, image.box_um.size, shape)
    cell_um = np.array(image.box_um.size) / shape
    found_um = np.array(centroid(mapped)) * cell_um
    assert np.abs(found_um - true_um).max() < 0.5 * cell_um.max()
    peak_um = (np.array(np.unravel_index(np.nanargmax(mapped), shape)) + 0.5) * cell_um
    assert np.abs(peak_um - true_um).max() < 24.0 / 4

    image.kind = "picture"  # the faint rim of the spot is no foreground of a slide
    write_json(tmp_path / "e.geojson", build_geojson(image, evidence, top=10_000))
    total, middle = 0.0, np.zeros(2)
    for feature in json.loads((tmp_path / "e.geojson").read_text())["features"]:
        ring = np.array(feature["geometry"]["coordinates"][0][:4])
        weight = feature["properties"]["measurements"]["weight"]
        total, middle = total + weight, middle + weight * ring.mean(0)
    assert np.abs(middle / total - np.array(SPOT_PX0)[::-1]).max() < 0.5


@pytest.mark.parametrize("spacing", SPACINGS)
def test_picture_pixels_and_boxes_share_one_frame(spacing):
    image = spot_image(spacing, downsamples=(1, 1.7, 3.9))
    true_um = np.array(SPOT_PX0) * image.known_spacing_um
    evidence = boxes([true_um - 8, [3.0, 3.0]], 16.0, [1.0, 0.2])
    for max_side in (217, 333, 1024):
        field, _ = overview(aim(image, evidence), evidence, max_side)
        expected = field.locate(true_um[None])[0]
        assert np.abs(np.array(centroid(field.pixels[..., 0])) - expected).max() < 0.25
        total, _ = splat(evidence, field.origin_um, field.extent_um, field.shape)
        assert np.abs(np.array(centroid(np.where(total > 0.5 * total.max(), total, 0))) - expected
                      ).max() < 0.5  # fmt: skip


def test_picture_is_brightest_at_the_heaviest_box():
    image = spot_image(place=(-900, -900))
    evidence = boxes([[100, 100], [90, 90], [110, 110]], 40.0, [1.0, 0.1, 0.1])
    field, _ = overview(aim(image, evidence), evidence, 400)
    centre = np.floor(field.locate(np.array([[115.0, 115.0]]))[0]).astype(int)
    everywhere = np.ones(field.shape, bool)
    red_green = blend_evidence(field, evidence, scale_of(evidence), everywhere)[..., :2].sum(-1)
    assert red_green[tuple(centre)] == red_green.max()


# -- how far from indifferent -------------------------------------------------------------------


def tissue_image():
    """Return a slide of grey glass with a block of tissue, and the corners of its 20 µm cells."""
    rng = np.random.default_rng(4)
    pixels = np.full((400, 600, 3), 240, np.uint8)
    pixels[100:300, 200:400] = np.array([170, 90, 150]) + rng.integers(-20, 20, (200, 200, 1))
    y, x = (20.0 * np.arange(n) for n in (20, 30))
    grid = np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)
    return array_image(pixels, (1.0, 1.0), paper=(240, 240, 240)), grid


def count_on_tissue(grid):
    return (grid[:, 0] >= 100) & (grid[:, 0] < 300) & (grid[:, 1] >= 200) & (grid[:, 1] < 400)


def saturation(pixels):
    spread = pixels.astype(int)
    return spread.max(-1) - spread.min(-1)


def render_evidence(image, evidence):
    camera = aim(image, evidence)
    field, _ = overview(camera, evidence, 600)
    return field, blend_evidence(field, evidence, scale_of(evidence), paintable_mask(camera, field))


def test_nearly_equal_weights_are_not_bright():
    image, grid = tissue_image()
    grid = grid[count_on_tissue(grid)]
    rng = np.random.default_rng(5)
    weight = (1 + rng.uniform(-0.01, 0.01, len(grid))) / len(grid)
    even = boxes(grid, 20.0, weight)
    peaked = boxes(grid, 20.0, np.where(np.arange(len(grid)) == 40, 0.5, 0.5 / (len(grid) - 1)))
    assert scale_of(even).indifferent
    assert scale_of(even).strength(even.weight).max() < 0.01
    assert not scale_of(peaked).indifferent
    assert scale_of(peaked).strength(peaked.weight).max() == 1
    # Almost nothing is painted on the even map; the peak of the other is.
    field, pixels = render_evidence(image, even)
    pale = 0.35 * field.pixels + 0.65 * field.pixels.mean(-1, keepdims=True)
    assert np.abs(pixels - pale).max() < 25
    field, pixels = render_evidence(image, peaked)
    row, column = field.locate(grid[40][None] + 10)[0].astype(int)
    assert saturation(pixels)[row, column] > 100


def test_an_even_map_is_described_as_even(tmp_path):
    image, grid = tissue_image()
    even = boxes(grid[:60], 20.0, np.full(60, 1 / 60))
    peaked = boxes(grid[:60], 20.0, np.where(np.arange(60) == 3, 0.9, 0.1 / 59))
    plain, warned = (drawn(image, e, tmp_path / "p.png", caption="x") for e in (peaked, even))
    assert warned.shape[0] >= plain.shape[0]
    for evidence, expected in ((even, True), (peaked, False)):
        write_json(tmp_path / "e.geojson", build_geojson(image, evidence))
        content = json.loads((tmp_path / "e.geojson").read_text())
        assert content["properties"]["indifferent"] is expected
        classes = {f["properties"]["classification"]["name"] for f in content["features"]}
        assert ("8 times an even share or more" in classes) is not expected
        assert "largest" not in " ".join(classes)


def test_evidence_on_glass_is_counted_and_not_painted(tmp_path):
    """The evidence is a lattice over the image with its heaviest cell in a corner."""
    image, grid = tissue_image()
    weight = np.where(count_on_tissue(grid), 1.0, 0.5)
    weight[0] = 30.0
    evidence = boxes(grid, 20.0, weight / weight.sum())
    tissue_evidence = on_foreground(image, evidence)
    assert len(tissue_evidence) == count_on_tissue(grid).sum()
    field, pixels = render_evidence(image, evidence)
    glass = np.ones(field.shape, bool)
    low, high = (field.locate(np.array([p]))[0].astype(int) for p in ((98, 198), (302, 402)))
    glass[low[0] : high[0], low[1] : high[1]] = False
    assert saturation(pixels)[glass].max() == 0
    write_json(tmp_path / "e.geojson", build_geojson(image, evidence, top=1000))
    content = json.loads((tmp_path / "e.geojson").read_text())
    assert content["properties"]["on_background"] == len(grid) - len(tissue_evidence)
    assert len(content["features"]) == len(tissue_evidence)
    # A picture of another kind has no glass, and evidence is never hidden altogether.
    image.kind = "picture"
    assert on_foreground(image, evidence) is evidence
    image.kind = "slide"
    nowhere = boxes(grid[:5], 20.0, np.ones(5))
    assert on_foreground(image, nowhere) is nowhere


# -- the map --------------------------------------------------------------------------------------


def slow_map(evidence, extent, shape):
    """Compute the map with a loop over pixels and boxes."""
    out = np.full(shape, np.nan)
    unit = [e / n for e, n in zip(extent, shape, strict=True)]
    for i in range(shape[0]):
        for j in range(shape[1]):
            total = covered = 0.0
            for (y, x), (h, w), weight in zip(
                evidence.origin_um, evidence.size_um, evidence.weight, strict=True
            ):
                tall = min(y + h, (i + 1) * unit[0]) - max(y, i * unit[0])
                wide = min(x + w, (j + 1) * unit[1]) - max(x, j * unit[1])
                area = max(tall, 0) * max(wide, 0)
                total, covered = total + weight * area, covered + area
            if covered > 0:
                out[i, j] = total / covered
    return out


def mean_map(evidence, extent_um, shape):
    """Average the weights by covered area; pixels without a box are NaN."""
    total, covered = splat(evidence, (0.0, 0.0), extent_um, shape)
    return np.divide(total, covered, out=np.full(shape, np.nan), where=covered > 1e-6)


def test_map_equals_the_slow_one():
    rng = np.random.default_rng(3)
    evidence = boxes(rng.uniform(-5, 40, (30, 2)), rng.uniform(0.1, 15, (30, 2)), rng.random(30))
    for shape in ((7, 11), (13, 5), (1, 1)):
        fast = mean_map(evidence, (31.7, 47.3), shape)
        np.testing.assert_allclose(fast, slow_map(evidence, (31.7, 47.3), shape), rtol=1e-9)


def test_map_keeps_mass_values_and_gaps():
    evidence = boxes([[1.3, 2.1], [6.0, 9.0]], [[2.0, 3.5], [1.0, 1.0]], [0.7, 0.3])
    total, covered = splat(evidence, (0, 0), (10.0, 20.0), (5, 40))
    assert covered.sum() * (10 / 5) * (20 / 40) == pytest.approx(2 * 3.5 + 1)
    assert total.sum() * (10 / 5) * (20 / 40) == pytest.approx(0.7 * 7 + 0.3)
    mapped = mean_map(evidence, (10.0, 20.0), (5, 40))
    assert set(np.round(mapped[~np.isnan(mapped)], 12)) == {0.7, 0.3}
    assert np.isnan(mapped[-1]).all()


def test_boxes_that_only_touch_do_not_count():
    step = 0.1 + 0.2
    evidence = boxes([[step, step]], step, [1.0])
    mapped = mean_map(evidence, (3 * step, 3 * step), (3, 3))
    assert np.isnan(mapped).sum() == 8
    assert mapped[1, 1] == 1.0


def test_an_empty_map_is_nan():
    assert np.isnan(mean_map(boxes(np.zeros((0, 2)), 1.0, []), (5, 5), (3, 4))).all()


def test_scale_bar_lengths_are_round():
    assert [nice_length(v) for v in (1, 1.9, 4.99, 5, 99, 0.37)] == [1, 1, 2, 5, 50, 0.2]


# -- GeoJSON --------------------------------------------------------------------------------------


def test_geojson_can_be_read_by_qupath(tmp_path):
    image = spot_image()
    rng = np.random.default_rng(0)
    evidence = boxes(rng.uniform(0, 100, (50, 2)), 16.0, rng.random(50))
    for name in ("a", "b"):
        write_json(
            tmp_path / name, build_geojson(image, evidence, top=20, metadata={"label": "ü <b>"})
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    content = json.loads((tmp_path / "a").read_text(encoding="utf-8"))
    assert content["type"] == "FeatureCollection"
    assert "crs" not in content
    assert (content["properties"]["origin"], content["properties"]["written"]) == ("slide", 20)
    ids = set()
    for rank, feature in enumerate(content["features"], 1):
        ids.add(str(uuid.UUID(feature["id"])))
        properties, geometry = feature["properties"], feature["geometry"]
        (ring,) = geometry["coordinates"]
        assert (geometry["type"], len(ring), ring[0]) == ("Polygon", 5, ring[-1])
        assert all(round(v, 2) == v for point in ring for v in point)
        assert properties["objectType"] == "tile"
        assert properties["measurements"]["rank"] == rank
        colour = properties["classification"]["color"]
        assert all(isinstance(v, int) and 0 <= v <= 255 for v in colour)
        assert all(isinstance(v, str) for v in properties["metadata"].values())
        assert properties["metadata"]["label"] == "ü <b>"
    assert len(ids) == 20
    heaviest = [f["properties"]["measurements"]["weight"] for f in content["features"]]
    assert heaviest == sorted(evidence.weight, reverse=True)[:20]


def test_geojson_origin_follows_the_bounds_like_qupath(tmp_path):
    image = spot_image()
    evidence = boxes([[50.0, 80.0]], 16.0, [1.0])
    image.bounds_px0 = Box((101, 203), (400, 700), Frame.PX0)
    corners = {}
    for origin in ("bounds", "slide"):
        write_json(tmp_path / "e", build_geojson(image, evidence))
        content = json.loads((tmp_path / "e").read_text())
        corners[origin] = content["features"][0]["geometry"]["coordinates"][0][0]
        assert (
            content["features"][0]["properties"]["metadata"]["origin"]
            == content["properties"]["origin"]
            == origin
        )
        image.bounds_px0 = None
    sy, sx = image.known_spacing_um
    assert corners["slide"] == [round(80 / sx, 2), round(50 / sy, 2)]
    np.testing.assert_allclose(np.subtract(corners["slide"], corners["bounds"]), (203, 101))


def test_geojson_refuses_what_it_cannot_store(tmp_path):
    image = spot_image()
    with pytest.raises(BoxError, match="axes"):
        write_json(tmp_path / "e", build_geojson(image, boxes([[0, 0, 0]], 1, [1])))
    image.spacing_um = None
    with pytest.raises(MissingSpacing):
        write_json(tmp_path / "e", build_geojson(image, boxes([[0, 0]], 1, [1])))
    assert not list(tmp_path.iterdir())


# -- the picture ----------------------------------------------------------------------------------


def drawn(image, evidence, path, **options):
    write_bytes(path, render_heatmap(image, evidence, **options))
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_unusual_evidence_is_drawn(tmp_path):
    image = spot_image()
    image_size = np.array([image.box_um.size])
    some = {
        "none": boxes(np.zeros((0, 2)), 1.0, []),
        "zero": boxes([[10, 10], [50, 90]], 16.0, [0, 0]),
        "whole": boxes(np.zeros((1, 2)), image_size, [1.0]),
        "outside": boxes([[-10, -10], [1e3, 1e3]], 16.0, [1.0, 0.5]),
        "tiny": boxes([[100.123, 100.456]], 0.001, [1.0]),
    }
    for name, evidence in some.items():
        pixels = drawn(
            image, evidence, tmp_path / f"{name}.png", title="$x_{ <b> 日本 ü", caption="a\n\nb"
        )
        assert pixels.std() > 5, name


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_and_deep_pictures_are_windowed(dtype, tmp_path):
    ramp = np.linspace(0.1, 0.2, 600)[None, :, None] * np.ones((400, 1, 1))
    image = array_image((ramp * np.iinfo(dtype).max).astype(dtype), None, kind="picture")
    image = RespacedImage(image, (1.0, 1.0), unit="px")
    evidence = boxes([[100.0, 100.0]], 64.0, [1.0])
    field, _ = overview(aim(image, evidence), evidence, 300)
    assert field.pixels.min() < 10
    assert field.pixels.max() > 245
    assert drawn(image, evidence, tmp_path / "p.png").shape[1] > 600


def test_a_volume_is_drawn_at_the_slice_of_its_peak(tmp_path):
    volume = np.zeros((12, 60, 90, 1), np.uint16)
    volume[7, 20:30, 50:60] = 4000
    image = array_image(volume, (5.0, 0.7, 0.7), kind="volume")
    evidence = boxes([[35.0, 14.0, 35.0], [0.0, 0.0, 0.0]], [[5.0, 7.0, 7.0]], [1.0, 0.4])
    camera = aim(image, evidence)
    assert len(at_slice(evidence, camera.z_um)) == 1
    field, _ = overview(camera, evidence, 512)
    expected = field.locate(np.array([[17.5, 38.5]]))[0]
    assert np.abs(np.array(centroid(field.pixels[..., 0])) - expected).max() < 0.5
    assert drawn(image, evidence, tmp_path / "v.png").std() > 5
    write_json(tmp_path / "v.geojson", build_geojson(image, evidence))
    first = json.loads((tmp_path / "v.geojson").read_text())["features"][0]
    assert first["geometry"]["plane"]["z"] == 7


def test_an_empty_canvas_is_cropped_to_its_content():
    canvas = np.full((900, 1600, 3), 240, np.uint8)
    canvas[500:620, 1200:1400] = (150, 60, 120)
    image = array_image(canvas, (0.5, 0.5), (1, 4), paper=(240, 240, 240))
    evidence = boxes([[255.0, 610.0]], 16.0, [1.0])
    field, share = overview(aim(image, evidence), evidence, 512)
    assert share < 0.1
    (y0, x0), (h, w) = field.origin_um, field.extent_um
    assert y0 < 250
    assert x0 < 600
    assert (y0 + h, x0 + w) > (310, 700)
    far = boxes([[255.0, 610.0], [5.0, 5.0]], 16.0, [1.0, 0.1])
    assert overview(aim(image, far), far, 512)[1] > 0.3


def test_bounds_frame_the_overview():
    image = spot_image()
    image.bounds_px0 = Box((300, 600), (300, 450), Frame.PX0)
    evidence = boxes([np.array(SPOT_PX0) * image.known_spacing_um - 8], 16.0, [1.0])
    field, share = overview(aim(image, evidence), evidence, 256)
    assert share < 0.25
    expected = field.locate((np.array(SPOT_PX0) * image.known_spacing_um)[None])[0]
    assert np.abs(np.array(centroid(field.pixels[..., 0])) - expected).max() < 0.25


def test_overview_of_a_pyramid_reads_little(tmp_path):
    image = array_image(np.full((4000, 6000, 3), 200, np.uint8), (0.25, 0.25), (1, 4, 16))
    drawn(image, boxes([[100, 100]], 16.0, [1.0]), tmp_path / "p.png", max_side_px=256)
    assert image.count.decoded_px < 0.1 * image.n_pixels


def test_failed_drawing_leaves_no_file(tmp_path):
    image = spot_image()
    with pytest.raises(BoxError):
        write_bytes(tmp_path / "p.png", render_heatmap(image, boxes([[0, 0, 0]], 1, [1])))
    write_bytes(tmp_path / "p.png", render_heatmap(image, boxes([[9, 9]], 9, [1])))
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]


def test_importing_is_light():
    import subprocess
    import sys

    heavy = ("matplotlib", "PIL", "torch", "scipy")
    code = f"import sys, foveate.heatmaps; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
