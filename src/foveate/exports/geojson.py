"""Evidence as GeoJSON for QuPath: closed polygons in level-0 pixels, ``(x, y)``."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from foveate._version import __version__
from foveate.errors import BoxError, OptionError, printable_name
from foveate.exports.base import About, AbstractExport
from foveate.files.atomic import json_text
from foveate.geometry import Box, px0_from_um
from foveate.heatmaps.glass import on_foreground
from foveate.heatmaps.raster import COLOURS, ranked, scale_of
from foveate.images.evidence import Evidence
from foveate.images.image import AbstractImage

Origin = Literal["auto", "slide", "bounds"]

_BINS = ((8.0, "8 times an even share or more"), (4.0, "4 to 8 times an even share"),
         (2.0, "2 to 4 times an even share"), (1.25, "up to twice an even share"),
         (0.0, "about an even share or less"))  # fmt: skip
"""Lower limit in even shares, and name; equal for all images, so that they can be compared."""


class GeojsonExport(AbstractExport):
    """The heaviest regions as tiles of QuPath."""

    title: ClassVar[str] = "GeoJSON"
    suffix: ClassVar[str] = ".geojson"

    def render(self, image: AbstractImage, evidence: Evidence, about: About) -> bytes:
        """Return the collection of `build_geojson` as JSON."""
        return json_text(build_geojson(image, evidence, metadata=about.numbers)).encode()


def build_geojson(
    image: AbstractImage,
    evidence: Evidence,
    *,
    top: int = 200,
    origin: Origin = "auto",
    metadata: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Turn the heaviest boxes into a QuPath FeatureCollection of tiles.

    Boxes on the glass of a slide are left out. The class of a box states its weight in multiples of
    an even share, which is the weight that all regions would have if none were preferred.

    Args:
        image: image that the boxes lie on.
        evidence: boxes and their weights.
        top: largest number of boxes; viewers cannot show a hundred thousand.
        origin: place of ``(0, 0)``: the corner of the whole canvas (``slide``) or of the scanned
            part (``bounds``), where QuPath puts it whenever the file states one (``auto``).
        metadata: texts to store with every box: label, prediction, probabilities.

    Returns:
        A GeoJSON object, coordinates ``(x, y)`` in level-0 pixels.

    Raises:
        OptionError: `origin` is not known, or ``bounds`` is asked of a file that states none.
        BoxError: image and evidence differ in their axes.
        MissingSpacing: the image states no pixel size.
    """
    if len(evidence) and evidence.origin_um.shape[1] != image.ndim:
        raise BoxError(f"evidence with {evidence.origin_um.shape[1]} axes, image {image.ndim}")
    chosen, shift = _choose_origin(image, origin)
    scale, shown = scale_of(evidence), on_foreground(image, evidence)
    times = scale.times_even(shown.weight)
    words = {**dict(metadata or {}), "origin": chosen, "image": printable_name(image.path.name)}
    features = [
        _build_feature(image, shown, int(i), rank, float(times[i]), shift, words)
        for rank, i in enumerate(ranked(shown)[:top], 1)
    ]
    about = {
        "generator": f"foveate {__version__}",
        "frame": "level-0 pixels (x, y)",
        "origin": chosen,
        "origin_px0_xy": list(shift),
        "boxes": len(evidence),
        "on_background": len(evidence) - len(shown),
        "remainder": evidence.remainder,
        "indifferent": scale.indifferent,
        "written": len(features),
    }
    return {"type": "FeatureCollection", "properties": about, "features": features}


def _choose_origin(image: AbstractImage, origin: Origin) -> tuple[str, tuple[float, float]]:
    """Choose the origin; return its name and its place ``(x, y)`` in level-0 pixels."""
    if origin not in ("auto", "slide", "bounds"):
        raise OptionError(f"origin: got '{origin}', expected auto, slide or bounds")
    if origin == "slide" or (origin == "auto" and image.bounds_px0 is None):
        return "slide", (0.0, 0.0)
    if image.bounds_px0 is None:
        raise OptionError(f"{image.path}: the file states no bounds; use origin 'slide'")
    y, x = image.bounds_px0.origin[-2:]
    return "bounds", (x, y)


def _build_feature(
    image: AbstractImage,
    evidence: Evidence,
    i: int,
    rank: int,
    times: float,
    shift: tuple[float, float],
    words: Mapping[str, str],
) -> dict[str, Any]:
    px0 = px0_from_um(evidence.box_um(i), image.known_spacing_um)
    ring = _outline(px0, shift)
    geometry: dict[str, Any] = {"type": "Polygon", "coordinates": [ring]}
    if image.ndim == 3:
        geometry["plane"] = {"c": -1, "z": math.floor(px0.centre[0]), "t": 0}
    name, colour = _choose_class(times)
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"foveate:{words['image']}:{i}:{ring}")),
        "geometry": geometry,
        "properties": {
            "objectType": "tile",
            "name": f"#{rank}",
            "classification": {"name": name, "color": colour},
            "measurements": {
                "weight": float(evidence.weight[i]),
                "times_even": times,
                "rank": rank,
            },
            "isLocked": True,
            "metadata": dict(words),
        },
    }


def _outline(box: Box, shift: tuple[float, float]) -> list[list[float]]:
    """Return the closed outline of a box, ``(x, y)``, rounded to hundredths of a pixel."""
    (y0, x0), (y1, x1) = box.origin[-2:], box.end[-2:]
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    return [[round(x - shift[0], 2), round(y - shift[1], 2)] for x, y in corners]


def _choose_class(times: float) -> tuple[str, list[int]]:
    """Return name and colour of the class of a weight in multiples of an even share."""
    import matplotlib

    k = next(k for k, (least, _) in enumerate(_BINS) if times >= least)
    bright = 1 - k / (len(_BINS) - 1)
    red, green, blue, _ = matplotlib.colormaps[COLOURS](0.15 + 0.8 * bright)
    return _BINS[k][1], [round(255 * v) for v in (red, green, blue)]
