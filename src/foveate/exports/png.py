"""A picture of the image with the regions that counted, as PNG."""

from __future__ import annotations

from typing import ClassVar

from foveate.exports.base import About, AbstractExport
from foveate.heatmaps import render_heatmap
from foveate.images.evidence import Evidence
from foveate.images.image import AbstractImage


class PngExport(AbstractExport):
    """An overview with the weights laid over it, and the heaviest regions in full."""

    title: ClassVar[str] = "PNG"
    suffix: ClassVar[str] = ".png"

    def render(self, image: AbstractImage, evidence: Evidence, about: About) -> bytes:
        """Draw the picture of `foveate.heatmaps.render_heatmap`."""
        return render_heatmap(image, evidence, title=about.image_id, caption=about.caption)
