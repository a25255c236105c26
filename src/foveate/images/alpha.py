"""Lay transparent pixels over an opaque background."""

from __future__ import annotations

import numpy as np

from foveate.images.resample import Pixels, white_value


def flatten_alpha(pixels: Pixels, background: Pixels, *, premultiplied: bool = False) -> Pixels:
    """Composite colour or grey pixels with alpha over an opaque background.

    Args:
        pixels: ``(y, x, c + 1)`` with alpha last, ``uint8`` or ``uint16``.
        background: ``(c,)``, or one value for all channels.
        premultiplied: whether the colours are already multiplied by alpha.

    Returns:
        ``(y, x, c)`` in the dtype of `pixels`.
    """
    top = white_value(pixels.dtype)
    colour, alpha = pixels[..., :-1], pixels[..., -1:]
    if bool((alpha == top).all()):
        return np.ascontiguousarray(colour)
    share = alpha.astype(np.float32) / np.float32(top)
    added = colour.astype(np.float32)
    if not premultiplied:
        added = added * share
    mixed = added + background.astype(np.float32) * (1 - share)
    opaque: Pixels = np.rint(np.minimum(mixed, top)).astype(pixels.dtype)
    return opaque
