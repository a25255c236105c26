"""Where tiles and patches of an image lie: cells inside the image, their prior, duplicates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from foveate.attention_maps.cells import compute_contrast_prior
from foveate.batch import LoadedImage, Patches, View
from foveate.geometry import length_px_from_um, length_um_from_px
from foveate.geometry.lattice import Lattice, points_um_from_cell
from foveate.images.evidence import Floats


def clip_to_image(
    lattice: Lattice, corner_um: Floats, extent_um: Sequence[float]
) -> tuple[tuple[slice, ...], Lattice]:
    """Select the cells of a tile whose centres lie inside the image; at least the nearest cell.

    Args:
        lattice: lattice of the tile's cells, from the tile's corner.
        corner_um: corner of the tile, ``(d,)``.
        extent_um: extent of the image.

    Returns:
        slices of the tile's map, and the lattice of the selected cells from the image's corner.
    """
    window, origin = [], []
    for at, cell, count, corner, extent in zip(
        lattice.origin_um, lattice.cell_um, lattice.shape, corner_um, extent_um, strict=True
    ):
        begin = float(corner) + at
        first = min(max(math.ceil(-begin / cell - 0.5), 0), count - 1)
        last = min(max(math.ceil((extent - begin) / cell - 0.5), first + 1), count)
        window.append(slice(first, last))
        origin.append(begin + first * cell)
    shape = tuple(cut.stop - cut.start for cut in window)
    return tuple(window), Lattice(tuple(origin), lattice.cell_um, shape)


def compute_tile_prior(
    item: LoadedImage, lattice: Lattice, view: View, *, power: float, background: float
) -> Float[Tensor, " cells"]:
    """Compute the contrast prior of a tile's cells from the part of the glimpse below the tile.

    That part may be a thousandth of the glimpse. Arguments are those of `compute_contrast_prior`.

    Args:
        item: the image.
        lattice: places of the cells of the tile.
        view: geometry in which the glimpse was read.
        power: exponent of the contrast; 0 tells only foreground from background.
        background: prior of a cell without foreground, relative to a cell of the strongest
            contrast; 0 leaves such cells out, unless the tile has no others.
    """
    spacing_um = view.glimpse_spacing_um
    origin_um = np.asarray(lattice.origin_um)
    end_um = points_um_from_cell(np.asarray(lattice.shape), lattice)
    shape = np.asarray(item.contrast.shape)
    low = np.clip(np.floor(length_px_from_um(origin_um, spacing_um)), 0, shape - 1)
    high = np.maximum(np.ceil(length_px_from_um(end_um, spacing_um)), low + 1)
    window = tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    below = dataclasses.replace(item, contrast=item.contrast[window])
    moved = dataclasses.replace(
        lattice, origin_um=tuple(origin_um - length_um_from_px(low, spacing_um))
    )
    return compute_contrast_prior(below, moved, view, power=power, background=background)


def suppress_duplicates(patches: Patches) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Leave out patches that show nearly the same as an earlier one (non-maximum suppression).

    Args:
        patches: patches of one size, best first.

    Returns:
        indices of the patches that stay: their centres lie a quarter of a side or more from those
        of all that stay before them; and for every patch the number of the one that shows it.
    """
    chosen: list[int] = []
    shows = np.zeros(len(patches), np.int64)
    centre, near = patches.centre_um, patches.side_um[:1].sum() / 4
    for j in range(len(patches)):
        away = np.abs(centre[chosen] - centre[j]).max(-1)
        if len(chosen) == 0 or away.min() >= near:
            shows[j] = len(chosen)
            chosen.append(j)
        else:
            shows[j] = int(away.argmin())
    return np.asarray(chosen, np.int64), shows


def join_patches(rows: Sequence[Patches]) -> Patches:
    """Concatenate patches of one image; at least one set is needed."""
    return Patches(
        np.concatenate([row.origin_um for row in rows]),
        np.concatenate([row.side_um for row in rows]),
    )
