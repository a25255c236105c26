"""Where a model looked: a map, a picture and a QuPath file, from an image and its evidence alone.

Boxes are drawn from their own float coordinates by one affine map, never by counting tiles, so
nothing drifts towards the bottom right of a large slide.
"""

from __future__ import annotations

from foveate.heatmaps.geojson import build_geojson
from foveate.heatmaps.picture import render_heatmap

__all__ = ["build_geojson", "render_heatmap"]
