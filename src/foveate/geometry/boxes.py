"""Many boxes as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float64, Int64

from foveate.errors import BoxError
from foveate.geometry import Box, Frame, Vector


def group_by_size(
    boxes: Sequence[Box], frame: Frame, ndim: int
) -> Iterator[tuple[Vector, Int64[np.ndarray, " m"], Float64[np.ndarray, "m d"]]]:
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
