"""Iterative patch selection: scan everything without gradient, learn from the best.

Source: Bergner, Lippert & Mahendran, "Iterative Patch Selection for High-Resolution Image
Recognition", ICLR 2023; sub-salient buffer and random drop after DBPS (CVPR 2025).

Differs: patches are scored by their attention over all patches of the image, not only over those in
the buffer. So the M best patches are selected in any order of scanning, which the published code
does not ensure. Gradients come from two-pass replay, so memory depends neither on the number of
patches scanned nor on the number kept. Some of the kept patches are drawn at random for
exploration; patches of one constant colour are embedded once; positions are physical, not indices
of one lattice; the lattice is shifted at random in training; padding is masked everywhere; an
instance head ends the plateau at chance; before pooling, self-attention relates patches by distance
and direction.

Use when: parts of the image decide, no glimpse shows where they are, and reading everything is
affordable.

Cost: reads every patch with foreground; needs memory for one chunk of patches, a few numbers per
scanned patch and about a dozen vectors per kept patch. The time for relating the kept patches grows
with the square of their number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foveate.bags.embedding import Bag, embed_patches, pad_rows, padding_mask
from foveate.bags.related import RelatedPool
from foveate.batch import Batch, Patches
from foveate.encoders.base import AbstractEncoder
from foveate.methods.base import AbstractMethod, Auxiliary, Prediction, Requirements
from foveate.nn.heads import Head, InstanceHead
from foveate.nn.repeated import EmbedOnce
from foveate.nn.selection import normalised_scores, rank_patches, select_with_exploration
from foveate.parts.options import Count, Depth, DropoutRate

_MANY = 1024
"""Number of patches from which the instance head's activations are recomputed for gradients."""
_ATTENTION_HEADS = 8
"""Heads of the cross-attention, where they divide the vector's length; each question of the task
has its own query."""


