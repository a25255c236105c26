"""Find the tissue roughly in the glimpse, as a prior for attention.

The mask must hold all tissue and may also hold pen and glass. So the threshold for faint tissue
does not depend on dark or strongly coloured pixels, and tissue at the border is not taken for
glass.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate.images.resample import Pixels, white_value
from foveate.messages.warn import warn_once

_FAINTEST, _STRONGEST = 8.0, 40.0
_DARK, _BLACK = 100, 40
_GREEN, _BLUE, _RED = 35, 70, 120
"""By how much green, blue or red exceeds both others in ink, in grey levels of 255."""
_NEUTRAL, _TINTED = 30, 80
_BELOW_BRIGHTEST = 18
_MIN_GLASS = 0.01
_NOISE = 12
_MAX_BLACK = 0.1
_SAMPLED = 1 << 16


@dataclass(frozen=True)
class Ground:
    """The background around the tissue of a slide.

    Attributes:
        colour: the colour of the background, ``(c,)`` in the dtype of the image.
        is_around: whether the border of the image is background. If not, tissue or a black frame
            touches the border, and the colour is that of glass elsewhere, or white.
    """

    colour: Pixels
    is_around: bool


def find_ground(glimpse: Pixels, border: Pixels) -> Ground:
    """Find the background colour of a slide whose border may be tissue or a black frame.

    Only colour pictures are judged. A dark border is the background of fluorescence, unless a
    hundredth of the picture is bright and without colour, as glass is.

    Args:
        glimpse: ``(y, x, c)`` of 8 or 16 bits.
        border: colour of the image's border, ``(c,)``.
    """
    if len(border) != 3 or glimpse.ndim != 3:
        return Ground(border, True)
    stride = max(1, int((glimpse.shape[0] * glimpse.shape[1] / _SAMPLED) ** 0.5))
    values = _in_8_bits(glimpse[::stride, ::stride]).reshape(-1, 3)
    edge = border.astype(np.float32) * np.float32(255.0 / white_value(glimpse.dtype))
    low, high = values.min(1), values.max(1)
    glassy = (low >= 200) & (high - low <= _NEUTRAL)
    has_glass = glassy.mean() >= _MIN_GLASS
    dark = edge.max() < _DARK
    if dark and not has_glass:
        return Ground(border, True)
    if not dark and _is_glass(edge, float(np.percentile(low, 99))):
        return Ground(border, _black_share(glimpse) < _MAX_BLACK)
    colour: NDArray[np.floating] = np.full(3, 255.0)
    if has_glass:
        colour = _measure_glass(values[glassy])
    return Ground(np.rint(colour * white_value(glimpse.dtype) / 255).astype(glimpse.dtype), False)


def _measure_glass(glassy: NDArray[np.float32]) -> NDArray[np.floating]:
    """Return the colour of the glass among pixels ``(n, 3)`` that are bright and without colour.

    Pale tissue is bright and without colour too, but glass is brighter.
    """
    low = glassy.min(1)
    glass = glassy[low >= np.percentile(low, 95) - _NOISE]
    return np.asarray(np.median(glass, axis=0))


def _black_share(glimpse: Pixels) -> float:
    """Compute the share of black among the outermost pixels of a glimpse ``(y, x, c)``."""
    edge = [glimpse[0], glimpse[-1], glimpse[:, 0], glimpse[:, -1]]
    return float((_in_8_bits(np.concatenate(edge)).max(-1) < _BLACK).mean())


def _is_glass(colour: NDArray[np.float32], brightest_part: float) -> bool:
    """Return whether a bright colour ``(3,)`` can be glass: nothing is brighter, and hardly tinted.

    Stained tissue lacks green; the tint that light and scanner give to glass lacks blue.
    """
    if colour.min() < brightest_part - _BELOW_BRIGHTEST and colour.min() < 235:
        return False
    spread = colour.max() - colour.min()
    if spread <= _NEUTRAL:
        return True
    return bool(spread <= _TINTED and colour[1] >= min(colour[0], colour[2]) - 8)


def measure_difference(glimpse: Pixels, background: Pixels) -> NDArray[np.uint8]:
    """Compute how much each pixel differs from the background in its most different channel.

    Args:
        glimpse: ``(y, x, c)`` of 8 or 16 bits.
        background: colour of the background, ``(c,)``.

    Returns:
        ``(y, x)``, 0 to 255.
    """
    top = np.float32(white_value(glimpse.dtype))
    if glimpse.dtype == np.uint8:
        low, high = np.minimum(glimpse, background), np.maximum(glimpse, background)
        return np.asarray((high - low).max(-1), np.uint8)
    difference = glimpse.astype(np.float32) - background.astype(np.float32)
    scaled: NDArray[np.float32] = np.abs(difference).max(-1) * (255 / top)
    return np.rint(scaled).astype(np.uint8)


def foreground(glimpse: Pixels, background: Pixels) -> NDArray[np.bool_]:
    """Find the pixels whose `measure_difference` is more than noise.

    The threshold is Otsu's, clipped to 8 to 40 grey levels (of 255) so that neither noise nor a
    dark spot decides alone. With a bright background, pixels that are dark, or as green, blue or
    red as ink, do not influence it. An image without any foreground is foreground everywhere, so
    that it is not lost silently.

    Args:
        glimpse: ``(y, x, c)`` of 8 or 16 bits.
        background: colour of the background, ``(c,)``.

    Returns:
        ``(y, x)``, true on the foreground.
    """
    return _mask(measure_difference(glimpse, background), glimpse, background)


def measure_contrast(glimpse: Pixels, background: Pixels) -> NDArray[np.uint8]:
    """Compute the contrast: the difference from the background on the `foreground`, else 0.

    Only a green beyond that of stains is certainly pen, and only black that reaches the edge is
    certainly a frame. They stay in the foreground with the contrast 1, the least weight. Where
    there is no other foreground, or the background is dark, they keep their contrast.

    Args:
        glimpse: ``(y, x, c)`` of 8 or 16 bits.
        background: colour of the background, ``(c,)``.

    Returns:
        ``(y, x)``, 0 to 255.
    """
    contrast = measure_difference(glimpse, background)
    contrast[~_mask(contrast, glimpse, background)] = 0
    if _is_bright(background):
        values = _in_8_bits(glimpse)
        red, green, blue = values[..., 0], values[..., 1], values[..., 2]
        pen = _touching_edge(values.max(-1) < _BLACK) | (green - np.maximum(red, blue) > _GREEN)
        if (contrast[~pen] > 0).any():
            contrast[pen & (contrast > 0)] = 1
    return contrast


def measure_slide_contrast(path: Path, glimpse: Pixels, border: Pixels) -> NDArray[np.uint8]:
    """Compute the contrast of a slide with the background that `find_ground` finds.

    A border that is no glass is logged, once per file.

    Args:
        path: the slide's file, for the log.
        glimpse: ``(y, x, c)`` of 8 or 16 bits.
        border: colour of the image's border, ``(c,)``.

    Returns:
        ``(y, x)``, 0 to 255.
    """
    ground = find_ground(glimpse, border)
    if not ground.is_around:
        warn_once(
            logging.WARNING,
            "border",
            path,
            "no glass at the border of the frame (tissue, or a black frame): tissue is told by the "
            "glass elsewhere, or by white; look at the heatmap",
        )
    return measure_contrast(glimpse, ground.colour)


def _touching_edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Select the connected parts of a mask ``(y, x)`` that touch the edge of the picture."""
    edge = np.zeros_like(mask)
    edge[[0, -1]], edge[:, [0, -1]] = mask[[0, -1]], mask[:, [0, -1]]
    if not edge.any():
        return edge
    from scipy import ndimage

    parts, _ = ndimage.label(mask)
    return np.asarray(np.isin(parts, np.unique(parts[edge])))


