"""Read files of features, as TRIDENT, CLAM, STAMP and foveate write them, into one form.

TRIDENT and CLAM store the upper left corners ``(x, y)`` of patches in level-0 pixels, STAMP in
micrometres. Everything else that the files state is optional; part of the reader `features`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from foveate.errors import ImageTooLarge, UnreadableImage, UnsupportedFormat
from foveate.formats.hdf5 import find_dataset, read_number, read_text, reading_hdf5
from foveate.geometry import (
    Vector,
    length_px_from_um,
    length_um_from_px,
    mean_spacing,
    points_px_from_um,
    spacing_um_from_shape,
)
from foveate.images.evidence import Floats
from foveate.images.stated import check_spacing
from foveate.images.stored import Recipe, StoredPatches, Vectors

if TYPE_CHECKING:
    import h5py

SCHEMA = 1
"""Version of the attributes that foveate adds to the layouts of other tools."""
VECTORS, COORDS = ("features", "feats"), "coords"
"""Names of the datasets: the first name of TRIDENT and CLAM, the second of STAMP."""
_MAX_ROWS, _MAX_LENGTH = 1 << 22, 1 << 16
_MAX_PLACE = float(1 << 27)
_MICROMETRES = ("um", "µm", "μm", "micrometer", "micrometre", "microns")
_REMAKE = "make the features again"
_DEFAULT_PX = 224
"""Side of a patch where only its micrometres are stated."""


@dataclass(frozen=True)
class FeatureFile:
    """The patches in a file of features, and what it states about their slide.

    Attributes:
        patches: the patches, whose vectors are read from the open file.
        spacing_um: spacing of level 0, per axis; None if not stated.
        shape_px0: pixels of level 0 per axis; None if not stated.
    """

    patches: StoredPatches
    spacing_um: Vector | None
    shape_px0: tuple[int, int] | None


class VectorReader:
    """Reads vectors of patches from the dataset of an open file.

    Args:
        dataset: the vectors, ``(n, d)`` or, with one image as a batch, ``(1, n, d)``.
        path: the file, for messages.
    """

    def __init__(self, dataset: h5py.Dataset, path: Path) -> None:
        self._dataset, self._path = dataset, path
        self._leading = (0,) * (dataset.ndim - 2)

    def __call__(self, rows: NDArray[np.int64]) -> Vectors:
        """Read the vectors of rows with these indices, ``(m, d)``.

        Raises:
            UnreadableImage: values cannot be decoded, or are no finite numbers.
        """
        if not len(rows):
            return np.zeros((0, self._dataset.shape[-1]), np.float32)
        first, last = int(rows.min()), int(rows.max())
        with reading_hdf5(self._path), np.errstate(over="ignore"):
            if last - first < 8 * len(rows):
                span = np.asarray(self._dataset[(*self._leading, slice(first, last + 1))])
                values = span[rows - first].astype(np.float32)
            else:
                known, place = np.unique(rows, return_inverse=True)
                values = np.asarray(self._dataset[(*self._leading, known)])[place]
                values = values.astype(np.float32)
        bad = ~np.isfinite(values).all(1)
        if bad.any():
            raise UnreadableImage(
                f"{self._path}: the features of patch {int(rows[bad.argmax()])} are no finite "
                f"numbers ({int(bad.sum())} such patches of {len(rows)} that were read); {_REMAKE}"
            )
        return values


def read_feature_file(file: h5py.File, path: Path) -> FeatureFile:
    """Read the facts and places of a file of features; its vectors are read when they are needed.

    Args:
        file: the open file.
        path: its path, for messages.

    Raises:
        UnsupportedFormat: the file holds other data.
        UnreadableImage: it is damaged or incomplete, or contradicts itself.
        ImageTooLarge: it claims more than can be.
    """
    with reading_hdf5(path):
        vectors, name = _find_vectors(file, path)
        coords = find_dataset(file, COORDS, path)
        if coords is None:
            raise UnreadableImage(
                f"{path}: has '{name}' but no '{COORDS}', so nobody knows where its patches lie; "
                "make the features with their coordinates"
            )
        items = [file, vectors, coords]
        _refuse_other_kinds(items, path)
        places = _read_places(coords, vectors, name, path)
        in_um = _counts_in_um(items, name, path)
        recipe = _read_recipe(items, vectors)
        spacing_um = _read_spacing(items, path)
        side, patch_px = _read_sides(items, places, in_um, spacing_um, path)
        shape = None if in_um and spacing_um is None else _read_shape(items, path)
    corner, px0_known = places[:, ::-1], True
    if in_um:
        px0_known = spacing_um is not None
        spacing_um = spacing_um or spacing_um_from_shape((side, side), (patch_px, patch_px))
        corner = points_px_from_um(corner, spacing_um, (0.0, 0.0))
        side = length_px_from_um(side, mean_spacing(spacing_um))
    read = VectorReader(vectors, path)
    patches = StoredPatches(recipe, corner, side, patch_px, in_um, px0_known, read)
    return FeatureFile(patches, spacing_um, shape)


def _find_vectors(file: h5py.File, path: Path) -> tuple[h5py.Dataset, str]:
    """Return the dataset of vectors and its name."""
    for name in VECTORS:
        dataset = find_dataset(file, name, path)
        if dataset is not None:
            return dataset, name
    coords = find_dataset(file, COORDS, path)
    only_places = "only 'coords' (extract the features of these patches too)"
    content = only_places if coords is not None else "neither 'features' nor 'feats'"
    raise UnsupportedFormat(
        f"{path}: an HDF5 file with {content}: give files of features, as TRIDENT, CLAM, STAMP or "
        "`foveate features` write them; an image in it must be exported as TIFF"
    )


def _refuse_other_kinds(items: list[Any], path: Path) -> None:
    """Refuse vectors of whole slides, and files of a newer foveate."""
    kind = read_text(items, "feat_type")
    if kind and kind != "tile":
        raise UnsupportedFormat(
            f"{path}: holds features of kind '{kind}', expected those of tiles; give the files of "
            "tiles"
        )
    schema = read_number(items, "schema", 0, 1e9, path)
    if schema is not None and schema > SCHEMA:
        raise UnsupportedFormat(f"{path} was written by a newer foveate; upgrade to read it")


def _read_places(coords: h5py.Dataset, vectors: h5py.Dataset, name: str, path: Path) -> Floats:
    """Read the corners ``(n, 2)`` as stored, and check that there is one for each vector."""
    shape, at = _drop_batch(vectors.shape), _drop_batch(coords.shape)
    if len(shape) != 2:
        raise UnreadableImage(
            f"{path}: '{name}' has shape {vectors.shape}, expected one row for each patch; give "
            "files of features of patches, not of whole slides"
        )
    if len(at) != 2 or at[1] != 2:
        raise UnreadableImage(
            f"{path}: '{COORDS}' has shape {coords.shape}, expected x and y of each patch; "
            f"{_REMAKE}"
        )
    if shape[0] != at[0]:
        turned = ", whose axes are swapped" if shape[1] == at[0] else ""
        raise UnreadableImage(
            f"{path}: '{name}' has shape {vectors.shape}{turned}, but '{COORDS}' has {at[0]} "
            f"places, expected a row for each; {_REMAKE}"
        )
    if 0 in shape:
        raise UnreadableImage(
            f"{path}: holds no patch; {_REMAKE}, or leave the image out of the table"
        )
    if shape[0] > _MAX_ROWS or shape[1] > _MAX_LENGTH:
        raise ImageTooLarge(
            f"{path}: '{name}' claims {shape[0]} patches of {shape[1]} numbers, expected at most "
            f"{_MAX_ROWS} of {_MAX_LENGTH}; {_REMAKE}"
        )
    places = np.asarray(coords[(0,) * (coords.ndim - 2)], np.float64)
    if not np.isfinite(places).all() or places.min() < 0 or places.max() > _MAX_PLACE:
        raise UnreadableImage(
            f"{path}: '{COORDS}' goes from {places.min():g} to {places.max():g}, which no place in "
            f"an image can be; {_REMAKE}"
        )
    return places


def _drop_batch(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop a leading axis of one image, which older versions of TRIDENT and CLAM wrote."""
    return shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def _counts_in_um(items: list[Any], name: str, path: Path) -> bool:
    """Return whether places are micrometres, as STAMP stores them.

    Raises:
        UnreadableImage: the unit is another one, or is not clear.
    """
    unit = read_text(items, "unit")
    if name == VECTORS[0] and unit in ("", "px"):
        return False
    states_um = unit.lower() in _MICROMETRES
    if states_um or (not unit and read_number(items, "tile_size_um", 0, 1e6, path) is not None):
        return True
    stated = f"are in '{unit}'" if unit else "have no unit"
    raise UnreadableImage(
        f"{path}: its '{COORDS}' {stated}, expected micrometres (attribute 'unit' = 'um'); "
        f"{_REMAKE}"
    )


