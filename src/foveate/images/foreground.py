"""Where the tissue is, roughly, from the glimpse: a prior for attention, never a verdict.

The mask must hold the tissue; it may hold pen, and glass. So nothing that is dark or gaudy decides
where faint tissue begins, and a border of tissue is not taken for glass.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveate.images.resample import Pixels, brightest
from foveate.messages.warn import tell

_FAINTEST, _STRONGEST = 8.0, 40.0
_DARK, _BLACK = 100, 40
_GREEN, _BLUE, _RED = 35, 70, 120
"""By how much green, blue or red exceeds both others in ink, in grey levels of 255."""
_NEUTRAL, _TINTED = 30, 80
_BELOW_BRIGHTEST = 18
_LEAST_GLASS = 0.01
_NOISE = 12
_MOST_BLACK = 0.1
_SAMPLED = 1 << 16


@dataclass(frozen=True)
class Ground:
    """What lies around the tissue.

    Attributes:
        colour: ``(c,)`` in the dtype of the image.
        is_around: whether it lies all around the frame. If not, tissue or a black frame does, and
            the colour is that of the glass elsewhere, or white.
    """

    colour: Pixels
    is_around: bool


def ground_of(glimpse: Pixels, border: Pixels) -> Ground:
    """The colour around the tissue, where the border may be tissue or a black frame.

    Only colour pictures are judged: a dark border is that of fluorescence unless a hundredth of the
    picture is bright and without colour, as glass is.

    Args:
        glimpse: ``(h, w, c)`` of 8 or 16 bit.
        border: ``(c,)`` colour of the frame's border.
    """
    if len(border) != 3 or glimpse.ndim != 3:
        return Ground(border, True)
    every = max(1, int((glimpse.shape[0] * glimpse.shape[1] / _SAMPLED) ** 0.5))
    values = _in_8_bits(glimpse[::every, ::every]).reshape(-1, 3)
    edge = border.astype(np.float32) * np.float32(255.0 / brightest(glimpse.dtype))
    low, high = values.min(1), values.max(1)
    glassy = (low >= 200) & (high - low <= _NEUTRAL)
    has_glass = glassy.mean() >= _LEAST_GLASS
    dark = edge.max() < _DARK
    if dark and not has_glass:
        return Ground(border, True)
    if not dark and _is_glass(edge, float(np.percentile(low, 99))):
        return Ground(border, _black_share(glimpse) < _MOST_BLACK)
    found = np.full(3, 255.0)
    if has_glass:  # pale tissue is glassy too: glass is the brightest of it
        glassy &= low >= np.percentile(low[glassy], 95) - _NOISE
        found = np.median(values[glassy], axis=0)
    return Ground(np.rint(found * brightest(glimpse.dtype) / 255).astype(glimpse.dtype), False)


def _black_share(glimpse: Pixels) -> float:
    """Share of the outermost pixels that are black."""
    edge = [glimpse[0], glimpse[-1], glimpse[:, 0], glimpse[:, -1]]
    return float((_in_8_bits(np.concatenate(edge)).max(-1) < _BLACK).mean())


def _is_glass(colour: NDArray[np.float32], brightest_part: float) -> bool:
    """Whether a bright colour can be glass: the brightest thing there is, hardly tinted.

    Stained tissue lacks green; what light and scanner give to glass lacks blue.
    """
    if colour.min() < brightest_part - _BELOW_BRIGHTEST and colour.min() < 235:
        return False
    spread = colour.max() - colour.min()
    if spread <= _NEUTRAL:
        return True
    return bool(spread <= _TINTED and colour[1] >= min(colour[0], colour[2]) - 8)


def contrast(glimpse: Pixels, background: Pixels) -> NDArray[np.uint8]:
    """How much each pixel differs from the background, 0 to 255: the largest over channels.

    Args:
        glimpse: ``(h, w, c)`` of 8 or 16 bit.
        background: ``(c,)``.

    Returns:
        ``(h, w)``.
    """
    top = np.float32(brightest(glimpse.dtype))
    if glimpse.dtype == np.uint8:
        low, high = np.minimum(glimpse, background), np.maximum(glimpse, background)
        return np.asarray((high - low).max(-1), np.uint8)
    difference = glimpse.astype(np.float32) - background.astype(np.float32)
    scaled: NDArray[np.float32] = np.abs(difference).max(-1) * (255 / top)
    return np.rint(scaled).astype(np.uint8)


def foreground(glimpse: Pixels, background: Pixels) -> NDArray[np.bool_]:
    """Where the `contrast` is more than noise, ``(h, w)``.

    The threshold is Otsu's, kept between 8 and 40 grey levels (of 255) so that neither noise nor a
    dark spot decides alone. Beside a bright background, what is dark, or as green, blue or red as
    ink, has no say. An image without any foreground is foreground everywhere: nothing may vanish
    silently.
    """
    return _mask(contrast(glimpse, background), glimpse, background)


def tissue_prior(glimpse: Pixels, background: Pixels) -> NDArray[np.uint8]:
    """`contrast` on the `foreground` and 0 elsewhere, ``(h, w)``; 1 on what is pen or a frame.

    Only a green beyond that of stains is known to be pen, and black that reaches the edge to be a
    frame: they stay in the foreground, but do not draw the eye. Where there is nothing else, or the
    background is dark, they count.
    """
    distance = contrast(glimpse, background)
    distance[~_mask(distance, glimpse, background)] = 0
    if _is_bright(background):
        values = _in_8_bits(glimpse)
        red, green, blue = values[..., 0], values[..., 1], values[..., 2]
        pen = _from_the_edge(values.max(-1) < _BLACK) | (green - np.maximum(red, blue) > _GREEN)
        if (distance[~pen] > 0).any():
            distance[pen & (distance > 0)] = 1
    return distance


def slide_prior(path: Path, glimpse: Pixels, border: Pixels) -> NDArray[np.uint8]:
    """`tissue_prior` of a slide by its `ground_of`; a border that is no glass is logged once."""
    ground = ground_of(glimpse, border)
    if not ground.is_around:
        tell(
            logging.WARNING,
            "border",
            path,
            "no glass at the border of the frame (tissue, or a black frame): tissue is told by the "
            "glass elsewhere, or by white; look at the heatmap",
        )
    return tissue_prior(glimpse, ground.colour)


def _from_the_edge(found: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected parts that touch the edge of the picture."""
    edge = np.zeros_like(found)
    edge[[0, -1]], edge[:, [0, -1]] = found[[0, -1]], found[:, [0, -1]]
    if not edge.any():
        return edge
    from scipy import ndimage

    parts, _ = ndimage.label(found)
    return np.asarray(np.isin(parts, np.unique(parts[edge])))


