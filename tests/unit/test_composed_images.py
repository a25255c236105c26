"""Several images of a patient on one canvas: read, covered and cut back as each image alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foveate.batch import View
from foveate.batch.types import foreground_weight
from foveate.errors import UnreadableMember, UnsupportedFormat, find_unreadable
from foveate.geometry import Box, Frame
from foveate.images.composed import ComposedImage, compose_images
from foveate.images.covered import Cover, CoveredImage, cover_image
from foveate.images.evidence import Evidence
from foveate.loading.loader import CaseLoader
from foveate.loading.together import locate_glimpse
from foveate.table import Case
from helpers.images import PyramidImage, build_pyramid

VIEW = View(2.0, 32, 8.0)
STEP_UM = 32 * VIEW.glimpse_spacing_um


def make_image(seed: int, shape: tuple[int, int], spacing_um: float = 1.0) -> PyramidImage:
    """An image of noise with two levels, on a background of its own."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 200, (*shape, 3), dtype=np.uint8)
    pyramid = build_pyramid(pixels, (1, 4))
    ground = (200.0 + seed, 230.0, 240.0)
    path = Path(f"image{seed}.tif")
    return PyramidImage(*pyramid, spacing_um=(spacing_um,) * 2, background=ground, path=path)


def make_canvas(*images: PyramidImage) -> ComposedImage:
    named = [(f"S{i}", image) for i, image in enumerate(images)]
    return compose_images(named, step_um=STEP_UM, margin_um=VIEW.patch_um / 2)


@pytest.fixture
def images() -> list[PyramidImage]:
    """Five images of several sizes; the third was scanned at another magnification."""
    sides = ((600, 400), (200, 900), (500, 500), (90, 70), (700, 300))
    return [make_image(i, side, 0.5 if i == 2 else 1.0) for i, side in enumerate(sides)]


@pytest.mark.parametrize("spacing_um", [1.0, 2.0, 3.7, 8.0])
def test_a_box_is_read_as_from_the_image_alone(
    images: list[PyramidImage], spacing_um: float
) -> None:
    canvas = make_canvas(*images)
    rng = np.random.default_rng(0)
    for slot, image in zip(canvas.slots, images, strict=True):
        for _ in range(4):
            at = rng.uniform(-20, 0.8 * np.asarray(image.box_um.size))
            box = Box(tuple(at), (40 * spacing_um, 24 * spacing_um), Frame.UM)
            moved = Box(tuple(at + np.asarray(slot.origin_um)), box.size, Frame.UM)
            np.testing.assert_array_equal(
                canvas.read_at(moved, (40, 24)), image.read_at(box, (40, 24))
            )


def test_each_pixel_comes_from_the_image_of_its_slot(images: list[PyramidImage]) -> None:
    canvas = make_canvas(*images)
    size_um = canvas.box_um.size
    shape = tuple(int(side // 4) for side in size_um)
    step_um = tuple(side / n for side, n in zip(size_um, shape, strict=True))
    seen = canvas.read_at(canvas.box_um, shape)
    rng = np.random.default_rng(1)
    for place in rng.integers(0, shape, (200, 2)):
        centre = (place + 0.5) * step_um
        (slot,) = (s for s in canvas.slots if s.holds(centre[None])[0])
        corner = tuple(place * step_um - np.asarray(slot.origin_um))
        alone = slot.image.read_at(Box(corner, step_um, Frame.UM), (1, 1))
        np.testing.assert_allclose(seen[tuple(place)], alone[0, 0], atol=1)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=2, max_size=9),
    st.floats(1.0, 300.0),
)
def test_slots_cover_the_canvas_and_keep_images_apart(
    sides: list[tuple[int, int]], margin_um: float
) -> None:
    images = [
        (f"S{i}", PyramidImage(np.zeros((*side, 1), np.uint8))) for i, side in enumerate(sides)
    ]
    canvas = compose_images(images, step_um=50.0, margin_um=margin_um)
    points = np.random.default_rng(0).uniform(-100, np.asarray(canvas.box_um.size) + 100, (300, 2))
    assert (sum(slot.holds(points).astype(int) for slot in canvas.slots) == 1).all()
    for slot in canvas.slots:
        low, high = np.asarray(slot.origin_um), np.asarray(slot.origin_um) + slot.image.box_um.size
        assert (low - margin_um >= np.maximum(slot.begin_um, 0) - 1e-6).all()
        assert (high + margin_um <= np.minimum(slot.end_um, canvas.box_um.size) + 1e-6).all()
        assert np.allclose(low % 50.0, 0)
    area = np.prod(canvas.box_um.size)
    n_steps = sum(np.prod(np.ceil(np.add(side, 2 * margin_um + 100) / 50)) for side in sides)
    assert area <= 6 * 2500 * n_steps, "rows are filled"


