"""Files of features as images: places, frames, vectors; damaged and doubtful files are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from foveate.errors import FoveateError, ImageTooLarge, UnreadableImage, UnsupportedFormat
from foveate.geometry import Box, Frame
from foveate.images.image import AbstractImage
from foveate.images.stored import StoredPatches
from foveate.readers import open_image
from helpers.feature_files import SIDE_PX0, lattice, write_clam, write_stamp, write_trident

VECTORS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
Change = Callable[[h5py.File], object]


def stored_of(image: AbstractImage) -> StoredPatches:
    assert image.stored is not None
    return image.stored


def all_vectors(image: AbstractImage) -> np.ndarray:
    stored = stored_of(image)
    return stored.read(np.arange(len(stored)))


def replace_dataset(file: h5py.File, name: str, data: object) -> None:
    """Put other values in the place of a dataset, which keeps its attributes."""
    attributes = dict(file[name].attrs)
    del file[name]
    file[name] = data
    file[name].attrs.update(attributes)


def test_trident_places_are_level_0_pixels(tmp_path: Path) -> None:
    with open_image(write_trident(tmp_path / "a.h5", VECTORS)) as image:
        stored = stored_of(image)
        assert image.kind == "features"
        assert image.spacing_um is None, "a magnification is no pixel size"
        assert image.shape == (30_000, 20_000)
        assert stored.side_px0 == SIDE_PX0
        assert stored.patch_px == 256
        assert (stored.recipe.encoder, stored.recipe.dim) == ("uni_v1", 5)
        assert np.array_equal(stored.corner_px0, lattice(6)[:, ::-1]), "y, x from x, y"
        assert np.array_equal(all_vectors(image), VECTORS)


def test_clam_places_are_level_0_pixels_and_the_side_is_their_step(tmp_path: Path) -> None:
    with open_image(write_clam(tmp_path / "a.h5", VECTORS)) as image:
        stored = stored_of(image)
        assert stored.side_px0 == SIDE_PX0
        assert image.shape == (2 * SIDE_PX0, 4 * SIDE_PX0), "as far as the last patches reach"
        assert stored.recipe.encoder == ""
        assert np.array_equal(stored.corner_px0, lattice(6)[:, ::-1])
        assert np.array_equal(all_vectors(image), VECTORS)


def test_clam_attributes_give_the_side_at_level_0(tmp_path: Path) -> None:
    path = write_clam(tmp_path / "a.h5", VECTORS, lattice(6) * 3)
    with h5py.File(path, "a") as file:
        attributes = {"patch_size": 256, "patch_level": 1, "downsample": np.array([4.0, 4.0])}
        file["coords"].attrs.update(attributes)
    with open_image(path) as image:
        assert stored_of(image).side_px0 == 1024


def test_stamp_places_are_micrometres(tmp_path: Path) -> None:
    corners_um = lattice(6) * 0.5
    with open_image(write_stamp(tmp_path / "a.h5", VECTORS, corners_um)) as image:
        stored, spacing_um = stored_of(image), image.known_spacing_um
        np.testing.assert_allclose(stored.corner_px0 * spacing_um, corners_um[:, ::-1])
        assert stored.side_px0 * spacing_um[0] == pytest.approx(256.0)
        assert stored.recipe.encoder == "ctranspath"
        assert stored.in_um
        assert not stored.px0_known
        np.testing.assert_allclose(all_vectors(image), VECTORS, rtol=1e-3)
    path = write_stamp(tmp_path / "b.h5", VECTORS, corners_um, mpp_x=0.25, mpp_y=0.25)
    with open_image(path) as image:
        stored = stored_of(image)
        np.testing.assert_allclose(stored.corner_px0, corners_um[:, ::-1] / 0.25)
        assert stored.px0_known


def test_mpp_gives_the_spacing(tmp_path: Path) -> None:
    path = write_trident(tmp_path / "a.h5", VECTORS, mpp_x=0.25, mpp_y=0.26)
    with open_image(path) as image:
        assert image.spacing_um == (0.26, 0.25)


def test_rows_are_read_in_any_order(tmp_path: Path) -> None:
    many = np.arange(200, dtype=np.float64)[:, None] * [1.0, -1.0]
    rows = np.array([150, 3, 3, 199])
    with open_image(write_trident(tmp_path / "a.h5", many, lattice(200))) as image:
        read = stored_of(image).read
        assert np.array_equal(read(rows), many[rows].astype(np.float32))
        assert np.array_equal(read(np.array([8, 7])), many[[8, 7]].astype(np.float32))
        assert read(np.arange(0)).shape == (0, 2)


def test_a_leading_axis_of_one_image_is_dropped(tmp_path: Path) -> None:
    path = write_clam(tmp_path / "a.h5", VECTORS)
    with h5py.File(path, "a") as file:
        replace_dataset(file, "features", VECTORS[None])
        replace_dataset(file, "coords", lattice(6)[None])
    with open_image(path) as image:
        assert np.array_equal(all_vectors(image), VECTORS)
        assert np.array_equal(stored_of(image).read(np.array([5, 0])), VECTORS[[5, 0]])


def test_pixels_are_a_plain_background(tmp_path: Path) -> None:
    with open_image(write_trident(tmp_path / "a.h5", VECTORS, mpp=0.25)) as image:
        assert (image.read(Box((0, 0), (4, 4), Frame.PX, 0)) == 255).all()
        assert (image.glimpse(100.0) == 255).all()
        assert image.count.decoded_px == 0


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _link_out(file: h5py.File) -> None:
    del file["features"]
    file["features"] = h5py.ExternalLink("other.h5", "/features")


def _link_soft(file: h5py.File) -> None:
    file["hidden"] = file["features"][()]
    del file["features"]
    file["features"] = h5py.SoftLink("/hidden")


def _store_outside(file: h5py.File) -> None:
    del file["features"]
    file.create_dataset("features", (6, 5), "f4", external=[("/etc/hostname", 0, 120)])


def _make_virtual(file: h5py.File) -> None:
    del file["features"]
    layout = h5py.VirtualLayout((6, 5), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "features", (6, 5))
    file.create_virtual_dataset("features", layout)


def _claim_much(file: h5py.File) -> None:
    del file["features"]
    vectors = file.create_dataset("features", (6, 1 << 26), "f4", chunks=(1, 5))
    vectors[0, :5] = 1.0


def _make_text(file: h5py.File) -> None:
    del file["features"]
    file.create_dataset("features", data=["a"] * 6, dtype=h5py.string_dtype())


def _leave_empty(file: h5py.File) -> None:
    del file["features"]
    file.create_dataset("features", (6, 5), "f4")


def _shape(name: str, *shape: int) -> Change:
    return lambda file: replace_dataset(file, name, np.ones(shape, np.float32))


def _attribute(name: str, value: object) -> Change:
    return lambda file: file["coords"].attrs.modify(name, value)


def _places(value: float) -> Change:
    return lambda file: replace_dataset(file, "coords", np.full((6, 2), value))


TRAPS: list[tuple[str, Change, type[FoveateError], str]] = [
    ("no places", lambda f: f.pop("coords"), UnreadableImage, "but no 'coords', so nobody knows"),
    ("only places", lambda f: f.pop("features"), UnsupportedFormat, "only 'coords' (extract"),
    ("fewer places", _shape("coords", 5, 2), UnreadableImage, "but 'coords' has 5 places"),
    ("turned", _shape("features", 5, 6), UnreadableImage, "whose axes are swapped"),
    ("one vector", _shape("features", 5), UnreadableImage, "expected one row for each patch"),
    ("3D places", _shape("coords", 6, 3), UnreadableImage, "expected x and y of each patch"),
    ("no rows", _shape("features", 6, 0), UnreadableImage, "was never filled|holds no patch"),
    ("negative", _places(-1.0), UnreadableImage, "which no place in an image can be"),
    ("NaN place", _places(np.nan), UnreadableImage, "which no place in an image can be"),
    ("far away", _places(1e12), UnreadableImage, "which no place in an image can be"),
    ("one place", _places(25_000.0), UnreadableImage, "outside its image of 20000 x 30000"),
    ("side", _attribute("patch_size_level0", 0), UnreadableImage, "'patch_size_level0' is 0"),
    ("unit", _attribute("unit", "parsec"), UnreadableImage, "are in 'parsec', expected micro"),
    ("newer", _attribute("schema", 9), UnsupportedFormat, "written by a newer foveate; upgrade"),
    (
        "slide",
        _attribute("feat_type", "slide"),
        UnsupportedFormat,
        "holds features of kind 'slide'",
    ),
    ("link", _link_out, UnreadableImage, "'features' is no dataset of this file but leads"),
    ("soft link", _link_soft, UnreadableImage, "'features' is no dataset of this file but leads"),
    ("outside", _store_outside, UnreadableImage, "is no dataset of this file but leads"),
    ("virtual", _make_virtual, UnreadableImage, "is no dataset of this file but leads"),
    ("claim", _claim_much, ImageTooLarge, "claims 1.6 GB, but .* bytes are stored"),
    ("text", _make_text, UnreadableImage, "holds object, expected numbers; make"),
    ("empty", _leave_empty, UnreadableImage, "'features' was never filled with values; make"),
]


@pytest.mark.parametrize(("name", "change", "error", "words"), TRAPS, ids=[t[0] for t in TRAPS])
def test_a_damaged_or_doubtful_file_is_refused(
    name: str, change: Change, error: type[FoveateError], words: str, tmp_path: Path
) -> None:
    path = write_trident(tmp_path / f"{name}.h5", VECTORS)
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(error, match=words.replace("(", r"\(")) as refused:
        open_image(path).close()
    assert str(path) in str(refused.value)


def test_no_patch_and_no_size_are_refused(tmp_path: Path) -> None:
    path = write_clam(tmp_path / "none.h5", VECTORS[:1])
    with pytest.raises(UnreadableImage, match="states no size of its patches"):
        open_image(path)
    path = write_stamp(tmp_path / "stamp.h5", VECTORS, lattice(6), unit=None, tile_size_um=None)
    with pytest.raises(UnreadableImage, match="its 'coords' have no unit, expected micrometres"):
        open_image(path)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["weights"] = np.ones(3)
    with pytest.raises(UnsupportedFormat, match="an HDF5 file with neither 'features' nor 'feats'"):
        open_image(tmp_path / "other.h5")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write_trident(tmp_path / "cut.h5", VECTORS)
    _truncate(path)
    with pytest.raises(
        UnreadableImage, match=r"cut\.h5: the HDF5 library cannot read it; the file"
    ):
        open_image(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused_when_they_are_read(
    value: float, tmp_path: Path
) -> None:
    vectors = VECTORS.copy()
    vectors[4, 2] = value
    words = "the features of patch 4 are no finite numbers"
    with open_image(write_trident(tmp_path / "bad.h5", vectors)) as image:
        assert np.array_equal(stored_of(image).read(np.arange(4)), VECTORS[:4])
        with pytest.raises(UnreadableImage, match=words):
            all_vectors(image)
    with pytest.raises(UnreadableImage, match="the file is closed; open it again"):
        stored_of(image).read(np.arange(4))
