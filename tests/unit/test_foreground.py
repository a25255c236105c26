"""The foreground mask contains the tissue: with pen marks, frames, faint or full fields."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile

from foveate.batch import View
from foveate.images.foreground import find_ground, foreground, measure_contrast, measure_difference
from foveate.loading.loader import CaseLoader
from foveate.loading.scan import ViewOptions, choose_view, scan_cases
from foveate.table import Case

SIDE = 256
PINK, PALE, GLASS = (205, 150, 190), (225, 218, 212), (243, 243, 243)
BLOCK = np.zeros((SIDE, SIDE), bool)
BLOCK[50:200, 50:200] = True


def slide(tissue: np.ndarray, colour: tuple[int, ...], top: int = 255) -> np.ndarray:
    """Return a slide of glass with little noise and tissue with more noise."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(GLASS, 2, (SIDE, SIDE, 3))
    pixels[tissue] = rng.normal(colour, 6, (tissue.sum(), 3))
    dtype = np.uint8 if top == 255 else np.uint16
    return np.rint(np.clip(pixels, 0, 255) * (top / 255)).astype(dtype)


def border(pixels: np.ndarray) -> np.ndarray:
    edge = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    return np.median(np.concatenate(edge), axis=0).astype(pixels.dtype)


def mask_of(pixels: np.ndarray) -> tuple[np.ndarray, bool]:
    ground = find_ground(pixels, border(pixels))
    return measure_contrast(pixels, ground.colour) > 0, ground.is_around


@pytest.mark.parametrize("colour", [PINK, PALE])
@pytest.mark.parametrize(
    "pen", [(20, 20, 60), (10, 10, 10), (30, 60, 200), (30, 160, 60), (200, 30, 40)]
)
def test_pen_marks_do_not_change_the_tissue_threshold(
    colour: tuple[int, ...], pen: tuple[int, ...]
) -> None:
    pixels = slide(BLOCK, colour)
    pixels[10:30, 25:225] = pen
    mask, around = mask_of(pixels)
    assert mask[BLOCK].mean() > 0.98
    assert mask[:8].mean() < 0.1
    assert around


@pytest.mark.parametrize("width", [6, 40])
@pytest.mark.parametrize("colour", [PINK, PALE])
def test_a_black_frame_is_reported_and_hides_no_tissue(width: int, colour: tuple[int, ...]) -> None:
    """The frame is narrow at two sides, or all around so that the border is black."""
    pixels = slide(BLOCK, colour)
    pixels[:width] = 0
    pixels[:, :width] = 0
    if width == 40:
        pixels[-width:] = 0
        pixels[:, -width:] = 0
    ground = find_ground(pixels, border(pixels))
    contrast = measure_contrast(pixels, ground.colour)
    assert (contrast[BLOCK] > 0).mean() > 0.98
    assert not ground.is_around
    assert contrast[:width].max() <= 1  # in the mask, but no place to look at
    assert (contrast[width + 2 : 48, 60:190] > 0).mean() < 0.1


@pytest.mark.parametrize("share", [1.0, 0.97, 0.7])
def test_tissue_that_fills_the_field_is_no_background(share: float) -> None:
    tissue = np.ones((SIDE, SIDE), bool)
    if share == 0.97:
        tissue[100:140, 110:160] = False  # a lumen
    if share == 0.7:
        tissue[:, :77] = False
    mask, around = mask_of(slide(tissue, PINK))
    assert mask[tissue].mean() > 0.98
    assert not around


def test_green_ink_on_a_sparse_slide_is_not_tissue() -> None:
    cells = np.zeros((SIDE, SIDE), bool)
    rng = np.random.default_rng(1)
    for y, x in rng.integers(60, SIDE - 8, (40, 2)):
        cells[y : y + 5, x : x + 5] = True
    pixels = slide(cells, (150, 120, 180))
    pixels[5:50, 5:250] = (30, 150, 80)
    contrast = measure_contrast(pixels, border(pixels)).astype(float)
    assert (contrast[cells] > 0).all()
    assert (contrast[6:49, 6:249] > 0).all()
    assert contrast[:52].sum() < 0.2 * contrast.sum()
    usual = measure_difference(pixels, border(pixels)) * foreground(pixels, border(pixels))
    assert usual[:52].sum() > 0.8 * usual.sum()  # without the rule


@pytest.mark.parametrize("colour", [PINK, PALE, (90, 50, 130)])
def test_a_usual_slide_is_divided_into_glass_and_tissue(colour: tuple[int, ...]) -> None:
    mask, around = mask_of(slide(BLOCK, colour))
    assert around
    assert (mask == BLOCK).mean() > 0.999


def test_fluorescence_has_a_dark_background() -> None:
    pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
    pixels[BLOCK] = (20, 40, 160)
    mask, around = mask_of(pixels)
    assert around
    np.testing.assert_array_equal(mask, BLOCK)


def test_one_channel_keeps_its_border() -> None:
    pixels = np.where(BLOCK, 60, 5).astype(np.uint8)[..., None]
    mask, around = mask_of(pixels)
    assert around
    np.testing.assert_array_equal(mask, BLOCK)


def test_an_empty_slide_is_foreground_everywhere() -> None:
    pixels = np.full((9, 9, 3), 240, np.uint8)
    assert foreground(pixels, pixels[0, 0]).all()


def test_a_12_bit_slide_with_pen_marks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With 12 of 16 bits used, the mask equals that of the 8-bit slide."""
    pixels = slide(BLOCK, PINK, 4095)
    pixels[10:30, 25:225] = (300, 300, 900)
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, pixels, tile=(64, 64), photometric="rgb", metadata=None,
        resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
    )  # fmt: skip
    case = Case("a", "a", path)
    view = choose_view(scan_cases([case], ViewOptions()).facts.values(), ViewOptions())
    assert view.bits == 12
    loaded = CaseLoader(View(0.5, 64, 0.5, bits=view.bits)).load(case)
    assert (loaded.contrast[BLOCK] > 0).mean() > 0.98
    assert (loaded.contrast[205:] > 0).mean() < 0.02
    assert "border" not in caplog.text


def test_the_loader_warns_once_that_the_border_is_no_glass(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "core.tif"
    tifffile.imwrite(
        path, slide(np.ones((SIDE, SIDE), bool), PINK), tile=(64, 64), photometric="rgb",
        metadata=None, resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "foveate"):
        for _ in range(2):
            loaded = CaseLoader(View(0.5, 64, 0.5)).load(Case("a", "a", path))
            assert (loaded.contrast > 0).all()
    assert caplog.text.count("no glass at the border") == 1
    assert "core.tif" in caplog.text
