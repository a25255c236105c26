"""Images of 16 bits that use fewer: one white for all, kept with the model."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from foveate.batch import View
from foveate.geometry import Box, Frame
from foveate.images.bit_depth import used_bits
from foveate.loading.loader import CaseLoader
from foveate.loading.scan import ViewOptions, choose_view, scan_cases
from foveate.readers import open_image
from foveate.runs.plan import _describe_view
from foveate.table import Case


def grey(top: int, side: int = 64) -> np.ndarray:
    """Noise from black to `top`, which occurs."""
    values = np.random.default_rng(0).integers(0, top + 1, (side, side)).astype(np.uint16)
    values[3, 4] = top
    return values


def png(path: Path, top: int) -> Path:
    Image.fromarray(grey(top)).save(path)
    return path


def loaded(path: Path, view: View) -> np.ndarray:
    loader = CaseLoader(view)
    image = loader.load(Case(path.name, path.name, path)).image
    return image.read(Box((0, 0), image.shape, Frame.PX, 0))


PX = {"spacing_um": 1.0, "patch_px": 16, "glimpse_spacing_um": 4.0, "unit": "px"}


@pytest.mark.parametrize(
    ("top", "bits"), [(255, 8), (256, 10), (1023, 10), (4095, 12), (9000, 14), (60_000, 16)]
)
def test_the_fewest_bits_that_hold_an_image(tmp_path: Path, top: int, bits: int) -> None:
    with open_image(png(tmp_path / "a.png", top)) as image:
        assert used_bits(image) == bits
    tifffile.imwrite(tmp_path / "a.tif", grey(top, 300), tile=(64, 64), compression="zlib")
    with open_image(tmp_path / "a.tif") as image:
        assert used_bits(image) == bits


def test_eight_bits_and_volumes_are_left_alone(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 4), np.int16), np.eye(4)), tmp_path / "a.nii")
    for name in ("a.png", "a.nii"):
        with open_image(tmp_path / name) as image:
            assert used_bits(image) is None


def test_tiles_that_are_not_stored_do_not_count(tmp_path: Path) -> None:
    tile = np.stack([grey(4000)] * 3, -1)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(
            (tile if i == 0 else None for i in range(16)),
            shape=(256, 256, 3), dtype=np.uint16, tile=(64, 64), photometric="rgb",
        )  # fmt: skip
    with open_image(tmp_path / "a.tif") as image:
        assert image.read(Box((200, 200), (1, 1), Frame.PX, 0)).max() == 65535
        assert used_bits(image) == 12


def test_the_brightest_image_of_the_training_sets_white_for_all(tmp_path: Path) -> None:
    """A dark X-ray of 12 bits stays dark beside the others, and is no longer nearly black."""
    paths = [png(tmp_path / "dark.png", 900), png(tmp_path / "bright.png", 4095)]
    cases = [Case(p.name, p.name, p) for p in paths]
    view = choose_view(scan_cases(cases, ViewOptions()).facts.values(), ViewOptions())
    assert view.bits == 12
    for path, top in zip(paths, (900, 4095), strict=True):
        got = loaded(path, View(**PX, bits=12))
        assert got.dtype == np.uint16
        np.testing.assert_array_equal(got[..., 0], np.rint(grey(top) * (65535 / 4095)))


def test_the_plan_says_what_is_white() -> None:
    assert "use 12 bits: 4095 is white" in _describe_view(View(**PX, bits=12), [(64, 64)])
    assert "use 16 bits: 65535 is white" in _describe_view(View(**PX, bits=16), [(64, 64)])
    assert "white" not in _describe_view(View(**PX), [(64, 64)])


def test_what_is_brighter_than_the_training_images_is_white_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = png(tmp_path / "a.png", 9000)
    with caplog.at_level(logging.WARNING, "foveate"):
        got = loaded(path, View(**PX, bits=12))
    assert (got[..., 0][grey(9000) >= 4095] == 65535).all()
    assert caplog.text.count("a.png: has values beyond 4095") == 1


def test_without_a_training_of_16_bits_each_image_has_its_own_white(tmp_path: Path) -> None:
    got = loaded(png(tmp_path / "a.png", 4095), View(**PX))
    assert got.max() == 65535
    assert got.min() == 0
