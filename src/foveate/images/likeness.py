"""Whether an image resembles those that a model was trained on, as far as facts tell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from foveate.images.image import AbstractImage
from foveate.images.resample import Pixels, brightest

_SIZE_FACTOR, _SPACING_FACTOR = 10.0, 4.0
_LEAST_SIDE_PX = 16
_BLANK = 0.03
"""Share of the range of values that the glimpse of an image that shows something exceeds."""


@dataclass(frozen=True)
class ImageFacts:
    """What one open file says about itself.

    Attributes:
        shape: of level 0, in pixels.
        spacing_um: of level 0, per axis (`unit` px: in pixels).
        unit, kind, reader, channels: as `AbstractImage` has them.
        assumed: whether its spacing was given to all that state none.
        bits: how many it uses of 16; None for images of 8.
        factor: how many times the file's spacing the table's is, where they differ.
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
        n: how many images.
        kinds: of files: slide, picture, volume.
        channels: numbers of channels that occur.
        unit: what lengths count in, ``um`` or ``px``.
        spacing: least and largest length of a pixel (of unequal axes the geometric mean).
        side: least and largest long side of an image.
        assumed: how many stated no spacing and got the assumed one.
    """

    n: int
    kinds: tuple[str, ...]
    channels: tuple[int, ...]
    unit: str
    spacing: tuple[float, float]
    side: tuple[float, float]
    assumed: int = 0

    def unlike(self, image: AbstractImage) -> list[str]:
        """How an image differs from all that the model was trained on, each in plain words."""
        found = []
        if image.kind not in self.kinds:
            found.append(f"a {image.kind}, not a {' or '.join(self.kinds)}")
        if image.channels not in self.channels:
            found.append("grey, not in colour" if image.channels == 1 else "in colour, not grey")
        spacing, side = mean_spacing(image), long_side(image)
        found += _off("pixels", spacing, self.spacing, self.unit, _SPACING_FACTOR)
        found += _off("a long side", side, self.side, self.unit, _SIZE_FACTOR)
        return found


def trained_on(facts: Iterable[ImageFacts]) -> TrainedOn:
    """What a model trained on these images can know of them later."""
    known = list(facts)
    spacings = [math.prod(f.spacing_um) ** (1 / len(f.spacing_um)) for f in known]
    sides = [max(n * s for n, s in zip(f.shape, f.spacing_um, strict=True)) for f in known]
    return TrainedOn(
        n=len(known),
        kinds=tuple(sorted({f.kind for f in known})),
        channels=tuple(sorted({f.channels for f in known})),
        unit=known[0].unit,
        spacing=(min(spacings), max(spacings)),
        side=(min(sides), max(sides)),
        assumed=sum(f.assumed for f in known),
    )


def unlike(image: AbstractImage, glimpse: Pixels, known: TrainedOn | None) -> str:
    """What sets an image apart from the images of training, in plain words; empty if nothing does.

    Args:
        image: open.
        glimpse: of it, ``(*space, c)``.
        known: facts of the training images; None for models that hold none.
    """
    found = [] if known is None else known.unlike(image)
    if max(image.shape) < _LEAST_SIDE_PX:
        found.append(f"tiny ({' x '.join(map(str, image.shape))} pixels)")
    elif is_blank(glimpse):
        found.append("blank")
    return "; ".join(found)


def is_blank(glimpse: Pixels) -> bool:
    """Whether nothing can be seen: all pixels, ``(*space, c)``, have nearly one colour."""
    flat = glimpse.reshape(-1, glimpse.shape[-1])
    spread = flat.max(0).astype(np.int64) - flat.min(0)
    return bool(spread.max() < _BLANK * brightest(glimpse.dtype))


def mean_spacing(image: AbstractImage) -> float:
    """The length of a level-0 pixel, of unequal axes the geometric mean."""
    spacing = image.known_spacing_um
    return float(math.prod(spacing) ** (1 / len(spacing)))


def long_side(image: AbstractImage) -> float:
    """The longest extent of an image, in the unit of its spacing."""
    return max(n * s for n, s in zip(image.shape, image.known_spacing_um, strict=True))


def _off(what: str, value: float, span: Sequence[float], unit: str, factor: float) -> list[str]:
    low, high = span
    if low / factor < value < high * factor:
        return []
    said = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    return [f"{what} of {value:.3g} {unit}, not {said}"]
