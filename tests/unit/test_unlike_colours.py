"""Grey pictures beside coloured training images are flagged, also if stored as RGB."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from foveate.batch import View
from foveate.files.fields import Fields
from foveate.images.likeness import TrainedOn, describe_unlikeness, judge_colours, trained_on
from foveate.loading.loader import CaseLoader
from foveate.loading.scan import ViewOptions, choose_view, scan_cases
from foveate.runs.card import parse_trained_on, store_trained_on
from foveate.table import Case

Picture = NDArray[np.uint8]
SIDE = 96


def slide(seed: int, tissue: tuple[int, int, int] = (190, 90, 160)) -> Picture:
    """Draw a piece of stained tissue on glass that is nearly white."""
    rng = np.random.default_rng(seed)
    picture = np.full((SIDE, SIDE, 3), (244, 243, 245), np.int64)
    picture[30:60, 30:60] = tissue
    return np.clip(picture + rng.integers(-4, 5, (SIDE, SIDE, 1)), 0, 255).astype(np.uint8)


def pale(seed: int) -> Picture:
    return slide(seed, (238, 222, 232))


def xray(seed: int) -> Picture:
    """Draw a grey picture with one channel."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(20, 220, SIDE)[:, None] + rng.normal(0, 8, (SIDE, SIDE))
    return np.clip(ramp, 0, 255).astype(np.uint8)


def xray_rgb(seed: int) -> Picture:
    return np.repeat(xray(seed)[..., None], 3, axis=2)


def save(folder: Path, name: str, picture: Picture) -> Case:
    path = folder / name
    Image.fromarray(picture).save(path, **({"quality": 85} if path.suffix == ".jpg" else {}))
    return Case(path.stem, path.stem, path, "a")


def learn(folder: Path, draws: list[object]) -> tuple[TrainedOn, View]:
    """Read pictures as training does; return what a model remembers of them, and the view."""
    cases = [save(folder, f"train_{i}.jpg", draw(i)) for i, draw in enumerate(draws)]
    scan = scan_cases(cases, ViewOptions())
    view = choose_view(scan.facts.values(), ViewOptions())
    loader = CaseLoader(view)
    for case in cases:
        loader.load(case)
    names = {name for name in loader.colours.values() if name is not None}
    loader.close()
    facts = replace(trained_on(scan.facts.values()), colours=tuple(sorted(names)))
    stored = json.loads(json.dumps(store_trained_on(facts)))
    return parse_trained_on(Fields(stored, "model.json: trained_on")), view


def unlikeness(folder: Path, picture: Picture, training: tuple[TrainedOn, View]) -> str:
    facts, view = training
    loader = CaseLoader(view)
    try:
        loaded = loader.load(save(folder, "new.jpg", picture))
        return describe_unlikeness(loaded.image, loaded.glimpse, facts)
    finally:
        loader.close()


GREY = "grey, not in colour (grey pixels, stored as colours)"


@pytest.mark.parametrize(
    ("trained", "new", "words"),
    [
        ([slide] * 3, slide, ""),
        ([slide] * 3, pale, ""),
        ([pale] * 3, pale, ""),
        ([slide] * 3, xray_rgb, GREY),
        ([slide] * 3, xray, "grey, not in colour"),
        ([slide, slide, xray_rgb], xray_rgb, ""),
        ([slide, slide, xray], xray_rgb, ""),
        ([xray_rgb] * 3, xray_rgb, ""),
        ([xray_rgb] * 3, xray, ""),
        ([xray] * 3, xray_rgb, ""),
        ([xray_rgb] * 3, slide, "in colour, not grey"),
        ([xray] * 3, slide, "in colour, not grey"),
    ],
)
def test_colours_of_pixels_are_compared(
    tmp_path: Path, trained: list[object], new: object, words: str
) -> None:
    assert unlikeness(tmp_path, new(9), learn(tmp_path, trained)) == words


def test_a_model_of_an_older_version_compares_channels(tmp_path: Path) -> None:
    facts, view = learn(tmp_path, [slide] * 3)
    old = replace(facts, colours=()), view
    assert unlikeness(tmp_path, xray_rgb(9), old) == ""
    assert unlikeness(tmp_path, xray(9), old) == "grey, not in colour"


def test_a_blank_picture_has_no_kind_of_colours() -> None:
    assert judge_colours(np.full((32, 32, 3), 240, np.uint8)) is None
    assert judge_colours(np.arange(1024, dtype=np.uint16).reshape(32, 32, 1) * 60) == "grey"
