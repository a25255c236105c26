"""Bring the axes of a stored volume into the order z, y, x of the patient.

Part of the readers `nifti` and `dicom`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value")


@dataclass(frozen=True)
class AxisOrder:
    """Which stored axes are z, y and x: to the head, to the back and to the left of the patient.

    Attributes:
        axes: the stored axes that are z, y and x.
        flipped: for z, y and x, whether the stored axis runs the other way.
    """

    axes: tuple[int, ...]
    flipped: tuple[bool, ...]

    @staticmethod
    def from_affine(affine: NDArray[np.float64]) -> AxisOrder | None:
        """Find the order by an affine; None where it does not say which way the axes run.

        Args:
            affine: ``(4, 4)``, from stored voxels to space, whose axes run to the right, to the
                front and to the head (RAS, as in NIfTI).
        """
        from nibabel.orientations import io_orientation

        order = np.asarray(io_orientation(affine))
        if not np.isfinite(order).all():
            return None
        axes = tuple(int(np.flatnonzero(order[:, 0] == a)[0]) for a in (2, 1, 0))
        # To the right and to the front are the directions that nibabel counts as positive.
        flipped = tuple(
            bool(order[axis, 1] != way) for axis, way in zip(axes, (1, -1, -1), strict=True)
        )
        return AxisOrder(axes, flipped)

    def sort(self, values: Sequence[Value]) -> tuple[Value, ...]:
        """Return values of the stored axes, such as lengths, as those of z, y and x."""
        return tuple(values[axis] for axis in self.axes)

    def cut(
        self, shape: Sequence[int], origin_px: Sequence[int], size_px: Sequence[int]
    ) -> tuple[slice, ...]:
        """Return the slices of the stored axes that cut out a region.

        Args:
            shape: voxels per stored axis.
            origin_px: first voxel of the region along z, y and x.
            size_px: voxels of the region along z, y and x.
        """
        cut = [slice(None)] * len(shape)
        for axis, flip, o, n in zip(self.axes, self.flipped, origin_px, size_px, strict=True):
            low = shape[axis] - o - n if flip else o
            cut[axis] = slice(low, low + n)
        return tuple(cut)

    def reorder(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Transpose and flip an array with the stored axes to ``(z, y, x)``."""
        way = tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)
        return stored.transpose(self.axes)[way]
