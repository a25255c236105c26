"""The whole image shrunk: the simple baseline that every other method must beat.

Source: a baseline without a paper of its own: a network on the downsampled image, the common
practice from which Katharopoulos & Fleuret, "Processing Megapixel Images with Deep
Attention-Sampling Models", ICML 2019, set out.

Differs: a pretrained encoder is frozen at first, and linear answers are fitted to convergence to
the means and spreads of several of its maps and to the colours of the glimpse.

Use when: the decisive parts are visible in the glimpse; and always as the baseline of the other
methods.

Cost: reads the glimpse and nothing else; needs memory for one glimpse.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveate.attention_maps.map_scores import lay_map_lattice
from foveate.batch import N_COLOURS, Batch
from foveate.encoders.base import AbstractEncoder
from foveate.geometry.lattice import points_um_from_cell
from foveate.images.evidence import Evidence, EvidenceList
from foveate.methods.base import AbstractMethod, Prediction, Requirements
from foveate.nn.heads import Head
from foveate.nn.linear_fit import RowLosses
from foveate.nn.overview import OverviewHead
from foveate.parts.options import DropoutRate


class Downsampled(AbstractMethod):
    """Encode the glimpse, pool its maps, and answer.

    With a pretrained encoder the answers are linear, fitted to the frozen features and to the
    colours of the glimpse; without one, a linear layer is trained from the start. Evidence is the
    class-independent share of each map cell in the pooled activation.

    Args:
        dropout: rate of dropout before the linear layer that is trained from the start.
    """

    reads = frozenset({"glimpse"})
    summary = "the whole image shrunk to the glimpse; reads no detail (the baseline)"
    meets = Requirements(
        relevant_parts="no",
        any_number="no",
        any_size="yes",
        one_gpu="yes",
        dependencies="partly",
    )
    learns_frozen = False

    def __init__(
        self, *, encoder: AbstractEncoder, heads: Sequence[Head], dropout: DropoutRate = 0.1
    ) -> None:
        super().__init__()
        self.encoder = encoder
        k = sum(h.size for h in heads)
        self.head: nn.Module
        if not encoder.feature_groups:
            outputs = nn.Linear(encoder.dim, k)
            self.head = nn.Sequential(nn.LayerNorm(encoder.dim), nn.Dropout(dropout), outputs)
        else:
            self.head = OverviewHead((*encoder.feature_groups, N_COLOURS), k)
            self.fits_glimpses = True

    def fit_start(
        self,
        overviews: Float[Tensor, "n d"],
        row_losses: RowLosses,
        left_out_fold: Int[Tensor, " n"],
    ) -> None:
        """Fit the linear answers, where the encoder is pretrained.

        Args:
            overviews: `Look.overview` of the n images of the training and the validation part,
                ``(n, d)``.
            row_losses: function from logits ``(m, k)`` and indices of rows ``(m,)`` to their losses
                ``(m,)``.
            left_out_fold: number of the left-out fold of each image, ``(n,)`` int.
        """
        if isinstance(self.head, OverviewHead):
            self.head.fit(overviews, row_losses, left_out_fold)

    def forward(self, batch: Batch) -> Prediction:
        """Predict from glimpses alone."""
        looks = batch.look(self.encoder)
        if self.encoder.feature_groups:
            logits = self.head(torch.cat([look.overview for look in looks]), batch.left_out_fold)
        else:
            logits = self.head(self.encoder.project(torch.cat([look.features for look in looks])))
        if self.training:
            return Prediction(logits)
        maps = enumerate(look.maps[-1] for look in looks)
        return Prediction(logits, EvidenceList(self._evidence(batch, i, last) for i, last in maps))

    def _evidence(self, batch: Batch, i: int, last: Float[Tensor, "1 c *cells"]) -> Evidence:
        strength = last.detach()[0].float().clamp_min(0).mean(0)
        lattice = lay_map_lattice(self.encoder, -1, strength.shape, batch.view.glimpse_spacing_um)
        places = np.indices(strength.shape).reshape(strength.ndim, -1).T
        weight = strength.flatten().double().cpu().numpy()
        weight = weight / max(weight.sum(), 1e-12)
        origin_um = points_um_from_cell(places, lattice)
        size_um = np.full_like(origin_um, lattice.cell_um[0])
        extent_um = np.asarray(batch.items[i].image.box_um.size)
        return Evidence(origin_um, size_um, weight, extent_um)
