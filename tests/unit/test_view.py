"""Defaults of the view for options that the user leaves out."""

from __future__ import annotations

import json
from dataclasses import asdict, fields

import pytest

from foveate.batch import View
from foveate.files.fields import Fields
from foveate.images.likeness import ImageFacts
from foveate.images.stored import Recipe
from foveate.loading.scan import ViewOptions, choose_view
from foveate.runs.card import parse_view


def test_a_stored_view_is_read_back_with_every_field() -> None:
    recipe = Recipe("uni", 1024, "a1b2", "resized")
    view = View(0.5, 128, 4.0, unit="px", fit=(1024, 512), axes=2, bits=12, recipe=recipe)
    plain = View(1.0, 224, 8.0)
    for stored_view in (view, plain):
        stored = json.loads(json.dumps(asdict(stored_view)))
        assert parse_view(Fields(stored, "model.json")) == stored_view
    differing = {name for name, value in asdict(view).items() if value != asdict(plain)[name]}
    assert differing | {"axes"} == {field.name for field in fields(View)}


def pictures(*sizes: tuple[int, int], fit: tuple[int, int] | None = None) -> list[ImageFacts]:
    """Return image facts after fitting; the spacing is the picture's size over the fitted size."""
    return [
        ImageFacts(
            shape=size,
            spacing_um=(1.0, 1.0) if fit is None else (fit[0] / size[0], fit[1] / size[1]),
            unit="px",
            kind="picture",
            reader="test",
        )
        for size in sizes
    ]


def test_fitted_pictures_are_read_at_the_fitted_size() -> None:
    fit = (256, 256)
    facts = pictures((1000, 1400), (2000, 1800), (800, 1300), fit=fit)
    view = choose_view(facts, ViewOptions(fit=fit, patch_px=64, glimpse_px=128))
    assert view.spacing_um == 1.0
    assert view.patch_um == 64
    assert view.glimpse_spacing_um == pytest.approx(2.0)
    chosen = choose_view(facts, ViewOptions(fit=fit, patch_px=64, spacing_um=0.5))
    assert chosen.spacing_um == 0.5


def test_unfitted_pictures_keep_their_resolution() -> None:
    view = choose_view(pictures((1000, 1400), (2000, 1800)), ViewOptions())
    assert view.spacing_um == 1.0
    slides = [ImageFacts((9000, 9000), (s, s), "um", "slide", "test") for s in (0.25, 0.5, 0.5)]
    assert choose_view(slides, ViewOptions()).spacing_um == 0.5


def test_volumes_get_small_patches_and_no_magnified_glimpse() -> None:
    """The cost of a cube grows with the third power of its side."""

    def volume(*shape: int, um: float) -> ImageFacts:
        return ImageFacts(shape, (um,) * 3, "um", "volume", "test")

    small = choose_view([volume(35, 50, 36, um=1000.0)], ViewOptions())
    assert (small.axes, small.patch_px, small.patch_um) == (3, 32, 32000.0)
    assert small.glimpse_spacing_um == small.spacing_um == 1000.0
    large = choose_view([volume(300, 480, 480, um=800.0)], ViewOptions())
    assert large.spacing_um == 800.0
    assert large.glimpse_spacing_um == pytest.approx(4000.0)
