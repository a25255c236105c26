"""Volumes of another kind or form than those of training are flagged, those of training are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from foveate.files.fields import Fields
from foveate.images.likeness import TrainedOn, describe_unlikeness, trained_on
from foveate.loading.scan import ViewOptions, scan_cases
from foveate.readers import open_image
from foveate.runs.card import parse_trained_on, store_trained_on
from foveate.table import Case
from helpers.images import PyramidImage, read_whole

Values = NDArray[np.float32]


def mr(shape: tuple[int, int, int] = (40, 44, 36), seed: int = 0) -> Values:
    """Draw a volume without a unit, of three tissues and noise."""
    rng = np.random.default_rng(seed)
    tissue = rng.choice([40.0, 300.0, 700.0], (4, 4, 4))
    where = np.meshgrid(*(np.arange(n) * 4 // n for n in shape), indexing="ij")
    return (tissue[tuple(where)] + rng.normal(0, 25, shape)).astype(np.float32)


def ct(shape: tuple[int, int, int] = (40, 44, 36), seed: int = 0) -> Values:
    """Draw a body of soft tissue in air, in Hounsfield units."""
    rng = np.random.default_rng(seed)
    values = np.full(shape, -1000.0, np.float32)
    inner = tuple(slice(n // 6, n - n // 6) for n in shape)
    values[inner] = 40.0
    return (values + rng.normal(0, 15, shape)).astype(np.float32)


def mask(shape: tuple[int, int, int] = (40, 44, 36), seed: int = 0) -> Values:
    return (mr(shape, seed) > 200).astype(np.float32)


def written(path: Path, values: Values, spacing_mm: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Path:
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*spacing_mm, 1.0])), path)
    return path


def learn(folder: Path, draw: Callable[..., Values]) -> TrainedOn:
    """Scan six volumes as training does, and store and read what a model remembers of them."""
    cases = []
    for i in range(6):
        path = written(folder / f"train_{i}.nii.gz", draw((40 + i, 44, 36), seed=i))
        cases.append(Case(f"{i}", f"{i}", path, "a"))
    scan = scan_cases(cases, ViewOptions())
    assert not scan.failed
    stored = json.loads(json.dumps(store_trained_on(trained_on(scan.facts.values()))))
    return parse_trained_on(Fields(stored, "model.json: trained_on"))


def unlikeness(path: Path, training: TrainedOn) -> str:
    with open_image(path) as image:
        return describe_unlikeness(image, read_whole(image), training)


@pytest.mark.parametrize("draw", [mr, ct, mask])
def test_volumes_of_the_same_kind_are_not_flagged(
    tmp_path: Path, draw: Callable[..., Values]
) -> None:
    training = learn(tmp_path, draw)
    for i in range(6):
        assert unlikeness(tmp_path / f"train_{i}.nii.gz", training) == ""
    new = written(tmp_path / "new.nii", draw((30, 60, 50), seed=9), (1.2, 0.9, 0.9))
    assert unlikeness(new, training) == ""


@pytest.mark.parametrize(
    ("trained", "shown", "words"),
    [
        (mr, ct, "CT in Hounsfield units, not values without a unit, such as MR"),
        (ct, mr, "values without a unit, such as MR, not CT in Hounsfield units"),
        (mr, mask, "a mask of few different values, not values without a unit, such as MR"),
        (ct, mask, "a mask of few different values, not CT in Hounsfield units"),
        (mask, mr, "values without a unit, such as MR, not a mask of few different values"),
    ],
)
def test_values_of_another_kind_are_flagged(
    tmp_path: Path, trained: Callable[..., Values], shown: Callable[..., Values], words: str
) -> None:
    training = learn(tmp_path, trained)
    assert unlikeness(written(tmp_path / "new.nii.gz", shown(seed=9)), training) == words


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "words"),
    [
        ((40, 44, 1), (1.0, 1.0, 1.0), "a single slice, not 36 or more"),
        ((40, 44, 3), (1.0, 1.0, 20.0), "3 slices, not 36 to 36"),
        ((40, 44, 36), (0.8, 0.8, 5.0), "slices thicker than their pixels by a factor of 6.25"),
        ((40, 44, 6), (0.5, 0.5, 0.5), "a short side of 3e+03 um, not 3.6e+04"),
    ],
)
def test_volumes_of_another_form_are_flagged(
    tmp_path: Path, shape: tuple[int, int, int], spacing_mm: tuple[float, ...], words: str
) -> None:
    training = learn(tmp_path, mr)
    text = unlikeness(written(tmp_path / "new.nii", mr(shape, 9), spacing_mm), training)
    assert words in text


def test_volumes_of_training_may_be_of_several_kinds(tmp_path: Path) -> None:
    def either(shape: tuple[int, int, int], seed: int) -> Values:
        return (mr, ct)[seed % 2](shape, seed)

    training = learn(tmp_path, either)
    assert training.values == ("hounsfield", "other")
    for draw in (mr, ct):
        assert unlikeness(written(tmp_path / "new.nii", draw(seed=9)), training) == ""
    shown = written(tmp_path / "new.nii", mask(seed=9))
    assert unlikeness(shown, training).startswith("a mask of few different values, not CT in")


def test_a_short_picture_is_unlike_pictures_of_the_same_long_side() -> None:
    training = TrainedOn(
        n=9,
        kinds=("slide",),
        channels=(3,),
        unit="um",
        spacing_um=(1.0, 1.0),
        side_um=(900.0, 900.0),
        short_side_um=(800.0, 900.0),
    )
    pixels = np.random.default_rng(0).integers(0, 255, (40, 900, 3), np.uint8)
    flat = PyramidImage(pixels)
    assert training.differences(flat, pixels) == ["a short side of 40 um, not 800 to 900"]
    higher = pixels.repeat(3, axis=0)
    assert training.differences(PyramidImage(higher), higher) == []


def test_models_of_older_versions_flag_what_they_know(tmp_path: Path) -> None:
    stored = {
        **{"n": 3, "kinds": ["volume"], "channels": [1], "unit": "um", "assumed": 0},
        **{"spacing": [1000.0, 1000.0], "side": [4e4, 4e4]},
    }
    training = parse_trained_on(Fields(stored, "model.json: trained_on"))
    assert (training.values, training.slices, training.anisotropy) == ((), None, None)
    for draw in (mr, ct, mask):
        assert unlikeness(written(tmp_path / "new.nii", draw()), training) == ""
    assert store_trained_on(training) == stored | {
        "kinds": ("volume",),
        "channels": (1,),
        "spacing": (1000.0, 1000.0),
        "side": (4e4, 4e4),
    }
