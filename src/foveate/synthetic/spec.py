"""The values that describe a synthetic slide: specification, tissue, nodules and textures."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.errors import OptionError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

BENIGN_NUCLEUS_PX0 = 5.0
"""Radius of the nuclei in a benign nodule."""

DECIDING_NUCLEUS_PX0 = 7.5
"""Radius of the nuclei in a deciding nodule: the only difference to a benign one."""

TEXTURE_PX0 = 512
"""Period of the nodule textures."""

STROMA_PX0 = 1024
"""Period of the stroma texture and of the wobble of outlines; a multiple of all tile sizes."""

LEVEL_FACTOR = 4
"""By how much each level is coarser than the one before."""

MIN_LEVEL_PX = 512
"""Levels are added until no side is longer than this, in pixels."""


@dataclass(frozen=True)
class SlideSpec:
    """The appearance of slides; ranges are inclusive, and draws are uniform for both classes.

    Attributes:
        shape_px0: level-0 pixels ``(y, x)``.
        spacing_um: micrometres per level-0 pixel ``(y, x)``.
        tissue_area_px0: range of the total area of tissue in level-0 pixels.
        n_islands: range of the number of islands of tissue.
        n_nodules: range of the number of nodules of both kinds together.
        n_deciding: range of the number of deciding nodules among them, in a positive slide.
        nodule_diameter_px0: range of the diameter of a nodule.
        tile_px: side of the stored tiles: 128, 256 or 512.
        quality: quality of the JPEG tiles, 1 to 100.

    Raises:
        OptionError: a value is not allowed, or the nodules cannot fit into the tissue.
    """

    shape_px0: tuple[int, int] = (16384, 16384)
    spacing_um: tuple[float, float] = (0.5, 0.5)
    tissue_area_px0: tuple[float, float] = (6e6, 8e6)
    n_islands: tuple[int, int] = (3, 5)
    n_nodules: tuple[int, int] = (16, 28)
    n_deciding: tuple[int, int] = (3, 6)
    nodule_diameter_px0: tuple[float, float] = (224.0, 288.0)
    tile_px: int = 256
    quality: int = 85

    def __post_init__(self) -> None:
        for name in (
            "tissue_area_px0",
            "n_islands",
            "n_nodules",
            "n_deciding",
            "nodule_diameter_px0",
        ):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise OptionError(f"{name}: need 0 < lowest <= highest, got {(low, high)}")
        if self.tile_px not in (128, 256, 512):
            raise OptionError(f"tile_px: got {self.tile_px}, allowed: 128, 256, 512")
        if not 1 <= self.quality <= 100:
            raise OptionError(f"quality: got {self.quality}, allowed: 1 to 100")
        if min(self.shape_px0) < 4 * self.tile_px or min(self.spacing_um) <= 0:
            raise OptionError(
                f"shape_px0 {self.shape_px0} needs at least four tiles per side, and spacing_um "
                f"{self.spacing_um} positive numbers"
            )
        if self.n_deciding[1] > self.n_nodules[0]:
            raise OptionError(
                f"n_deciding: got {self.n_deciding}, expected at most the least of n_nodules "
                f"{self.n_nodules}"
            )
        if self.nodule_diameter_px0[1] > TEXTURE_PX0:
            raise OptionError(f"nodule_diameter_px0: expected at most {TEXTURE_PX0}")

    @property
    def level_shapes(self) -> tuple[tuple[int, int], ...]:
        """Pixels per level, finest first; pixels that level 0 covers only partly are left out."""
        shapes = [self.shape_px0]
        while max(shapes[-1]) > MIN_LEVEL_PX:
            y, x = shapes[-1]
            shapes.append((y // LEVEL_FACTOR, x // LEVEL_FACTOR))
        return tuple(shapes)


@dataclass(frozen=True)
class CohortSpec:
    """The slides and patients of a cohort.

    Attributes:
        n_slides: number of slides, without the one of `giga_spec`.
        n_patients: number of patients, from half of `n_slides` to `n_slides`.
        spec: the appearance of the slides.
        giga_spec: the appearance of one more, larger slide; None for none.
        seed: seed of all that is drawn.
    """

    n_slides: int
    n_patients: int
    spec: SlideSpec
    giga_spec: SlideSpec | None = None
    seed: int = 0


@dataclass(frozen=True)
class Nodule:
    """One nodule.

    Attributes:
        centre_px0: its centre ``(y, x)``.
        radius_px0: its mean radius.
        deciding: whether it makes the slide positive.
    """

    centre_px0: tuple[float, float]
    radius_px0: float
    deciding: bool


@dataclass(frozen=True)
class Island:
    """A piece of tissue: a stretched, rotated disc with a wavy outline.

    Attributes:
        centre_px0: its centre ``(y, x)``.
        radius_px0: mean radius before stretching.
        stretch: factor by which the first axis is longer, and the second shorter.
        angle: angle of the first axis, in radians.
        waves: relative amplitude and phase of the outline's harmonics 2, 3, …
        phase_px0: shift ``(y, x)`` of the stroma texture, a multiple of the tile.
    """

    centre_px0: tuple[float, float]
    radius_px0: float
    stretch: float
    angle: float
    waves: tuple[tuple[float, float], ...]
    phase_px0: tuple[int, int]

    @functools.cached_property
    def ends_px0(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Lowest and highest ``y``, and lowest and highest ``x``, of the outline."""
        theta = np.linspace(0, 2 * math.pi, 512)
        outline = self.radius_px0 * self._outline(theta)
        u, v = outline * np.cos(theta) * self.stretch, outline * np.sin(theta) / self.stretch
        sin, cos = math.sin(self.angle), math.cos(self.angle)
        y = self.centre_px0[0] + sin * u + cos * v
        x = self.centre_px0[1] + cos * u - sin * v
        return (float(y.min()), float(y.max())), (float(x.min()), float(x.max()))

    def depth_px0(self, y: NDArray[np.floating], x: NDArray[np.floating]) -> Floats:
        """Estimate how deep inside the outline points lie, in pixels; negative outside.

        Args:
            y: coordinates of the points, of any shape.
            x: coordinates of the points, of a shape that broadcasts with that of `y`.
        """
        dy, dx = y - self.centre_px0[0], x - self.centre_px0[1]
        sin, cos = math.sin(self.angle), math.cos(self.angle)
        u, v = (cos * dx + sin * dy) / self.stretch, (cos * dy - sin * dx) * self.stretch
        outline = self._outline(np.arctan2(v, u))
        return np.asarray(self.radius_px0 * outline - np.hypot(u, v), np.float32)

    def _outline(self, theta: NDArray[np.floating]) -> NDArray[np.floating]:
        """Compute the radius of the outline relative to the mean, at angles of any shape."""
        outline = np.ones_like(theta)
        for m, (amplitude, phase) in enumerate(self.waves, start=2):
            outline += amplitude * np.cos(m * theta + phase)
        return outline