def _mask(difference: NDArray[np.uint8], glimpse: Pixels, background: Pixels) -> NDArray[np.bool_]:
    """Threshold a difference from the background ``(y, x)`` as `foreground` describes."""
    sample = difference
    if _is_bright(background):
        sample = difference[~_dark_or_saturated(_in_8_bits(glimpse))]
    threshold = np.clip(_otsu(sample), _FAINTEST, _STRONGEST) if sample.size else _FAINTEST
    mask: NDArray[np.bool_] = difference > threshold
    return mask if mask.any() else np.ones_like(mask)


def _is_bright(background: Pixels) -> bool:
    """Return whether a colour ``(c,)`` is the bright background of a colour picture."""
    top = white_value(background.dtype)
    return len(background) == 3 and float(background.min()) / top > _DARK / 255


def _in_8_bits(glimpse: Pixels) -> NDArray[np.int16]:
    """Scale pixels to grey levels of 0 to 255, in a type whose values may be subtracted."""
    if glimpse.dtype == np.uint8:
        return glimpse.astype(np.int16)
    values = glimpse.astype(np.float32) * np.float32(255.0 / white_value(glimpse.dtype))
    return np.asarray(values, np.int16)


def _dark_or_saturated(values: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Find pixels ``(y, x, 3)`` that may be pen or a frame, though also a strong stain."""
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    mask = values.max(-1) < _DARK
    mask |= green - np.maximum(red, blue) > _GREEN
    mask |= blue - np.maximum(red, green) > _BLUE
    mask |= red - np.maximum(green, blue) > _RED
    return np.asarray(mask)


def _otsu(values: NDArray[np.uint8]) -> float:
    """Compute Otsu's threshold of 8-bit values: the one with the most variance between classes."""
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
