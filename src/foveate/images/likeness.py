"""Compare an image with those that a model was trained on: kind, channels, spacing and size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.geometry import long_side, mean_spacing
from foveate.images.image import AbstractImage
from foveate.images.resample import Pixels, white_value

_SIZE_FACTOR, _SPACING_FACTOR = 10.0, 4.0
_MIN_SIDE_PX = 16
_BLANK = 0.03
"""A glimpse is blank if its values span less than this share of the range of its dtype."""


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


@dataclass(frozen=True)
class TrainedOn:
    """Facts of the images that a model was trained on.

    Attributes:
        n: number of images.
        kinds: kinds of image that occur: slide, picture, volume.
        channels: numbers of channels that occur.
        unit: the unit of all lengths, ``um`` or ``px``.
        spacing_um: smallest and largest mean spacing of an image.
        side_um: smallest and largest long side of an image.
        assumed: number of images that stated no spacing and got the assumed one.
    """

    n: int
    kinds: tuple[str, ...]
    channels: tuple[int, ...]
    unit: str
    spacing_um: tuple[float, float]
    side_um: tuple[float, float]
    assumed: int = 0

    def differences(self, image: AbstractImage) -> list[str]:
        """Describe how an image differs from the training images, one phrase per difference."""
        differences = []
        if image.kind not in self.kinds:
            differences.append(f"a {image.kind}, not a {' or '.join(self.kinds)}")
        if image.channels not in self.channels:
            differences.append(
                "grey, not in colour" if image.channels == 1 else "in colour, not grey"
            )
        spacing = mean_spacing(image.known_spacing_um)
        side = long_side(image.shape, image.known_spacing_um)
        differences += _range_difference(
            "pixels", spacing, self.spacing_um, self.unit, _SPACING_FACTOR
        )
        differences += _range_difference("a long side", side, self.side_um, self.unit, _SIZE_FACTOR)
        return differences


def trained_on(facts: Iterable[ImageFacts]) -> TrainedOn:
    """Summarise the facts of the training images, to be stored with the model.

    Args:
        facts: facts of the images, at least one.
    """
    known = list(facts)
    spacings = [mean_spacing(f.spacing_um) for f in known]
    sides = [long_side(f.shape, f.spacing_um) for f in known]
    return TrainedOn(
        n=len(known),
        kinds=tuple(sorted({f.kind for f in known})),
        channels=tuple(sorted({f.channels for f in known})),
        unit=known[0].unit,
        spacing_um=(min(spacings), max(spacings)),
        side_um=(min(sides), max(sides)),
        assumed=sum(f.assumed for f in known),
    )


def describe_unlikeness(image: AbstractImage, glimpse: Pixels, training: TrainedOn | None) -> str:
    """Describe in plain words how an image differs from the training images; "" if it does not.

    Args:
        image: the open image.
        glimpse: its glimpse, ``(*space, c)``.
        training: facts of the training images; None for models that store none.
    """
    differences = [] if training is None else training.differences(image)
    # A volume may have few slices; a picture of a few rows shows nothing.
    side = min(image.shape) if image.ndim == 2 else max(image.shape)
    if side < _MIN_SIDE_PX:
        differences.append(f"tiny ({' x '.join(map(str, image.shape))} pixels)")
    elif is_blank(glimpse):
        differences.append("blank")
    if image.count.unknown_px:
        share = 100 * image.count.unknown_px / max(image.count.decoded_px, 1)
        share_text = f"{share:.2g} %" if share >= 0.1 else "less than 0.1 %"
        differences.append(f"{share_text} of the voxels are no finite numbers, read as black")
    return "; ".join(differences)


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
    return [f"{quantity} of {value:.3g} {unit}, not {expected}"]
