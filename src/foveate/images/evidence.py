"""What a method says about where it looked: boxes and weights, and nothing else.

Heatmaps, GeoJSON, reports and the viewer know a method through `Evidence` alone.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate.errors import NotFinite
from foveate.files.atomic import write_bytes
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

    def to_bytes(self) -> bytes:
        """Return the content of a ``.npz`` file (arrays only; loading one never runs code)."""
        file = io.BytesIO()
        np.savez_compressed(
            file, origin_um=self.origin_um, size_um=self.size_um, weight=self.weight
        )
        return file.getvalue()

    def save(self, path: Path) -> None:
        """Write `to_bytes` to a file."""
        write_bytes(path, self.to_bytes())

    @staticmethod
    def load(path: Path) -> Evidence:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return Evidence(stored["origin_um"], stored["size_um"], stored["weight"])


class EvidenceList:
    """The evidence of a batch, one per image; no sequence, so that no wrapper walks into it.

    Args:
        parts: one per image.
    """

    def __init__(self, parts: Iterable[Evidence] = ()) -> None:
        self._parts = tuple(parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, i: int) -> Evidence:
        return self._parts[i]

    def __iter__(self) -> Iterator[Evidence]:
        return iter(self._parts)


def mean_evidence(parts: Sequence[Evidence]) -> Evidence:
    """The mean over models of where each looked at one image.

    All boxes are kept, with their weights divided by the number of models, so that weights which
    sum to 1 in each part sum to 1 again. A box that several models looked at (the same corner and
    size to a thousandth of a micrometre) becomes one with the sum of its weights: its mean weight.

    Args:
        parts: one per model, at least one; all with the same axes.
    """
    if len(parts) == 1:
        return parts[0]
    origin = np.concatenate([part.origin_um for part in parts])
    size = np.concatenate([part.size_um for part in parts])
    weight = np.concatenate([part.weight for part in parts]) / len(parts)
    boxes = np.round(np.concatenate([origin, size], 1), 3)
    _, first, number = np.unique(boxes, axis=0, return_index=True, return_inverse=True)
    total = np.zeros(len(first))
    np.add.at(total, number.reshape(-1), weight)
    order = np.argsort(first)  # in the order of the first model that looked there
    return Evidence(origin[first][order], size[first][order], total[order])
