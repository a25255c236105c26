"""Transparent pixels: what shows through them."""

from __future__ import annotations

import numpy as np

from foveate.images.resample import Pixels, brightest


def flattened(pixels: Pixels, background: Pixels, *, premultiplied: bool = False) -> Pixels:
    """Colour or grey over an opaque background: ``(y, x, c + 1)`` with alpha last to ``(y, x, c)``.

    Args:
        pixels: ``uint8`` or ``uint16``; the dtype is kept.
        background: ``(c,)`` or one value for all.
        premultiplied: the colours are already multiplied by alpha.
    """
    top = brightest(pixels.dtype)
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    if bool((alpha == top).all()):
        return np.ascontiguousarray(colour)
    share = alpha.astype(np.float32) / np.float32(top)
    own = colour.astype(np.float32)
    mixed = (own if premultiplied else own * share) + background.astype(np.float32) * (1 - share)
    opaque: Pixels = np.rint(np.minimum(mixed, top)).astype(pixels.dtype)
    return opaque
