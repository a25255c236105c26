"""Write files of features in the layouts of TRIDENT, CLAM and STAMP.

Names and frames are theirs; foveate adds attributes that tell how the vectors were made. Values lie
in one piece, because a file with a piece for each row is read several times more slowly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from foveate._version import __version__
from foveate.errors import NotFinite, OptionError
from foveate.files.atomic import write_aside
from foveate.files.digest import code_sha256
from foveate.formats.feature_file import COORDS, SCHEMA, VECTORS
from foveate.geometry import (
    Vector,
    downsample_from_spacing_um,
    length_um_from_px,
    mean_spacing,
    points_um_from_px,
)
from foveate.images.evidence import Floats
from foveate.images.stored import Recipe, Vectors

if TYPE_CHECKING:
    import h5py

Layout = Literal["trident", "clam", "stamp"]
Number = Literal["float16", "float32"]

_STAMP_VERSION = "2.0.0"
"""The version of STAMP whose layout is written."""
_MAGNIFICATIONS = (1.25, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0)
_UM_AT_1X = 10.0
"""Micrometres per pixel at magnification 1, by the usual convention (0.25 is 40 x)."""


@dataclass(frozen=True)
class FeatureHead:
    """Everything that a file of features states besides its vectors.

    Attributes:
        name: name of the image, without suffix.
        folder: folder of the file.
        recipe: how the vectors are made.
        corner_px0: upper left corners ``(n, 2)`` of the patches, in the order y, x, in level-0
            pixels.
        side_px0: side of a patch in level-0 pixels.
        patch_px: side of a patch in pixels that the encoder sees.
        spacing_um: spacing of level 0, per axis; None where it is not known.
        shape_px0: pixels of level 0 per axis.
        reader: name and version of the library that reads the image.
    """

    name: str
    folder: Path
    recipe: Recipe
    corner_px0: Floats
    side_px0: float
    patch_px: int
    spacing_um: Vector | None
    shape_px0: tuple[int, ...]
    reader: str

    @property
    def known_spacing_um(self) -> Vector:
        """Spacing of level 0.

        Raises:
            OptionError: it is not known.
        """
        if self.spacing_um is None:
            raise OptionError(
                "layout: 'stamp' counts in micrometres, but the images state no pixel size: give "
                "it with --spacing-um, or take --layout trident"
            )
        return self.spacing_um


def write_feature_file(
    path: Path, head: FeatureHead, layout: Layout, number: Number, blocks: Iterable[Vectors]
) -> None:
    """Write a file of features block by block, completely or not at all.

    Args:
        path: the file.
        head: everything but the vectors.
        layout: whose names and frames the file has.
        number: number format of the vectors.
        blocks: the vectors of the patches in order, ``(m, d)`` each.

    Raises:
        NotFinite: a vector holds no finite numbers, or numbers too large for the format.
        OptionError: the layout needs the size of a pixel.
        DiskFull, NotWritable: the file cannot be written.
    """
    import h5py

    def write(aside: Path) -> None:
        with h5py.File(aside, "w") as file:
            name = VECTORS[1] if layout == "stamp" else VECTORS[0]
            shape = (len(head.corner_px0), head.recipe.dim)
            vectors = file.create_dataset(name, shape, np.dtype(number))
            if layout == "stamp":
                origin_um = points_um_from_px(head.corner_px0, head.known_spacing_um, (0.0, 0.0))
                coords = file.create_dataset(COORDS, data=origin_um[:, ::-1])
            else:
                corner = np.round(head.corner_px0[:, ::-1]).astype(np.int64)
                coords = file.create_dataset(COORDS, data=corner)
            if layout == "trident":
                _set(coords, _describe_trident(head))
                _set(vectors, {"encoder": head.recipe.encoder, "name": head.name})
            elif layout == "clam":
                _set(coords, _describe_clam(head))
            else:
                _set(file, _describe_stamp(head))
            _set(file, _describe_recipe(head))
            _fill(vectors, blocks, head.name)

    write_aside(path, write)


def _fill(vectors: h5py.Dataset, blocks: Iterable[Vectors], name: str) -> None:
    """Write all blocks, one behind the other.

    Raises:
        NotFinite: a vector holds no finite numbers, or numbers too large for the format.
    """
    at = 0
    for block in blocks:
        with np.errstate(over="ignore"):
            stored = block.astype(vectors.dtype)
        bad = ~np.isfinite(stored).all(1)
        if bad.any():
            row = at + int(bad.argmax())
            if np.isfinite(block).all():
                raise NotFinite(
                    f"{name}: the features of patch {row} are too large for {vectors.dtype}: give "
                    "--number float32"
                )
            raise NotFinite(
                f"{name}: the features of patch {row} are no finite numbers: check the weights of "
                "the encoder, and look at this image"
            )
        vectors[at : at + len(stored)] = stored
        at += len(stored)


def _set(item: Any, attributes: Mapping[str, Any]) -> None:
    """Set the attributes of a file or dataset; those that are None are not known."""
    for name, value in attributes.items():
        if value is not None:
            item.attrs[name] = value


def _describe_recipe(head: FeatureHead) -> dict[str, Any]:
    """Return what foveate adds to every layout."""
    spacing_um = head.spacing_um
    y, x = (None, None) if spacing_um is None else spacing_um
    reader, _, version = head.reader.rpartition(" ")
    return {
        "mpp_x": x,
        "mpp_y": y,
        "target_mpp": _patch_spacing_um(head),
        "reader": reader or version,
        "reader_version": version,
        "encoder": head.recipe.encoder,
        "encoder_revision": head.recipe.revision,
        "transform": head.recipe.transform,
        "created_by": f"foveate {__version__}",
        "schema": SCHEMA,
    }


def _patch_spacing_um(head: FeatureHead) -> float | None:
    """Return the spacing that the encoder sees; None where lengths count in pixels."""
    if head.spacing_um is None:
        return None
    return length_um_from_px(head.side_px0, mean_spacing(head.spacing_um)) / head.patch_px


def _describe_trident(head: FeatureHead) -> dict[str, Any]:
    """Return the attributes of the places as TRIDENT names them."""
    height, width = head.shape_px0
    full_um = None if head.spacing_um is None else mean_spacing(head.spacing_um)
    return {
        "patch_size": head.patch_px,
        "patch_size_level0": round(head.side_px0),
        "level0_magnification": _magnification(full_um),
        "target_magnification": _magnification(_patch_spacing_um(head)),
        "overlap": 0,
        "name": head.name,
        "savetodir": str(head.folder),
        "level0_width": width,
        "level0_height": height,
    }


def _magnification(spacing_um: float | None) -> float | None:
    """Return the magnification of a spacing, a usual one where it is near; None if not known."""
    if spacing_um is None:
        return None
    exact = downsample_from_spacing_um(_UM_AT_1X, spacing_um)
    nearest = min(_MAGNIFICATIONS, key=lambda usual: abs(np.log(usual / exact)))
    near = nearest if 0.8 < nearest / exact < 1.25 else round(exact, 2)
    return int(near) if near == int(near) else near


def _describe_clam(head: FeatureHead) -> dict[str, Any]:
    """Return the attributes of the places as CLAM names them.

    Patches are described at level 0, which every image has.
    """
    height, width = head.shape_px0
    return {
        "patch_size": round(head.side_px0),
        "patch_level": 0,
        "downsample": np.ones(2),
        "downsampled_level_dim": np.array([width, height]),
        "level_dim": np.array([width, height]),
        "name": head.name,
        "save_path": str(head.folder),
    }


def _describe_stamp(head: FeatureHead) -> dict[str, Any]:
    """Return the attributes of the file as STAMP names them."""
    return {
        "extractor": head.recipe.encoder,
        "unit": "um",
        "tile_size_um": length_um_from_px(head.side_px0, mean_spacing(head.known_spacing_um)),
        "tile_size_px": head.patch_px,
        "code_hash": code_sha256(),
        "stamp_version": _STAMP_VERSION,
        "feat_type": "tile",
    }
