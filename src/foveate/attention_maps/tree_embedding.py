"""Embed patches of a tree: a vector for each, and the means of its maps in its cells."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from foveate.attention_maps.tree_cells import Cut, compute_cell_features
from foveate.batch import Batch, Patches
from foveate.encoders.base import AbstractEncoder
from foveate.nn.repeated import EmbedOnce
from foveate.nn.replay import replay


def embed_with_cells(
    encoder: AbstractEncoder, cut: Cut, batch: Batch, patches: Sequence[Patches], chunk: int
) -> Float[Tensor, "n dim_and_cells"]:
    """Embed patches that are cut further.

    Args:
        encoder: the encoder of the patches.
        cut: the rule by which a patch is cut into cells.
        batch: the images.
        patches: patches of each image, n of all images together.
        chunk: number of patches encoded at a time; above it, gradients come from two-pass replay.

    Returns:
        ``(n, dim + cells * c)``: the vectors, then the means of the maps in each cell.
    """
    patch_px = batch.view.patch_px
    if batch.frozen_features is not None:
        encode = functools.partial(_encode, encoder, cut, patch_px, encoder.features)
        rows = batch.frozen_features.rows(f"{cut} ", patches, chunk, encode)
        n = encoder.n_features
        return torch.cat([encoder.project(rows[:, :n]).float(), rows[:, n:]], 1)
    # Without augmentation: the map of a turned patch would point to the wrong part of it.
    chunks = batch.chunks(patches, chunk, augment=False)
    parameters = list(encoder.parameters())
    once = EmbedOnce(functools.partial(_encode, encoder, cut, patch_px, encoder.pool))
    if not torch.is_grad_enabled() or len(chunks) == 1:
        return torch.cat([once(chunks(c)) for c in range(len(chunks))])
    return replay(once, parameters, chunks, len(chunks))


def _encode(
    encoder: AbstractEncoder,
    cut: Cut,
    patch_px: int,
    vector: Callable[..., Float[Tensor, "m d"]],
    x: Float[Tensor, "m 3 y x"],
) -> Float[Tensor, "m dim_and_cells"]:
    """Return the vectors of patches and the means of their maps in each cell, side by side."""
    maps = encoder.maps(x)
    begin = cut.inside(patch_px)
    cells = compute_cell_features(encoder, maps, (begin, begin), patch_px / cut.zoom)
    return torch.cat([vector(maps).float(), cells.flatten(1)], 1)
