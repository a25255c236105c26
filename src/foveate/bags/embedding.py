"""Every patch of an image, read and embedded: what all methods that scan share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from foveate.batch import Batch, Patches
from foveate.cache import ByteCache
from foveate.encoders.base import AbstractEncoder
from foveate.nn.heads import Head
from foveate.nn.repeated import EmbedOnce
from foveate.nn.replay import replay

_KEPT_FEATURES_BYTES = 1 << 29


class Bag:
    """Covers images with patches and embeds them in bounded memory.

    Args:
        train_encoder: features come from two-pass replay; else each image is embedded once, in
            evaluation mode, and its features are kept, up to half a gigabyte.
        chunk: patches embedded at a time.
        jitter: in training, shift the lattice at random.
    """

    def __init__(self, *, train_encoder: bool, chunk: int, jitter: bool) -> None:
        self.train_encoder, self.chunk, self.jitter = train_encoder, chunk, jitter
        self._features: ByteCache[Tensor] = ByteCache(_KEPT_FEATURES_BYTES)

    def cover(self, batch: Batch, *, training: bool) -> list[Patches]:
        """Per image, the lattice patches with foreground."""
        moved = training and self.jitter and self.train_encoder and not batch.frozen
        return [self._patches(batch, i, moved) for i in range(len(batch))]

    def embed(
        self, encoder: AbstractEncoder, batch: Batch, patches: Sequence[Patches]
    ) -> tuple[Tensor, Tensor]:
        """Features ``(b, n, d)`` of the patches, padded with zeros, and where they are valid."""
        valid = padding_mask([len(p) for p in patches], batch.device)
        if self.train_encoder or batch.frozen:
            f = embed_patches(encoder, batch, patches, self.chunk)
        else:
            f = torch.cat([self._kept(encoder, batch, i, p) for i, p in enumerate(patches)])
        return pad_rows(f.float(), valid), valid

    def _patches(self, batch: Batch, i: int, moved: bool) -> Patches:
        offset = np.zeros(batch.items[i].image.ndim)
        if moved:
            share = torch.rand(len(offset), generator=batch.generators[i]).double().numpy()
            offset = share * batch.view.patch_um
        return batch.cover(i, tuple(offset))

    def _kept(self, encoder: AbstractEncoder, batch: Batch, i: int, patches: Patches) -> Tensor:
        key = (batch.items[i].image.path, batch.view)
        kept = self._features.get(key)
        if kept is None:
            own = [patches if j == i else patches[:0] for j in range(len(batch))]
            chunks, once = batch.chunks(own, self.chunk, augment=False), EmbedOnce(encoder)
            with torch.no_grad(), evaluating(encoder):
                kept = torch.cat([once(chunks(c)) for c in range(len(chunks))]).float()
            self._features.put(key, kept, kept.numel() * 4)
        return kept


def embed_patches(
    encoder: AbstractEncoder,
    batch: Batch,
    patches: Sequence[Patches],
    chunk: int,
    *,
    then: nn.Module | None = None,
    keep_pixels: bool = True,
) -> Tensor:
    """Features ``(sum n_i, d)``, with gradient in the memory of one chunk.

    More than one chunk are embedded in halves where there is a gradient: with it, half as many
    patches hold as much as a whole chunk does without.

    Args:
        encoder: of patches.
        batch: they are read from.
        patches: per image.
        chunk: how many are encoded at a time.
        then: what each feature, as float32, goes through, in the same chunks.
        keep_pixels: up to a fixed number of bytes for the second pass; else all are read again.
    """
    if batch.frozen_features is not None:
        vectors = encoder.project(batch.frozen_features.features(encoder, patches, chunk))
        return vectors if then is None else then(vectors.float())
    if torch.is_grad_enabled() and sum(map(len, patches)) > chunk:
        chunk = (chunk + 1) // 2
    # Made where there is no gradient, chunks keep no pixels.
    with torch.set_grad_enabled(torch.is_grad_enabled() and keep_pixels):
        chunks = batch.chunks(patches, chunk)
    learnt, once = list(encoder.parameters()), EmbedOnce(encoder)
    if then is not None:
        learnt += then.parameters()
        once = EmbedOnce(lambda x: then(encoder(x).float()))
    if not torch.is_grad_enabled():
        return torch.cat([once(chunks(c)) for c in range(len(chunks))])
    if len(chunks) == 1:
        return once(chunks(0))
    return replay(once, learnt, chunks, len(chunks))


def padding_mask(lengths: Sequence[int], device: torch.device) -> Tensor:
    """``(b, n)``, True for the first ``lengths[i]`` of row i; n is the largest, at least 1."""
    n = max(1, *lengths)
    return torch.arange(n, device=device) < torch.tensor(lengths, device=device)[:, None]


def pad_rows(rows: Tensor, valid: Tensor) -> Tensor:
    """Rows ``(sum n_i, d)`` as ``(b, n, d)``, zeros where not valid."""
    if len(rows) == valid.numel():
        return rows.reshape(*valid.shape, -1)
    out = rows.new_zeros(*valid.shape, rows.shape[-1])
    out[valid] = rows
    return out


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """These modules in evaluation mode, whatever mode the method is in."""
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


# -- evidence --------------------------------------------------------------------------------------


def compute_output_weights(logits: Tensor, heads: Sequence[Head]) -> Tensor:
    """How much each output counts for what is predicted, ``(b, k)``; rows sum to 1.

    Its probability, among the probabilities of all: of methods that look once for each output.
    """
    exact = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    outputs = torch.split(exact, [h.size for h in heads], 1)
    log_probability = [
        each.log_softmax(1) if head.exclusive else nn.functional.logsigmoid(each)
        for each, head in zip(outputs, heads, strict=True)
    ]
    return torch.cat(log_probability, 1).softmax(1)


def compute_patch_shares(
    single: Tensor, logits: Tensor, heads: Sequence[Head], valid: Tensor
) -> Tensor:
    """Share of each patch in what is predicted, where the logits are a mean or sum over patches.

    Counted is what a patch adds to the predicted class over the mean of its rivals, or to the
    predicted sign of an output that has none; what speaks against the prediction counts as 0.

    Args:
        single: ``(b, n, k)`` of the patches.
        logits: ``(b, k)``.
        heads: of the task.
        valid: ``(b, n)``.

    Returns:
        ``(b, n)``; rows sum to 1.
    """
    sizes = [h.size for h in heads]
    signs = []
    for each, head in zip(torch.split(logits.float(), sizes, 1), heads, strict=True):
        chosen = nn.functional.one_hot(each.argmax(1), head.size) - 1 / head.size
        signs.append(chosen if head.exclusive else torch.where(each >= 0, 1.0, -1.0))
    added = (single.detach() * torch.cat(signs, 1).unsqueeze(1)).sum(-1)
    share = added.clamp_min(0) * valid
    share = torch.where(share.sum(1, keepdim=True) > 0, share, valid.float())
    return share / share.sum(1, keepdim=True).clamp_min(1e-30)
