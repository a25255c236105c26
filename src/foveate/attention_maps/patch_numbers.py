"""Choose how many patches of an image are worth their time, from the sizes of the images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from foveate.batch import View
from foveate.geometry import shape_from_size_um, size_um_from_shape
from foveate.images.likeness import ImageFacts


class Limits(NamedTuple):
    """What limits a number of patches of an image.

    Attributes:
        largest: the largest number, which is taken where the images are not known.
        pixels: pixels (voxels) of all patches together that are worth their time.
        coverings: how often the patches may cover the median image.
        without_detail: the largest number where the glimpse is as fine as the patches, so that
            these show hardly anything new.
    """

    largest: int
    pixels: int
    coverings: int
    without_detail: int


LIMITS = {
    "patches": Limits(32, 600_000, 1, 1),
    "eval_patches": Limits(64, 1_200_000, 2, 1),
    "survey": Limits(256, 6_000_000, 2, 1),
}
"""Limits by the options of methods that draw patches; an option of 0 lets the images decide."""


def choose_patch_numbers(
    options: Mapping[str, Any], view: View, images: Sequence[ImageFacts]
) -> dict[str, int]:
    """Choose the numbers of patches for those options of `LIMITS` that are 0.

    Args:
        options: options of a method; those with other names are left alone.
        view: the geometry in which patches and glimpses are read.
        images: facts about the images, at least one.

    Returns:
        numbers of patches of an image, by option.
    """
    shapes = [
        shape_from_size_um(size_um_from_shape(image.shape, image.spacing_um), view.patch_um)
        for image in images
    ]
    cover = max(1, int(np.median([math.prod(shape) for shape in shapes])))
    numbers = {}
    for name, limits in LIMITS.items():
        if options.get(name) == 0:
            worth = limits.pixels // view.patch_px**view.axes
            number = max(1, min(limits.largest, worth, limits.coverings * cover))
            at_most = number if view.patches_add_detail else limits.without_detail
            numbers[name] = min(number, at_most)
    return numbers
