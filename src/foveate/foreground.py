"""Where the tissue is, roughly, from the glimpse: a prior for attention, never a verdict."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foveate.resample import Pixels, brightest

_FAINTEST, _STRONGEST = 8.0, 40.0


def contrast(glimpse: Pixels, background: Pixels) -> NDArray[np.uint8]:
    """How much each pixel differs from the background, 0 to 255: the largest over channels.

    Args:
        glimpse: ``(h, w, c)`` of 8 or 16 bit.
        background: ``(c,)``.

    Returns:
        ``(h, w)``.
    """
    scale = 255.0 / brightest(glimpse.dtype)
    difference = glimpse.astype(np.float32) - background.astype(np.float32)
    scaled: NDArray[np.float32] = np.abs(difference).max(-1) * scale
    return np.rint(scaled).astype(np.uint8)


def foreground(glimpse: Pixels, background: Pixels) -> NDArray[np.bool_]:
    """Where the `contrast` is more than noise, ``(h, w)``.

    The threshold is Otsu's, kept between 8 and 40 grey levels (of 255) so that neither noise nor a
    dark spot decides alone. An image without any foreground is foreground everywhere: nothing may
    vanish silently.
    """
    distance = contrast(glimpse, background)
    mask: NDArray[np.bool_] = distance > np.clip(_otsu(distance), _FAINTEST, _STRONGEST)
    return mask if mask.any() else np.ones_like(mask)


def _otsu(values: NDArray[np.uint8]) -> float:
    counts, edges = np.histogram(values, bins=256, range=(0.0, 256.0))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sum_below = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_below = sum_below / below
        mean_above = (sum_below[-1] - sum_below) / above
        between = below * above * (mean_below - mean_above) ** 2
    return float(edges[1 + int(np.nanargmax(np.nan_to_num(between)))])
