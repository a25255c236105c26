"""Joint sampling: one distribution over places and magnifications draws the patches that are read.

Source: the idea of Zhang et al., "Joint Spatial and Magnification Based Attention Framework for
Large Scale Histopathology Classification", CVPR Workshops 2021. No code and no details of it are
public, so this is our reconstruction. The estimator is that of `attention_sampling`.

Differs: we know of no difference from the paper's abstract; the rest is our choice. Cells of all
magnifications share one softmax, which gives position and magnification together. Each
magnification begins with the same mass, for any number of cells (a plain softmax would give nearly
all to the finest). In the first part of the training a loss balances the magnifications, so that
each is tried; afterwards, magnifications with little attention are no longer used. All patches have
the same number of pixels, and one encoder embeds them; a learnt vector per magnification is added
to their features. An instance head gives every patch its own gradient.

Use when: the magnification that shows the decisive parts is unknown, or several matter, such as
coarse architecture and fine detail. ``level_share_<scale>`` in the log is the share of attention of
each scale. For one image, sum the weights of its evidence by the size of the boxes (with
``inference=top``, only cells that were read).

Cost: reads a glimpse and a fixed number of patches per image of any size, each from the nearest
finer level of the file. In a file without a pyramid, a coarse patch decodes all pixels that it
covers; `price` can give this cost a weight. Needs memory for one chunk of patches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foveate.attention_maps.cells import (
    Field,
    Grid,
    Inference,
    PriorCache,
    Spread,
    build_field,
    choose_for_evaluation,
    scale_to_equal_length,
    weigh_for_evaluation,
)
from foveate.attention_maps.map_scores import MapScores, choose_stage, lay_map_lattice
from foveate.bags.embedding import embed_patches, pad_rows, padding_mask
from foveate.batch import Batch
from foveate.encoders.base import AbstractEncoder
from foveate.errors import OptionError
from foveate.geometry import downsample_from_spacing_um, spacing_um_from_downsample
from foveate.images.image import AbstractImage
from foveate.methods.base import (
    AbstractMethod,
    Auxiliary,
    FurtherLoss,
    Penalty,
    Prediction,
    Requirements,
)
from foveate.nn.heads import Head, InstanceHead
from foveate.nn.sampling import draw_without_replacement, estimate_deviation, expectation
from foveate.parts.options import Count

_MEMORY_OF_SHARES = 0.98
"""Weight of the past in the running shares of scales."""
_WARM_UP, _DROP_BELOW = 0.2, 0.02
"""Share of the training in which scales are balanced and none is dropped; and the running share
below which a scale is dropped after it: a fiftieth of the patches is too few to learn from."""
_EXPLORE = 1e-3
"""Share of attention that follows the prior whatever was learnt, so that no cell is lost."""
_MASS = 0.5
"""Share of attention that the drawn patches should hold at most, as in `attention_sampling`."""
_CONTRAST, _BACKGROUND = 2.0, 0.0
"""Exponent of contrast in the prior of a scale's cells, as cellular tissue is dark; and the prior
of cells without foreground, which leaves them out."""


class JointSampling(AbstractMethod):
    """Draw patches of several magnifications from one attention over the glimpse.

    Args:
        scales: sides of the patches, relative to the finest; a patch of scale s is read at a
            spacing s times as coarse, with the same number of pixels.
        patches: number of patches drawn per image in training, all scales together.
        eval_patches: number of patches per image in evaluation, all scales together.
        inference: way of answering in evaluation. ``top``: the mean over the cells of highest
            attention, which favours scales with few large cells while attention is spread.
            ``expectation``: the mean over draws without replacement that depend on the image alone.
        balance: weight of the divergence between each image's shares of the scales and equal
            shares, at the beginning; it falls to 0 over the warm-up.
        price: weight of the expected cost of a draw: the number of decoded pixels, at the level
            that is read, relative to the pixels of a patch. 0 for no such loss.
        spread: weight of attention's divergence from its prior, which prevents a collapse onto a
            few cells.
        instance: weight of the loss of the instance head, which answers the task from single
            patches and pools these answers as the task allows; 0 for no such head.
        chunk: number of patches encoded at a time; above it, gradients come from two-pass replay.
        jitter: whether a patch has a random position in its cell in training; otherwise it is in
            the middle.

    Raises:
        OptionError: scales are not positive and different from each other.
    """

    reads = frozenset({"glimpse", "crops"})
    summary = "one attention over places and magnifications draws the patches"
    meets = Requirements(
        relevant_parts="yes",
        any_number="partly",
        any_size="yes",
        one_gpu="yes",
        dependencies="no",
    )

    share: Tensor
    kept: Tensor

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        scales: tuple[float, ...] = (1.0, 4.0),
        patches: Count = 24,
        eval_patches: Count = 64,
        inference: Inference = "top",
        balance: float = 1.0,
        price: float = 0.0,
        spread: float = 1e-3,
        instance: float = 1.0,
        chunk: Count = 256,
        jitter: bool = True,
    ) -> None:
        super().__init__()
        if not scales or min(scales) <= 0 or len(set(scales)) < len(scales):
            raise OptionError(f"scales: got {scales}, expected different positive numbers")
        dim, levels = encoder.dim, len(scales)
        self.encoder, self.scales, self.instance = encoder, tuple(scales), instance
        self.patches, self.eval_patches, self.chunk = patches, eval_patches, chunk
        self.inference, self.jitter = inference, jitter
        # A baseline lowers the noise of attention's gradient without bias.
        self.baseline = True
        self.balance, self.warm_up, self.drop_below = balance, _WARM_UP, _DROP_BELOW
        self.price, self.explore = price, _EXPLORE
        self.locate = MapScores(encoder.map_dims, axes=encoder.axes, levels=levels)
        self.spread = Spread(weight=spread, mass=_MASS)
        self.scale_code = nn.Parameter(torch.zeros(levels, dim))
        self.head = nn.Linear(dim, sum(h.size for h in heads))
        self.head_instance = InstanceHead(dim, heads)
        self.register_buffer("share", torch.full((levels,), 1 / levels))
        self.register_buffer("kept", torch.ones(levels, dtype=torch.bool))
        self._done = 0.0
        self._priors = PriorCache(power=_CONTRAST, background=_BACKGROUND)

    def begin_step(self, done: float) -> None:
        """Lower the weight of balance; after the warm-up, drop scales that have little attention.

        Args:
            done: share of the training that is done.
        """
        self._done = done
        if done >= self.warm_up:
            active = self.kept & (self.share >= self.drop_below)
            active[(self.share * self.kept).argmax()] = True
            self.kept = active

    def findings(self) -> dict[str, float]:
        """Return each scale's running share (0 once dropped), and the drawn patches' attention."""
        shares = (self.share * self.kept).tolist()
        by_name = {f"level_share_{s:g}": v for s, v in zip(self.scales, shares, strict=True)}
        return by_name | {"sampled_mass": float(self.spread.held)}

    def forward(self, batch: Batch) -> Prediction:
        """Predict from patches of all scales that attention draws."""
        field = self._locate(batch)
        index = self._choose(batch, field)
        patches = field.patches(batch, index, jitter=self.training and self.jitter)
        valid = padding_mask([len(p) for p in patches], index.device)
        index = index[:, : valid.shape[1]]
        f = pad_rows(embed_patches(self.encoder, batch, patches, self.chunk).float(), valid)
        f = scale_to_equal_length(f + self.scale_code[field.level(index)])
        log_a = field.log_a.gather(1, index)
        a = log_a.exp() * valid
        if not self.training:
            weight = weigh_for_evaluation(log_a, valid, self.inference)
            logits = self.head((weight.unsqueeze(-1) * f).sum(1))
            noise = None
            if self.inference == "expectation":
                noise = estimate_deviation(a, f @ self.head.weight.T, valid)
            return Prediction(logits, batch.evidence(patches, weight), deviation=noise)
        logits = self.head(expectation(a, f, valid, baseline=self.baseline))
        penalties = {"spread": self.spread(field, a), **self._scale_losses(batch, field.shares())}
        further: dict[str, FurtherLoss] = {k: Penalty(v) for k, v in penalties.items()}
        if self.instance > 0:
            further["instance"] = Auxiliary(self.head_instance(f, valid), self.instance)
        return Prediction(logits, further=further)

    # -- locate -------------------------------------------------------------------------------

    def _locate(self, batch: Batch) -> Field:
        spacing_um, side_um = batch.view.glimpse_spacing_um, batch.view.patch_um
        stages = [choose_stage(self.encoder, spacing_um, side_um * scale) for scale in self.scales]
        scores, grids = [], []
        for i, look in enumerate(batch.look(self.encoder)):
            by_scale = [self.locate(look.maps, stage, m)[0] for m, stage in enumerate(stages)]
            lattices = [
                lay_map_lattice(self.encoder, stage, s.shape, spacing_um)
                for stage, s in zip(stages, by_scale, strict=True)
            ]
            scores.append([s.flatten() for s in by_scale])
            grids.append(
                [
                    _normalise_prior(self._priors.grid(batch, i, lattice, scale))
                    for lattice, scale in zip(lattices, self.scales, strict=True)
                ]
            )
        # No smoothing: attention spread evenly over cells would favour the scale with most cells.
        # The share that follows the prior is the same for each scale.
        active = self.kept.tolist()
        return build_field(scores, grids, smoothing=0.0, explore=self.explore, active=active)

    def _choose(self, batch: Batch, field: Field) -> Int[Tensor, "b n"]:
        """Choose cells: indices ``(b, n)`` in the order of drawing, padding last."""
        if self.training:
            return draw_without_replacement(field.log_a.detach(), self.patches, batch.generators)
        return choose_for_evaluation(batch, field, self.eval_patches, self.inference)

    def _scale_losses(
        self, batch: Batch, shares: Float[Tensor, "b scales"]
    ) -> dict[str, Float[Tensor, ""]]:
        """Compute the losses of the attention that each scale has, from shares ``(b, scales)``."""
        self.share = torch.lerp(shares.detach().mean(0), self.share, _MEMORY_OF_SHARES)
        losses = {}
        weight = self.balance * max(0.0, 1 - self._done / max(self.warm_up, 1e-9))
        if weight > 0:
            tiny = torch.finfo(shares.dtype).tiny
            divergence = shares * (shares * len(self.scales)).clamp_min(tiny).log()
            losses["balance"] = weight * divergence.sum(1).mean()
        if self.price > 0:
            costs = [
                [_decoded_share(item.image, batch.view.spacing_um * s) for s in self.scales]
                for item in batch.items
            ]
            losses["price"] = self.price * (shares * shares.new_tensor(costs)).sum(1).mean()
        return losses


def _normalise_prior(grid: Grid) -> Grid:
    """Return the grid with its prior normalised, so that grids begin with equal attention."""
    return dataclasses.replace(grid, log_prior=grid.log_prior.log_softmax(0))


def _decoded_share(image: AbstractImage, spacing_um: float) -> float:
    """Count the stored pixels that are decoded for a pixel of a patch of a spacing."""
    level = image.levels[image.level_for((spacing_um,) * image.ndim)]
    stored_um = spacing_um_from_downsample(image.known_spacing_um, level.downsample)
    return math.prod(downsample_from_spacing_um(spacing_um, axis_um) for axis_um in stored_um)
