"""The image contract: a file of any size, read by boxes in physical units.

A reader (one file in `foveate.readers`) subclasses `AbstractImage` and supplies six facts and one
method, `_read_level`. Everything users call — `read`, `read_at`, `glimpse` — is final and lives
here, so that resampling, background and bookkeeping are the same for every file family.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, final

import numpy as np

from foveate.errors import BoxError, ImageTooLarge, MissingSpacing, converting
from foveate.geometry import (
    Box,
    Frame,
    Vector,
    shape_from_size_um,
    size_um_from_shape,
    spacing_um_from_downsample,
    spacing_um_from_shape,
    um_from_px0,
)
from foveate.geometry.boxes import Origins, group_by_size, move_to_pixels, place_boxes
from foveate.images.border import border_median, read_padded
from foveate.images.level import Kind, Level
from foveate.images.read_count import ReadCount
from foveate.images.resample import Corners, Pixels, Source
from foveate.images.resample_many import resample_boxes
from foveate.images.stored import StoredPatches

MAX_GLIMPSE_PIXELS = 1 << 26
"""The largest glimpse in pixels, since it must fit in memory; larger ones are refused."""

_LEVEL_TOLERANCE = 0.01


class AbstractImage(abc.ABC):
    """A large image in a file. Safe to use from several threads; cheap to open again.

    Attributes:
        path: the file.
        kind: the kind of image. Slides must state their spacing; pictures may lack it. Features are
            stored patches without pixels; they may lack it too.
        levels: levels of the pyramid, finest first; level 0 is full resolution.
        spacing_um: micrometres per level-0 pixel, per axis; None when the file states none.
        unit: unit of `spacing_um`: ``um``, or ``px`` for pictures without spacing.
        channels: number of channels of every array that is read.
        dtype: dtype of every array that is read.
        reader: name and version of the library that reads the file.
        bounds_px0: the scanned part of a larger canvas, as the file states it, or None; GeoJSON
            for QuPath is shifted by its origin.
        count: counts of the pixels read so far, and the kind of their values.
        scaled: whether the reader spreads values over the range of `dtype`, as it does in volumes.
        disbelieved: the spacing that the file states and that cannot be, in words; else empty.
        stored: the vectors that stand in for pixels; None for images with pixels.
    """

    path: Path
    kind: Kind
    levels: tuple[Level, ...]
    spacing_um: Vector | None
    unit: Literal["um", "px"] = "um"
    channels: int
    dtype: np.dtype[np.generic]
    reader: str
    bounds_px0: Box | None = None
    scaled: bool = False
    disbelieved: str = ""
    stored: StoredPatches | None = None

    def __init__(self) -> None:
        self.count = ReadCount()
        self._background: Pixels | None = None

    # -- what a reader supplies ---------------------------------------------------------------

    @abc.abstractmethod
    def _read_level(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> Pixels:
        """Read the pixels of a region that lies completely inside a level.

        Implementations count what they decode with ``self.count.add(decoded_px=…)``, and fill
        absent tiles with `background`.

        Args:
            level: index of the level.
            origin_px: first pixel of the region, per axis.
            size_px: pixels of the region, per axis.

        Returns:
            ``(*size_px, c)``.

        Raises:
            UnreadableImage: pixels cannot be decoded.
        """

    def _read_regions(self, level: int, origin_px: Corners, regions: Pixels) -> None:
        """Read many regions of one size that lie completely inside a level.

        By default tile by tile. Readers of stored tiles may override it.

        Args:
            level: index of the level.
            origin_px: first pixel of each region.
            regions: ``(n, *size, c)``, filled.

        Raises:
            UnreadableImage: pixels cannot be decoded.
        """
        row = origin_px[:, 0] // (self.levels[level].tile or (1,))[0]
        for i in np.lexsort((*origin_px.T[:0:-1], row)).tolist():
            origin = tuple(origin_px[i].tolist())
            regions[i] = self._read_level(level, origin, regions.shape[1:-1])

    @abc.abstractmethod
    def close(self) -> None:
        """Release the file. Closing twice is harmless."""

    def _stated_background(self) -> Sequence[float] | None:
        """Return the background colour that the file states, per channel; None if it has none."""
        return None

    def _stored_share(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> float:
        """Estimate which share of a region inside a level the file stores; the rest is background.

        Returns 0 only where nothing is stored, for such regions are not read. Reads no pixels.
        """
        return 1.0

    # -- what users call ----------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    @property
    @final
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.levels[0].shape)

    @property
    @final
    def shape(self) -> tuple[int, ...]:
        """Level-0 pixels per axis."""
        return self.levels[0].shape

    @property
    def n_pixels(self) -> int:
        """Number of level-0 pixels."""
        return math.prod(self.shape)

    @property
    @final
    def known_spacing_um(self) -> Vector:
        """`spacing_um` where it is known.

        Raises:
            MissingSpacing: the file states none; the message says how to give it.
        """
        if self.spacing_um is None:
            raise MissingSpacing(
                f"{self.path}: the file states {self.disbelieved or 'no pixel size'}. Give it in a "
                "column 'mpp' of the table (micrometres per pixel), or for all such files with "
                "--spacing-um"
            )
        return self.spacing_um

    @property
    @final
    def box_um(self) -> Box:
        """The box that covers the image, in frame ``UM``.

        Raises:
            MissingSpacing: the file states no pixel size.
        """
        image = Box((0.0,) * self.ndim, tuple(float(n) for n in self.shape), Frame.PX0)
        return um_from_px0(image, self.known_spacing_um)

    @property
    @final
    def background(self) -> Pixels:
        """The colour outside the image, ``(c,)``: as the file states it, else its border's median.

        Raises:
            UnreadableImage: pixels of the border cannot be decoded.
        """
        if self._background is None:
            stated = self._stated_background()
            read = functools.partial(self._read_converting, len(self.levels) - 1)
            border = border_median(read, self.levels[-1].shape) if stated is None else stated
            self._background = np.asarray(border).astype(self.dtype)
        return self._background

    @final
    def read(self, box: Box) -> Pixels:
        """Read stored pixels of one level, unscaled; outside the image lies `background`.

        Args:
            box: the region, in frame ``PX`` with whole numbers; may reach beyond the image.

        Returns:
            ``(*size, c)``.

        Raises:
            BoxError: the box has another frame, or fractions of a pixel.
            UnreadableImage: pixels cannot be decoded.
            ImageTooLarge: the memory does not suffice.
        """
        if box.frame is not Frame.PX or box.level is None:
            raise BoxError(f"read needs a box in level pixels, got {box.frame.value}")
        if any(v != int(v) for v in box.origin + box.size):
            raise BoxError(f"read needs whole pixels, got {box.origin}, {box.size}; use read_at")
        read = functools.partial(self._read_converting, box.level)
        region = tuple(map(int, box.origin)), tuple(map(int, box.size))
        try:
            return read_padded(read, self.levels[box.level].shape, region, lambda: self.background)
        except MemoryError as error:
            raise self._too_large(box.size) from error

    def _read_converting(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> Pixels:
        """Call `_read_level`, and convert the errors of a decoder or a plug-in."""
        with converting(self.path):
            return self._read_level(level, origin_px, size_px)

    @final
    def level_for(self, spacing_um: Sequence[float]) -> int:
        """Return the coarsest level that is at least as fine as a spacing on every axis.

        Level 0 where none is.
        """
        best = 0
        for i, level in enumerate(self.levels):
            fine = spacing_um_from_downsample(self.known_spacing_um, level.downsample)
            coarser = level.downsample[-1] > self.levels[best].downsample[-1]
            limits = (t * (1 + _LEVEL_TOLERANCE) for t in spacing_um)
            if coarser and all(f <= t for f, t in zip(fine, limits, strict=True)):
                best = i
        return best

    @final
    def read_at(self, box_um: Box, shape: Sequence[int]) -> Pixels:
        """Read a box resampled to a number of pixels, from the nearest finer level, antialiased.

        Args:
            box_um: the region, in frame ``UM``; may reach beyond the image, where `background`
                lies.
            shape: output pixels per axis; the spacing per axis is ``box_um.size / shape``.

        Returns:
            ``(*shape, c)`` in the image's dtype.

        Raises:
            MissingSpacing: the file states no pixel size.
            UnreadableImage: pixels cannot be decoded.
            ImageTooLarge: the memory does not suffice.
        """
        return np.asarray(self.read_many([box_um], shape)[0])

    @final
    def read_many(self, boxes_um: Sequence[Box], shape: Sequence[int]) -> Pixels:
        """Read boxes as `read_at` does, much faster than one by one.

        Tiles that boxes share are decoded once; boxes of one size are resampled together.

        Args:
            boxes_um: the regions, in frame ``UM``; their sizes may differ.
            shape: output pixels of each box per axis.

        Returns:
            ``(n, *shape, c)`` in the image's dtype, in the order of the boxes.

        Raises:
            MissingSpacing: the file states no pixel size.
            UnreadableImage: pixels cannot be decoded.
            ImageTooLarge: the memory does not suffice.
        """
        try:
            out = np.empty((len(boxes_um), *shape, self.channels), self.dtype)
            for size_um, rows, origin_um in group_by_size(boxes_um, Frame.UM, self.ndim):
                part = out if len(rows) == len(out) else np.empty_like(out[: len(rows)])
                self._read_equal(origin_um, size_um, part)
                if part is not out:
                    out[rows] = part
        except MemoryError as error:
            raise self._too_large(shape) from error
        return out

    def _read_equal(self, origin_um: Origins, size_um: Vector, out: Pixels) -> None:
        """Read boxes of one size, given their corners, into ``(m, *shape, c)``."""
        shape = out.shape[1:-1]
        self.count.add(asked_px=len(out) * math.prod(shape))
        level = self.level_for(spacing_um_from_shape(size_um, shape))
        stored_um = spacing_um_from_downsample(self.known_spacing_um, self.levels[level].downsample)
        origin_px, step_px = place_boxes(origin_um, size_um, shape, stored_um)
        resample_boxes(self._source(level), origin_px, step_px, out)

    def align_um(self, origin_um: Origins, spacing_um: float) -> Origins:
        """Move corners of boxes to whole pixels of the level that they are read from.

        A shift of less than half a stored pixel saves resampling, or lets boxes share its weights.
        In volumes, whose voxels may be long, corners are moved only at the spacing of a level.

        Args:
            origin_um: corners ``(n, d)``.
            spacing_um: spacing at which the boxes are read, along all axes.
        """
        level = self.levels[self.level_for((spacing_um,) * self.ndim)]
        stored_um = spacing_um_from_downsample(self.known_spacing_um, level.downsample)
        if self.ndim > 2 and not np.allclose(stored_um, spacing_um, rtol=1e-9):
            return origin_um
        return move_to_pixels(origin_um, stored_um)

    @final
    def glimpse(self, spacing_um: float) -> Pixels:
        """Read the complete image at one spacing for all axes.

        The last row and column may reach beyond the image, so that every pixel has exactly this
        spacing.

        Returns:
            ``(*ceil(extent / spacing), c)``.

        Raises:
            ImageTooLarge: the glimpse would have more than `MAX_GLIMPSE_PIXELS` pixels.
            MissingSpacing: the file states no pixel size.
            UnreadableImage: pixels cannot be decoded.
        """
        shape = glimpse_shape(self, spacing_um)
        if math.prod(shape) > MAX_GLIMPSE_PIXELS:
            raise ImageTooLarge(
                f"{self.path}: at {spacing_um:g} {self.unit} a pixel its glimpse would have "
                f"{math.prod(shape):,} pixels, more than {MAX_GLIMPSE_PIXELS:,}; is its pixel size "
                f"right? Its full size is {self.shape}. Correct it in a column 'mpp' of the table"
            )
        size_um = size_um_from_shape(shape, (spacing_um,) * self.ndim)
        return self.read_at(Box((0.0,) * self.ndim, size_um, Frame.UM), shape)

    # -- inside -------------------------------------------------------------------------------

    def _too_large(self, shape: Sequence[float]) -> ImageTooLarge:
        sides = " x ".join(f"{n:g}" for n in shape)
        return ImageTooLarge(
            f"{self.path}: {sides} pixels need more memory than there is; read at a coarser "
            "spacing, or a smaller part"
        )

    def _source(self, level: int) -> Source:
        """Describe a level for `resample_boxes`."""

        def read(origin: tuple[int, ...], size: tuple[int, ...]) -> Pixels:
            return self.read(Box(origin, size, Frame.PX, level))

        def read_many(origin_px: Corners, regions: Pixels) -> None:
            with converting(self.path):
                self._read_regions(level, origin_px, regions)

        facts = self.levels[level]
        return Source(
            shape=facts.shape,
            tiled=facts.tile is not None,
            channels=self.channels,
            dtype=self.dtype,
            background=lambda: self.background,
            read=read,
            read_many=read_many,
            stored_share=functools.partial(self._stored_share, level),
        )


def glimpse_shape(image: AbstractImage, spacing_um: float) -> tuple[int, ...]:
    """Compute the pixels per axis of `AbstractImage.glimpse` at a spacing; at least one each.

    Args:
        image: the image.
        spacing_um: side of a pixel of the glimpse.
    """
    return shape_from_size_um(image.box_um.size, spacing_um)
