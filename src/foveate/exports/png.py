"""A picture of the image with the regions that counted, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from foveate.exports.base import About, AbstractExport
from foveate.heatmaps import draw_heatmap
from foveate.images.evidence import Evidence
from foveate.images.image import AbstractImage


class PngExport(AbstractExport):
    """An overview with the weights laid over it, and the heaviest regions in full."""

    title: ClassVar[str] = "PNG"
    suffix: ClassVar[str] = ".png"

    def write(self, image: AbstractImage, evidence: Evidence, path: Path, about: About) -> None:
        """Draw the picture (`foveate.heatmaps.draw_heatmap`)."""
        draw_heatmap(image, evidence, path, title=about.image_id, caption=about.caption)
