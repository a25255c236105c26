"""What of a picture is background: evidence that lies there is counted, not painted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foveate.geometry import um_from_px0
from foveate.heatmaps.fields import Camera, Field, aim
from foveate.images.evidence import Evidence
from foveate.images.foreground import foreground
from foveate.images.image import AbstractImage

_SIDE_PX = 512
_LEAST_SHARE = 0.05
_CLOSED = 0.01


def painted(camera: Camera, field: Field) -> NDArray[np.bool_]:
    """Where evidence may be painted, ``(h, w)``: on a slide tissue with its gaps, else all."""
    if not _has_glass(camera.image):
        return np.ones(field.shape, np.bool_)
    from scipy.ndimage import maximum_filter, minimum_filter

    mask = foreground(field.pixels, camera.window.show(camera.image.background[None, None])[0, 0])
    reach = 1 + 2 * round(_CLOSED * max(field.shape) / 2)
    # Holes and gaps that a screen hardly shows are part of the tissue; its rim stays.
    return np.asarray(minimum_filter(maximum_filter(mask, reach), reach) | mask, np.bool_)


def on_foreground(image: AbstractImage, evidence: Evidence) -> Evidence:
    """The regions that hold more than a trace of foreground; all where none does.

    Of anything but a slide, which alone has glass, all regions.

    Raises:
        BoxError: image and evidence differ in their axes.
        MissingSpacing: the image states no pixel size.
        UnreadableImage: pixels cannot be decoded.
    """
    if not len(evidence) or not _has_glass(image):
        return evidence
    camera = aim(image, evidence)
    field = _coarse(camera)
    kept = _shares(field, painted(camera, field), evidence) > _LEAST_SHARE
    if kept.all() or not kept.any():
        return evidence
    return evidence.pick(kept)


def _has_glass(image: AbstractImage) -> bool:
    return image.kind == "slide" and image.ndim == 2


def _coarse(camera: Camera) -> Field:
    image = camera.image
    whole = image.box_um
    if image.bounds_px0 is not None:
        whole = um_from_px0(image.bounds_px0, image.known_spacing_um)
    (y, x), (height, width) = whole.origin[-2:], whole.size[-2:]
    return camera.field((y, x), (height, width), _SIDE_PX)


def _shares(field: Field, mask: NDArray[np.bool_], evidence: Evidence) -> NDArray[np.float64]:
    """Of each box inside the field, the share that is foreground, ``(n,)``; 0 outside."""
    from scipy.ndimage import map_coordinates

    # Sums of the mask from its corner, which are linear between the edges of pixels: exact.
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    total[1:, 1:] = mask.cumsum(0).cumsum(1)
    low = np.clip(field.px_from_um(evidence.origin_um), 0, mask.shape)
    high = np.clip(field.px_from_um(evidence.origin_um + evidence.size_um), 0, mask.shape)
    (y0, x0), (y1, x1) = low.T, high.T
    area = (y1 - y0) * (x1 - x0)
    corners = ((y1, x1, 1), (y0, x1, -1), (y1, x0, -1), (y0, x0, 1))
    inside = sum(sign * map_coordinates(total, [y, x], order=1) for y, x, sign in corners)
    return np.asarray(inside / np.maximum(area, 1e-12), np.float64)
