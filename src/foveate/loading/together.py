"""Read the images of one patient as one: open all, and lay their glimpses on one canvas."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from foveate.batch import LoadedImage, View
from foveate.errors import FoveateError, ImageTooLarge, UnreadableMember, converting, out_of_files
from foveate.geometry import length_px_from_um, length_um_from_px
from foveate.images.composed import ComposedImage, Slot, compose_images
from foveate.images.image import MAX_GLIMPSE_PIXELS, AbstractImage, glimpse_shape
from foveate.table import Case

_STEP_PX = 32
"""Corners of images lie at multiples of so many pixels of the glimpse, a stride of encoders."""


def open_together(
    case: Case, view: View, open_image: Callable[[Case], AbstractImage]
) -> AbstractImage:
    """Open the images of a case: one as it is, several on one canvas.

    Between images lies at least the side of a patch, so that no patch shows two of them.

    Args:
        case: the case.
        view: the geometry of reading.
        open_image: opens one image.

    Raises:
        UnreadableMember: some of several images cannot be opened.
        UnsupportedFormat: the images cannot be read as one.
        ImageTooLarge: the glimpses of all images are too large.
    """
    if len(case.list_images()) == 1:
        return open_image(case.list_images()[0])
    with contextlib.ExitStack() as opened:
        unreadable, images = dict[str, str](), []
        for member in case.images:
            with _noting(member, unreadable):
                images.append((member.image_id, opened.enter_context(open_image(member))))
        if unreadable:
            raise UnreadableMember(_join_reasons(unreadable), unreadable)
        step_um = length_um_from_px(float(_STEP_PX), view.glimpse_spacing_um)
        composed = compose_images(images, step_um=step_um, margin_um=view.patch_um / 2)
        n_pixels = math.prod(glimpse_shape(composed, view.glimpse_spacing_um))
        if n_pixels > MAX_GLIMPSE_PIXELS:
            raise ImageTooLarge(
                f"patient '{case.patient_id}': the glimpses of {len(images)} images have "
                f"{n_pixels:,} pixels together, more than {MAX_GLIMPSE_PIXELS:,}: train with a "
                "larger --view.glimpse-spacing-um, or give fewer images of this patient"
            )
        opened.pop_all()
    return composed


def read_together(
    case: Case,
    composed: ComposedImage,
    view: View,
    read_glimpse: Callable[[Case, AbstractImage, View], LoadedImage],
) -> LoadedImage:
    """Read the glimpses of the images of a case, and lay them on one canvas.

    Glimpse and foreground of each image are those that it has alone; the gaps have the colour of
    its background, and are no foreground.

    Args:
        case: the case.
        composed: its images on one canvas.
        view: the geometry of reading.
        read_glimpse: reads the glimpse of one image, and finds its foreground.

    Raises:
        UnreadableMember: some of the images cannot be read.
    """
    shape = glimpse_shape(composed, view.glimpse_spacing_um)
    glimpse = np.empty((*shape, composed.channels), composed.dtype)
    contrast = np.zeros(shape, np.uint8)
    unreadable = dict[str, str]()
    for member, slot in zip(case.images, composed.slots, strict=True):
        with _noting(member, unreadable):
            loaded = read_glimpse(member, slot.image, view)
            glimpse[_window(slot.begin_um, slot.end_um, view, shape)] = slot.image.background
            place = locate_glimpse(slot, view)
            glimpse[place], contrast[place] = loaded.glimpse, loaded.contrast
    if unreadable:
        raise UnreadableMember(_join_reasons(unreadable), unreadable)
    return LoadedImage(case.image_id, composed, glimpse, contrast)


def locate_glimpse(slot: Slot, view: View) -> tuple[slice, ...]:
    """Return where the glimpse of an image lies in that of the canvas.

    Args:
        slot: the slot of the image.
        view: the geometry of reading.
    """
    first = [round(length_px_from_um(o, view.glimpse_spacing_um)) for o in slot.origin_um]
    sides = glimpse_shape(slot.image, view.glimpse_spacing_um)
    return tuple(slice(a, a + n) for a, n in zip(first, sides, strict=True))


def _window(
    begin_um: tuple[float, ...], end_um: tuple[float, ...], view: View, shape: tuple[int, ...]
) -> tuple[slice, ...]:
    """Return the pixels of the glimpse between two corners, which may be infinite."""
    first, end = (
        [
            round(min(max(length_px_from_um(at, view.glimpse_spacing_um), 0.0), float(n)))
            for at, n in zip(corner_um, shape, strict=True)
        ]
        for corner_um in (begin_um, end_um)
    )
    return tuple(map(slice, first, end))


def _join_reasons(reasons: Mapping[str, str]) -> str:
    """Return the first of the reasons why images cannot be read, and the number of the others."""
    more = f" (and {len(reasons) - 1} more images of the patient)" if len(reasons) > 1 else ""
    return next(iter(reasons.values())) + more


@contextlib.contextmanager
def _noting(member: Case, unreadable: dict[str, str]) -> Iterator[None]:
    """Note that one of several images cannot be read, and why; other errors pass."""
    try:
        with converting(member.path):
            yield
    except FoveateError as error:
        if out_of_files(error):
            raise
        unreadable[member.image_id] = str(error)
