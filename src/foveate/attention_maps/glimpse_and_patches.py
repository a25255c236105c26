"""A glimpse and the patches that it points to, related and pooled: parts of `glimpse` methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Self, TypedDict

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional

from foveate.aggregators.base import AbstractAggregator
from foveate.attention_maps.cells import Field, PriorCache, Spread, build_field
from foveate.attention_maps.map_scores import MapScores, choose_stage, lay_map_lattice
from foveate.attention_maps.patch_numbers import choose_patch_numbers
from foveate.bags.embedding import embed_patches, pad_rows, padding_mask
from foveate.batch import N_COLOURS, Batch, Look, Patches, View
from foveate.encoders.base import AbstractEncoder
from foveate.images.likeness import ImageFacts
from foveate.nn.generators import uniform
from foveate.nn.heads import Head, InstanceHead
from foveate.nn.linear_fit import RowLosses
from foveate.nn.overview import OverviewHead, PatchTrust
from foveate.parts import find
from foveate.parts.options import Count, DropoutRate, NameOf

SMOOTHING = 1e-3
"""Share of attention spread evenly over all cells, so that no cell is ever lost for good."""
CONTRAST, BACKGROUND = 2.0, 0.0
"""Exponent of contrast in the prior, and the prior of the background. Cellular tissue is darker
than stroma and glass, so the prior is the squared contrast; glass is left out."""
MASS = 0.5
"""Share of attention that the drawn patches should hold at most; above it the weight of the spread
grows up to a hundredfold. Attention on fewer cells than are drawn over-fits."""
_GLIMPSE_DROPOUT = 0.5
"""Probability that the glimpse's token is hidden in training, so that patches answer alone."""


class GlimpseOptions(TypedDict, total=False):
    """The options that `glimpse` and its relatives share; see `GlimpseAndPatches`."""

    aggregator: str
    spread: float
    locating: float
    dropout: float
    instance: float
    chunk: int
    jitter: bool


@dataclass(frozen=True)
class Tokens:
    """Tokens of the regions of each image, the finest patches first.

    Attributes:
        vectors: vectors ``(b, n, d)``.
        known: attention mask ``(b, n)``, False on padding.
        patches: ``(b, n)``, True on the finest patches.
        regions: the region of each token, image by image.
    """

    vectors: Float[Tensor, "b n d"]
    known: Bool[Tensor, "b n"]
    patches: Bool[Tensor, "b n"]
    regions: Sequence[Patches]


@dataclass(frozen=True)
class JointAnswer:
    """The answer of a glimpse and its patches.

    Attributes:
        logits: answers ``(b, k)``.
        weight: ``(b, n)``, the share of each patch among all patches; rows sum to 1.
        remainder: ``(b,)``, the share of the glimpse in the answer, which lies in no patch.
        auxiliary: in training, further answers ``(b, k)`` with the weight of their loss, by name.
    """

    logits: Float[Tensor, "b k"]
    weight: Float[Tensor, "b n"]
    remainder: Float[Tensor, " b"]
    auxiliary: dict[str, tuple[Float[Tensor, "b k"], float]]


class PooledTokens(NamedTuple):
    """The pooled answer of b images with n patches.

    Attributes:
        logits: logits ``(b, k)`` of all questions.
        shares: share ``(b, n)`` of each patch among all patches.
        remainder: share ``(b,)`` of the glimpse in the answer.
    """

    logits: Float[Tensor, "b k"]
    shares: Float[Tensor, "b n"]
    remainder: Float[Tensor, " b"]


