"""Small pictures of an image: one to look at, and one that shows whether two images are the same.

The print of an image is made of the differences between neighbouring pixels of a very small copy,
so that brightness, contrast, size and coding of the file hardly change it.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from jaxtyping import Bool, Float32
from numpy.typing import NDArray
from PIL import Image

from foveate.images.resample import Pixels

_THUMBNAIL_PX = 160
_QUALITY = 72
_CONTOUR = (0, 150, 70)
_PRINT_PX = {2: 32, 3: 12}
"""Pixels along each side of the copy that the print is made of, by the axes of the image."""
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in the grey of common converters."""
_MIN_CONTRAST = 0.004
"""Standard deviation, as a share of white, below which an image is too flat for a print."""


def scale_to_white(glimpse: Pixels, white: float) -> Float32[np.ndarray, "*space c"]:
    """Scale the pixels of a glimpse to 0 (black) to 1 (white).

    Args:
        glimpse: ``(*space, c)``.
        white: value of white.
    """
    values: NDArray[np.float32] = glimpse.astype(np.float32) / np.float32(white)
    return np.asarray(np.clip(values, 0, 1))


def draw_thumbnail(
    values: Float32[np.ndarray, "*space c"], mask: Bool[np.ndarray, "y x"] | None
) -> str:
    """Draw the thumbnail of an image, of a volume its middle slice; return a JPEG in base64.

    Args:
        values: the glimpse ``(*space, c)``, from 0 to 1.
        mask: the foreground ``(y, x)``, whose outline is drawn; None for none.
    """
    flat = values[len(values) // 2] if values.ndim == 4 else values
    colour = flat[..., :3] if flat.shape[-1] >= 3 else np.repeat(flat[..., :1], 3, axis=-1)
    picture = Image.fromarray(np.rint(colour * 255).astype(np.uint8))
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BOX)
    if mask is not None and not mask.all():
        small = np.asarray(Image.fromarray(mask).resize(picture.size)).astype(bool)
        pixels = np.array(picture)
        pixels[_outline(small)] = _CONTOUR
        picture = Image.fromarray(pixels)
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=_QUALITY)
    return base64.b64encode(out.getvalue()).decode("ascii")


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Select the pixels of a mask ``(y, x)`` that touch a pixel outside it."""
    padded = np.pad(mask, 1, mode="edge")
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(mask & ~inside)


def make_print(values: Float32[np.ndarray, "*space c"]) -> str:
    """Make the print of an image: a small grey copy of it, in base64; empty if it is too flat.

    Args:
        values: the glimpse ``(*space, c)``, from 0 to 1.
    """
    from scipy import ndimage

    grey = values @ _LUMINANCE if values.shape[-1] == 3 else values.mean(-1)
    if float(grey.std()) < _MIN_CONTRAST:
        return ""
    side = _PRINT_PX[grey.ndim]
    # Boxes of whole pixels would move with the size of the file; a blur and a sample do not.
    blurred = ndimage.gaussian_filter(grey, [n / side / 2 for n in grey.shape], mode="nearest")
    places = np.meshgrid(
        *((np.arange(side) + 0.5) * n / side - 0.5 for n in grey.shape), indexing="ij"
    )
    small = ndimage.map_coordinates(blurred, places, order=1, mode="nearest")
    low, high = float(small.min()), float(small.max())
    steps = np.rint((small - low) / max(high - low, 1e-6) * 255).astype(np.uint8)
    return base64.b64encode(steps.tobytes()).decode("ascii")


def read_print(text: str) -> NDArray[np.float32]:
    """Read the small grey copy that `make_print` wrote: ``(y, x)`` or ``(z, y, x)``."""
    values = np.frombuffer(base64.b64decode(text), np.uint8).astype(np.float32)
    axes = 2 if len(values) == _PRINT_PX[2] ** 2 else 3
    return values.reshape((_PRINT_PX[axes],) * axes)
