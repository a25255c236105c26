"""Attention sampling: a distribution over a low-resolution view draws the patches that are read.

Source: Katharopoulos & Fleuret, "Processing Megapixel Images with Deep Attention-Sampling Models",
ICML 2019: attention network, expectation over sampled patches, features of equal length, linear
head, entropy term.

Differs: the gradient of attention without replacement is unbiased; that of the published code is
biased (`foveate.nn.sampling`). It concentrates attention faster, so the weight of the entropy term
grows with the attention of the drawn patches. Cells without foreground are left out (`background`),
because on a slide that is 90 % glass, nine of ten patches of the paper's uniform start would show
glass; with ``background=1 contrast=0`` attention begins uniform, as in the paper. Scores begin at
0. Features have the length ``sqrt(d)``, which suits the linear head better than the length 1 of the
paper. The attention network repeats border pixels; the published one pads with zeros, which are
grey in normalised pixels. Inference uses many draws, which are fixed for each image, or the cells
of highest attention; the published code draws at random. An instance head gives every patch its own
gradient.

Use when: a few small parts decide, each by itself, and the glimpse shows where they may be. This is
a simple form of `glimpse`, without relations between patches. With ``inference=expectation`` every
prediction has the standard deviation of its logits over draws.

Cost: reads a glimpse and a fixed number of patches per image of any size; needs memory for one
chunk of patches and for a thin network on the glimpse.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foveate.attention_maps.cells import (
    Field,
    Inference,
    PriorCache,
    Spread,
    build_field,
    choose_for_evaluation,
    scale_to_equal_length,
    weigh_for_evaluation,
)
from foveate.attention_maps.map_scores import (
    CONVOLUTIONS,
    MapScores,
    choose_stage,
    lay_map_lattice,
    lay_pixel_lattice,
)
from foveate.bags.embedding import embed_patches, pad_rows, padding_mask
from foveate.batch import Batch, Patches
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
from foveate.nn.sampling import (
    draw_with_replacement,
    draw_without_replacement,
    estimate_deviation,
    expectation,
    expectation_with_replacement,
)
from foveate.parts.options import Count

_MASS = 0.5
"""Share of attention that the drawn patches should hold at most: attention on fewer cells than are
drawn explores nothing and over-fits, so above it the weight of the spread grows a hundredfold."""
_SMOOTHING = 1e-5
"""Share of attention spread evenly over all cells: none is ever lost for good."""


class AttentionSampling(AbstractMethod):
    """Estimate the mean feature under attention from patches that attention over the glimpse draws.

    Args:
        patches: number of patches drawn per image in training.
        eval_patches: number of patches per image in evaluation.
        attention: network that computes attention. ``own``: a thin network on the pixels of the
            glimpse, with one cell per pixel, as in the paper. ``encoder``: one linear layer on the
            maps of the shared encoder, whose cells are about as large as a patch.
        replacement: whether training draws with replacement, as in the paper's first estimator.
        inference: way of answering in evaluation. ``expectation``: the mean over draws without
            replacement that depend on the image alone. ``top``: the mean over the cells of highest
            attention, which is biased towards them.
        spread: weight of attention's divergence from its prior (with an even prior, the paper's
            entropy term), which prevents a collapse onto a few cells.
        background: prior of a cell without foreground, relative to a cell with foreground; with 0,
            such cells are used only if an image has no others.
        contrast: exponent of the prior of foreground cells: the prior is the difference from the
            background to this power; with 0 it is the same for all.
        instance: weight of the loss of the instance head, which answers the task from single
            patches and pools these answers as the task allows; 0 for no such head, as in the paper.
        chunk: number of patches encoded at a time; above it, gradients come from two-pass replay.
        jitter: whether a patch has its centre anywhere in its cell in training.
    """

    reads = frozenset({"glimpse", "crops"})
    summary = "patches drawn from attention over the glimpse estimate the mean under attention"
    meets = Requirements(
        relevant_parts="yes",
        any_number="partly",
        any_size="yes",
        one_gpu="yes",
        dependencies="no",
    )

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        patches: Count = 10,
        eval_patches: Count = 64,
        attention: Literal["own", "encoder"] = "own",
        replacement: bool = False,
        inference: Inference = "expectation",
        spread: float = 1e-3,
        background: float = 0.0,
        contrast: float = 0.0,
        instance: float = 1.0,
        chunk: Count = 256,
        jitter: bool = True,
    ) -> None:
        super().__init__()
        self.encoder, self.instance = encoder, instance
        self.patches, self.eval_patches, self.chunk = patches, eval_patches, chunk
        self.replacement, self.inference = replacement, inference
        # A baseline lowers the noise of attention's gradient without bias.
        self.baseline = True
        self.smoothing, self.jitter = _SMOOTHING, jitter
        axes = encoder.axes
        by_pixels = attention == "own"
        self.locate = _PixelScores(axes) if by_pixels else MapScores(encoder.map_dims, axes=axes)
        self.spread = Spread(weight=spread, mass=_MASS)
        self.head = nn.Linear(encoder.dim, sum(h.size for h in heads))
        self.head_instance = InstanceHead(encoder.dim, heads)
        self._priors = PriorCache(power=contrast, background=background)

    def forward(self, batch: Batch) -> Prediction:
        """Predict from the patches that attention draws."""
        field = self._locate(batch)
        index = self._choose(batch, field)
        patches = field.patches(batch, index, jitter=self.training and self.jitter)
        valid = padding_mask([len(p) for p in patches], index.device)
        f = embed_patches(self.encoder, batch, patches, self.chunk).float()
        f = pad_rows(scale_to_equal_length(f), valid)
        log_a = field.log_a.gather(1, index[:, : f.shape[1]])
        if not self.training:
            return self._predict(batch, patches, log_a, f, valid)
        a = log_a.exp() * valid
        estimate = expectation_with_replacement if self.replacement else expectation
        logits = self.head(estimate(a, f, valid, baseline=self.baseline))
        further: dict[str, FurtherLoss] = {"spread": Penalty(self.spread(field, a))}
        if self.instance > 0:
            further["instance"] = Auxiliary(self.head_instance(f, valid), self.instance)
        return Prediction(logits, further=further)

    def findings(self) -> dict[str, float]:
        """Return the share of attention that the drawn patches held in the last step."""
        return {"sampled_mass": float(self.spread.held)}

    def _locate(self, batch: Batch) -> Field:
        spacing_um = batch.view.glimpse_spacing_um
        if isinstance(self.locate, MapScores):
            stage = choose_stage(self.encoder, spacing_um, batch.view.patch_um)
            scores = [self.locate(look.maps, stage)[0] for look in batch.look(self.encoder)]
            lattices = [lay_map_lattice(self.encoder, stage, s.shape, spacing_um) for s in scores]
        else:
            scores = [maps[0][0, 0] for maps in batch.pixel_maps(self.locate)]
            lattices = [lay_pixel_lattice(s.shape, spacing_um) for s in scores]
        grids = [[self._priors.grid(batch, i, lattice)] for i, lattice in enumerate(lattices)]
        return build_field([[s.flatten()] for s in scores], grids, smoothing=self.smoothing)

    def _choose(self, batch: Batch, field: Field) -> Int[Tensor, "b n"]:
        """Choose cells: indices ``(b, n)`` in the order of drawing, padding last."""
        if not self.training:
            return choose_for_evaluation(batch, field, self.eval_patches, self.inference)
        draw = draw_with_replacement if self.replacement else draw_without_replacement
        return draw(field.log_a.detach(), self.patches, batch.generators)

    def _predict(
        self,
        batch: Batch,
        patches: Sequence[Patches],
        log_a: Float[Tensor, "b n"],
        f: Float[Tensor, "b n d"],
        valid: Bool[Tensor, "b n"],
    ) -> Prediction:
        weight = weigh_for_evaluation(log_a, valid, self.inference)
        logits = self.head((weight.unsqueeze(-1) * f).sum(1))
        noise = None
        if self.inference == "expectation":
            noise = estimate_deviation(log_a.exp() * valid, f @ self.head.weight.T, valid)
        return Prediction(logits, batch.evidence(patches, weight), deviation=noise)


class _PixelScores(nn.Module):
    """The paper's attention network: one score per pixel of the glimpse, all 0 at the beginning."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        widths = (3, 8, 8, 1)
        self.layers = nn.ModuleList(
            CONVOLUTIONS[axes](before, after, 3, padding=1, padding_mode="replicate")
            for before, after in itertools.pairwise(widths)
        )
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "b 3 *space"]) -> list[Float[Tensor, "b 1 *space"]]:
        """Score pixels of images ``(b, 3, *space)``: ``(b, 1, *space)``, in a list like maps."""
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        return [self.layers[-1](x).float()]