def _read_recipe(items: list[Any], vectors: h5py.Dataset) -> Recipe:
    """Read how the vectors were made."""
    return Recipe(
        encoder=read_text(items, "encoder") or read_text(items, "extractor"),
        dim=int(vectors.shape[-1]),
        revision=read_text(items, "encoder_revision"),
        transform=read_text(items, "transform"),
    )


def _read_sides(
    items: list[Any], places: Floats, in_um: bool, spacing_um: Vector | None, path: Path
) -> tuple[float, int]:
    """Return the side of a patch in the unit of its places, and in pixels of the encoder.

    Files of foveate state the spacing that the encoder saw, so that no side is rounded. Where a
    file states no side, it is the step that is most frequent between neighbouring rows.

    Raises:
        UnreadableImage: there is neither.
    """

    def number(name: str, high: float) -> float | None:
        return read_number(items, name, 1e-3, high, path)

    if in_um:
        side, px = number("tile_size_um", 1e6), number("tile_size_px", 1 << 16)
    else:
        px, side = number("patch_size", 1 << 16), number("patch_size_level0", 1e6)
        factor = _read_downsample(items, path)
        target_um = number("target_mpp", 1e6)
        if side is None and px is not None and factor is not None:
            side = px * factor
            if target_um is not None and spacing_um is not None:
                px = round(length_um_from_px(side, mean_spacing(spacing_um)) / target_um)
        elif px is not None and target_um is not None and spacing_um is not None:
            side = length_px_from_um(px * target_um, mean_spacing(spacing_um))
    if side is None:
        steps = np.abs(np.diff(places, axis=0)).ravel()
        values, counts = np.unique(np.round(steps[steps > 0], 3), return_counts=True)
        if not len(values):
            raise UnreadableImage(
                f"{path}: states no size of its patches ('patch_size_level0'), and none follows "
                f"from their places; {_REMAKE}"
            )
        side = float(values[counts.argmax()])
    if px is None:
        px = _DEFAULT_PX if in_um else side
    return side, max(1, round(px))


