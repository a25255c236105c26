"""Describe in words how the images of a run will be read."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from foveate.batch import View
from foveate.geometry import length_mm_from_um
from foveate.images.likeness import ImageFacts
from foveate.images.stored import Recipe
from foveate.wording import several


def describe_view(view: View, shapes: Sequence[tuple[int, ...]]) -> str:
    """Describe the view, and what it means for the images of a run.

    Args:
        view: how images are read.
        shapes: shapes of the images, in pixels of level 0.
    """
    if view.axes == 3:
        spacing_mm = length_mm_from_um(view.spacing_um)
        glimpse_mm = length_mm_from_um(view.glimpse_spacing_um)
        return (
            f"view: cubes of {view.patch_px} voxels of {spacing_mm:g} mm, "
            f"glimpse at {glimpse_mm:g} mm"
        )
    if view.recipe is not None:
        return _describe_stored(view, view.recipe)
    unit = "um per pixel" if view.unit == "um" else "pixels of the picture per pixel"
    text = (
        f"view: patches of {view.patch_px} px at {view.spacing_um:g} {unit}, "
        f"glimpse at {view.glimpse_spacing_um:g}"
    )
    if view.bits is not None:
        text += f"\n16-bit images use {view.bits} bits: {(1 << view.bits) - 1} is white"
    if view.unit == "um":
        return text
    text += "\nno spacing: these pictures state no pixel size, so lengths count in pixels"
    if view.fit is None and len(set(shapes)) > 1:
        text += "; their sizes differ: if size could give the class away, use --view.fit 1024x1024"
    return text


def _describe_stored(view: View, recipe: Recipe) -> str:
    """Describe the patches of files of features, and what their files do not state."""
    text = (
        f"files of features: {recipe.describe()} for each patch of {view.patch_px} px at "
        f"{view.spacing_um:.4g} {'um per pixel' if view.unit == 'um' else 'level-0 pixels'}"
    )
    if not recipe.encoder:
        text += (
            "\nwarning: the files do not name their encoder: make sure that one encoder made all, "
            "also of images to predict"
        )
    if view.unit == "px":
        text += (
            "\nno spacing: the files state no pixel size, so places count in level-0 pixels; a "
            "column 'mpp' can give it"
        )
    return text


def describe_bits(facts: Mapping[str, ImageFacts]) -> str | None:
    """Describe images that use more of the 16 bits than most, as they make the others dark.

    Args:
        facts: facts about the images, by image id.

    Returns:
        a warning; None where no image uses more bits than most.
    """
    bits = {image_id: fact.bits for image_id, fact in facts.items() if fact.bits is not None}
    if not bits:
        return None
    usual = statistics.median_low(bits.values())
    more = sorted(image_id for image_id, n in bits.items() if n > usual)
    if not more:
        return None
    return (
        f"warning: {several(more)} use {max(bits.values())} bits where most images use "
        f"{usual}, so that most are shown dark; mend these, or leave them out of the table"
    )