def make_evidence(images: list[PyramidImage]) -> list[Evidence]:
    """Evidence of each image alone: some boxes reach beyond its edges."""
    rng = np.random.default_rng(2)
    parts = []
    for image in images:
        corner = rng.uniform(-30, np.asarray(image.box_um.size) - 31, (6, 2))
        parts.append(
            Evidence(corner, np.full((6, 2), 64.0), rng.random(6), by_output=rng.random((6, 2)))
        )
    return parts


def join_evidence(canvas: ComposedImage, parts: list[Evidence]) -> Evidence:
    """Lay the evidence of all images on the canvas."""
    origins = [
        part.origin_um + np.asarray(slot.origin_um)
        for part, slot in zip(parts, canvas.slots, strict=True)
    ]
    return Evidence(
        np.concatenate(origins),
        np.concatenate([part.size_um for part in parts]),
        np.concatenate([part.weight for part in parts]),
        by_output=np.concatenate([part.by_output for part in parts if part.by_output is not None]),
        remainder=0.25,
    )


def test_evidence_is_cut_back_to_the_frame_of_each_image(images: list[PyramidImage]) -> None:
    canvas = make_canvas(*images)
    wanted = make_evidence(images)
    whole = join_evidence(canvas, wanted)
    parts = canvas.split_evidence(whole)
    for part, expected, image in zip(parts, wanted, images, strict=True):
        np.testing.assert_allclose(part.origin_um, expected.origin_um, atol=1e-9)
        np.testing.assert_array_equal(part.weight, expected.weight)
        np.testing.assert_array_equal(part.by_output, expected.by_output)
        np.testing.assert_allclose(part.extent_um, image.box_um.size)
        assert part.remainder == 0.25
        assert part.even == pytest.approx(whole.weight.mean()), "that of all images together"


def test_boxes_in_a_gap_belong_to_no_image(images: list[PyramidImage]) -> None:
    canvas = make_canvas(*images[:2])
    end = np.asarray(canvas.slots[0].origin_um) + images[0].box_um.size
    gap = Evidence(end[None] + 2, np.full((1, 2), 3.0), np.ones(1))
    assert [len(part) for part in canvas.split_evidence(gap)] == [0, 0]


def test_corners_are_aligned_to_the_pixels_of_their_image(images: list[PyramidImage]) -> None:
    canvas = make_canvas(*images)
    corners = np.array([np.add(slot.origin_um, (33.3, 21.8)) for slot in canvas.slots])
    aligned = canvas.align_um(corners, 4.0)
    for i, slot in enumerate(canvas.slots):
        alone = slot.image.align_um(np.array([[33.3, 21.8]]), 4.0)
        np.testing.assert_allclose(aligned[i] - slot.origin_um, alone[0], atol=1e-9)
    assert (np.abs(aligned - corners).max(1) > 0.1).all()


def test_boxes_are_covered_in_their_image(images: list[PyramidImage]) -> None:
    canvas = make_canvas(*images)
    slot, image = canvas.slots[1], images[1]
    corner, size = np.array([[40.0, 100.0]]), np.array([[64.0, 64.0]])
    covered = cover_image(canvas, Cover(corner + np.asarray(slot.origin_um), size))
    alone = CoveredImage(image, Cover(corner, size))
    box = Box((20.0, 60.0), (160.0, 160.0), Frame.UM)
    moved = Box(tuple(np.asarray(box.origin) + slot.origin_um), box.size, Frame.UM)
    for shape in ((160, 160), (40, 40)):
        np.testing.assert_array_equal(covered.read_at(moved, shape), alone.read_at(box, shape))


def test_pixels_are_counted_over_all_images(images: list[PyramidImage]) -> None:
    images[0].read_at(Box((0.0, 0.0), (10.0, 10.0), Frame.UM), (10, 10))
    canvas = make_canvas(*images)
    canvas.read_at(canvas.box_um, (100, 120))
    assert canvas.count.decoded_px == sum(image.count.decoded_px for image in images)
    assert canvas.count.asked_px == 100 + 100 * 120
    assert canvas.n_pixels == sum(image.n_pixels for image in images)
    assert canvas.files == tuple(image.path for image in images)


