"""Draw the places of tissue and nodules; the class changes only which nodules are deciding."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from foveate.errors import OptionError
from foveate.synthetic.spec import STROMA_PX0, Island, Layout, Nodule, SlideSpec

_MARGIN_PX0 = 24
_TRIES = 300
_RESTARTS = 30


def draw_layout(spec: SlideSpec, rng: np.random.Generator, *, positive: bool) -> Layout:
    """Draw islands and nodules, and choose the deciding ones.

    Args:
        spec: the appearance of the slide.
        rng: the generator to draw from.
        positive: whether the slide has deciding nodules.

    Raises:
        OptionError: the tissue does not fit on the slide, or the nodules not into the tissue.
    """
    for _ in range(_RESTARTS):
        islands = _draw_islands(spec, rng)
        nodules = _draw_nodules(spec, islands, rng) if islands else None
        if nodules:
            break
    else:
        raise OptionError(
            f"{spec.n_nodules} nodules in {spec.tissue_area_px0} level-0 pixels of tissue do not "
            f"fit on {spec.shape_px0}: ask for fewer nodules, other tissue, or a larger slide"
        )
    # Drawn for negative slides too, so that later draws are the same for both classes.
    deciding = rng.permutation(len(nodules))[: rng.integers(*spec.n_deciding, endpoint=True)]
    chosen = set(deciding.tolist()) if positive else set()
    textures = [
        tuple(map(int, (rng.integers(2), *(16 * rng.integers(32, size=2))))) for _ in nodules
    ]
    return Layout(
        tuple(islands),
        tuple(Nodule(centre, radius, i in chosen) for i, (centre, radius) in enumerate(nodules)),
        tuple((v, y, x) for v, y, x in textures),
    )


def _draw_islands(spec: SlideSpec, rng: np.random.Generator) -> list[Island]:
    """Draw islands of the specified total area that do not touch; [] if they do not fit."""
    total = rng.uniform(*spec.tissue_area_px0)
    shares = rng.uniform(0.6, 1.4, rng.integers(*spec.n_islands, endpoint=True))
    islands: list[Island] = []
    for area in sorted(total * shares / shares.sum(), reverse=True):
        for _ in range(_TRIES):
            island = _draw_island(spec, float(area), rng)
            if island and not any(_touch(island, other) for other in islands):
                islands.append(island)
                break
        else:
            return []
    return islands


def _draw_island(spec: SlideSpec, area: float, rng: np.random.Generator) -> Island | None:
    """Draw an island of an area at a random place; None if its shape is too large for the slide."""
    waves = tuple(
        (float(rng.uniform(0.4, 1) * 0.26 / m), float(rng.uniform(0, 2 * math.pi)))
        for m in range(2, 9)
    )
    # The area of r(theta) is half the integral of its square: pi r^2 (1 + sum a^2 / 2).
    radius = math.sqrt(area / (math.pi * (1 + sum(a * a for a, _ in waves) / 2)))
    phases = spec.tile_px * rng.integers(STROMA_PX0 // spec.tile_px, size=2)
    island = Island(
        (0.0, 0.0),
        radius,
        float(rng.uniform(1, 1.5)),
        float(rng.uniform(0, math.pi)),
        waves,
        (int(phases[0]), int(phases[1])),
    )
    centre = []
    for n, (low, high) in zip(spec.shape_px0, island.ends_px0, strict=True):
        first, last = _MARGIN_PX0 - low, n - _MARGIN_PX0 - high
        if first > last:
            return None
        centre.append(float(rng.uniform(first, last)))
    return replace(island, centre_px0=(centre[0], centre[1]))


def _touch(a: Island, b: Island) -> bool:
    """Return whether the rectangles around two islands, with a margin, overlap."""
    return all(
        low_a < high_b + _MARGIN_PX0 and low_b < high_a + _MARGIN_PX0
        for (low_a, high_a), (low_b, high_b) in zip(a.ends_px0, b.ends_px0, strict=True)
    )


def _draw_nodules(
    spec: SlideSpec, islands: list[Island], rng: np.random.Generator
) -> list[tuple[tuple[float, float], float]] | None:
    """Draw centres and radii of nodules inside islands that do not touch, or None."""
    placed: list[tuple[tuple[float, float], float]] = []
    areas = np.array([i.radius_px0**2 for i in islands])
    for _ in range(rng.integers(*spec.n_nodules, endpoint=True)):
        radius = float(rng.uniform(*spec.nodule_diameter_px0)) / 2
        for _ in range(_TRIES):
            island = islands[int(rng.choice(len(islands), p=areas / areas.sum()))]
            y, x = (float(rng.uniform(*ends)) for ends in island.ends_px0)
            if _is_inside(island, y, x, radius) and all(
                math.dist((y, x), c) > radius + r + _MARGIN_PX0 for c, r in placed
            ):
                placed.append(((y, x), radius))
                break
        else:
            return None
    return placed


def _is_inside(island: Island, y: float, x: float, radius: float) -> bool:
    """Return whether a disc lies inside an island, with a margin."""
    angle = np.arange(24) * (math.pi / 12)
    far = radius + _MARGIN_PX0
    return bool((island.depth_px0(y + far * np.sin(angle), x + far * np.cos(angle)) > 8).all())
