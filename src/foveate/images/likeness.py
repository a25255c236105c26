"""Compare an image with those that a model was trained on: kind, values, spacing and size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from foveate.geometry import (
    anisotropy,
    long_side,
    mean_spacing,
    shape_from_size_um,
    size_um_from_shape,
)
from foveate.images.image import AbstractImage
from foveate.images.resample import Pixels, white_value
from foveate.images.stored import Recipe

_SIZE_FACTOR, _SPACING_FACTOR = 10.0, 4.0
_ANISOTROPY_FACTOR, _SLICES_FACTOR = 4.0, 10.0
_MIN_SIDE_PX = 16
_VALUES = {
    "hounsfield": "CT in Hounsfield units",
    "mask": "a mask of few different values",
    "other": "values without a unit, such as MR",
}
"""The kinds of a volume's values in words."""
COLOURS = ("grey", "colour")
"""The kinds of a picture's colours: nearly grey in all pixels, also if stored in three channels."""
_COLOURED = 10 / 255
"""A pixel has a colour if its channels differ by so much of the largest value; noise is less."""
_COLOURED_SHARE = 0.001
"""A picture is in colour if so many of its pixels are; a slide may hold little tissue, pale too."""
_BLANK = 0.03
"""A glimpse is blank if its values span less than this share of the range of its dtype."""


@dataclass(frozen=True)
class PatchFacts:
    """Facts about the patches of a file of features.

    Attributes:
        recipe: how their vectors were made.
        side_um: side of a patch (where the unit of the image is ``px``: in level-0 pixels).
        patch_px: side of a patch in the pixels that the encoder saw.
    """

    recipe: Recipe
    side_um: float
    patch_px: int


@dataclass(frozen=True)
class ImageFacts:
    """Facts that one open image states about itself.

    Attributes:
        shape: pixels of level 0 per axis.
        spacing_um: spacing of level 0 per axis (where `unit` is ``px``: in pixels).
        unit, kind, reader, channels: the attributes of `AbstractImage` of the same names.
        assumed: whether the file states no spacing and got the one that the user assumes.
        bits: how many of its 16 bits the image uses; None for images of 8 bits.
        factor: the table's spacing divided by the file's, where they differ; else None.
        values: the kind of a volume's values (`images.read_count.VALUES`); None if not known.
        patches: facts about patches that are stored as vectors; None for images with pixels.
    """

    shape: tuple[int, ...]
    spacing_um: tuple[float, ...]
    unit: str
    kind: str
    reader: str
    channels: int = 3
    assumed: bool = False
    bits: int | None = None
    factor: float | None = None
    values: str | None = None
    patches: PatchFacts | None = None


def join_facts(facts: Sequence[ImageFacts]) -> ImageFacts:
    """Return the facts of several images that are read as one, as if they lay in one column.

    Args:
        facts: facts of the images, at least one.
    """
    first = facts[0]
    if len(facts) == 1:
        return first
    sizes_um = [size_um_from_shape(fact.shape, fact.spacing_um) for fact in facts]
    size_um = (sum(size[-2] for size in sizes_um), max(size[-1] for size in sizes_um))
    shape = tuple(
        shape_from_size_um([side], axis_um)[0]
        for side, axis_um in zip(size_um, first.spacing_um, strict=True)
    )
    return replace(first, shape=shape)


@dataclass(frozen=True)
class TrainedOn:
    """Facts of the images that a model was trained on.

    The last five are empty in models of older versions; `slices`, `anisotropy` and `values` are so
    for pictures, and `colours` for volumes.

    Attributes:
        n: number of images.
        kinds: kinds of image that occur: slide, picture, volume.
        channels: numbers of channels that occur.
        unit: the unit of all lengths, ``um`` or ``px``.
        spacing_um: smallest and largest mean spacing of an image.
        side_um: smallest and largest long side of an image.
        assumed: number of images that stated no spacing and got the assumed one.
        short_side_um: smallest and largest short side of an image.
        slices: smallest and largest number of voxels along the axis that has the fewest.
        anisotropy: smallest and largest ratio of a voxel's longest to its shortest side.
        values: kinds of values that occur (`images.read_count.VALUES`).
        colours: kinds of colours that occur in their pixels (`COLOURS`).
    """

    n: int
    kinds: tuple[str, ...]
    channels: tuple[int, ...]
    unit: str
    spacing_um: tuple[float, float]
    side_um: tuple[float, float]
    assumed: int = 0
    short_side_um: tuple[float, float] | None = None
    slices: tuple[int, int] | None = None
    anisotropy: tuple[float, float] | None = None
    values: tuple[str, ...] = ()
    colours: tuple[str, ...] = ()

    def differences(self, image: AbstractImage, glimpse: Pixels) -> list[str]:
        """Describe how an image differs from the training images, one phrase per difference.

        Args:
            image: the open image.
            glimpse: its glimpse, ``(*space, c)``.
        """
        differences = []
        if image.kind not in self.kinds:
            differences.append(f"a {image.kind}, not a {' or '.join(self.kinds)}")
        differences += self._differences_of_colours(image, glimpse)
        values = image.count.values
        if self.values and values is not None and values not in self.values:
            known = " or ".join(_VALUES[name] for name in self.values)
            differences.append(f"{_VALUES[values]}, not {known}")
        spacing = mean_spacing(image.known_spacing_um)
        side = long_side(image.shape, image.known_spacing_um)
        differences += _range_difference(
            "pixels", spacing, self.spacing_um, self.unit, _SPACING_FACTOR
        )
        differences += _range_difference("a long side", side, self.side_um, self.unit, _SIZE_FACTOR)
        if self.short_side_um is not None:
            side = _short_side(image.shape, image.known_spacing_um)
            differences += _range_difference(
                "a short side", side, self.short_side_um, self.unit, _SIZE_FACTOR
            )
        if image.ndim == 3:
            differences += self._differences_of_slices(image)
        return differences

    def _differences_of_colours(self, image: AbstractImage, glimpse: Pixels) -> list[str]:
        """Describe that an image is grey beside coloured training images, or the reverse.

        Its pixels decide where those of training are known, and else its number of channels.
        """
        colours = judge_colours(glimpse)
        if self.colours and image.ndim == 2:
            is_unlike = colours is not None and colours not in self.colours
        else:
            is_unlike = image.channels not in self.channels
            colours = "grey" if image.channels == 1 else "colour"
        if not is_unlike:
            return []
        if colours == "colour":
            return ["in colour, not grey"]
        stored = "" if image.channels == 1 else " (grey pixels, stored as colours)"
        return [f"grey, not in colour{stored}"]

    def _differences_of_slices(self, image: AbstractImage) -> list[str]:
        """Describe how a volume differs from the training volumes in number and form of slices."""
        differences, n = [], min(image.shape)
        if self.slices is not None:
            low, high = self.slices
            if n == 1 < low:
                differences.append(f"a single slice, not {low} or more")
            elif not low / _SLICES_FACTOR < n < high * _SLICES_FACTOR:
                differences.append(f"{n} slices, not {low} to {high}")
        if self.anisotropy is not None:
            differences += _range_difference(
                "slices thicker than their pixels by a factor",
                anisotropy(image.known_spacing_um),
                self.anisotropy,
                "",
                _ANISOTROPY_FACTOR,
            )
        return differences


