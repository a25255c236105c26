"""Blend evidence over a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foveate.geometry import length_px_from_um
from foveate.heatmaps.fields import ScreenImage, ScreenPixels
from foveate.heatmaps.raster import Scale, ranked, splat, weight_colours
from foveate.images.evidence import Evidence, Floats

_STRONGEST, _WEAKEST, _FAINT = 0.85, 0.35, 0.12


def blend_evidence(
    screen: ScreenImage, evidence: Evidence, scale: Scale, shown: NDArray[np.bool_]
) -> ScreenPixels:
    """Blend evidence over a pale picture; opacity grows with weight and coverage.

    Args:
        screen: the picture.
        evidence: the boxes on it.
        scale: scale of the weights of all boxes of the image.
        shown: where evidence may be painted, ``(h, w)``.

    Returns:
        the pixels, ``(h, w, 3)``.
    """
    base = screen.pixels.astype(np.float64)
    base = 0.35 * base + 0.65 * base.mean(-1, keepdims=True)
    strength, covered = _pile_boxes(screen, evidence, scale)
    side_um = float(np.median(evidence.size_um[:, -2:])) if len(evidence) else 0.0
    side_px = length_px_from_um(side_um, screen.spacing_um)
    strong = _STRONGEST - (_STRONGEST - _WEAKEST) * min(max(side_px - 24, 0) / 232, 1.0)
    visible = np.minimum(covered, 1.0) * shown
    opacity = _FAINT + (1 - _FAINT) * strength
    # The more of the picture is coloured, the more transparent the colour, so that it still shows.
    strong *= 1 - 0.45 * float((visible * strength).mean())
    alpha = (strong * opacity * visible)[..., None]
    mixed = (1 - alpha) * base + alpha * 255 * weight_colours(strength)[..., :3]
    return np.asarray(np.rint(np.clip(mixed, 0, 255)), np.uint8)


def _pile_boxes(screen: ScreenImage, evidence: Evidence, scale: Scale) -> tuple[Floats, Floats]:
    """Compute strengths with the heaviest box on top, and covered areas, ``(h, w)`` each.

    An average of all boxes would pale the peak wherever weak ones overlap it.
    """
    total, covered = splat(evidence, screen.origin_um, screen.extent_um, screen.shape)
    mean = np.divide(total, covered, out=np.zeros_like(total), where=covered > 0)
    strength, box_strength = scale.strength(mean), scale.strength(evidence.weight)
    low = screen.locate(evidence.origin_um[:, -2:])
    high = low + length_px_from_um(evidence.size_um[:, -2:], screen.spacing_um)
    first = np.maximum(np.ceil(low - 0.5), 0).astype(np.int64)
    last = np.maximum(np.ceil(high - 0.5), 0).astype(np.int64)
    for i in ranked(evidence)[::-1]:
        strength[first[i, 0] : last[i, 0], first[i, 1] : last[i, 1]] = box_strength[i]
    return strength, covered
