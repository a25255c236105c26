"""Many boxes as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float64, Int64

from foveate.errors import BoxError
from foveate.geometry import Box, Frame, Vector, points_px_from_um, points_um_from_px

Origins = Float64[np.ndarray, "n d"]
"""Corners of boxes ``(n, d)``."""

_ROUNDING_PX = 1e-6
"""Coordinates that are nearer to a whole number are that number."""
_ROUNDING_STEP = 1e-9


def group_by_size(
    boxes: Sequence[Box], frame: Frame, ndim: int
) -> Iterator[tuple[Vector, Int64[np.ndarray, " m"], Origins]]:
    """Yield the boxes of each size: the size, their indices ``(m,)`` and origins ``(m, d)``.

    Args:
        boxes: the boxes.
        frame: the frame that all boxes must have.
        ndim: the number of axes that all boxes must have.

    Raises:
        BoxError: a box has another frame or number of axes.
    """
    rows: dict[Vector, list[int]] = {}
    for i, box in enumerate(boxes):
        if box.frame is not frame or len(box.size) != ndim:
            raise BoxError(
                f"expected boxes in frame {frame.value} with {ndim} axes, got box {i} in frame "
                f"{box.frame.value} with {len(box.size)}"
            )
        rows.setdefault(box.size, []).append(i)
    for size, chosen in rows.items():
        yield size, np.array(chosen), np.array([boxes[i].origin for i in chosen])


def place_boxes(
    origin_um: Origins,
    size_um: Vector,
    shape: Sequence[int],
    spacing_um: Vector,
) -> tuple[Origins, Vector]:
    """Convert boxes of one size to pixels of a level; what is nearly whole becomes so.

    Args:
        origin_um: corners of the boxes.
        size_um: their size, per axis.
        shape: pixels that each box is resampled to, per axis.
        spacing_um: spacing of the level, per axis.

    Returns:
        corners ``(n, d)`` in pixels of the level; pixels of the level per resampled pixel, per
        axis, all exactly 1 where nothing is resampled.
    """
    origin_px = points_px_from_um(origin_um, spacing_um, (0.0,) * len(spacing_um))
    whole = np.round(origin_px)
    origin_px = np.where(np.abs(origin_px - whole) < _ROUNDING_PX, whole, origin_px)
    step_px = tuple(e / (n * s) for e, n, s in zip(size_um, shape, spacing_um, strict=True))
    if all(abs(step - 1) < _ROUNDING_STEP for step in step_px):
        step_px = (1.0,) * len(step_px)
    return origin_px, step_px


def move_to_pixels(origin_um: Origins, spacing_um: Vector) -> Origins:
    """Move corners ``(n, d)`` of boxes to the nearest whole pixels of a level.

    Args:
        origin_um: the corners.
        spacing_um: spacing of the level, per axis.
    """
    zero = (0.0,) * len(spacing_um)
    origin_px = np.round(points_px_from_um(origin_um, spacing_um, zero))
    return points_um_from_px(origin_px, spacing_um, zero)
