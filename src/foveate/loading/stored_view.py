"""Choose the view of files of features, whose patches were made by another program."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence

from foveate.batch import View
from foveate.batch.types import PATCH_PX
from foveate.errors import OptionError, UnsupportedFormat
from foveate.geometry import (
    length_um_from_px,
    long_side,
    mean_spacing,
    spacing_um_from_shape,
)
from foveate.images.image import AbstractImage
from foveate.images.likeness import ImageFacts, PatchFacts

_GLIMPSE_PX = 512
_MAX_FACTOR = 1.5
"""Patches of one magnification differ by less, since the spacings of scanners differ."""


def note_patches(image: AbstractImage) -> PatchFacts | None:
    """Return the facts about the stored patches of an image; None for images with pixels.

    Args:
        image: the open image.
    """
    if image.stored is None:
        return None
    stored, side_px0 = image.stored, image.stored.side_px0
    side_um = length_um_from_px(side_px0, mean_spacing(image.known_spacing_um))
    return PatchFacts(stored.recipe, side_um, stored.patch_px)


def refuse_pixels(facts: Sequence[ImageFacts]) -> None:
    """Refuse images with pixels among files of features.

    Raises:
        OptionError: there are both.
    """
    n_stored = sum(fact.patches is not None for fact in facts)
    if n_stored < len(facts):
        raise OptionError(
            f"{n_stored} files of features and {len(facts) - n_stored} images are mixed: a model "
            "reads one or the other; give a table of each"
        )


def choose_stored_view(facts: Sequence[ImageFacts], wishes: Collection[str]) -> View:
    """Choose the view of files of features: that in which their patches were read.

    Args:
        facts: facts of the training images, at least one.
        wishes: names of the options of the view that are set, none of which can change stored
            patches.

    Raises:
        OptionError: the files do not hold vectors of one recipe, or an option of the view is set.
    """
    patches = [fact.patches for fact in facts if fact.patches is not None]
    for key in wishes:
        raise OptionError(
            f"view.{key}: files of features have the patches that they were made with; leave it "
            "out, or make the features again"
        )
    usual = statistics.mode(patch.recipe for patch in patches)
    for patch in patches:
        if difference := patch.recipe.compare(usual):
            n = sum(other.recipe != usual for other in patches)
            raise OptionError(
                f"{n} of {len(facts)} files of features hold {difference} as the others: such "
                "vectors cannot be compared; make all features in one way, or give a table of "
                "each kind"
            )
    unit = facts[0].unit
    sides_um = [patch.side_um for patch in patches]
    if unit == "um" and max(sides_um) > _MAX_FACTOR * min(sides_um):
        raise OptionError(
            f"files of features have patches of {min(sides_um):.4g} to {max(sides_um):.4g} um a "
            "side: an encoder saw them at different magnifications; make all features at one"
        )
    side_um = statistics.median(sides_um)
    patch_px = min(
        max(statistics.mode(patch.patch_px for patch in patches), PATCH_PX[0]), PATCH_PX[1]
    )
    (spacing_um,) = spacing_um_from_shape([side_um], [patch_px])
    extent_um = statistics.median(long_side(f.shape, f.spacing_um) for f in facts)
    (coarse_um,) = spacing_um_from_shape([extent_um], [_GLIMPSE_PX])
    return View(
        spacing_um=spacing_um,
        patch_px=patch_px,
        glimpse_spacing_um=max(spacing_um, float(f"{coarse_um:.4g}")),
        unit="px" if unit == "px" else "um",
        recipe=usual,
    )


def refuse_misfit(image: AbstractImage, view: View) -> None:
    """Refuse an image that a model cannot read with its view, as far as stored patches decide.

    Args:
        image: the open image, with its spacing.
        view: the view of the model.

    Raises:
        UnsupportedFormat: the model reads pixels and the image has none, or the other way round; or
            the vectors of the image were made in another way than those of training.
    """
    wanted, patches = view.recipe, note_patches(image)
    if wanted is None:
        if patches is None:
            return
        raise UnsupportedFormat(
            f"{image.path}: holds features, but the model reads pixels: give images"
        )
    if patches is None:
        raise UnsupportedFormat(
            f"{image.path}: has pixels, but the model reads files of features, "
            f"{wanted.describe()}: give those"
        )
    if difference := patches.recipe.compare(wanted):
        raise UnsupportedFormat(
            f"{image.path}: holds {difference} as the model reads: make its features as those of "
            "training"
        )
    larger = max(patches.side_um, view.patch_um) / min(patches.side_um, view.patch_um)
    if view.unit == image.unit == "um" and larger > _MAX_FACTOR:
        raise UnsupportedFormat(
            f"{image.path}: has patches of {patches.side_um:.4g} um a side, but the model was "
            f"trained on {view.patch_um:.4g}: make its features as those of training"
        )
