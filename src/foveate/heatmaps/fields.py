"""Read parts of an image for a screen: choose the part, its size and its brightness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveate.errors import BoxError
from foveate.geometry import (
    Box,
    Frame,
    index_px_from_um,
    length_px_from_um,
    length_um_from_px,
    points_px_from_um,
    points_um_from_px,
    shape_from_size_um,
    size_um_from_shape,
    spacing_um_from_shape,
    um_from_px0,
)
from foveate.images.evidence import Evidence, Floats
from foveate.images.foreground import find_ground, foreground
from foveate.images.image import AbstractImage
from foveate.images.resample import Pixels

ScreenPixels = NDArray[np.uint8]
Pair = tuple[float, float]

_MIN_SIDE_PX = 512
_CROP_BELOW = 0.5
_MARGIN = 0.04


@dataclass(frozen=True)
class BrightnessWindow:
    """The stored values that are shown as black and white.

    Attributes:
        low: value of black per channel, ``(c,)``; None to show values unchanged.
        high: value of white per channel, ``(c,)``; None to show values unchanged.
    """

    low: Floats | None = None
    high: Floats | None = None

    def show(self, pixels: Pixels) -> ScreenPixels:
        """Convert the first three channels of ``(h, w, c)`` to ``(h, w, 3)`` for a screen."""
        values = pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1]
        if self.low is not None and self.high is not None:
            scaled = (values.astype(np.float64) - self.low) / np.maximum(self.high - self.low, 1e-9)
            values = np.rint(255 * np.clip(scaled, 0, 1)).astype(np.uint8)
        return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:2], 3)), np.uint8)


@dataclass(frozen=True)
class ScreenImage:
    """A rectangle of an image as pixels for a screen.

    Attributes:
        origin_um: corner of the rectangle, ``(y, x)``.
        spacing_um: spacing of the pixels, the same on both axes.
        pixels: the pixels, ``(h, w, 3)``.
    """

    origin_um: Pair
    spacing_um: float
    pixels: ScreenPixels

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def extent_um(self) -> Pair:
        """Height and width in micrometres."""
        height_um, width_um = size_um_from_shape(self.shape, (self.spacing_um,) * 2)
        return height_um, width_um

    def locate(self, points_um: Floats) -> Floats:
        """Return the pixel coordinates ``(n, 2)``, ``y, x``, of points ``(n, 2)``."""
        return points_px_from_um(points_um, self.spacing_um, self.origin_um)


@dataclass(frozen=True)
class Camera:
    """Reads an image for a screen, with one slice and one brightness window.

    Attributes:
        image: the image.
        z_um: place of the slice in a volume; None for a picture.
        window: the brightness window.
    """

    image: AbstractImage
    z_um: float | None = None
    window: BrightnessWindow = BrightnessWindow()

    def read(self, origin_um: Pair, spacing_um: Pair, shape: tuple[int, int]) -> Pixels:
        """Read stored values ``(*shape, c)`` of the rectangle of a corner, spacing and shape.

        Args:
            origin_um: corner of the rectangle ``(y, x)``.
            spacing_um: side of a pixel ``(y, x)``.
            shape: pixels per axis ``(y, x)``.
        """
        size_um = size_um_from_shape(shape, spacing_um)
        if self.z_um is None:
            return self.image.read_at(Box(origin_um, size_um, Frame.UM), shape)
        slice_um = self.image.known_spacing_um[0]
        # Aligned with the slice that holds z: otherwise two slices would be blended.
        z_um = length_um_from_px(float(index_px_from_um(self.z_um, slice_um)), slice_um)
        box = Box((z_um, *origin_um), (slice_um, *size_um), Frame.UM)
        return np.asarray(self.image.read_at(box, (1, *shape))[0])

    def capture(self, origin_um: Pair, size_um: Pair, max_side_px: int) -> ScreenImage:
        """Read a rectangle with a longer side of `max_side_px`; small pictures are not enlarged.

        Args:
            origin_um: corner of the rectangle ``(y, x)``.
            size_um: size of the rectangle ``(y, x)``.
            max_side_px: pixels of the longer side.
        """
        finest_um = min(self.image.known_spacing_um[-2:])
        native_px = length_px_from_um(max(size_um), finest_um)
        least_px = float(min(max_side_px, _MIN_SIDE_PX))
        side_px = min(float(max_side_px), max(native_px, least_px))
        (spacing_um,) = spacing_um_from_shape([max(size_um)], [side_px])
        rows, columns = shape_from_size_um(size_um, spacing_um)
        pixels = self.read(origin_um, (spacing_um, spacing_um), (rows, columns))
        return ScreenImage(origin_um, spacing_um, self.window.show(pixels))

    def patch(self, evidence: Evidence, i: int, side_px: int) -> ScreenPixels:
        """Read the box `i` of evidence, its longer side `side_px` pixels, as ``(h, w, 3)``.

        Args:
            evidence: boxes of the image.
            i: index of the box.
            side_px: pixels of the box's longer side.
        """
        y_um, x_um = evidence.origin_um[i, -2:].tolist()
        spacing_um, shape = _fit_into(evidence.size_um[i, -2:].tolist(), side_px)
        return self.window.show(self.read((y_um, x_um), spacing_um, shape))


def aim(image: AbstractImage, evidence: Evidence) -> Camera:
    """Build the camera of an image, at the slice of the peak and with a window for that slice.

    Args:
        image: picture, slide or volume.
        evidence: its boxes, of which the heaviest chooses the slice.

    Raises:
        BoxError: image and evidence differ in their axes, or there are neither two nor three.
        MissingSpacing: the image states no pixel size.
    """
    if image.ndim not in (2, 3):
        raise BoxError(f"{image.path}: {image.ndim} axes, expected 2 or 3 to draw it")
    if len(evidence) and evidence.origin_um.shape[1] != image.ndim:
        raise BoxError(
            f"evidence with {evidence.origin_um.shape[1]} axes, image {image.ndim}: give the image "
            "that it was made from"
        )
    z_um = None
    if image.ndim == 3:
        middle = evidence.peak_um() if len(evidence) else image.box_um
        last = image.box_um.size[0] - image.known_spacing_um[0]
        z_um = min(max(middle.centre[0], 0.0), last)
    if image.dtype == np.uint8 and image.channels >= 3:
        return Camera(image, z_um)
    return Camera(image, z_um, _choose_window(Camera(image, z_um)))


def overview(camera: Camera, evidence: Evidence, max_side_px: int) -> tuple[ScreenImage, float]:
    """Read the image, or its part with tissue and boxes if that is less than half of it.

    Args:
        camera: camera of the image.
        evidence: boxes of the image.
        max_side_px: pixels of the longer side.

    Returns:
        the pixels, and the share of the image that they show.
    """
    image = camera.image
    low, high = np.zeros(2), np.asarray(image.box_um.size[-2:])
    canvas = float(np.prod(high - low))
    if image.bounds_px0 is not None:
        bounds = scanned_part(image)
        low, high = _enclose(np.asarray(bounds.origin[-2:]), np.asarray(bounds.end[-2:]), evidence)
    screen = _capture_between(camera, low, high, max_side_px)
    if image.kind == "slide" and image.ndim == 2:
        tight = _tissue_rectangle(camera, screen, evidence)
        if float(np.prod(tight[1] - tight[0])) < _CROP_BELOW * float(np.prod(high - low)):
            low, high = tight
            screen = _capture_between(camera, low, high, max_side_px)
    return screen, float(np.prod(high - low)) / canvas


def scanned_part(image: AbstractImage) -> Box:
    """Return the part of an image that was scanned, in micrometres; by default all of it."""
    if image.bounds_px0 is None:
        return image.box_um
    return um_from_px0(image.bounds_px0, image.known_spacing_um)


def _capture_between(camera: Camera, low: Floats, high: Floats, max_side_px: int) -> ScreenImage:
    """Read the rectangle between two corners ``(2,)`` in micrometres."""
    size = high - low
    return camera.capture(
        (float(low[0]), float(low[1])), (float(size[0]), float(size[1])), max_side_px
    )


def _tissue_rectangle(
    camera: Camera, field: ScreenImage, evidence: Evidence
) -> tuple[Floats, Floats]:
    """Find the rectangle that holds all tissue and boxes, with a margin, as two corners ``(2,)``.

    It lies inside the picture that is shown.
    """
    border = camera.window.show(camera.image.background[None, None])[0, 0]
    mask = foreground(field.pixels, find_ground(field.pixels, border).colour)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    corner = np.asarray(field.origin_um)
    ends_px = np.array([[rows[0], columns[0]], [rows[-1] + 1, columns[-1] + 1]], np.float64)
    ends_um = points_um_from_px(ends_px, field.spacing_um, field.origin_um)
    low, high = _enclose(ends_um[0], ends_um[1], evidence)
    margin = _MARGIN * float((high - low).max())
    end = corner + np.asarray(field.extent_um)
    return np.maximum(low - margin, corner), np.minimum(high + margin, end)


def _enclose(low: Floats, high: Floats, evidence: Evidence) -> tuple[Floats, Floats]:
    """Enlarge the rectangle between two corners ``(2,)`` so that it holds all boxes."""
    begin = evidence.origin_um[:, -2:]
    end = begin + evidence.size_um[:, -2:]
    return np.vstack([low[None], begin]).min(0), np.vstack([high[None], end]).max(0)


def _fit_into(size_um: Sequence[float], side_px: int) -> tuple[Pair, tuple[int, int]]:
    """Return the spacing and shape with which a size has a longer side of `side_px` pixels."""
    (coarse_um,) = spacing_um_from_shape([max(size_um)], [side_px])
    rows, columns = (max(1, round(length_px_from_um(s, coarse_um))) for s in size_um)
    y_um, x_um = spacing_um_from_shape(size_um, (rows, columns))
    return (y_um, x_um), (rows, columns)


def _choose_window(camera: Camera) -> BrightnessWindow:
    """Choose black and white as the 0.5th and the 99.5th percentile of a coarse picture."""
    spacing_um, shape = _fit_into(camera.image.box_um.size[-2:], 256)
    values = camera.read((0.0, 0.0), spacing_um, shape)
    values = values[..., :3] if values.shape[-1] >= 3 else values[..., :1]
    flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
    low, high = np.percentile(flat, (0.5, 99.5), axis=0)
    return BrightnessWindow(low, high)