@dataclass(frozen=True)
class Layout:
    """The places of tissue and nodules on a slide.

    Attributes:
        islands: the islands of tissue.
        nodules: the nodules.
        textures: for each nodule, the variant of its texture and the texture's shift ``y, x``.
    """

    islands: tuple[Island, ...]
    nodules: tuple[Nodule, ...]
    textures: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Bank:
    """Seamless textures as differences from the colour of glass; both axes wrap around.

    Attributes:
        stroma: texture of stroma, ``(3, STROMA_PX0, STROMA_PX0)``.
        nodules: textures of nodules, ``(variant, benign or deciding, 3, TEXTURE_PX0,
            TEXTURE_PX0)``.
        wobble: displacement of outlines in level-0 pixels, ``(STROMA_PX0, STROMA_PX0)``.
    """

    stroma: Floats
    nodules: Floats
    wobble: Floats


@dataclass(frozen=True)
class Paint:
    """The textures of one slide in its colours, repeated so that any tile is one slice of them.

    Attributes:
        glass: colour of glass, ``(3,)``.
        stroma: texture of stroma, ``(STROMA_PX0, STROMA_PX0, 3)``.
        nodules: per variant the benign and the deciding texture, ``(2 TEXTURE_PX0, …, 3)``.
        wobble: displacement of outlines in level-0 pixels, ``(STROMA_PX0 + TEXTURE_PX0, …)``.
    """

    glass: Bytes
    stroma: Bytes
    nodules: tuple[tuple[Bytes, Bytes], ...]
    wobble: Floats


@dataclass(frozen=True)
class SlideTile:
    """One tile of level 0.

    Attributes:
        pixels: its pixels, ``(tile_px, tile_px, 3)``.
        key: equal for tiles with equal pixels; None for a tile that does not repeat.
    """

    pixels: Bytes
    key: tuple[int, int] | None
