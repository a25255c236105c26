"""Attention-based multiple instance learning over all patches.

Source: Ilse, Tomczak & Welling, ICML 2018 (gated attention). Differs in that the encoder may be
trained: features come from two-pass replay, whose memory does not grow with the number of patches.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from foveate.batch import Batch, Prediction
from foveate.cache import ByteCache
from foveate.encoders.base import AbstractEncoder
from foveate.evidence import Floats
from foveate.methods.base import AbstractMethod
from foveate.nn.attention import GatedAttention, masked_softmax
from foveate.nn.replay import replay
from foveate.tiling import tile_foreground

_KEPT_FEATURES_BYTES = 1 << 29


class Abmil(AbstractMethod):
    """All patches with tissue, gated attention, a linear head.

    Args:
        train_encoder: learn the encoder too, by two-pass replay; off, it stays as it began and
            each image is embedded once.
        chunk: patches encoded at a time.
        hidden: width of the attention network.
        dropout: on the pooled vector.
        jitter: in training, shift the lattice at random (with a trained encoder only).
    """

    reads = frozenset({"glimpse", "bag"})
    summary = "all patches, gated attention; encoder frozen or trained by two-pass replay"

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        n_outputs: int,
        train_encoder: bool = True,
        chunk: int = 64,
        hidden: int = 128,
        dropout: float = 0.1,
        jitter: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(train_encoder)
        self.train_encoder = train_encoder
        self.chunk, self.jitter = chunk, jitter
        self.norm = nn.LayerNorm(encoder.dim)
        self.attention = GatedAttention(encoder.dim, hidden=hidden)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(encoder.dim, n_outputs))
        self._features: ByteCache[Tensor] = ByteCache(_KEPT_FEATURES_BYTES)

    def train(self, mode: bool = True) -> Abmil:
        """Training mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if not self.train_encoder:
            self.encoder.eval()
        return self

    def forward(self, batch: Batch) -> Prediction:
        """Predict from every patch of each image."""
        logits, evidence = [], []
        for i in range(len(batch)):
            origin = self._lattice(batch, i)
            h = self.norm(self._embed(batch, i, origin).float())
            scores = self.attention(h)
            weight = masked_softmax(scores, torch.ones_like(scores, dtype=torch.bool))
            logits.append(self.head(weight @ h))
            evidence.append(batch.evidence(i, origin, weight))
        return Prediction(torch.stack(logits), evidence)

    def _lattice(self, batch: Batch, i: int) -> Floats:
        item, view = batch.items[i], batch.view
        offset = np.zeros(item.image.ndim)
        if self.training and self.jitter and self.train_encoder:
            offset = torch.rand(item.image.ndim).numpy().astype(np.float64) * view.patch_um
        corners = tile_foreground(
            item.contrast > 0,
            mask_spacing_um=view.glimpse_spacing_um,
            extent_um=item.image.box_um.size,
            patch_um=view.patch_um,
            offset_um=tuple(offset),
        )
        return batch.place(i, corners + view.patch_um / 2)

    def _embed(self, batch: Batch, i: int, origin: Floats) -> Tensor:
        n_chunks = math.ceil(len(origin) / self.chunk)

        def load(c: int) -> Tensor:
            empty = origin[:0]
            part = origin[c * self.chunk : (c + 1) * self.chunk]
            wanted = [part if j == i else empty for j in range(len(batch))]
            return batch.crops(wanted, augment=self.train_encoder)

        if self.train_encoder:
            return replay(self.encoder, list(self.encoder.parameters()), load, n_chunks)
        key = (batch.items[i].image_id, batch.view)
        kept = self._features.get(key)
        if kept is None:
            with torch.no_grad():
                kept = torch.cat([self.encoder(load(c)) for c in range(n_chunks)]).float()
            self._features.put(key, kept, kept.numel() * 4)
        return kept
