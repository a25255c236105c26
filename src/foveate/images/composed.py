"""Several images of one patient side by side on one canvas, so that they are read as one image.

Each image has a slot of its own, with a margin of its own background around it, and the slots cover
the canvas. Every pixel of the canvas is read from the image of its slot,
as that image alone would be read, at any spacing. So images of different spacings and pyramids fit
beside each other, and places on the canvas are those of an image moved by a known offset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from foveate.errors import FoveateError, UnreadableMember, UnsupportedFormat, out_of_files
from foveate.geometry import (
    Box,
    Frame,
    Vector,
    length_px_from_um,
    length_um_from_px,
    mean_spacing,
    points_px_from_um,
    points_um_from_px,
    shape_from_size_um,
    size_um_from_shape,
    spacing_um_from_downsample,
    spacing_um_from_shape,
)
from foveate.geometry.boxes import Origins
from foveate.images.evidence import Evidence, Floats
from foveate.images.image import AbstractImage
from foveate.images.level import Level
from foveate.images.resample import Pixels
from foveate.images.stored import StoredPatches, Vectors

_SIDE_TOLERANCE = 1e-3
"""Stored patches of one size differ by less in their sides, as a share."""


@dataclass(frozen=True)
class Slot:
    """The place of one image on the canvas; axes ``(z,) y, x``.

    Attributes:
        image_id: id of the image.
        image: the image.
        origin_um: corner of the image on the canvas.
        begin_um, end_um: the slot; infinite where it ends with the canvas.
    """

    image_id: str
    image: AbstractImage
    origin_um: Vector
    begin_um: Vector
    end_um: Vector

    def holds(self, points_um: Floats) -> NDArray[np.bool_]:
        """Return which points ``(n, d)`` of the canvas lie in the slot, ``(n,)``."""
        begin, end = np.asarray(self.begin_um), np.asarray(self.end_um)
        return np.asarray(((begin <= points_um) & (points_um < end)).all(1))


def compose_images(
    images: Sequence[tuple[str, AbstractImage]], *, step_um: float, margin_um: float
) -> ComposedImage:
    """Lay images out in rows, about as wide as high.

    Args:
        images: ids and open images, at least one.
        step_um: corners of images lie at multiples of this length, so that pixels of this size or a
            fraction of it lie on the canvas as they lie on the image.
        margin_um: least distance between an image and the border of its slot.

    Raises:
        UnsupportedFormat: the images differ in kind, channels or unit, or are volumes.
    """
    _check_alike(images)
    margin = max(1, math.ceil(length_px_from_um(margin_um, step_um) - 1e-9))
    sides = [
        [n + 2 * margin for n in shape_from_size_um(image.box_um.size, step_um)]
        for _, image in images
    ]
    places, shape = _fill_rows(sides)
    slots = []
    for (image_id, image), begin, end in zip(images, *zip(*places, strict=True), strict=True):
        origin_um = size_um_from_shape([n + margin for n in begin], (step_um,) * 2)
        slots.append(
            Slot(
                image_id,
                image,
                origin_um,
                tuple(length_um_from_px(n, step_um) if n else -math.inf for n in begin),
                tuple(
                    length_um_from_px(n, step_um) if n < whole else math.inf
                    for n, whole in zip(end, shape, strict=True)
                ),
            )
        )
    composed = ComposedImage(slots, size_um_from_shape(shape, (step_um,) * 2))
    for _, image in images:
        image.count.join(composed.count)
    return composed


def _check_alike(images: Sequence[tuple[str, AbstractImage]]) -> None:
    """Refuse images that cannot be read as one.

    Raises:
        UnsupportedFormat: there are such images; the message names the first two that differ.
    """
    first_id, first = images[0]
    if len(images) > 1 and first.ndim != 2:
        raise UnsupportedFormat(
            f"{first.path}: a volume, of which a patient can have only one with --bag patient: "
            "leave the others out of the table, or leave --bag out"
        )
    for image_id, image in images[1:]:
        facts = zip(_list_facts(first), _list_facts(image), strict=True)
        differing = next((pair for pair in facts if pair[0] != pair[1]), None)
        if differing is not None:
            raise UnsupportedFormat(
                f"images '{first_id}' and '{image_id}' of one patient cannot be read together: "
                f"{first.path} has {differing[0]}, {image.path} {differing[1]}. Give such images "
                "as patients of their own, or leave one out"
            )


def _list_facts(image: AbstractImage) -> tuple[str, ...]:
    """List the facts in which images that are read as one must agree, in words."""
    unit = "a pixel size" if image.unit == "um" else "no pixel size"
    channels = "1 channel" if image.channels == 1 else f"{image.channels} channels"
    return f"the kind '{image.kind}'", f"{image.ndim} axes", channels, str(image.dtype), unit


Place = tuple[list[int], list[int]]
"""Begin and end of a slot along each axis, in steps."""


def _fill_rows(sides: Sequence[Sequence[int]]) -> tuple[list[Place], list[int]]:
    """Lay rectangles side by side in rows; the last one of a row reaches to the right border.

    Args:
        sides: height and width of each rectangle.

    Returns:
        Place of each rectangle, as high as its row, and height and width of all.
    """
    area = sum(height * width for height, width in sides)
    widest = max(math.isqrt(area - 1) + 1, *(width for _, width in sides), 1)
    rows: list[list[int]] = [[]]
    filled = 0
    for i, (_, width) in enumerate(sides):
        if rows[-1] and filled + width > widest:
            rows.append([])
            filled = 0
        rows[-1].append(i)
        filled += width
    whole = max(sum(sides[i][1] for i in row) for row in rows)
    places: list[Place] = []
    top = 0
    for row in rows:
        bottom, left = top + max(sides[i][0] for i in row), 0
        for i in row:
            right = whole if i == row[-1] else left + sides[i][1]
            places.append(([top, left], [bottom, right]))
            left = right
        top = bottom
    return places, [top, whole]


@final
class ComposedImage(AbstractImage):
    """Images in slots of one canvas.

    Level 0 has the spacing of the first image, and there is a level for each of its levels; they
    serve to choose spacings, since all pixels are read from the images themselves.

    Args:
        slots: the slots, which cover the canvas.
        size_um: extent of the canvas.
    """

    def __init__(self, slots: Sequence[Slot], size_um: Vector) -> None:
        super().__init__()
        first = slots[0].image
        self.slots, self._size_um = tuple(slots), size_um
        self.path, self.kind, self.reader = first.path, first.kind, first.reader
        self.channels, self.dtype = first.channels, first.dtype
        self.spacing_um, self.unit = first.known_spacing_um, first.unit
        self.levels = tuple(
            Level(
                tuple(
                    shape_from_size_um([side_um], axis_um)[0]
                    for side_um, axis_um in zip(
                        size_um,
                        spacing_um_from_downsample(first.known_spacing_um, level.downsample),
                        strict=True,
                    )
                ),
                level.downsample,
            )
            for level in first.levels
        )
        self.stored = self._join_stored()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of all images."""
        return tuple(slot.image.path for slot in self.slots)

    @property
    def n_pixels(self) -> int:
        """Number of level-0 pixels of all images, without the gaps between them."""
        return sum(slot.image.n_pixels for slot in self.slots)

    def with_images(self, change: Callable[[Slot], AbstractImage]) -> ComposedImage:
        """Return the same canvas with other images.

        Args:
            change: returns the new image of a slot, of the same extent.
        """
        slots = [replace(slot, image=change(slot)) for slot in self.slots]
        composed = ComposedImage(slots, self._size_um)
        composed.count = self.count
        return composed

    def split_evidence(self, evidence: Evidence) -> list[Evidence]:
        """Cut evidence back to the images, in the order of the slots.

        A box belongs to the image of the slot that holds its centre. Boxes that touch no image, as
        those of a map of the whole canvas in a gap, are left out.

        Args:
            evidence: boxes on the canvas.

        Returns:
            Boxes in micrometres from the corner of each image. Weights stay as they are, and `even`
            is the even share of the boxes of all images together.
        """
        centre_um = evidence.origin_um + evidence.size_um / 2
        parts = []
        for slot in self.slots:
            extent_um, origin_um = np.asarray(slot.image.box_um.size), np.asarray(slot.origin_um)
            low_um = evidence.origin_um - origin_um
            touches = ((low_um < extent_um) & (low_um + evidence.size_um > 0)).all(1)
            part = evidence.pick(slot.holds(centre_um) & touches)
            parts.append(replace(part, origin_um=part.origin_um - origin_um, extent_um=extent_um))
        weights = np.concatenate([part.weight for part in parts])
        even = float(weights.mean()) if len(weights) else 0.0
        return [replace(part, even=even) for part in parts]

    def align_um(self, origin_um: Floats, spacing_um: float) -> Floats:
        """Move corners to whole pixels of the images whose slots hold them.

        Args:
            origin_um: corners ``(n, d)``.
            spacing_um: spacing at which the boxes are read, along all axes.
        """
        aligned = np.array(origin_um)
        for slot in self.slots:
            inside, shift_um = slot.holds(origin_um), np.asarray(slot.origin_um)
            moved = slot.image.align_um(origin_um[inside] - shift_um, spacing_um)
            aligned[inside] = moved + shift_um
        return aligned

    def _read_equal(self, origin_um: Origins, size_um: Vector, out: Pixels) -> None:
        shape = out.shape[1:-1]
        step_um = spacing_um_from_shape(size_um, shape)
        for slot in self.slots:
            parts: dict[tuple[tuple[int, int], ...], list[int]] = {}
            for i, corner_um in enumerate(origin_um.tolist()):
                edges = (
                    _count_centres_before(edge_um, corner_um, step_um, shape)
                    for edge_um in (slot.begin_um, slot.end_um)
                )
                part = tuple(zip(*edges, strict=True))
                if all(first < end for first, end in part):
                    parts.setdefault(part, []).append(i)
            for part, rows in parts.items():
                pixels = self._read_slot(slot, origin_um[rows], step_um, part)
                inside: tuple[Any, ...] = tuple(slice(first, end) for first, end in part)
                out[(np.asarray(rows), *inside)] = pixels

    def _read_slot(
        self,
        slot: Slot,
        origin_um: Origins,
        step_um: Vector,
        part: Sequence[tuple[int, int]],
    ) -> Pixels:
        """Read the same part of several boxes from the image of a slot.

        Args:
            slot: the slot.
            origin_um: corners of the boxes on the canvas.
            step_um: spacing at which they are read.
            part: first and last + 1 pixel of the boxes, per axis.

        Raises:
            UnreadableMember: the image cannot be read.
        """
        shape = [end - first for first, end in part]
        offset_um = size_um_from_shape([first for first, _ in part], step_um)
        corner_um = origin_um + np.asarray(offset_um) - np.asarray(slot.origin_um)
        size_um = size_um_from_shape(shape, step_um)
        boxes = [Box(tuple(corner), size_um, Frame.UM) for corner in corner_um.tolist()]
        try:
            return slot.image.read_many(boxes, shape)
        except FoveateError as error:
            if out_of_files(error):
                raise
            raise UnreadableMember(str(error), {slot.image_id: str(error)}) from error

    def _read_level(
        self, level: int, origin_px: tuple[int, ...], size_px: tuple[int, ...]
    ) -> Pixels:
        spacing_um = spacing_um_from_downsample(
            self.known_spacing_um, self.levels[level].downsample
        )
        region = np.empty((1, *size_px, self.channels), self.dtype)
        corner_um = np.array([size_um_from_shape(origin_px, spacing_um)])
        self._read_equal(corner_um, size_um_from_shape(size_px, spacing_um), region)
        return np.asarray(region[0])

    def _stated_background(self) -> Sequence[float] | None:
        return [float(v) for v in self.slots[0].image.background]

    def close(self) -> None:
        """Close all images."""
        for slot in self.slots:
            slot.image.close()

    def _join_stored(self) -> StoredPatches | None:
        """Return the stored patches of all images, where they are on the canvas.

        Raises:
            UnsupportedFormat: patches of the images differ in size.
        """
        parts = [slot.image.stored for slot in self.slots]
        stored = [part for part in parts if part is not None]
        if len(stored) < len(parts):
            return None
        sides_um = [
            length_um_from_px(part.side_px0, mean_spacing(slot.image.known_spacing_um))
            for part, slot in zip(stored, self.slots, strict=True)
        ]
        if max(sides_um) > min(sides_um) * (1 + _SIDE_TOLERANCE):
            raise UnsupportedFormat(
                f"{self.path}: files of one patient have patches of {min(sides_um):.4g} and "
                f"{max(sides_um):.4g} {self.unit} a side: make all features in one way"
            )
        corners_um = [
            points_um_from_px(part.corner_px0, slot.image.known_spacing_um, slot.origin_um)
            for part, slot in zip(stored, self.slots, strict=True)
        ]
        zero, spacing_um = (0.0,) * self.ndim, self.known_spacing_um
        return replace(
            stored[0],
            corner_px0=points_px_from_um(np.concatenate(corners_um), spacing_um, zero),
            side_px0=length_px_from_um(sides_um[0], mean_spacing(spacing_um)),
            px0_known=all(part.px0_known for part in stored),
            read=_join_reading(stored),
        )


def _join_reading(stored: Sequence[StoredPatches]) -> Callable[[NDArray[np.int64]], Vectors]:
    """Return a function that reads vectors by their rows in all files, one file after the other."""
    ends = np.cumsum([len(part) for part in stored])

    def read(rows: NDArray[np.int64]) -> Vectors:
        out = np.empty((len(rows), stored[0].recipe.dim), np.float32)
        owner = np.searchsorted(ends, rows, side="right")
        for i, part in enumerate(stored):
            mine = owner == i
            if mine.any():
                out[mine] = part.read(rows[mine] - (ends[i] - len(part)))
        return out

    return read


def _count_centres_before(
    place_um: Vector, origin_um: Sequence[float], step_um: Vector, shape: Sequence[int]
) -> list[int]:
    """Count the pixels of a box, along each axis, whose centres lie before a place."""
    counts = [
        min(max((at - corner) / step - 0.5, -1.0), float(n))
        for at, corner, step, n in zip(place_um, origin_um, step_um, shape, strict=True)
    ]
    return [max(0, math.ceil(count - 1e-6)) for count in counts]
