"""Glimpse, locate, extract, relate: one encoder for the low-resolution image and the patches.

Source: the pipeline that the HPI group describes (glimpse → locate → extract → aggregate), with the
attention sampling of Katharopoulos & Fleuret (ICML 2019) in its unbiased form
(`foveate.nn.sampling`). Ours: the glimpse itself is a token beside the patches; patches carry
physical position codes; tokens are related by self-attention before gated attention pools them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from foveate.batch import Batch, LoadedImage, Prediction, View, run_by_shape
from foveate.encoders.base import AbstractEncoder
from foveate.evidence import Floats
from foveate.geometry import Lattice
from foveate.methods.base import AbstractMethod
from foveate.nn.attention import GatedAttention, Relate, masked_softmax
from foveate.nn.position import PositionCode
from foveate.nn.replay import replay
from foveate.nn.sampling import (
    divergence,
    draw_without_replacement,
    expectation,
    smoothed_log_softmax,
)
from foveate.tiling import cell_means


@dataclass(frozen=True)
class _Located:
    """Patches chosen in each image: indices into its cells, valid ones first."""

    log_a: Tensor  # (b, k)
    log_prior: Tensor  # (b, k)
    index: Tensor  # (b, n)
    valid: Tensor  # (b, n)
    origin_um: list[Floats]  # per image (n_i, 2), the valid ones


class Glimpse(AbstractMethod):
    """Attention over the glimpse decides which patches are read at full resolution.

    Training draws patches without replacement and learns where to look through the unbiased
    estimator; evaluation takes the cells of highest attention.

    Args:
        patches: drawn per image in training.
        eval_patches: looked at per image in evaluation.
        layers: of self-attention between tokens.
        spread: weight of attention's divergence from its prior, which keeps it from collapsing.
        mass: share of attention that the drawn patches should hold at most; above it that weight
            grows up to a hundredfold. Attention that is concentrated on fewer cells than are drawn
            explores nothing and over-fits.
        smoothing: share of attention spread evenly over all cells.
        background: prior probability of a cell without foreground, relative to one of the
            strongest contrast.
        contrast: power of the prior: a cell is as likely, before anything is learnt, as its
            difference from the background to this power. Cellular tissue is darker than stroma
            and glass; 0 leaves foreground and background only.
        glimpse_dropout: how often the glimpse token is hidden in training.
        dropout: on the pooled vector.
        instance: weight of the instance head's loss. The head is linear on each patch and its
            maximum over patches is trained on the image's label; each patch's score is added to
            its attention. It gives every patch a gradient of its own, which ends the plateau at
            chance where presence decides. 0 leaves the head out.
        chunk: patches encoded at a time; above it, gradients come from two-pass replay.
    """

    reads = frozenset({"glimpse", "crops"})
    summary = "attention over a glimpse draws patches; glimpse and patches related and pooled"

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        n_outputs: int,
        patches: int = 24,
        eval_patches: int = 64,
        layers: int = 1,
        spread: float = 1e-2,
        mass: float = 0.5,
        smoothing: float = 1e-3,
        background: float = 1e-3,
        contrast: float = 2.0,
        glimpse_dropout: float = 0.5,
        dropout: float = 0.1,
        instance: float = 1.0,
        chunk: int = 256,
    ) -> None:
        super().__init__()
        dim = encoder.dim
        self.encoder = encoder
        self.patches, self.eval_patches, self.chunk = patches, eval_patches, chunk
        self.spread, self.mass, self.smoothing = spread, mass, smoothing
        self.background, self.contrast = background, contrast
        self.glimpse_dropout = glimpse_dropout
        self.locate = _LocationHead(encoder.map_dims)
        self.embed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.position = PositionCode(dim)
        self.kind = nn.Parameter(torch.zeros(2, dim))
        self.overview_scale = nn.Parameter(torch.zeros(dim))
        self.relate = nn.ModuleList(Relate(dim) for _ in range(layers))
        self.attention = GatedAttention(dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(dim, n_outputs)
        self.head_expected = nn.Linear(dim, n_outputs)
        self.instance = instance
        self.head_instance = nn.Linear(dim, n_outputs)

    def forward(self, batch: Batch) -> Prediction:
        """Predict from the glimpse and the patches it points to."""
        maps = run_by_shape(self.encoder.maps, batch.glimpses())
        overview = self.embed(torch.cat([self.encoder.pool(m) for m in maps]).float())
        located = self._locate(batch, maps)
        f = self._extract(batch, located)
        single = self.head_instance(f) if self.instance > 0 else f.new_zeros(*f.shape[:2], 1)
        pooled, weight = self._aggregate(batch, overview, f, located, single)
        logits = self.head(self.dropout(pooled))
        evidence = [
            batch.evidence(i, origin, weight[i, : len(origin)])
            for i, origin in enumerate(located.origin_um)
        ]
        if not self.training:
            return Prediction(logits, evidence)
        a = located.log_a.gather(1, located.index).exp()
        expected = expectation(a, f, located.valid)
        excess = (a.sum(1).mean().detach() - self.mass).clamp_min(0) / max(1 - self.mass, 1e-6)
        strength = self.spread * (1 + 99 * excess)
        losses = {"spread": strength * divergence(located.log_a, located.log_prior)}
        # The expectation over all cells teaches where to look; the prediction itself rests on the
        # patches that were seen, so that their attention is what decided.
        auxiliary = {"expected": (1.0, self.head_expected(self.dropout(expected)))}
        if self.instance > 0:
            strongest = single.masked_fill(~located.valid.unsqueeze(-1), -torch.inf).amax(1)
            auxiliary["instance"] = (self.instance, strongest)
        return Prediction(logits, evidence, losses, auxiliary)

    # -- locate -------------------------------------------------------------------------------

    def _locate(self, batch: Batch, maps: list[list[Tensor]]) -> _Located:
        stage = _stage(self.encoder, batch)
        scores, priors, lattices = [], [], []
        for item_maps, item in zip(maps, batch.items, strict=True):
            score = self.locate(item_maps, stage)
            lattices.append(_lattice(self.encoder, batch, stage, tuple(score.shape)))
            priors.append(self._log_prior(item, lattices[-1], batch.view).to(score).flatten())
            scores.append(score.flatten() + priors[-1])
        k = max(len(s) for s in scores)
        logits, prior = (
            torch.stack([functional.pad(s, (0, k - len(s))) for s in each])
            for each in (scores, priors)
        )
        real = torch.stack([torch.arange(k, device=logits.device) < len(s) for s in scores])
        log_a = smoothed_log_softmax(logits, real, smoothing=self.smoothing)
        if self.training:
            index = draw_without_replacement(log_a.detach(), self.patches)
        else:
            index = log_a.topk(min(self.eval_patches, k), dim=-1).indices
        valid = real.gather(1, index)
        origins = [
            batch.place(i, self._centres(lattice, index[i][valid[i]]))
            for i, lattice in enumerate(lattices)
        ]
        log_prior = smoothed_log_softmax(prior, real, smoothing=self.smoothing)
        return _Located(log_a, log_prior, index, valid, origins)

    def _log_prior(self, item: LoadedImage, lattice: Lattice, view: View) -> Tensor:
        """What is known of cells before anything is learnt: how they differ from the background."""
        seen = item.contrast if self.contrast > 0 else item.contrast > 0
        means = cell_means(seen.astype(np.float64), lattice, spacing_um=view.glimpse_spacing_um)
        shape = np.clip(means / max(means.max(), 1e-9), 0, 1) ** (self.contrast or 1.0)
        return torch.from_numpy(np.log(np.maximum(shape, self.background)))

    def _centres(self, lattice: Lattice, index: Tensor) -> Floats:
        """Centres of cells; in training anywhere in the cell."""
        cells = np.stack(np.unravel_index(index.cpu().numpy(), lattice.shape), -1)
        inside = torch.rand(cells.shape).numpy() if self.training else np.full(cells.shape, 0.5)
        place = (cells + inside).astype(np.float64) * np.asarray(lattice.cell_um)
        centres: Floats = np.asarray(lattice.origin_um) + place
        return centres

    # -- extract and embed --------------------------------------------------------------------

    def _extract(self, batch: Batch, located: _Located) -> Tensor:
        """Features ``(b, n, d)`` of the located patches; zeros for padding."""
        total = int(located.valid.sum())
        if total <= self.chunk or not torch.is_grad_enabled():
            parts = _chunks(located.origin_um, self.chunk)
            vectors = torch.cat([self.encoder(batch.crops(part)) for part in parts])
        else:
            parts = _chunks(located.origin_um, self.chunk)
            parameters = list(self.encoder.parameters())
            vectors = replay(self.encoder, parameters, lambda c: batch.crops(parts[c]), len(parts))
        f = self.embed(vectors.float())
        out = f.new_zeros(*located.valid.shape, f.shape[-1])
        padded: Tensor = out.masked_scatter(located.valid.unsqueeze(-1), f)
        return padded

    # -- aggregate ----------------------------------------------------------------------------

    def _aggregate(
        self, batch: Batch, overview: Tensor, f: Tensor, located: _Located, single: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The pooled vector ``(b, d)`` and the share of each patch in it ``(b, n)``."""
        b = len(f)
        position = self._positions(batch, located.origin_um, f)
        shown = torch.ones(b, 1, dtype=torch.bool, device=f.device)
        if self.training:
            shown = torch.rand(b, 1, device=f.device) >= self.glimpse_dropout
        tokens = torch.cat([overview.unsqueeze(1) + self.kind[0], f + self.kind[1]], 1)
        valid = torch.cat([shown, located.valid], 1)
        for layer in self.relate:
            tokens = layer(tokens, position, valid)
        # The glimpse stands beside the patches, not among them, where one token would drown. Its
        # share begins at nothing: it is quick to memorise, and must not be what is learnt first.
        patches = tokens[:, 1:]
        weight = masked_softmax(self.attention(patches) + _saliency(single), located.valid)
        overview = self.overview_scale * shown * tokens[:, 0]
        return (weight.unsqueeze(-1) * patches).sum(1) + overview, weight

    def _positions(self, batch: Batch, origins: list[Floats], f: Tensor) -> Tensor:
        """Codes of the glimpse and of the patches, ``(b, 1 + n, d)``, relative to the middle."""
        b, n, _ = f.shape
        centre = torch.zeros(b, n + 1, 2, device=f.device)
        extent = torch.ones(b, n + 1, device=f.device)
        side = batch.view.patch_um
        for i, origin in enumerate(origins):
            whole = np.asarray(batch.items[i].image.box_um.size)
            middle = (origin + side / 2 - whole / 2) / side
            centre[i, 1 : len(origin) + 1] = torch.from_numpy(middle).to(centre)
            extent[i, 0] = float(math.sqrt(whole.prod())) / side
        if self.training:
            # Only the layout counts: where the slide lies on the glass, and which way, does not.
            centre = centre * (1 - 2 * torch.randint(2, (b, 1, 2), device=f.device))
            centre = centre + 8 * torch.randn(b, 1, 2, device=f.device)
        code: Tensor = self.position(centre, extent)
        return code