def _read_downsample(items: list[Any], path: Path) -> float | None:
    """Return the level-0 pixels per pixel of a patch, as CLAM or TRIDENT state them; else None."""
    level = read_number(items, "patch_level", 0, 64, path)
    factor = read_number(items, "downsample", 1, 1 << 16, path)
    if level is not None:
        return 1.0 if level == 0 and factor is None else factor
    full = read_number(items, "level0_magnification", 1e-3, 1e4, path)
    wanted = read_number(items, "target_magnification", 1e-3, 1e4, path)
    return None if full is None or wanted is None else full / wanted


def _read_spacing(items: list[Any], path: Path) -> Vector | None:
    """Return the spacing ``(y, x)`` of level 0 that the file states, if it is plausible."""
    one = read_number(items, "mpp", 0, 1e9, path)
    x, y = (read_number(items, name, 0, 1e9, path) for name in ("mpp_x", "mpp_y"))
    return check_spacing((y or x or one, x or y or one))


def _read_shape(items: list[Any], path: Path) -> tuple[int, int] | None:
    """Return the pixels ``(y, x)`` of level 0 that the file states."""
    names = ("level0_height", "level0_width")
    y, x = (read_number(items, name, 1, _MAX_PLACE, path) for name in names)
    return None if y is None or x is None else (int(y), int(x))
