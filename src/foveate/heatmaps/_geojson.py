"""Evidence as QuPath reads it: closed polygons in level-0 pixels, ``(x, y)``."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from foveate import __version__
from foveate.atomic import write_json
from foveate.errors import BoxError, OptionError, legible
from foveate.evidence import Evidence
from foveate.geometry import Box, px0_from_um
from foveate.heatmaps.base import COLOURS, ranked, relative
from foveate.image import AbstractImage

Origin = Literal["auto", "slide", "bounds"]

_BINS = 5


def write_geojson(
    image: AbstractImage,
    evidence: Evidence,
    path: Path,
    *,
    top: int = 200,
    origin: Origin = "auto",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write the heaviest boxes as a QuPath FeatureCollection of tiles.

    Args:
        image: whose pixels the boxes are drawn on.
        evidence: where the model looked.
        path: of the file; its name ends in ``.geojson``.
        top: at most so many boxes, since viewers choke on a hundred thousand.
        origin: what ``(0, 0)`` is: the corner of the whole canvas (``slide``) or of the scanned
            part (``bounds``), where QuPath puts it whenever the file states one (``auto``).
        metadata: words to keep with every box: label, prediction, probabilities.

    Raises:
        OptionError: `origin` is not known, or ``bounds`` is asked of a file that states none.
        BoxError: image and evidence differ in their axes.
        MissingSpacing: the image states no pixel size.
    """
    if len(evidence) and evidence.origin_um.shape[1] != image.ndim:
        raise BoxError(f"evidence with {evidence.origin_um.shape[1]} axes, image {image.ndim}")
    chosen, shift = _shift(image, origin)
    share = relative(evidence)
    words = {**dict(metadata or {}), "origin": chosen, "image": legible(image.path.name)}
    features = [
        _feature(image, evidence, int(i), rank, float(share[i]), shift, words)
        for rank, i in enumerate(ranked(evidence)[:top], 1)
    ]
    about = {
        "generator": f"foveate {__version__}",
        "frame": "level-0 pixels (x, y)",
        "origin": chosen,
        "origin_px0_xy": list(shift),
        "boxes": len(evidence),
        "written": len(features),
    }
    write_json(path, {"type": "FeatureCollection", "properties": about, "features": features})


def _shift(image: AbstractImage, origin: Origin) -> tuple[str, tuple[float, float]]:
    """The origin by name, and where it lies on the canvas, ``(x, y)`` in level-0 pixels."""
    if origin not in ("auto", "slide", "bounds"):
        raise OptionError(f"origin: got '{origin}', expected auto, slide or bounds")
    if origin == "slide" or (origin == "auto" and image.bounds_px0 is None):
        return "slide", (0.0, 0.0)
    if image.bounds_px0 is None:
        raise OptionError(f"{image.path}: the file states no bounds; use origin 'slide'")
    y, x = image.bounds_px0.origin[-2:]
    return "bounds", (x, y)


def _feature(
    image: AbstractImage,
    evidence: Evidence,
    i: int,
    rank: int,
    share: float,
    shift: tuple[float, float],
    words: Mapping[str, str],
) -> dict[str, Any]:
    px0 = px0_from_um(evidence.box_um(i), image.known_spacing_um)
    ring = _ring(px0, shift)
    geometry: dict[str, Any] = {"type": "Polygon", "coordinates": [ring]}
    if image.ndim == 3:
        geometry["plane"] = {"c": -1, "z": math.floor(px0.centre[0]), "t": 0}
    name, colour = _bin(share)
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"foveate:{words['image']}:{i}:{ring}")),
        "geometry": geometry,
        "properties": {
            "objectType": "tile",
            "name": f"#{rank}",
            "classification": {"name": name, "color": colour},
            "measurements": {"weight": float(evidence.weight[i]), "share": share, "rank": rank},
            "isLocked": True,
            "metadata": dict(words),
        },
    }


def _ring(box: Box, shift: tuple[float, float]) -> list[list[float]]:
    """The outline, closed; hundredths of a pixel are finer than any scanner."""
    (y0, x0), (y1, x1) = box.origin[-2:], box.end[-2:]
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    return [[round(x - shift[0], 2), round(y - shift[1], 2)] for x, y in corners]


def _bin(share: float) -> tuple[str, list[int]]:
    """Name and colour of the fifth of the largest weight that a box falls into."""
    import matplotlib

    k = min(int(share * _BINS), _BINS - 1)
    name = f"weight {100 * k // _BINS}-{100 * (k + 1) // _BINS} % of the largest"
    red, green, blue, _ = matplotlib.colormaps[COLOURS](0.15 + 0.8 * (k + 0.5) / _BINS)
    return name, [round(255 * v) for v in (red, green, blue)]
