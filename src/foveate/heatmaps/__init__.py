"""Show evidence as a picture, from an image and its evidence alone.

Boxes are drawn from their float coordinates by one affine map, not by counting tiles, so that
nothing drifts towards the bottom right of a large slide.
"""

from __future__ import annotations

from foveate.heatmaps.picture import render_heatmap

__all__ = ["render_heatmap"]
