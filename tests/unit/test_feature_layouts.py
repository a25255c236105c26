"""Written files of features have the names and frames of each layout, as plain h5py reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from foveate.errors import NotFinite, OptionError
from foveate.formats.feature_layouts import FeatureHead, Layout, write_feature_file
from foveate.images.stored import Recipe
from foveate.readers import open_image

VECTORS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
CORNER_PX0 = np.array([[0.0, 0.0], [0.0, 886.4], [886.4, 0.0], [886.4, 886.4], [1772.8, 0.0]])
"""Corners in the order y, x, of patches of 224 pixels at 1 um of a slide at 0.2527 um."""
SPACING_UM = (0.2527, 0.2527)
SIDE_PX0 = 224 / 0.2527
HEAD = FeatureHead(
    name="S1",
    folder=Path("out"),
    recipe=Recipe("lite0", 3, "abc123", "224 px of 1 um"),
    corner_px0=CORNER_PX0,
    side_px0=SIDE_PX0,
    patch_px=224,
    spacing_um=SPACING_UM,
    shape_px0=(3000, 2000),
    reader="OpenSlide 4.0.1",
)
ADDED = {
    *("mpp_x", "mpp_y", "target_mpp", "reader", "reader_version", "encoder", "encoder_revision"),
    *("transform", "created_by", "schema"),
}


def write(path: Path, layout: Layout, head: FeatureHead = HEAD) -> Path:
    write_feature_file(path, head, layout, "float16", [VECTORS[:2], VECTORS[2:]])
    return path


def test_trident(tmp_path: Path) -> None:
    with h5py.File(write(tmp_path / "S1.h5", "trident")) as file:
        assert set(file) == {"features", "coords"}
        assert file["features"].dtype == np.float16
        assert file["features"].chunks is None, "in one piece"
        np.testing.assert_array_equal(file["features"], VECTORS.astype(np.float16))
        assert file["coords"].dtype == np.int64
        expected_xy = [[0, 0], [886, 0], [0, 886], [886, 886], [0, 1773]]
        np.testing.assert_array_equal(file["coords"], expected_xy)
        assert dict(file["features"].attrs) == {"encoder": "lite0", "name": "S1"}
        assert dict(file["coords"].attrs) == {
            "patch_size": 224,
            "patch_size_level0": 886,
            "level0_magnification": 40,
            "target_magnification": 10,
            "overlap": 0,
            "name": "S1",
            "savetodir": "out",
            "level0_width": 2000,
            "level0_height": 3000,
        }
        assert set(file.attrs) == ADDED
        assert file.attrs["mpp_x"] == file.attrs["mpp_y"] == 0.2527
        assert file.attrs["target_mpp"] == pytest.approx(1.0)
        assert (file.attrs["reader"], file.attrs["reader_version"]) == ("OpenSlide", "4.0.1")
        assert file.attrs["encoder_revision"] == "abc123"
        assert file.attrs["created_by"].startswith("foveate ")
        assert file.attrs["schema"] == 1


def test_clam(tmp_path: Path) -> None:
    with h5py.File(write(tmp_path / "S1.h5", "clam")) as file:
        assert set(file) == {"features", "coords"}
        np.testing.assert_array_equal(file["coords"][1], [886, 0])
        attributes = dict(file["coords"].attrs)
        assert set(attributes) == {
            *("patch_size", "patch_level", "downsample", "downsampled_level_dim", "level_dim"),
            *("name", "save_path"),
        }
        assert (attributes["patch_size"], attributes["patch_level"]) == (886, 0)
        np.testing.assert_array_equal(attributes["downsample"], [1, 1])
        np.testing.assert_array_equal(attributes["level_dim"], [2000, 3000])
        assert set(file.attrs) == ADDED


def test_stamp(tmp_path: Path) -> None:
    with h5py.File(write(tmp_path / "S1.h5", "stamp")) as file:
        assert set(file) == {"feats", "coords"}
        assert file["feats"].dtype == np.float16
        np.testing.assert_allclose(file["coords"][1], [886.4 * 0.2527, 0], rtol=1e-12)
        attributes = dict(file.attrs)
        assert set(attributes) == ADDED | {
            *("extractor", "unit", "tile_size_um", "tile_size_px", "code_hash", "stamp_version"),
            "feat_type",
        }
        assert (attributes["extractor"], attributes["unit"]) == ("lite0", "um")
        assert attributes["tile_size_um"] == pytest.approx(224.0)
        assert attributes["tile_size_px"] == 224
        assert attributes["feat_type"] == "tile"


@pytest.mark.parametrize("layout", ["trident", "clam", "stamp"])
def test_what_was_written_is_read_again(layout: Layout, tmp_path: Path) -> None:
    with open_image(write(tmp_path / "S1.h5", layout)) as image:
        stored = image.stored
        assert stored is not None
        assert stored.recipe == HEAD.recipe
        np.testing.assert_allclose(stored.corner_px0, CORNER_PX0, atol=0.5)
        assert stored.side_px0 == pytest.approx(SIDE_PX0, abs=0.5)
        assert stored.patch_px == 224
        assert stored.px0_known
        assert image.spacing_um == SPACING_UM
        np.testing.assert_allclose(stored.read(np.arange(5)), VECTORS, rtol=1e-3, atol=1e-4)


def test_pictures_without_a_pixel_size(tmp_path: Path) -> None:
    head = replace(HEAD, spacing_um=None)
    with h5py.File(write(tmp_path / "P1.h5", "trident", head)) as file:
        assert not {"mpp_x", "mpp_y", "target_mpp"} & set(file.attrs)
        assert not {"level0_magnification", "target_magnification"} & set(file["coords"].attrs)
    with open_image(tmp_path / "P1.h5") as image:
        assert image.spacing_um is None
    with pytest.raises(OptionError, match="'stamp' counts in micrometres, but the images state no"):
        write(tmp_path / "P2.h5", "stamp", head)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["P1.h5"]


def test_numbers_that_a_file_cannot_hold_are_refused(tmp_path: Path) -> None:
    bad, large = VECTORS.copy(), VECTORS.copy()
    bad[3, 1], large[3, 1] = np.nan, 1e6
    with pytest.raises(NotFinite, match="S1: the features of patch 3 are no finite numbers: check"):
        write_feature_file(tmp_path / "a.h5", HEAD, "clam", "float32", [bad[:2], bad[2:]])
    with pytest.raises(NotFinite, match="of patch 3 are too large for float16: give --number"):
        write_feature_file(tmp_path / "a.h5", HEAD, "clam", "float16", [large])
    assert not list(tmp_path.iterdir()), "nothing is left of a file that could not be completed"
    write_feature_file(tmp_path / "a.h5", HEAD, "clam", "float32", [large])
