"""Read and embed every patch of an image, for all methods that scan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from foveate.batch import Batch, Patches
from foveate.cache import ByteCache
from foveate.encoders.base import AbstractEncoder
from foveate.geometry import length_um_from_patch
from foveate.nn.heads import Head
from foveate.nn.repeated import EmbedOnce
from foveate.nn.replay import replay

_FEATURE_CACHE_BYTES = 1 << 29
_PARTS, _LEAST = 4, 16
"""Parts in which the patches of a step are embedded, and the fewest patches of a part."""


class Bag:
    """Covers images with patches and embeds them in bounded memory.

    Args:
        train_encoder: compute features with gradient by two-pass replay; else each image is
            embedded once, in evaluation mode, and its features are cached, up to half a gigabyte.
        chunk: number of patches embedded at a time.
        jitter: in training, shift the lattice at random.
    """

    def __init__(self, *, train_encoder: bool, chunk: int, jitter: bool) -> None:
        self.train_encoder, self.chunk, self.jitter = train_encoder, chunk, jitter
        self._features: ByteCache[Tensor] = ByteCache(_FEATURE_CACHE_BYTES)

    def cover(self, batch: Batch, *, training: bool) -> list[Patches]:
        """Return the lattice patches with foreground of each image.

        Args:
            batch: the images.
            training: whether the lattice may be shifted at random.
        """
        moved = training and self.jitter and self.train_encoder and not batch.frozen
        return [self._patches(batch, i, moved) for i in range(len(batch))]

    def embed(
        self, encoder: AbstractEncoder, batch: Batch, patches: Sequence[Patches]
    ) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
        """Embed patches.

        Args:
            encoder: the encoder of the patches.
            batch: the images.
            patches: patches of each image.

        Returns:
            features ``(b, n, d)``, zeros on padding, and the mask ``(b, n)``, False on padding.
        """
        valid = padding_mask([len(p) for p in patches], batch.device)
        if self.train_encoder or batch.frozen:
            f = embed_patches(encoder, batch, patches, self.chunk)
        else:
            f = torch.cat([self._embed_once(encoder, batch, i, p) for i, p in enumerate(patches)])
        return pad_rows(f.float(), valid), valid

    def _patches(self, batch: Batch, i: int, moved: bool) -> Patches:
        offset = np.zeros(batch.items[i].image.ndim)
        if moved:
            share = torch.rand(len(offset), generator=batch.generators[i]).double().numpy()
            offset = length_um_from_patch(share, batch.view.patch_um)
        return batch.cover(i, tuple(offset))

    def _embed_once(
        self, encoder: AbstractEncoder, batch: Batch, i: int, patches: Patches
    ) -> Float[Tensor, "n d"]:
        key = (batch.items[i].image.path, batch.view)
        features = self._features.get(key)
        if features is None:
            of_image = [patches if j == i else patches[:0] for j in range(len(batch))]
            chunks, once = batch.chunks(of_image, self.chunk, augment=False), EmbedOnce(encoder)
            with torch.no_grad(), evaluation_mode(encoder):
                features = torch.cat([once(chunks(c)) for c in range(len(chunks))]).float()
            self._features.put(key, features, features.numel() * 4)
        return features


def embed_patches(
    encoder: AbstractEncoder,
    batch: Batch,
    patches: Sequence[Patches],
    chunk: int,
    *,
    then: nn.Module | None = None,
    keep_pixels: bool = True,
) -> Float[Tensor, "rows d"]:
    """Embed patches, with gradient in the memory of one chunk.

    Where there is a gradient and more than one chunk, chunks are half as long: with activations,
    half as many patches need as much memory as a chunk without. Patches that fit one chunk are
    embedded in a few parts, so that the next part is read meanwhile.

    Args:
        encoder: the encoder of the patches.
        batch: the images that patches are read from.
        patches: patches of each image.
        chunk: number of patches encoded at a time.
        then: module that features, as float32, are passed through, in the same chunks.
        keep_pixels: keep pixels for the second pass, up to a fixed number of bytes; else all are
            read again.

    Returns:
        features ``(sum n_i, d)``, image after image.
    """
    if batch.frozen_features is not None:
        vectors = encoder.project(batch.frozen_features.features(encoder, patches, chunk))
        return vectors if then is None else then(vectors.float())
    n = sum(map(len, patches))
    is_replayed = torch.is_grad_enabled() and n > chunk
    n_at_once = (chunk + 1) // 2 if is_replayed else min(chunk, max(_LEAST, -(-n // _PARTS)))
    # Chunks that are made without gradient keep no pixels for a second pass.
    with torch.set_grad_enabled(is_replayed and keep_pixels):
        chunks = batch.chunks(patches, n_at_once)
    learnt, once = list(encoder.parameters()), EmbedOnce(encoder)
    if then is not None:
        learnt += then.parameters()
        once = EmbedOnce(lambda x: then(encoder(x).float()))
    if is_replayed:
        return replay(once, learnt, chunks, len(chunks))
    return torch.cat([once(chunks(c)) for c in range(len(chunks))])


def padding_mask(n_tokens: Sequence[int], device: torch.device) -> Bool[Tensor, "b n"]:
    """Return the mask ``(b, n)``, True on the first ``n_tokens[i]`` entries of row i.

    Args:
        n_tokens: number of entries of each row; n is the largest, at least 1.
        device: device of the mask.
    """
    n = max(1, *n_tokens)
    return torch.arange(n, device=device) < torch.tensor(n_tokens, device=device)[:, None]


def pad_rows(rows: Shaped[Tensor, "rows d"], valid: Bool[Tensor, "b n"]) -> Shaped[Tensor, "b n d"]:
    """Arrange rows ``(sum n_i, d)`` as ``(b, n, d)`` by the mask ``(b, n)``, zeros on padding.

    Args:
        rows: rows of all images, one image after the other.
        valid: False for padding; True as often as there are rows.
    """
    if len(rows) == valid.numel():
        return rows.reshape(*valid.shape, -1)
    out = rows.new_zeros(*valid.shape, rows.shape[-1])
    out[valid] = rows
    return out


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Set modules to evaluation mode within a ``with`` block, then restore their modes."""
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.train(mode)