def _saliency(single: Tensor) -> Tensor:
    """How much a patch speaks for some class, ``(b, n)``, from its own logits ``(b, n, k)``.

    Attention follows it; it is not trained through attention.
    """
    if single.shape[-1] == 1:
        return single.detach()[..., 0]
    return (single.amax(-1) - single.mean(-1)).detach()


class _LocationHead(nn.Module):
    """One score per cell from the encoder's maps: the chosen one and all coarser ones."""

    def __init__(self, dims: tuple[int, ...], *, hidden: int = 32) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(d, hidden, 1) for d in dims)
        self.score = nn.Conv2d(hidden, 1, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)  # type: ignore[arg-type]

    def forward(self, maps: list[Tensor], stage: int) -> Tensor:
        """Scores ``(h, w)`` on the map of a stage; all 0 at the beginning."""
        mixed = self.project[stage](maps[stage])
        for i in range(stage + 1, len(maps)):
            coarse = self.project[i](maps[i])
            mixed = mixed + functional.interpolate(coarse, mixed.shape[-2:], mode="nearest")
        score: Tensor = self.score(functional.relu(mixed))[0, 0]
        return score.float()


def _stage(encoder: AbstractEncoder, batch: Batch) -> int:
    """The coarsest map whose cells are no larger than a patch."""
    cells = [s * batch.view.glimpse_spacing_um for s in encoder.strides]
    fitting = [i for i, cell in enumerate(cells) if cell <= batch.view.patch_um * (1 + 1e-6)]
    return fitting[-1] if fitting else 0


def _lattice(encoder: AbstractEncoder, batch: Batch, stage: int, shape: tuple[int, ...]) -> Lattice:
    spacing = batch.view.glimpse_spacing_um
    cell = encoder.strides[stage] * spacing
    corner = encoder.map_centres[stage] * spacing - cell / 2
    return Lattice((corner,) * len(shape), (cell,) * len(shape), shape)


def _chunks(origins: list[Floats], size: int) -> list[list[Floats]]:
    """Cut the patches of all images, in order, into groups of at most `size`."""
    parts, room = [[o[:0] for o in origins]], size
    for i, origin in enumerate(origins):
        at = 0
        while at < len(origin):
            if room == 0:
                parts.append([o[:0] for o in origins])
                room = size
            taken = origin[at : at + room]
            parts[-1][i] = taken
            at, room = at + len(taken), room - len(taken)
    return parts
