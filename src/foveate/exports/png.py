"""The heatmap of an answer as PNG."""

from __future__ import annotations

from typing import ClassVar

from foveate.exports.base import About, AbstractExport
from foveate.heatmaps import render_heatmap
from foveate.images.evidence import Evidence
from foveate.images.image import AbstractImage


class PngExport(AbstractExport):
    """An overview with the weights drawn over it, and the heaviest regions at full resolution."""

    title: ClassVar[str] = "PNG"
    suffix: ClassVar[str] = ".png"

    def render(self, image: AbstractImage, evidence: Evidence, about: About) -> bytes:
        """Draw the picture of `foveate.heatmaps.render_heatmap`.

        Args:
            image: the image, open, so that its pixels can be read.
            evidence: boxes that the answer comes from; may be empty.
            about: texts about the answer.
        """
        return render_heatmap(image, evidence, title=about.image_id, caption=about.caption)
