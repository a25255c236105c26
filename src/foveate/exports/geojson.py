"""Evidence as GeoJSON for QuPath: closed polygons in level-0 pixels, ``(x, y)``."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from foveate._version import __version__
from foveate.errors import BoxError, MissingSpacing
from foveate.exports.base import About, AbstractExport
from foveate.files.atomic import json_text
from foveate.geometry import Box, px0_from_um
from foveate.heatmaps.glass import on_foreground
from foveate.heatmaps.raster import ranked, scale_of, weight_colours
from foveate.images.evidence import Evidence
from foveate.images.image import AbstractImage
from foveate.wording import printable_name

_BINS = (
    (8.0, "8 times an even share or more"),
    (4.0, "4 to 8 times an even share"),
    (2.0, "2 to 4 times an even share"),
    (1.25, "up to twice an even share"),
    (0.0, "about an even share or less"),
)
"""Lower limit in even shares, and name; equal for all images, so that they can be compared."""


class GeojsonExport(AbstractExport):
    """The heaviest regions as tiles of QuPath."""

    title: ClassVar[str] = "GeoJSON"
    suffix: ClassVar[str] = ".geojson"

    def render(self, image: AbstractImage, evidence: Evidence, about: About) -> bytes:
        """Return the collection of `build_geojson` as JSON.

        Args:
            image: the image, open.
            evidence: boxes that the answer comes from; may be empty.
            about: texts about the answer.
        """
        return json_text(build_geojson(image, evidence, metadata=about.texts)).encode()


def build_geojson(
    image: AbstractImage,
    evidence: Evidence,
    *,
    top: int = 200,
    metadata: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Turn the heaviest boxes into a QuPath FeatureCollection of tiles.

    The corner of the scanned part, where the file states one, is ``(0, 0)``, as in QuPath; else the
    corner of the whole canvas. Boxes on the glass of a slide are left out. The class of a box
    states its weight in multiples of an even share, which is the weight that all regions would have
    if none were preferred.

    Args:
        image: image that the boxes lie on.
        evidence: boxes and their weights.
        top: largest number of boxes; viewers cannot show a hundred thousand.
        metadata: texts to store with every box: label, prediction, probabilities.

    Returns:
        A GeoJSON object, coordinates ``(x, y)`` in level-0 pixels.

    Raises:
        BoxError: image and evidence differ in their axes.
        MissingSpacing: the image states no pixel size, so level-0 pixels are not known.
    """
    if len(evidence) and evidence.origin_um.shape[1] != image.ndim:
        raise BoxError(
            f"evidence with {evidence.origin_um.shape[1]} axes, image {image.ndim}: give the image "
            "that it was made from"
        )
    if image.stored is not None and not image.stored.px0_known:
        raise MissingSpacing(
            f"{image.path}: counts in micrometres and states no pixel size of the slide, so nobody "
            "knows its level-0 pixels: take --export png"
        )
    origin, shift = "slide", (0.0, 0.0)
    if image.bounds_px0 is not None:
        y, x = image.bounds_px0.origin[-2:]
        origin, shift = "bounds", (x, y)
    scale, shown = scale_of(evidence), on_foreground(image, evidence)
    times = scale.times_even(shown.weight)
    words = {**(metadata or {}), "origin": origin, "image": printable_name(image.path.name)}
    features = [
        _build_feature(image, shown, int(i), rank, float(times[i]), shift, words)
        for rank, i in enumerate(ranked(shown)[:top], 1)
    ]
    about = _describe_collection(evidence, shown) | {"written": len(features)}
    about |= {"origin": origin, "origin_px0_xy": list(shift)}
    return {"type": "FeatureCollection", "properties": about, "features": features}


def _describe_collection(evidence: Evidence, shown: Evidence) -> dict[str, Any]:
    return {
        "generator": f"foveate {__version__}",
        "frame": "level-0 pixels (x, y)",
        "boxes": len(evidence),
        "on_background": len(evidence) - len(shown),
        "remainder": evidence.remainder,
        "indifferent": scale_of(evidence).indifferent,
    }


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
    k = next(k for k, (least, _) in enumerate(_BINS) if times >= least)
    bright = 1 - k / (len(_BINS) - 1)
    red, green, blue, _ = weight_colours(np.asarray(bright)).tolist()
    return _BINS[k][1], [round(255 * v) for v in (red, green, blue)]