def trained_on(facts: Iterable[ImageFacts]) -> TrainedOn:
    """Summarise the facts of the training images, to be stored with the model.

    Args:
        facts: facts of the images, at least one.
    """
    known = list(facts)
    spacings = [mean_spacing(f.spacing_um) for f in known]
    sides = [long_side(f.shape, f.spacing_um) for f in known]
    short_sides = [_short_side(f.shape, f.spacing_um) for f in known]
    volumes = [f for f in known if len(f.shape) == 3]
    slices = [min(f.shape) for f in volumes]
    anisotropies = [anisotropy(f.spacing_um) for f in volumes]
    return TrainedOn(
        n=len(known),
        kinds=tuple(sorted({f.kind for f in known})),
        channels=tuple(sorted({f.channels for f in known})),
        unit=known[0].unit,
        spacing_um=(min(spacings), max(spacings)),
        side_um=(min(sides), max(sides)),
        assumed=sum(f.assumed for f in known),
        short_side_um=(min(short_sides), max(short_sides)),
        slices=(min(slices), max(slices)) if volumes else None,
        anisotropy=(min(anisotropies), max(anisotropies)) if volumes else None,
        values=tuple(sorted({f.values for f in volumes if f.values is not None})),
    )


def _short_side(shape: Sequence[int], spacing_um: Sequence[float]) -> float:
    """Compute the shortest extent of an image, in the unit of its spacing."""
    return min(size_um_from_shape(shape, spacing_um))


def describe_unlikeness(image: AbstractImage, glimpse: Pixels, training: TrainedOn | None) -> str:
    """Describe in plain words how an image differs from the training images; "" if it does not.

    Args:
        image: the open image.
        glimpse: its glimpse, ``(*space, c)``.
        training: facts of the training images; None for models that store none.
    """
    differences = [] if training is None else training.differences(image, glimpse)
    # A volume may have few slices; a picture of a few rows shows nothing.
    side = min(image.shape) if image.ndim == 2 else max(image.shape)
    if image.stored is not None:
        return "; ".join(differences)  # there are no pixels to be blank
    if side < _MIN_SIDE_PX:
        differences.append(f"tiny ({' x '.join(map(str, image.shape))} pixels)")
    elif is_blank(glimpse):
        differences.append("blank")
    if image.count.unknown_px:
        share = 100 * image.count.unknown_px / max(image.count.decoded_px, 1)
        share_text = f"{share:.2g} %" if share >= 0.1 else "less than 0.1 %"
        differences.append(f"{share_text} of the voxels are no finite numbers, read as black")
    return "; ".join(differences)


def judge_colours(glimpse: Pixels) -> str | None:
    """Return which of `COLOURS` the pixels of a glimpse, ``(*space, c)``, have; None if blank."""
    if is_blank(glimpse):
        return None
    if glimpse.shape[-1] == 1:
        return "grey"
    spread = glimpse.max(-1).astype(np.int64) - glimpse.min(-1)
    share = float((spread > _COLOURED * white_value(glimpse.dtype)).mean())
    return "colour" if share > _COLOURED_SHARE else "grey"


def is_blank(glimpse: Pixels) -> bool:
    """Return whether all pixels of a glimpse, ``(*space, c)``, have nearly the same colour."""
    flat = glimpse.reshape(-1, glimpse.shape[-1])
    spread = flat.max(0).astype(np.int64) - flat.min(0)
    return bool(spread.max() < _BLANK * white_value(glimpse.dtype))


def _range_difference(
    quantity: str, value: float, span: Sequence[float], unit: str, factor: float
) -> list[str]:
    """Describe a value that lies more than `factor` times outside a range; [] for one inside."""
    low, high = span
    if low / factor < value < high * factor:
        return []
    expected = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    return [f"{quantity} of {value:.3g} {unit}".rstrip() + f", not {expected}"]
