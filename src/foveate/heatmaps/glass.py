"""Find the glass of a slide: evidence that lies on it is counted, not painted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foveate.heatmaps.fields import Camera, ScreenImage, aim, scanned_part
from foveate.images.evidence import Evidence
from foveate.images.foreground import foreground
from foveate.images.image import AbstractImage

_SIDE_PX = 512
_MIN_SHARE = 0.05
_CLOSED = 0.01


def paintable_mask(camera: Camera, screen: ScreenImage) -> NDArray[np.bool_]:
    """Find where evidence may be painted, ``(h, w)``: on slides the tissue with its small gaps.

    Args:
        camera: camera of the image.
        screen: the part of the image that is shown.
    """
    if not _has_glass(camera.image):
        return np.ones(screen.shape, np.bool_)
    from scipy.ndimage import maximum_filter, minimum_filter

    mask = foreground(screen.pixels, camera.window.show(camera.image.background[None, None])[0, 0])
    reach = 1 + 2 * round(_CLOSED * max(screen.shape) / 2)
    # Closing fills holes and gaps that a screen hardly shows; the union keeps the rim of tissue.
    return np.asarray(minimum_filter(maximum_filter(mask, reach), reach) | mask, np.bool_)


def on_foreground(image: AbstractImage, evidence: Evidence) -> Evidence:
    """Select the boxes that hold more than 5 % of foreground; all of them if none does.

    All boxes of an image that is no slide, since only slides have glass.

    Args:
        image: the image.
        evidence: its boxes.

    Raises:
        BoxError: image and evidence differ in their axes.
        MissingSpacing: the image states no pixel size.
        UnreadableImage: pixels cannot be decoded.
    """
    if not len(evidence) or not _has_glass(image):
        return evidence
    camera, part = aim(image, evidence), scanned_part(image)
    (y, x), (height, width) = (side[-2:] for side in (part.origin, part.size))
    screen = camera.capture((y, x), (height, width), _SIDE_PX)
    chosen = _shares(screen, paintable_mask(camera, screen), evidence) > _MIN_SHARE
    if chosen.all() or not chosen.any():
        return evidence
    return evidence.pick(chosen)


def _has_glass(image: AbstractImage) -> bool:
    """Return whether an image is a slide, in two axes."""
    return image.kind == "slide" and image.ndim == 2


def _shares(
    screen: ScreenImage, mask: NDArray[np.bool_], evidence: Evidence
) -> NDArray[np.float64]:
    """Compute the share of foreground of the boxes, ``(n,)``; it is 0 outside the picture."""
    from scipy.ndimage import map_coordinates

    # The integral image is linear between the edges of pixels, so that interpolation is exact.
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    total[1:, 1:] = mask.cumsum(0).cumsum(1)
    low = np.clip(screen.locate(evidence.origin_um), 0, mask.shape)
    high = np.clip(screen.locate(evidence.origin_um + evidence.size_um), 0, mask.shape)
    (y0, x0), (y1, x1) = low.T, high.T
    area = (y1 - y0) * (x1 - x0)
    corners = ((y1, x1, 1), (y0, x1, -1), (y1, x0, -1), (y0, x0, 1))
    inside = sum(sign * map_coordinates(total, [y, x], order=1) for y, x, sign in corners)
    return np.asarray(inside / np.maximum(area, 1e-12), np.float64)
