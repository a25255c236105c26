"""All nodes of the trees of a batch in one table, tree after tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from foveate.attention_maps.tree import ChosenPatches, Index
from foveate.batch import Batch, LoadedImage, Patches
from foveate.images.evidence import Floats


@dataclass(frozen=True)
class Forest:
    """All nodes of all trees of a batch, tree after tree; the root of each is its whole image.

    Attributes:
        trees: number of trees per image.
        patches: nodes of the trees of each image; the root is a square of the image's area.
        features: feature of each node, ``(nodes, d)``.
        log_prob: log-probability of each choice, ``(nodes,)``; 0 for roots.
        parent: number, in its tree, of the node that each was cut from, ``(nodes,)``; a root's is
            its own.
        level: level of each node, ``(nodes,)``; 0 for roots.
        n_nodes: number of nodes of each tree.
    """

    trees: int
    patches: list[Patches]
    features: Float[Tensor, "nodes d"]
    log_prob: Float[Tensor, " nodes"]
    parent: Int[Tensor, " nodes"]
    level: Int[Tensor, " nodes"]
    n_nodes: list[int]


class TreeNodes(NamedTuple):
    """The properties of nodes, for b images with s trees each and n nodes in each tree.

    Attributes:
        features: features with position, ``(b, s, n, d)``.
        valid: ``(b, s, n)``, False on padding.
        log_prob: log-probability ``(b, s, n)`` of the choice of each node; 0 for roots and padding.
        parent: number ``(b, s, n)`` of the node that each was cut from; 0 for padding.
        level: level of each node ``(b, s, n)``; 0 for roots and padding.
    """

    features: Float[Tensor, "b s n d"]
    valid: Bool[Tensor, "b s n"]
    log_prob: Float[Tensor, "b s n"]
    parent: Int[Tensor, "b s n"]
    level: Int[Tensor, "b s n"]


class TreeAnswers(NamedTuple):
    """The answers of a training step, for b images with s trees each and n nodes in each tree.

    Attributes:
        logits: answers ``(b, s, k)`` of the trees.
        single: answers ``(b, s, n, k)`` of single nodes; the first node is the whole image.
        valid: ``(b, s, n)``, False on padding.
        log_prob: log-probability ``(b, s, n)`` of the choice of each node; 0 for roots and padding.
        pooled: answers ``(b, s, k)`` of single patches, pooled as the task allows; None where each
            patch is trained to give the image's label.
    """

    logits: Float[Tensor, "b s k"]
    single: Float[Tensor, "b s n k"]
    valid: Bool[Tensor, "b s n"]
    log_prob: Float[Tensor, "b s n"]
    pooled: Float[Tensor, "b s k"] | None = None

    @property
    def chosen(self) -> Bool[Tensor, "b s n"]:
        """Return ``(b, s, n)``, True on nodes that were chosen."""
        first = torch.arange(self.valid.shape[-1], device=self.valid.device) == 0
        return self.valid & ~first


def gather_forest(
    batch: Batch,
    overview: Float[Tensor, "b d"],
    levels: Sequence[tuple[Sequence[ChosenPatches], Float[Tensor, "_n d"]]],
    trees: int,
) -> Forest:
    """Gather the patches of all levels into trees.

    Args:
        batch: the images.
        overview: features ``(b, d)`` of the images as a whole.
        levels: chosen patches of each image and their features ``(n, d)``, level by level.
        trees: number of trees per image.
    """
    b = len(batch)
    owner: list[Index] = [np.arange(b * trees)]
    parent: list[Index] = [np.arange(b * trees)]
    level: list[Index] = [np.zeros(b * trees, np.int64)]
    origin, side = (list(column) for column in zip(*map(_root_square, batch.items), strict=True))
    places = [np.repeat(np.stack(origin), trees, 0)]
    sides = [np.repeat(np.stack(side), trees)]
    features = [overview.repeat_interleave(trees, 0)]
    log_prob = [overview.new_zeros(b * trees)]
    above, n = trees * np.arange(b), b * trees
    for depth, (chosen, f) in enumerate(levels, 1):
        owner += [i * trees + of_image.tree for i, of_image in enumerate(chosen)]
        parent += [begin + of_image.grid for begin, of_image in zip(above, chosen, strict=True)]
        places += [of_image.patches.origin_um for of_image in chosen]
        sides += [of_image.patches.side_um for of_image in chosen]
        log_prob += [of_image.log_prob for of_image in chosen]
        features.append(f)
        counts = [len(of_image.grid) for of_image in chosen]
        level.append(np.full(sum(counts), depth))
        above, n = n + np.cumsum([0, *counts[:-1]]), n + sum(counts)
    order = np.argsort(np.concatenate(owner), kind="stable")
    lengths = np.bincount(np.concatenate(owner), minlength=b * trees)
    place, sizes = np.concatenate(places)[order], np.concatenate(sides)[order]
    ends = lengths.reshape(b, trees).sum(1).cumsum()[:-1]
    within = np.empty(n, np.int64)
    within[order] = np.concatenate([np.arange(length) for length in lengths])
    rows, up, down = (
        torch.from_numpy(index).to(overview.device)
        for index in (order, within[np.concatenate(parent)[order]], np.concatenate(level)[order])
    )
    return Forest(
        trees,
        [Patches(p, s) for p, s in zip(np.split(place, ends), np.split(sizes, ends), strict=True)],
        torch.cat(features)[rows],
        torch.cat(log_prob)[rows],
        up,
        down,
        lengths.tolist(),
    )


def _root_square(item: LoadedImage) -> tuple[Floats, float]:
    """Return corner and side of the square around an image's middle that has the image's area."""
    size_um = np.asarray(item.image.box_um.size)
    side_um = float(np.sqrt(size_um.prod()))
    return (size_um - side_um) / 2, side_um
