"""Turn the measured values of one image into greys of 16 bits.

Part of the readers `nifti`, `tiff` and `array`. Measured values, such as floating-point numbers, do
not say which of them are black and white.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal, final

import numpy as np
from jaxtyping import Float64, Shaped, UInt16

from foveate.errors import UnreadableImage
from foveate.formats.grey_scale import HOUNSFIELD, GreyScale, choose_scale, kind_of_values
from foveate.images.read_count import ReadCount
from foveate.messages.warn import warn_once


@final
class MeasuredValues:
    """The scale of one image, by which its values become greys. Safe to use from several threads.

    Args:
        path: the file, for messages.
        count: counts the values that are no finite numbers.
        what: what the values are of.
        scale: the scale; None if it is to be chosen from a sample of the values.

    Attributes:
        scale: the scale, once it is chosen.
    """

    def __init__(
        self,
        path: Path,
        count: ReadCount,
        what: Literal["pixel", "voxel"],
        scale: GreyScale | None = None,
    ) -> None:
        self._path, self._count, self._what = path, count, what
        self.scale = scale

    def choose(self, values: Shaped[np.ndarray, "*shape"]) -> None:
        """Choose the scale from a sample of the values.

        Args:
            values: the sample, of any shape, in which numbers may be missing.

        Raises:
            UnreadableImage: the sample holds no finite number.
        """
        values = _as_doubles(values).ravel()
        values = values[np.isfinite(values)]
        if not values.size:
            kind = "volume" if self._what == "voxel" else "image"
            raise UnreadableImage(
                f"{self._path}: holds no finite number; make the {kind} again from its source"
            )
        if self._what == "voxel":
            self._count.values = kind_of_values(values)
        self.scale = choose_scale(values)
        if self.scale is HOUNSFIELD:
            warn_once(logging.INFO, "ct", self._path, "read as CT, in Hounsfield units")

    def convert(self, values: Shaped[np.ndarray, "*shape"]) -> UInt16[np.ndarray, "*shape"]:
        """Convert values to greys; those that are no finite numbers become black.

        Args:
            values: the values, once the scale is chosen.
        """
        assert self.scale is not None
        values = _as_doubles(values)
        known = np.isfinite(values)
        if not known.all():
            text = f"{self._what}s that are no finite numbers are read as black"
            warn_once(logging.WARNING, "finite", self._path, text)
            self._count.add(unknown_px=int(known.size - known.sum()))
            values = np.where(known, values, self.scale.values[0])
        return self.scale.convert(values)


def _as_doubles(values: Shaped[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """Convert values to doubles; signalling NaNs of damaged files are no reason for a warning."""
    with np.errstate(invalid="ignore"):
        return values.astype(np.float64, copy=False)
