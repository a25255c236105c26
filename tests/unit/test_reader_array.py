"""Pictures and volumes in files of NumPy; data sets, objects and pickles are refused."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from foveate.errors import (
    FoveateError,
    ImageTooLarge,
    OptionError,
    UnreadableImage,
    UnsupportedFormat,
)
from foveate.formats import array_file
from foveate.formats.grey_scale import choose_scale
from foveate.geometry import Box, Frame
from foveate.readers import open_image
from foveate.table import cases_from_folder
from helpers.images import read_whole

RNG = np.random.default_rng(0)
WRITERS: dict[str, Callable[..., None]] = {
    "a.npy": np.save,
    "a.npz": lambda path, values: np.savez(path, values),
    "packed.npz": lambda path, values: np.savez_compressed(path, image=values),
}


def written(folder: Path, name: str, values: np.ndarray) -> Path:
    WRITERS[name](folder / name, values)
    return folder / name


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((31, 45), "u1"), ((31, 45), ">u2"), ((31, 45, 3), "u1"), ((9, 8, 1), "u1")],
)
def test_pictures_are_what_was_saved(
    tmp_path: Path, shape: tuple[int, ...], dtype: str, order: str, name: str
) -> None:
    values = np.asarray(RNG.integers(0, 255, shape).astype(dtype), order=order)
    with open_image(written(tmp_path, name, values)) as image:
        assert (image.kind, image.shape, image.spacing_um) == ("picture", shape[:2], None)
        assert image.dtype == np.dtype(dtype).newbyteorder("=")
        assert not image.scaled
        np.testing.assert_array_equal(read_whole(image), values.reshape(*shape[:2], -1))
        part = image.read(Box((2, 3), (5, 4), Frame.PX, 0))
        np.testing.assert_array_equal(part, values.reshape(*shape[:2], -1)[2:7, 3:7])


def test_truth_values_are_black_and_white(tmp_path: Path) -> None:
    values = RNG.random((12, 9)) > 0.5
    with open_image(written(tmp_path, "a.npy", values)) as image:
        np.testing.assert_array_equal(read_whole(image)[..., 0], 255 * values)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
def test_a_volume_is_the_same_as_in_nifti(tmp_path: Path, dtype: str, name: str) -> None:
    values = (RNG.normal(100, 20, (11, 13, 17))).astype(dtype)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(values.T, affine), tmp_path / "a.nii")
    with (
        open_image(tmp_path / "a.nii") as twin,
        open_image(written(tmp_path, name, values)) as image,
    ):
        assert (image.kind, image.shape, image.scaled) == ("volume", (11, 13, 17), True)
        np.testing.assert_array_equal(read_whole(image), read_whole(twin))


def test_floats_are_scaled_and_missing_ones_are_black(tmp_path: Path) -> None:
    values = RNG.normal(0, 1, (40, 50))
    values[0, 0] = np.nan
    path = written(tmp_path, "a.npy", values)
    with open_image(path) as image:
        greys = read_whole(image)[..., 0]
        assert (image.dtype, image.scaled, image.count.unknown_px) == (np.uint16, True, 1)
        scale = choose_scale(values[np.isfinite(values)])
        np.testing.assert_array_equal(greys.ravel()[1:], scale.convert(values).ravel()[1:])
        assert greys[0, 0] == 0
    with open_image(path, {"array": {"limits": "-4,4"}}) as image:
        expected = np.clip((values[1:] + 4) / 8, 0, 1) * 65535
        np.testing.assert_allclose(read_whole(image)[1:, :, 0], expected, atol=1)
    with pytest.raises(OptionError, match="got '4,-4', expected the values of black and"):
        open_image(path, {"array": {"limits": "4,-4"}})


def test_the_scale_of_a_large_picture_follows_from_a_million_pixels(tmp_path: Path) -> None:
    """Of 4096 x 4096 pixels every fourth counts along each axis, so not those of row 3."""
    path = tmp_path / "a.npy"
    values = np.lib.format.open_memmap(path, "w+", np.float16, (4096, 4096))
    values[::4, ::4] = RNG.random((1024, 1024))
    values[3::12] = 1000
    with open_image(path) as image:
        greys = image.read(Box((8, 8), (9, 9), Frame.PX, 0))[..., 0]
    scale = choose_scale(values[::4, ::4].astype(np.float64).ravel())
    np.testing.assert_array_equal(greys, scale.convert(values[8:17, 8:17].astype(np.float64)))


def test_arrays_are_listed_as_images(tmp_path: Path) -> None:
    for name in WRITERS:
        written(tmp_path, name, np.zeros((9, 9), np.uint8))
    assert len(cases_from_folder(tmp_path, lambda _: False).cases) == 3


# -- what is refused -------------------------------------------------------------------------------


def refused(path: Path, *words: str, **options: str) -> None:
    with pytest.raises(FoveateError) as caught, open_image(path, {"array": options}) as image:
        read_whole(image)
    assert path.name in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_data_set_is_not_one_image(tmp_path: Path, shared_data: Path) -> None:
    arrays = {f"{part}_{what}": np.zeros((4, 9, 9)) for part in ("train", "test") for what in "xy"}
    np.savez(tmp_path / "set.npz", **arrays)
    words = "a whole data set (train_x, train_y, test_x", "write each image into a file of its own"
    refused(tmp_path / "set.npz", *words)
    refused(shared_data / "ct_adrenal64/train_val.npz", "a whole data set (", words[1])


def test_one_of_several_arrays_is_chosen(tmp_path: Path) -> None:
    image, mask = RNG.integers(0, 255, (2, 20, 30), np.uint8)
    np.savez(tmp_path / "a.npz", image=image, mask=mask)
    refused(tmp_path / "a.npz", "holds 2 arrays (image, mask)", "--reader.array.name NAME")
    with open_image(tmp_path / "a.npz", {"array": {"name": "mask"}}) as opened:
        np.testing.assert_array_equal(read_whole(opened)[..., 0], mask)
    refused(tmp_path / "a.npz", "holds no array 'x', but image, mask; name one", name="x")


class Bomb:
    def __reduce__(self):
        return print, ("PICKLE WAS EXECUTED",)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_pickles_are_never_run(tmp_path: Path, name: str, capfd) -> None:
    path = written(tmp_path, name, np.array([[Bomb()] * 9] * 9, object))
    refused(path, "an array of Python objects, which is not read; save numbers")
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UnsupportedFormat):
        open_image(tmp_path / "b.npy")
    assert "EXECUTED" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros(9), "an array of shape (9,); save a picture (y, x)"),
        (np.zeros((2, 3, 4, 5)), "an array of shape (2, 3, 4, 5); save a picture"),
        (np.zeros((9, 0)), "an array of shape (9, 0); save a picture"),
        (np.zeros((9, 9), complex), "an array of complex128, which is not read"),
        (np.full((9, 9), np.nan), "holds no finite number; make the image again"),
    ],
)
def test_arrays_that_are_no_image(tmp_path: Path, values: np.ndarray, words: str) -> None:
    refused(written(tmp_path, "a.npy", values), words)


def test_fields_are_no_image(tmp_path: Path) -> None:
    values = np.zeros((9, 9), [("µ", "f4"), ("σ", "f4")])
    with pytest.warns(UserWarning, match="format 3.0"):
        np.save(tmp_path / "a.npy", values)
    refused(tmp_path / "a.npy", "an array with names of fields; save plain numbers")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_cut_off_files(tmp_path: Path, name: str, share: float) -> None:
    path = written(tmp_path, name, RNG.random((40, 50)))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path)


def test_damaged_archives(tmp_path: Path) -> None:
    path = written(tmp_path, "packed.npz", RNG.random((40, 50)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(bytes(content))
    with pytest.raises(UnreadableImage, match="array in it cannot be read; the file is"):
        read_whole(open_image(path))


def test_a_claim_of_more_than_is_there(tmp_path: Path) -> None:
    header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 20, 1 << 20)}
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    refused(tmp_path / "a.npy", "claims 8,796,093,022,208 bytes of values, there are 0")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.write(tmp_path / "a.npy", "a.npy")
    refused(tmp_path / "a.npz", "claims 8,796,093,022,208 bytes of values, there are 0")


def test_an_archive_of_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "packed.npz", np.zeros((400, 500)))
    monkeypatch.setattr(array_file, "MAX_UNPACKED_BYTES", 1 << 20)
    with pytest.raises(ImageTooLarge, match="are too much to be unpacked in memory; save"):
        open_image(path)


def test_other_archives_are_not_taken_for_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", "text")
    with pytest.raises(UnsupportedFormat, match="a ZIP archive is not readable as an image"):
        open_image(tmp_path / "a.zip")


@pytest.mark.parametrize("shape", [(3, 40, 50), (4, 40, 50), (40, 50, 4)])
def test_axes_that_may_be_colours_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    with pytest.raises(UnsupportedFormat, match="may be a picture with its channels first"):
        open_image(tmp_path / "a.npy")