class GlimpseAndPatches(nn.Module):
    """The network that attends to a glimpse, reads patches, relates both and answers from them.

    A subclass passes `GlimpseOptions` on.

    Args:
        encoder: encoder of the glimpse and the patches.
        heads: the questions of the task.
        aggregator: name of the network that answers from the tokens of the glimpse and the patches:
            ``related`` relates them by self-attention and pools them by cross-attention.
        spread: weight of attention's divergence from its prior, which prevents a collapse onto a
            few cells.
        locating: weight of the losses that teach where to look. Their gradient is noisy, because
            few cells are drawn; with a weight of 1 its noise would hide the gradient of the patches
            in the encoder. The layers that score cells learn only from these losses, so the
            optimiser compensates for the weight there. If answers are sums over patches, the losses
            also train the encoder, and 1 is worth a try.
        dropout: rate of dropout in the aggregator, and on the expectation over cells.
        instance: weight of the loss of the instance head, which answers the task from single
            patches and pools these answers as the task allows. It gives every patch its own
            gradient; the larger the weight, the sooner training leaves the plateau at chance. 0 for
            no such head.
        chunk: number of patches encoded at a time; above it, gradients come from two-pass replay.
        jitter: whether a patch has a random position in its cell in training; otherwise it is in
            the middle.

    Raises:
        UnknownName: there is no aggregator of this name.
    """

    fits_glimpses = True
    encoder: AbstractEncoder
    aggregator: AbstractAggregator

    def __init__(
        self,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        *,
        aggregator: Annotated[str, NameOf("aggregators")] = "related",
        spread: float = 1e-2,
        locating: float = 0.1,
        dropout: DropoutRate = 0.1,
        instance: float = 4.0,
        chunk: Count = 256,
        jitter: bool = True,
    ) -> None:
        super().__init__()
        dim, k = encoder.dim, sum(head.size for head in heads)
        self.encoder, self.chunk, self.jitter = encoder, chunk, jitter
        self.locating, self.instance = locating, instance
        self.glimpse_dropout = _GLIMPSE_DROPOUT
        self.locate = MapScores(encoder.map_dims, axes=encoder.axes)
        self.embed = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU())
        self.whole = nn.Parameter(torch.zeros(dim))
        groups = encoder.feature_groups or (encoder.n_features,)
        self.overview, self.trust = OverviewHead((*groups, N_COLOURS), k), PatchTrust()
        build = find("aggregators", aggregator)
        self.aggregator = build(encoder=encoder, heads=heads, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.head_expected = nn.Linear(dim, k)
        self.head_instance = InstanceHead(dim, heads)
        self.adds_up = any(head.pooling == "sum" for head in heads)
        self.spread = Spread(weight=spread, mass=MASS)
        self._priors = PriorCache(power=CONTRAST, background=BACKGROUND)

    @classmethod
    def choose_options(
        cls, options: Mapping[str, Any], view: View, images: Sequence[ImageFacts]
    ) -> dict[str, Any]:
        """Choose the numbers of patches that are left at 0.

        Args:
            options: options of the method, by name.
            view: how images are read.
            images: facts about the images of the run.
        """
        return choose_patch_numbers(options, view, images)

    def fit_start(
        self,
        overviews: Float[Tensor, "n d"],
        row_losses: RowLosses,
        left_out_fold: Int[Tensor, " n"],
    ) -> None:
        """Fit the linear answers to glimpses.

        Args:
            overviews: features of n glimpses, ``(n, d)``.
            row_losses: losses of logits at rows, as in `OverviewHead.fit`.
            left_out_fold: number of each row's group, ``(n,)``.
        """
        self.overview.fit(overviews, row_losses, left_out_fold)

    def fit_trust(
        self,
        answer: Callable[[], tuple[Float[Tensor, "n k"], Shaped[Tensor, "n ..."]]],
        each_loss: Callable[..., Float[Tensor, " n"]],
        view: View,
    ) -> None:
        """Fit the factor of the patches' answers.

        It is expected to be 1 where patches show more detail than the glimpse, else 0.

        Args:
            answer: computes answers to images of no training, ``(n, k)``, and their targets.
            each_loss: computes the images' losses ``(n,)`` from logits and targets.
            view: how images are read.
        """
        self.trust.fit(answer, each_loss, expected=float(view.patches_add_detail))

    def share_trust(self, others: Sequence[Self]) -> None:
        """Trust patches as far as other models of this kind do on average."""
        self.trust.value.copy_(torch.stack([other.trust.value for other in others]).mean())

    def findings(self) -> dict[str, float]:
        """Return the factor of the patches' answers beside that of the glimpse."""
        return {"patch_trust": float(self.trust.value)}

    def attend(
        self,
        batch: Batch,
        maps: Sequence[list[Float[Tensor, "_b _c *_cells"]]],
        *,
        scale: float = 1.0,
        explore: float = 0,
    ) -> Field:
        """Attend to the cells of each glimpse.

        Args:
            batch: the images.
            maps: maps ``(1, c, *cells)`` of each glimpse.
            scale: side of the region that a cell stands for, in sides of the finest patch.
            explore: share of attention that follows the prior whatever was learnt.
        """
        spacing_um = batch.view.glimpse_spacing_um
        stage = choose_stage(self.encoder, spacing_um, batch.view.patch_um * scale)
        scores = [self.locate(glimpse_maps, stage)[0] for glimpse_maps in maps]
        lattices = [lay_map_lattice(self.encoder, stage, s.shape, spacing_um) for s in scores]
        grids = [[self._priors.grid(batch, i, x, scale)] for i, x in enumerate(lattices)]
        flat = [[s.flatten()] for s in scores]
        return build_field(flat, grids, smoothing=SMOOTHING, explore=explore)

    def read(
        self, batch: Batch, patches: Sequence[Patches]
    ) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
        """Read and embed patches.

        Args:
            batch: the images.
            patches: patches of each image.

        Returns:
            vectors ``(b, n, d)`` and the attention mask ``(b, n)``, False on padding.
        """
        valid = padding_mask([len(p) for p in patches], batch.device)
        vectors = embed_patches(self.encoder, batch, patches, self.chunk)
        return pad_rows(self.embed(vectors.float()), valid), valid

    def combine_answers(
        self, alone: Float[Tensor, "b k"], pooled: Float[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b k"], dict[str, Float[Tensor, "b k"]]]:
        """Return the patches' answer ``(b, k)``, and further answers that have their own loss.

        A method that extends `glimpse` or `glimpse_zoom` may override this, to let single patches
        vote, say. The answer of the glimpse is added to all of these answers.

        Args:
            alone: answers ``(b, k)`` of the instance head, which looks at each patch alone.
            pooled: answers ``(b, k)`` from the related and pooled patches.
        """
        return pooled, {}

    def answer_together(
        self, batch: Batch, looks: Sequence[Look], f: Float[Tensor, "b n d"], tokens: Tokens
    ) -> JointAnswer:
        """Answer from the glimpse, the patches, and both together.

        Args:
            batch: the images.
            looks: maps and features of their glimpses.
            f: vectors of the patches ``(b, n, d)``.
            tokens: tokens of the images, patches first.
        """
        features = torch.cat([look.features for look in looks])
        glimpse_token = self.embed(self.encoder.project(features).float()) + self.whole
        alone = self.head_instance(f, tokens.patches[:, : f.shape[1]])
        logits, weight, remainder = self.relate_and_pool(batch, glimpse_token, tokens)
        logits, further = self.combine_answers(alone, logits)
        logits = self.trust(logits)
        overview = self.overview(torch.cat([look.overview for look in looks]), batch.left_out_fold)
        if not self.training:
            # Where patches are not trusted, the answer rests on the glimpse alone.
            remainder = 1 - self.trust(1 - remainder)
            return JointAnswer(overview + logits, weight, remainder, {})
        # Patches add to the glimpse's answer. A glimpse learnt by heart would leave them nothing to
        # explain, hence the overview answers by fits that have not seen the image
        # (`batch.left_out_fold`).
        auxiliary: dict[str, tuple[Tensor, float]] = {}
        if self.instance > 0:
            auxiliary["instance"] = (alone, self.instance)
        auxiliary |= {k: (overview.detach() + answer, 1.0) for k, answer in further.items()}
        if self.overview.is_fitted and not batch.frozen:
            auxiliary["overview"] = (overview, 1.0)
        return JointAnswer(overview.detach() + logits, weight, remainder, auxiliary)

    def expected(self, estimate: Float[Tensor, "b d"]) -> Float[Tensor, "b k"]:
        """Compute the answer ``(b, k)`` that teaches attention.

        Args:
            estimate: expectation ``(b, d)`` of the vectors over all cells.
        """
        logits: Tensor = self.head_expected(self.dropout(estimate))
        return logits

    def relate_and_pool(
        self, batch: Batch, glimpse_token: Float[Tensor, "b d"], tokens: Tokens
    ) -> PooledTokens:
        """Relate tokens to each other and to the glimpse, then pool the glimpse and the patches.

        Args:
            batch: the images.
            glimpse_token: token of the glimpse ``(b, d)``.
            tokens: tokens of the images.
        """
        shown = torch.ones(len(glimpse_token), 1, dtype=torch.bool, device=glimpse_token.device)
        if self.training:
            numbers = uniform(
                (len(glimpse_token), 1), batch.generators, device=glimpse_token.device
            )
            shown = numbers >= self.glimpse_dropout
        n = tokens.known.shape[1]
        centre_patch, extent_patch = batch.layout(tokens.regions, n)
        pooled: tuple[Tensor, Tensor] = self.aggregator(
            torch.cat([tokens.vectors, glimpse_token.unsqueeze(1)], 1),
            torch.cat([tokens.known, shown], 1),
            functional.pad(centre_patch, (0, 0, 0, 1)),
            functional.pad(extent_patch, (0, 1), value=1.0),
            pooled=torch.cat([tokens.patches, shown], 1),
            everywhere=torch.cat([torch.zeros_like(tokens.known), torch.ones_like(shown)], 1),
        )
        logits, weight = pooled
        of_patches, remainder = weight[:, :n], weight[:, n]
        shares = of_patches / of_patches.sum(1, keepdim=True).clamp_min(1e-12)
        return PooledTokens(logits, shares, remainder)
