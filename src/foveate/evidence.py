"""What a method says about where it looked: boxes and weights, and nothing else.

Heatmaps, GeoJSON, reports and the viewer know a method through `Evidence` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate.atomic import write_aside
from foveate.errors import NotFinite
from foveate.geometry import Box, Frame

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """Regions of one image and how much each counted for its prediction.

    Attributes:
        origin_um: corners of the boxes, ``(n, d)``, micrometres, axes ``(z,) y, x``.
        size_um: their sizes, ``(n, d)``.
        weight: ``(n,)``, at least 0; comparable within an image. Methods with attention give
            weights that sum to 1.

    Raises:
        ValueError: shapes disagree, or a weight is negative or not finite.
    """

    origin_um: Floats
    size_um: Floats
    weight: Floats

    def __post_init__(self) -> None:
        if self.origin_um.shape != self.size_um.shape or self.origin_um.ndim != 2:
            raise ValueError(f"boxes of {self.origin_um.shape} and {self.size_um.shape}")
        if self.weight.shape != self.origin_um.shape[:1]:
            raise ValueError(f"{self.weight.shape} weights for {len(self.origin_um)} boxes")
        if not (np.isfinite(self.weight).all() and (self.weight >= 0).all()):
            raise NotFinite("evidence weights must be finite and at least 0")

    def __len__(self) -> int:
        return len(self.weight)

    def box_um(self, i: int) -> Box:
        """The i-th box."""
        return Box(tuple(self.origin_um[i]), tuple(self.size_um[i]), Frame.UM)

    def peak_um(self) -> Box:
        """The box that counted most."""
        return self.box_um(int(np.argmax(self.weight)))

    def save(self, path: Path) -> None:
        """Write as ``.npz`` (arrays only; loading one never runs code)."""

        def write(aside: Path) -> None:
            with aside.open("wb") as file:
                np.savez_compressed(
                    file, origin_um=self.origin_um, size_um=self.size_um, weight=self.weight
                )

        write_aside(path, write)

    @staticmethod
    def load(path: Path) -> Evidence:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return Evidence(stored["origin_um"], stored["size_um"], stored["weight"])