class Ips(AbstractMethod):
    """Scan all patches, keep those of highest attention, aggregate them by cross-attention.

    Args:
        kept: number of patches per image that gradients flow through (M of the paper). An image
            with no more patches than that is not scanned.
        explore: share of the kept patches that is drawn from the other patches in training.
        buffer: number of further patches, next in score, that are pooled without a gradient to the
            encoder.
        drop: share of the patches that is randomly left out in training.
        layers: number of self-attention layers before pooling; 0 as in the paper.
        dropout: rate of dropout in the cross-attention.
        instance: weight of the loss of the instance head, which answers the task from single
            patches and pools these answers as the task allows; 0 for no such head.
        chunk: number of patches encoded at a time.
        jitter: whether the lattice is shifted at random in training.
    """

    reads = frozenset({"glimpse", "bag"})
    needs_pixels = False
    summary = "scans all patches without gradient, keeps the best, relates and pools them"
    meets = Requirements(
        relevant_parts="partly",
        any_number="yes",
        any_size="yes",
        one_gpu="yes",
        dependencies="yes",
    )

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        kept: int = 100,
        explore: float = 0.1,
        buffer: int = 0,
        drop: DropoutRate = 0.0,
        layers: Depth = 1,
        dropout: DropoutRate = 0.1,
        instance: float = 1.0,
        chunk: Count = 256,
        jitter: bool = True,
    ) -> None:
        super().__init__()
        dim = encoder.dim
        self.encoder = encoder
        self.kept, self.explore, self.buffer, self.drop = kept, explore, buffer, drop
        self.instance, self.chunk = instance, chunk
        self.bag = Bag(train_encoder=True, chunk=chunk, jitter=jitter)
        self.embed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        attention_heads = math.gcd(_ATTENTION_HEADS, dim)
        self.related = RelatedPool(
            encoder, heads, layers=layers, attention_heads=attention_heads, dropout=dropout
        )
        self.head_instance = InstanceHead(dim, heads)

    def forward(self, batch: Batch) -> Prediction:
        """Predict from the patches that score highest."""
        patches = self.bag.cover(batch, training=self.training)
        if self.training and self.drop > 0:
            patches = [
                _drop_patches(part, self.drop, generator)
                for part, generator in zip(patches, batch.generators, strict=True)
            ]
        centre, extent = batch.layout(patches, max(1, *(len(p) for p in patches)))
        selected, buffered = self._select(batch, patches, centre, extent)
        rows = [torch.cat(pair) for pair in zip(selected, buffered, strict=True)]
        chosen = [part[row.numpy()] for part, row in zip(patches, rows, strict=True)]
        valid = padding_mask([len(p) for p in chosen], centre.device)
        f = pad_rows(self._features(batch, patches, selected, buffered), valid)
        index = pad_rows(torch.cat(rows)[:, None], valid.cpu())[..., 0].to(centre.device)
        near = centre.gather(1, index.unsqueeze(-1).expand(-1, -1, centre.shape[-1]))
        # Before the relations, so that its backward pass comes after theirs, when memory is free.
        further = self._alone(f, valid) if self.training else {}
        logits, weight = self.related(f, valid, near, extent.gather(1, index))
        if not self.training:
            return Prediction(logits, batch.evidence(chosen, weight))
        return Prediction(logits, further=further)

    def _alone(self, f: Float[Tensor, "b n d"], valid: Bool[Tensor, "b n"]) -> dict[str, Auxiliary]:
        """Compute the instance head's answer; for many patches its activations are recomputed."""
        if self.instance <= 0:
            return {}
        if f.shape[1] <= _MANY:
            answer = self.head_instance(f, valid)
        else:
            answer = checkpoint(self.head_instance, f, valid, use_reentrant=False)
        return {"instance": Auxiliary(answer, self.instance)}

    def _select(
        self,
        batch: Batch,
        patches: Sequence[Patches],
        centre: Float[Tensor, "b n ndim"],
        extent: Float[Tensor, "b n"],
    ) -> tuple[list[Int[Tensor, " _selected"]], list[Int[Tensor, " _buffered"]]]:
        """Select the best patches of each image, and those that follow in the buffer.

        Args:
            batch: the images.
            patches: patches of each image.
            centre: centres of the patches ``(b, n, ndim)``, in patches.
            extent: sides of the patches ``(b, n)``, in patches.

        Returns:
            indices of selected patches and of those in the buffer, for each image.
        """
        # Scanned in the order of their places, because an encoder's rounding depends on the other
        # patches in a chunk.
        orders = [_sort_by_place(part if len(part) > self.kept else part[:0]) for part in patches]
        scanned = [part[rows.numpy()] for part, rows in zip(patches, orders, strict=True)]
        centre, extent = (
            torch.cat([x[i, rows.to(x.device)] for i, rows in enumerate(orders)])
            for x in (centre, extent)
        )
        scores = iter(self._scan(batch, scanned, centre, extent))
        selected, buffered = [], []
        explore = self.explore if self.training else 0.0
        for i, (part, rows) in enumerate(zip(patches, orders, strict=True)):
            if not len(rows):
                selected.append(torch.arange(len(part)))
                buffered.append(torch.arange(0))
                continue
            score = next(scores)
            generator = batch.generators[i] if explore > 0 else None
            best = select_with_exploration(score, self.kept, explore=explore, generator=generator)
            rest = rank_patches(score.scatter(0, best, -torch.inf))
            selected.append(rows[best.cpu()])
            buffered.append(rows[rest[: self.buffer].cpu()])
        return selected, buffered

    @torch.no_grad()
    def _scan(
        self,
        batch: Batch,
        patches: Sequence[Patches],
        centre: Float[Tensor, "n ndim"],
        extent: Float[Tensor, " n"],
    ) -> list[Float[Tensor, " _n"]]:
        """Score patches in evaluation mode: ``(n_i,)`` for each image that has patches.

        Args:
            batch: the images.
            patches: patches of each image, sorted by place.
            centre: centres of all these patches ``(sum n_i, ndim)``, in patches.
            extent: sides of all these patches ``(sum n_i,)``, in patches.
        """
        if not any(len(part) for part in patches):
            return []
        if batch.frozen:
            f = self.embed(embed_patches(self.encoder, batch, patches, self.chunk).float())
            return _normalise_scores(self.related.scores(f, centre, extent), patches)
        chunks, once = batch.chunks(patches, self.chunk), EmbedOnce(self.encoder)
        training, logits, at = self.encoder.training, [], 0
        self.encoder.eval()
        try:
            for c in range(len(chunks)):
                f = self.embed(once(chunks(c)).float())
                part = slice(at, at + len(f))
                logits.append(self.related.scores(f, centre[part], extent[part]))
                at += len(f)
        finally:
            self.encoder.train(training)
        return _normalise_scores(torch.cat(logits), patches)

    def _features(
        self,
        batch: Batch,
        patches: Sequence[Patches],
        selected: Sequence[Int[Tensor, " _selected"]],
        buffered: Sequence[Int[Tensor, " _buffered"]],
    ) -> Float[Tensor, "n d"]:
        """Embed selected patches with gradient, and each image's buffer, behind them, without."""
        best = [part[row.numpy()] for part, row in zip(patches, selected, strict=True)]
        # Pixels are read again for the second pass: little work after a scan of all patches.
        f = embed_patches(self.encoder, batch, best, self.chunk, then=self.embed, keep_pixels=False)
        if not any(len(row) for row in buffered):
            return f
        rest = [part[row.numpy()] for part, row in zip(patches, buffered, strict=True)]
        with torch.no_grad():
            g = embed_patches(self.encoder, batch, rest, self.chunk).float()
        trained = torch.split(f, [len(row) for row in selected])
        fixed = torch.split(self.embed(g), [len(row) for row in buffered])
        return torch.cat([rows for pair in zip(trained, fixed, strict=True) for rows in pair])


def _normalise_scores(
    logits: Float[Tensor, "n ..."], patches: Sequence[Patches]
) -> list[Float[Tensor, " _n"]]:
    """Normalise the logits ``(sum n_i, …)`` of all patches to scores ``(n_i,)`` in each image."""
    ends = np.cumsum([len(part) for part in patches if len(part)])
    parts = (logits[end - n : end] for end, n in zip(ends, np.diff(ends, prepend=0), strict=True))
    return [normalised_scores(part) for part in parts]


def _sort_by_place(patches: Patches) -> Int[Tensor, " n"]:
    """Return the indices ``(n,)`` that sort patches by size and place."""
    return torch.from_numpy(np.lexsort((*patches.origin_um.T[::-1], patches.side_um)))


def _drop_patches(patches: Patches, share: float, generator: torch.Generator) -> Patches:
    """Drop a random share of the patches; the others stay in order, at least one."""
    keep = torch.rand(len(patches), generator=generator) >= share
    keep[torch.randint(len(patches), (), generator=generator)] = True
    return patches[keep.nonzero()[:, 0].numpy()]
