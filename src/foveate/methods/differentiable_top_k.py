"""Differentiable patch selection: the k best cells of the glimpse, made smooth by noise.

Source: Cordonnier et al., "Differentiable Patch Selection for Image Recognition", CVPR 2021:
perturbed top-k on scores brought to 0…1, noise that fades over the training, hard top-k in
evaluation, mean pooling, entropy term on the scores.

Differs: the published code blends the pixels of all cells into k patches and embeds the blends.
Here every patch is one region of the image, and features are blended. So only cells that a noise
sample chose are read, and memory does not grow with their number (replay). The cells that were
chosen most often, at most `most`, are used with normalised weights. While scores are nearly equal,
noise chooses many cells; the mean and its gradient are then biased towards the better cells. The
bias vanishes as scores differ more and the noise falls. The gradient uses the full Jacobian
(`foveate.nn.top_k`). Scores are added to a prior that follows contrast. Scores that span less than
1 are not stretched, because the first steps would otherwise rank rounding errors. An instance head
gives every patch its own gradient.

Use when: a small, known number of places decides, and evaluation should read exactly that many
patches.

Cost: reads a glimpse, `k` patches per image in evaluation and up to `most` in training; needs
memory for one chunk of patches and for ``samples * k`` places.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveate.attention_maps.cells import Field, PriorCache, build_field
from foveate.attention_maps.map_scores import MapScores, choose_stage, lay_map_lattice
from foveate.bags.embedding import embed_patches, pad_rows, padding_mask
from foveate.batch import Batch
from foveate.encoders.base import AbstractEncoder
from foveate.methods.base import (
    AbstractMethod,
    Auxiliary,
    FurtherLoss,
    Penalty,
    Prediction,
    Requirements,
)
from foveate.nn.heads import Head, InstanceHead
from foveate.nn.sampling import kl_divergences
from foveate.nn.top_k import TopK, perturbed_top_k
from foveate.parts.options import Count, DropoutRate

_BACKGROUND = 0.0
"""Prior of a cell without foreground: left out, unless an image has no others."""


class DifferentiableTopK(AbstractMethod):
    """Select the k cells of highest score, with a gradient through noise on the scores.

    Args:
        k: number of patches of a prediction.
        samples: number of noise samples in a training step.
        sigma: standard deviation of the noise at the beginning, on scores that span 0…1; it falls
            linearly to 0 over the training.
        most: largest number of patches read per image in training; at least k.
        spread: weight of the divergence of the scores' softmax from the prior (with an even prior,
            the paper's entropy term), which keeps the scores close together.
        contrast: exponent of the prior: the prior of a cell is its difference from the background
            to this power; with 0 it only separates foreground from background.
        dropout: rate of dropout on the pooled vector.
        instance: weight of the loss of the instance head, which answers the task from single
            patches and pools these answers as the task allows; 0 for no such head, as in the paper.
        chunk: number of patches encoded at a time; above it, gradients come from two-pass replay.
        jitter: whether a patch has a random position in its cell in training; otherwise it is in
            the middle.
    """

    reads = frozenset({"glimpse", "crops"})
    summary = "the k best cells of the glimpse, chosen by a top-k that has a gradient"
    meets = Requirements(
        relevant_parts="yes",
        any_number="no",
        any_size="yes",
        one_gpu="yes",
        dependencies="no",
    )

    touched: Tensor

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        k: Count = 10,
        samples: Count = 500,
        sigma: float = 0.05,
        most: int = 48,
        spread: float = 1e-2,
        contrast: float = 2.0,
        dropout: DropoutRate = 0.1,
        instance: float = 1.0,
        chunk: Count = 256,
        jitter: bool = True,
    ) -> None:
        super().__init__()
        dim = encoder.dim
        self.encoder, self.k, self.samples, self.sigma = encoder, k, samples, sigma
        self.most, self.spread = max(most, k), spread
        self.instance, self.chunk, self.jitter = instance, chunk, jitter
        self.locate = MapScores(encoder.map_dims, axes=encoder.axes)
        self.head = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, dim),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(dim, sum(h.size for h in heads)),
        )
        self.head_instance = InstanceHead(dim, heads)
        self.register_buffer("touched", torch.zeros(2))
        self._now_sigma = sigma
        self._priors = PriorCache(power=contrast, background=_BACKGROUND)

    def begin_step(self, done: float) -> None:
        """Lower the noise linearly to 0."""
        self._now_sigma = self.sigma * max(0.0, 1 - done)

    def findings(self) -> dict[str, float]:
        """Return the patches read per image in the last step, and the weight of those left out."""
        read, dropped = self.touched.tolist()
        return {"patches_read": read, "weight_dropped": dropped}

    def forward(self, batch: Batch) -> Prediction:
        """Predict from the mean of the chosen patches."""
        field = self._locate(batch)
        top = self._choose(batch, field)
        jitter = self.training and self.jitter
        patches = field.patches(batch, top.index, jitter=jitter, used=top.used)
        valid = padding_mask([len(p) for p in patches], top.index.device)
        f = pad_rows(embed_patches(self.encoder, batch, patches, self.chunk).float(), valid)
        weight = top.weight.sum(1)[:, : f.shape[1]]
        weight = weight / weight.sum(1, keepdim=True)
        logits = self.head((weight.unsqueeze(-1) * f).sum(1))
        if not self.training:
            return Prediction(logits, batch.evidence(patches, weight))
        dropped = 1 - top.weight.detach().sum((1, 2)).mean() / top.weight.shape[1]
        self.touched = torch.stack([valid.sum(1).float().mean(), dropped])
        spread = self.spread * kl_divergences(field.log_a, field.log_prior).mean()
        further: dict[str, FurtherLoss] = {"spread": Penalty(spread)}
        if self.instance > 0:
            further["instance"] = Auxiliary(self.head_instance(f, valid), self.instance)
        return Prediction(logits, further=further)

    def _locate(self, batch: Batch) -> Field:
        spacing_um = batch.view.glimpse_spacing_um
        stage = choose_stage(self.encoder, spacing_um, batch.view.patch_um)
        scores = [self.locate(look.maps, stage)[0] for look in batch.look(self.encoder)]
        lattices = [lay_map_lattice(self.encoder, stage, s.shape, spacing_um) for s in scores]
        grids = [[self._priors.grid(batch, i, lattice)] for i, lattice in enumerate(lattices)]
        return build_field([[s.flatten()] for s in scores], grids, smoothing=0.0)

    def _choose(self, batch: Batch, field: Field) -> TopK:
        """Choose cells, and the weights ``(b, k, u)`` of u cells in each of the k rows."""
        scores = _scale_to_one(field.log_a, field.real)
        if not self.training:
            return perturbed_top_k(scores, self.k, sigma=0.0, valid=field.real)
        return perturbed_top_k(
            scores,
            self.k,
            sigma=self._now_sigma,
            samples=self.samples,
            valid=field.real,
            keep=self.most,
            generators=batch.generators,
        )


def _scale_to_one(scores: Float[Tensor, "b k"], real: Bool[Tensor, "b k"]) -> Float[Tensor, "b k"]:
    """Scale the scores ``(b, k)`` of each image to 0…1; scores that span less only move to 0."""
    low = scores.masked_fill(~real, torch.inf).amin(1, keepdim=True)
    high = scores.masked_fill(~real, -torch.inf).amax(1, keepdim=True)
    spanned = (scores.masked_fill(~real, 0.0) - low) / (high - low).clamp_min(1.0)
    return spanned.masked_fill(~real, 0.0)
