"""Embed crops of a tree: one vector for each, and the means of its maps in the cells inside it."""

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
    """Embed crops that are cut further.

    Args:
        encoder: the encoder of the crops.
        cut: the rule by which a crop is cut into cells.
        batch: the images.
        patches: crops of each image, n of all images together.
        chunk: number of crops encoded at a time; above it, gradients come from two-pass replay.

    Returns:
        ``(n, dim + cells * c)``: the vectors, then the means of the maps in each cell.
    """
    patch_px = batch.view.patch_px
    if batch.frozen_features is not None:
        encode = functools.partial(_encode, encoder, cut, patch_px, encoder.features)
        rows = batch.frozen_features.rows(f"{cut} ", patches, chunk, encode)
        n = encoder.n_features
        return torch.cat([encoder.project(rows[:, :n]).float(), rows[:, n:]], 1)
    # Without augmentation: the map of a turned crop would point to the wrong part of it.
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
    vector: Callable[[list[Tensor]], Tensor],
    x: Tensor,
) -> Tensor:
    maps = encoder.maps(x)
    begin = cut.inside(patch_px)
    cells = compute_cell_features(encoder, maps, (begin, begin), patch_px / cut.zoom)
    return torch.cat([vector(maps).float(), cells.flatten(1)], 1)