def test_an_error_names_the_image(images: list[PyramidImage]) -> None:
    def fail(_: tuple[int, ...]) -> None:
        raise OSError("broken")

    broken = PyramidImage(np.zeros((64, 64, 3), np.uint8), path=Path("b.tif"), on_read=fail,
                          background=(0.0, 0.0, 0.0))  # fmt: skip
    canvas = make_canvas(images[0], broken)
    with pytest.raises(UnreadableMember, match=r"b\.tif") as caught:
        canvas.read_at(canvas.box_um, (200, 200))
    assert set(find_unreadable(caught.value)) == {"S1"}


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (PyramidImage(np.zeros((9, 9, 3), np.uint8), kind="picture"), "kind 'picture'"),
        (PyramidImage(np.zeros((9, 9, 1), np.uint8)), "1 channel"),
        (PyramidImage(np.zeros((9, 9, 3), np.uint16)), "uint16"),
        (PyramidImage(np.zeros((9, 9, 9, 1), np.uint8), spacing_um=(1.0,) * 3), "3 axes"),
    ],
)
def test_images_that_differ_in_kind_are_refused(other: PyramidImage, words: str) -> None:
    with pytest.raises(UnsupportedFormat, match=rf"'S0' and 'S1'.*{words}"):
        make_canvas(PyramidImage(np.zeros((9, 9, 3), np.uint8)), other)


def test_several_volumes_are_refused() -> None:
    volume = PyramidImage(np.zeros((9, 9, 9, 1), np.uint8), spacing_um=(1.0,) * 3, kind="volume")
    with pytest.raises(UnsupportedFormat, match="--bag patient"):
        make_canvas(volume, volume)


# -- loaded from files ------------------------------------------------------------------------


def write_pictures(folder: Path) -> Case:
    rng = np.random.default_rng(3)
    cases = []
    for i, shape in enumerate(((300, 200), (120, 260), (64, 64))):
        path = folder / f"S{i}.png"
        Image.fromarray(rng.integers(0, 255, (*shape, 3), dtype=np.uint8)).save(path)
        cases.append(Case(f"S{i}", "P1", path, "ill"))
    return Case("P1", "P1", cases[0].path, "ill", images=tuple(cases))


PICTURES = View(1.0, 32, 2.0, unit="px")


def test_glimpse_and_foreground_are_those_of_each_picture(tmp_path: Path) -> None:
    case, loader = write_pictures(tmp_path), CaseLoader(PICTURES)
    item = loader.load(case)
    assert isinstance(item.image, ComposedImage)
    foreground = np.zeros(item.contrast.shape, bool)
    for slot, member in zip(item.image.slots, case.images, strict=True):
        alone, place = loader.load(member), locate_glimpse(slot, PICTURES)
        np.testing.assert_array_equal(item.glimpse[place], alone.glimpse)
        np.testing.assert_array_equal(item.contrast[place], alone.contrast)
        foreground[place] = True
    assert (item.contrast[~foreground] == 0).all(), "gaps are no foreground"
    read = item.image.glimpse(PICTURES.glimpse_spacing_um)
    difference = read[foreground].astype(int) - item.glimpse[foreground]
    assert np.abs(difference).max() <= 1, "the one is resampled from a larger region"
    weight = foreground_weight(item, torch.device("cpu"))
    assert weight is not None
    assert weight.sum() == foreground.sum()
    loader.close()


def test_patches_show_one_picture_each(tmp_path: Path) -> None:
    case, loader = write_pictures(tmp_path), CaseLoader(PICTURES)
    item = loader.load(case)
    assert isinstance(item.image, ComposedImage)
    centre_um = item.cover_um(PICTURES, (0.0, 0.0))
    side = PICTURES.patch_um
    touched = np.zeros(len(centre_um), int)
    for slot in item.image.slots:
        low = centre_um - side / 2 - np.asarray(slot.origin_um)
        touched += ((low < slot.image.box_um.size) & (low + side > 0)).all(1)
    assert (touched == 1).all()
    loader.close()


def test_one_image_of_a_patient_is_read_as_it_is(tmp_path: Path) -> None:
    case = write_pictures(tmp_path).without({"S0", "S2"})
    assert case is not None
    assert case.lacking == ("S0", "S2")
    loader = CaseLoader(PICTURES)
    item = loader.load(case)
    assert item.image_id == "P1"
    assert not isinstance(item.image, ComposedImage)
    np.testing.assert_array_equal(item.glimpse, loader.load(case.images[0]).glimpse)
    loader.close()


def test_all_unreadable_images_are_named(tmp_path: Path) -> None:
    case, loader = write_pictures(tmp_path), CaseLoader(PICTURES)
    for name in ("S0.png", "S2.png"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(UnreadableMember, match="1 more") as caught:
        loader.load(case)
    assert set(find_unreadable(caught.value)) == {"S0", "S2"}
    loader.close()