def _mask(distance: NDArray[np.uint8], glimpse: Pixels, background: Pixels) -> NDArray[np.bool_]:
    heard = distance
    if _is_bright(background):
        heard = distance[~_dark_or_gaudy(_in_8_bits(glimpse))]
    threshold = np.clip(_otsu(heard), _FAINTEST, _STRONGEST) if heard.size else _FAINTEST
    mask: NDArray[np.bool_] = distance > threshold
    return mask if mask.any() else np.ones_like(mask)


def _is_bright(background: Pixels) -> bool:
    """Whether it is the bright ground of a colour picture."""
    top = brightest(background.dtype)
    return len(background) == 3 and float(background.min()) / top > _DARK / 255


def _in_8_bits(glimpse: Pixels) -> NDArray[np.int16]:
    """Grey levels of 255, as numbers that may be subtracted."""
    if glimpse.dtype == np.uint8:
        return glimpse.astype(np.int16)
    values = glimpse.astype(np.float32) * np.float32(255.0 / brightest(glimpse.dtype))
    return np.asarray(values, np.int16)


def _dark_or_gaudy(values: NDArray[np.int16]) -> NDArray[np.bool_]:
    """What may be pen or a frame, and may be a strong stain."""
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    found = values.max(-1) < _DARK
    found |= green - np.maximum(red, blue) > _GREEN
    found |= blue - np.maximum(red, green) > _BLUE
    found |= red - np.maximum(green, blue) > _RED
    return np.asarray(found)


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
