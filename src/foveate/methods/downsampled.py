"""The whole image shrunk: the honest straw man that every other method must beat."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from foveate.batch import Batch, Prediction, run_by_shape
from foveate.encoders.base import AbstractEncoder
from foveate.evidence import Evidence
from foveate.methods.base import AbstractMethod


class Downsampled(AbstractMethod):
    """Encode the glimpse, pool it, classify it.

    Evidence is the class-independent share of each map cell in the pooled activation.

    Args:
        dropout: before the linear layer.
    """

    reads = frozenset({"glimpse"})
    summary = "the whole image shrunk to the glimpse; reads no detail (the straw man)"

    def __init__(self, *, encoder: AbstractEncoder, n_outputs: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Sequential(
            nn.LayerNorm(encoder.dim), nn.Dropout(dropout), nn.Linear(encoder.dim, n_outputs)
        )

    def forward(self, batch: Batch) -> Prediction:
        """Predict from glimpses alone."""
        maps = run_by_shape(self.encoder.maps, batch.glimpses())
        vectors = torch.cat([self.encoder.pool(m) for m in maps])
        evidence = [self._evidence(batch, m[-1]) for m in maps]
        return Prediction(self.head(vectors), evidence)

    def _evidence(self, batch: Batch, last: torch.Tensor) -> Evidence:
        strength = last.detach()[0].float().clamp_min(0).mean(0)
        cell = self.encoder.strides[-1] * batch.view.glimpse_spacing_um
        corner = self.encoder.map_centres[-1] * batch.view.glimpse_spacing_um - cell / 2
        places = np.indices(strength.shape).reshape(2, -1).T
        weight = strength.flatten().double().cpu().numpy()
        weight = weight / max(weight.sum(), 1e-12)
        origin = corner + cell * places.astype(np.float64)
        return Evidence(origin, np.full_like(origin, cell), weight)
