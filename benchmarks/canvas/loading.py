"""Loading of canvases: foreground is what differs from the ground; files may place patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foveate.batch import LoadedImage, View
from foveate.errors import UnreadableImage
from foveate.images.evidence import Floats
from foveate.images.foreground import measure_difference
from foveate.images.image import AbstractImage
from foveate.loading.loader import CaseLoader
from foveate.table import Case


@dataclass(frozen=True)
class PlacedCase(Case):
    """A case that may state the places of its patches.

    Attributes:
        places: a .npy file of patch centres ``(n, d)`` in level-0 pixels, ``(z,) y, x``: scanning
            methods look there instead of at a lattice.
    """

    places: Path | None = None


@dataclass(frozen=True)
class PlacedImage(LoadedImage):
    """An open canvas with its glimpse, whose patches lie at the stated places.

    Attributes:
        places_um: centres ``(n, d)`` of the patches that scanning methods look at.
    """

    places_um: Floats

    def cover_um(self, view: View, offset_um: Sequence[float]) -> Floats:
        """Return the stated centres in micrometres, independent of the lattice."""
        return self.places_um


class CanvasLoader(CaseLoader):
    """A loader that opens canvases and reads their glimpses ahead of use.

    Args:
        view: the geometry of reading.
        keep_bytes: memory that glimpses may occupy.
    """

    def __init__(self, view: View, *, keep_bytes: int = 1 << 29) -> None:
        super().__init__(view, read=read_canvas, keep_bytes=keep_bytes)


def read_canvas(case: Case, image: AbstractImage, view: View) -> LoadedImage:
    """Read the glimpse of an open canvas and mark what differs from the ground.

    Raises:
        UnreadableImage: the places of the case cannot be used.
    """
    glimpse = image.glimpse(view.glimpse_spacing_um)
    distance = measure_difference(glimpse, image.background)
    if not distance.any():
        distance[:] = 255
    parts = (case.image_id, image, glimpse, distance)
    if not isinstance(case, PlacedCase) or case.places is None:
        return LoadedImage(*parts)
    return PlacedImage(*parts, read_places_um(case.places, image))


def read_places_um(path: Path, image: AbstractImage) -> Floats:
    """Read the places ``(n, d)`` of patches of an image, in micrometres.

    Raises:
        UnreadableImage: the file holds something else, or places outside the image.
    """
    try:
        with path.open("rb") as file:
            places = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UnreadableImage(
            f"{path}: not a .npy file of places; write it with numpy.save(path, places)"
        ) from error
    if places.ndim != 2 or places.shape[1] != image.ndim or not len(places):
        raise UnreadableImage(
            f"{path}: places of shape {places.shape}, expected (n, {image.ndim}), n > 0"
        )
    if places.dtype.kind not in "iuf" or not np.isfinite(places).all():
        raise UnreadableImage(f"{path}: places that are not all finite numbers")
    outside = (places < 0) | (places > np.asarray(image.shape))
    if outside.any():
        first = places[outside.any(1)][0].tolist()
        raise UnreadableImage(
            f"{path}: {first} lies outside the image of {image.shape} pixels; places are "
            "level-0 pixels in the order (z,) y, x"
        )
    places_um: Floats = places.astype(np.float64) * np.asarray(image.known_spacing_um)
    return places_um
