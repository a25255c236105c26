"""Patches that a file stores as vectors: they stand in for pixels, which the file does not hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from foveate.images.evidence import Floats

Vectors = Float32[np.ndarray, "_n d"]
"""Vectors ``(n, d)`` of patches."""


@dataclass(frozen=True)
class Recipe:
    """How stored vectors were made, as far as their file states it.

    Only vectors of one recipe can be compared: the same name of an encoder may stand for vectors of
    other lengths, and for pixels that were prepared in another way.

    Attributes:
        encoder: name of the encoder; empty where the file does not state it.
        dim: how many numbers a vector has.
        revision: version or checksum of the encoder's weights; may be empty.
        transform: how pixels were prepared for the encoder; may be empty.
    """

    encoder: str
    dim: int
    revision: str = ""
    transform: str = ""

    def describe(self) -> str:
        """Describe the vectors in a few words: ``1024 numbers of 'uni_v1'``."""
        return f"{self.dim} numbers of {_quote(self.encoder)}"

    def compare(self, other: Recipe) -> str:
        """Describe the first difference to another recipe; empty where there is none.

        Args:
            other: the recipe that this one is compared with.
        """
        for field in fields(self):
            here, there = getattr(self, field.name), getattr(other, field.name)
            if here != there:
                return f"{_NAMES[field.name]} {_quote(here)}, not {_quote(there)}"
        return ""


_NAMES = {
    "encoder": "vectors of encoder",
    "dim": "vectors of length",
    "revision": "vectors of encoder revision",
    "transform": "vectors of pixels prepared as",
}
"""How a difference in a field of a recipe is introduced."""


def _quote(value: object) -> str:
    if isinstance(value, str):
        return f"'{value}'" if value else "an unknown name"
    return str(value)


@dataclass(frozen=True)
class StoredPatches:
    """The patches of one file of features.

    Attributes:
        recipe: how the vectors were made.
        corner_px0: upper left corners ``(n, 2)``, in the order y, x, in level-0 pixels of the image
            that the file makes.
        side_px0: side of a patch in level-0 pixels.
        patch_px: side of a patch in the pixels that the encoder saw.
        in_um: whether the file states places in micrometres, so that no other spacing can move
            them.
        px0_known: whether level-0 pixels are those of the slide; False for a file in micrometres
            that states no size of a pixel.
        read: reads the vectors of the rows with these indices, ``(m, dim)`` float32.
    """

    recipe: Recipe
    corner_px0: Floats
    side_px0: float
    patch_px: int
    in_um: bool
    px0_known: bool
    read: Callable[[NDArray[np.int64]], Vectors]

    def __len__(self) -> int:
        return len(self.corner_px0)