# -- evidence --------------------------------------------------------------------------------------


def compute_output_weights(
    logits: Float[Tensor, "b k"], heads: Sequence[Head]
) -> Float[Tensor, "b k"]:
    """Compute the weight of each output in the evidence, ``(b, k)``; rows sum to 1.

    It is the output's probability, divided by the sum of all. Methods with an attention map for
    each output average these maps by it.

    Args:
        logits: answers ``(b, k)``.
        heads: the questions of the task.
    """
    exact = logits.detach().to(torch.promote_types(logits.dtype, torch.float32))
    outputs = torch.split(exact, [h.size for h in heads], 1)
    log_probability = [
        output.log_softmax(1) if head.exclusive else nn.functional.logsigmoid(output)
        for output, head in zip(outputs, heads, strict=True)
    ]
    return torch.cat(log_probability, 1).softmax(1)


def compute_patch_shares(
    single: Float[Tensor, "b n k"],
    logits: Float[Tensor, "b k"],
    heads: Sequence[Head],
    valid: Bool[Tensor, "b n"],
) -> Float[Tensor, "b n"]:
    """Compute the share of each patch in a prediction whose logits are a mean or sum over patches.

    A patch counts by what it adds to the predicted class over the mean of the other classes, or,
    for an output of its own, to the predicted sign. A patch against the prediction counts as 0.

    Args:
        single: logits ``(b, n, k)`` of each patch.
        logits: logits ``(b, k)`` of the images.
        heads: the questions of the task.
        valid: ``(b, n)``, False on padding.

    Returns:
        shares ``(b, n)``; rows sum to 1.
    """
    added = (single.detach() * _sign_predictions(logits, heads).unsqueeze(1)).sum(-1)
    share = added.clamp_min(0) * valid
    share = torch.where(share.sum(1, keepdim=True) > 0, share, valid.float())
    return share / share.sum(1, keepdim=True).clamp_min(1e-30)


def _sign_predictions(logits: Float[Tensor, "b k"], heads: Sequence[Head]) -> Float[Tensor, "b k"]:
    """Return factors ``(b, k)`` that turn logits into support of what the logits predict.

    For exclusive classes: the predicted class against the mean of all classes; for an output of
    its own: 1 or -1, the predicted sign.

    Args:
        logits: logits ``(b, k)`` of the images.
        heads: the questions of the task.
    """
    signs = []
    outputs = torch.split(logits.float(), [head.size for head in heads], 1)
    for output, head in zip(outputs, heads, strict=True):
        predicted = nn.functional.one_hot(output.argmax(1), head.size) - 1 / head.size
        signs.append(predicted if head.exclusive else torch.where(output >= 0, 1.0, -1.0))
    return torch.cat(signs, 1)
