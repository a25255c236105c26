"""16-bit images that use fewer bits: one white level for all, stored with the model."""

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
from foveate.runs.view_words import describe_view
from foveate.table import Case


def grey(top: int, side: int = 64) -> np.ndarray:
    """Return noise from black to `top`, both included."""
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


def test_the_brightest_training_image_defines_white(tmp_path: Path) -> None:
    """A dark 12-bit X-ray stays darker than the others, but is not nearly black."""
    paths = [png(tmp_path / "dark.png", 900), png(tmp_path / "bright.png", 4095)]
    cases = [Case(p.name, p.name, p) for p in paths]
    view = choose_view(scan_cases(cases, ViewOptions()).facts.values(), ViewOptions())
    assert view.bits == 12
    for path, top in zip(paths, (900, 4095), strict=True):
        actual = loaded(path, View(**PX, bits=12))
        assert actual.dtype == np.uint16
        np.testing.assert_array_equal(actual[..., 0], np.rint(grey(top) * (65535 / 4095)))


def test_the_plan_states_the_white_level() -> None:
    assert "use 12 bits: 4095 is white" in describe_view(View(**PX, bits=12), [(64, 64)])
    assert "use 16 bits: 65535 is white" in describe_view(View(**PX, bits=16), [(64, 64)])
    assert "white" not in describe_view(View(**PX), [(64, 64)])


def test_brighter_images_are_clipped_to_white_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = png(tmp_path / "a.png", 9000)
    with caplog.at_level(logging.WARNING, "foveate"):
        actual = loaded(path, View(**PX, bits=12))
    assert (actual[..., 0][grey(9000) >= 4095] == 65535).all()
    assert caplog.text.count("a.png: has values beyond 4095") == 1


def test_without_16_bit_training_white_is_per_image(tmp_path: Path) -> None:
    actual = loaded(png(tmp_path / "a.png", 4095), View(**PX))
    assert actual.max() == 65535
    assert actual.min() == 0
