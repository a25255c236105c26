"""Files of features in the layouts of TRIDENT, CLAM and STAMP, written by plain h5py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

SIDE_PX0 = 512
"""Side of a patch in level-0 pixels: 256 pixels at 20 x of a slide at 40 x."""


def lattice(n: int, columns: int = 4) -> NDArray[np.int64]:
    """Corners ``(n, 2)``, x and y, of patches side by side."""
    rows = np.arange(n)
    return np.stack([rows % columns, rows // columns], 1) * SIDE_PX0


def write_trident(
    path: Path,
    vectors: NDArray[Any],
    corners_xy: NDArray[Any] | None = None,
    *,
    encoder: str = "uni_v1",
    **more: Any,
) -> Path:
    """Write a file as TRIDENT does; `more` are attributes of the places, None to leave one out."""
    corners_xy = lattice(len(vectors)) if corners_xy is None else corners_xy
    attributes = {
        "patch_size": 256,
        "patch_size_level0": SIDE_PX0,
        "level0_magnification": 40,
        "target_magnification": 20,
        "overlap": 0,
        "name": path.stem,
        "savetodir": "/elsewhere",
        "level0_width": 20_000,
        "level0_height": 30_000,
    } | more
    with h5py.File(path, "w") as file:
        features = file.create_dataset("features", data=vectors, chunks=True)
        features.attrs["encoder"] = encoder
        features.attrs["name"] = path.stem
        coords = file.create_dataset("coords", data=corners_xy)
        for name, value in attributes.items():
            if value is not None:
                coords.attrs[name] = value
    return path


def write_clam(path: Path, vectors: NDArray[Any], corners_xy: NDArray[Any] | None = None) -> Path:
    """Write a file of features as CLAM does: the places without attributes, one row a piece."""
    corners_xy = lattice(len(vectors)) if corners_xy is None else corners_xy
    with h5py.File(path, "w") as file:
        chunks = (1, *vectors.shape[1:])
        file.create_dataset(
            "features", data=vectors, chunks=chunks, maxshape=(None, *vectors.shape[1:])
        )
        file.create_dataset("coords", data=corners_xy.astype(np.int32))
    return path


def write_stamp(path: Path, vectors: NDArray[Any], corners_um: NDArray[Any], **more: Any) -> Path:
    """Write a file of tiles as STAMP does; `more` are attributes, None to leave one out."""
    attributes = {
        "extractor": "ctranspath",
        "unit": "um",
        "tile_size_um": 256.0,
        "tile_size_px": 224,
        "code_hash": "0" * 8,
        "stamp_version": "2.2.0",
        "feat_type": "tile",
    } | more
    with h5py.File(path, "w") as file:
        file["feats"] = vectors.astype(np.float16)
        file["coords"] = corners_um
        for name, value in attributes.items():
            if value is not None:
                file.attrs[name] = value
    return path
