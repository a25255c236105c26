"""Hard attention from coarse to fine: each chosen crop decides where to look inside it.

Source: Papadopoulos, Korus & Memon, "Hard-Attention for Scalable Image Classification", NeurIPS
2021 (Traversal Network, TNet).

Differs: the first level is a glimpse of the size that the view sets, and the first grid has as many
cells as cover the image, for any extent and shape. The number of levels can follow, for each image,
from the spacings of glimpse and view and from the grid. Cells are squares that cover their region:
the grid of an image has its own number of cells on each axis, is centred, and extends beyond the
border. Cells without foreground are not chosen. The location module reads all maps of the encoder,
averaged exactly over each cell. While a pretrained encoder is frozen, there are no draws: very many
crops of each image are read and weighted by their average weight over all trees that the policy can
draw, and the gradient of this mean teaches where to look. ``policy=sampled`` is an unbiased policy
gradient: training draws crops without replacement, several trees of an image are each other's
baseline, and all choices of a tree share its reward. Evaluation also draws, more crops and always
the same ones for an image, because the highest scores are often close together on one object.
Scores are not normalised, which would make the draw nearly uniform; they are added to a prior that
follows contrast, as in our other methods that draw. The published per-feature answers train every
crop to give the image's label, also crops that show nothing decisive; with a frozen encoder they
memorise the images. Here an instance head pools the answers of crops as the task allows, and the
loss is divided between it and the main answer. ``policy=top`` has the per-feature answers and the
choice of the paper: always the highest scores, also in training. The published REINFORCE term is
then not a policy gradient but a surrogate: it raises the probability of any choice after a correct
answer, and never tries another choice. From random weights it tends to stay where it began, so it
needs a trained encoder. Dropout is 0.1, and crops that are cut further are read without rotation,
so that a map and its crop agree.

Use when: the decisive part is small, and each magnification shows where to look in the next one.

Cost: reads a glimpse and a fixed number of crops per level for an image of any size. The numbers
multiply: ``locations=6,2`` is 6 crops, then 2 inside each, then 1 inside each of those 12 on every
further level. ``policy=sampled`` reads ``draws`` trees in training. Needs memory for one chunk of
crops and a vector per node; maps of crops are stored as one vector per cell.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from foveate.attention_maps.forest import Forest, TreeAnswers, gather_forest
from foveate.attention_maps.tree import (
    ChoiceRule,
    ChosenCrops,
    Grids,
    Location,
    choose_cells,
    lay_crop_grids,
    lay_image_grids,
    make_empty_grids,
)
from foveate.attention_maps.tree_cells import Cut, compute_cell_features
from foveate.attention_maps.tree_shares import FeatureWeights, compute_expected_shares
from foveate.bags.embedding import compute_patch_shares, embed_patches, pad_rows
from foveate.batch import Batch, Patches
from foveate.encoders.base import AbstractEncoder
from foveate.errors import OptionError
from foveate.images.evidence import EvidenceList
from foveate.methods.base import AbstractMethod, Judge, Prediction, Requirements
from foveate.nn.heads import Head, InstanceHead
from foveate.nn.position import PositionCode
from foveate.nn.reinforce import RunningReward, leave_one_out, policy_loss
from foveate.nn.repeated import EmbedOnce
from foveate.nn.replay import replay

_SURVEY = (48, 3)
"""Crops chosen in each region while the encoder is frozen, level by level: very many, always the
same ones of an image, some of them hidden."""
_MAIN, _MAIN_REWARD = 0.3, 0.3
"""Share of the main answer in the cross-entropy and in the reward; the rest is the share of the
answers of single crops, without which little is learnt."""
_REINFORCE = 0.1
"""Weight of the policy's loss, as published."""
_CONTRAST = 2.0
"""Exponent of contrast in the prior of ``sampled``."""
_HIDDEN = 64
"""Width of the location module."""


class Tnet(AbstractMethod):
    """Descend a tree of crops, each level finer than the one above, down to the view's spacing.

    Evidence is the boxes of all levels except the whole image. The weight of a box is its
    contribution to the predicted class: its own answer times its share in the mean. The head is
    linear, so these contributions sum to the prediction.

    Args:
        grid: cells per axis of the grid that a crop is cut into.
        overlap: share of a cell's side that it has in common with its neighbour. Grid and overlap
            give the zoom from level to level, ``1 + (grid - 1) (1 - overlap)``: 2 by default.
        locations: number of crops chosen in each region, for each level; 1 on every further level.
        eval_locations: number of crops in evaluation; by default four times as many on the first
            level, and as in training on the others.
        levels: largest number of levels below the glimpse; ``none`` for the number of zooms between
            the spacings of glimpse and view. The finest level always has the view's spacing: with
            fewer levels the first grid has more and smaller cells. Levels that show nothing
            decisive cost crops and dilute the mean.
        policy: choice of crops. ``sampled`` draws crops (in evaluation always the same ones for an
            image) and learns by an unbiased policy gradient. ``top`` takes the highest scores, in
            training and evaluation, and learns by the published, biased surrogate.
        draws: with ``sampled``, number of trees drawn for each image in training, which are each
            other's baseline; with 1, the baseline is the mean reward of past steps.
        weighting: whether features are weighted by a squeeze-and-excite module instead of averaged.
        dropout: rate of dropout on features.
        chunk: number of crops encoded at a time; above it, gradients come from two-pass replay.
        jitter: whether the grid over the image, with all levels below, is shifted at random in
            training.
    """

    reads = frozenset({"glimpse", "crops"})
    summary = "descends a tree of crops, coarse to fine, by hard attention"
    meets = Requirements(
        relevant_parts="yes",
        any_number="partly",
        any_size="yes",
        one_gpu="yes",
        dependencies="no",
    )
    axes: ClassVar[frozenset[int]] = frozenset({2})

    def __init__(
        self,
        *,
        encoder: AbstractEncoder,
        heads: Sequence[Head],
        grid: int = 3,
        overlap: float = 0.5,
        locations: tuple[int, ...] = (6, 2),
        eval_locations: tuple[int, ...] | None = None,
        levels: int | None = 2,
        policy: Literal["sampled", "top"] = "sampled",
        draws: int = 2,
        weighting: bool = False,
        dropout: float = 0.1,
        chunk: int = 256,
        jitter: bool = True,
    ) -> None:
        super().__init__()
        dim = encoder.dim
        self.encoder, self.task_heads, self.cut = encoder, tuple(heads), Cut(grid, overlap)
        self.locations = _counts(locations, "locations")
        wider = (4 * locations[0], *locations[1:]) if policy == "sampled" else locations
        self.eval_locations = _counts(eval_locations or wider, "eval_locations")
        self.survey = _SURVEY
        self.levels, self.policy = levels, policy
        self.draws = draws if policy == "sampled" else 1
        self.main, self.reinforce, self.main_reward = _MAIN, _REINFORCE, _MAIN_REWARD
        self.contrast = _CONTRAST if policy == "sampled" else 0.0
        self.chunk, self.jitter = chunk, jitter
        self.locate = Location(encoder.map_dims, hidden=_HIDDEN)
        self.position = PositionCode(max(1, dim // 4))
        self.norm = nn.LayerNorm(dim)
        self.fuse = nn.Sequential(nn.Linear(dim + max(1, dim // 4), dim), nn.GELU())
        self.dropout = nn.Dropout(dropout)
        self.weigh = FeatureWeights(dim) if weighting else None
        self.head = nn.Linear(dim, sum(h.size for h in heads))
        self.head_instance = InstanceHead(dim, heads) if policy == "sampled" else None
        self.reward = RunningReward()

    def forward(self, batch: Batch) -> Prediction:
        """Choose crops level by level, then predict from the features of all nodes."""
        forest = self._descend(batch)
        f, valid, log_prob, parent, level = self._nodes(batch, forest)
        if self.weigh is not None:
            share = self.weigh(f, valid)
        elif self.training and batch.frozen:
            share = compute_expected_shares(log_prob, parent, level, valid, self.locations)
        else:
            share = valid / valid.sum(-1, keepdim=True)
        logits = self.head((share.unsqueeze(-2) @ f).squeeze(-2))
        single = self.head(f)
        answers = TreeAnswers(logits, single, valid, log_prob)
        if not self.training:
            return Prediction(logits[:, 0], self._evidence(batch, forest, answers, share))
        if self.head_instance is not None:
            alone = self.head_instance(f.flatten(0, 1), answers.crops.flatten(0, 1))
            answers = answers._replace(pooled=alone.view(logits.shape))
        learn = self.survey_objective if batch.frozen else self.objective
        return Prediction(logits[:, 0], further={"tree": TreeLoss(answers, learn)})

    def findings(self) -> dict[str, float]:
        """Return the running mean of the reward."""
        return {"reward": float(self.reward.value)}

    # -- descend ------------------------------------------------------------------------------

    def _descend(self, batch: Batch) -> Forest:
        looks = batch.look(self.encoder)
        overview = torch.cat([self.encoder.project(look.features) for look in looks]).float()
        frozen = self.training and batch.frozen
        trees = self.draws if self.training and not frozen else 1
        depth = [
            self.cut.levels(item.image.box_um.size, batch.view, self.levels) for item in batch.items
        ]
        grids = [
            lay_image_grids(
                batch,
                i,
                looks[i].maps,
                self.encoder,
                self.cut,
                scale=self.cut.zoom ** (depth[i] - 1),
                trees=trees,
                jitter=self.training and self.jitter and not frozen,
            )
            for i in range(len(batch))
        ]
        crops = []
        for level in range(1, max(depth) + 1):
            chosen = choose_cells(
                batch,
                grids,
                self.locate,
                self._count(level, frozen),
                power=self.contrast,
                normalised=self.policy == "top",
                rule="surveyed" if frozen else self._rule(),
            )
            f, grids = self._look(batch, chosen, [d - level for d in depth])
            crops.append((chosen, f))
        return gather_forest(batch, overview, crops, trees)

    def _rule(self) -> ChoiceRule:
        if self.policy == "top":
            return "strongest"
        return "drawn" if self.training else "settled"

    def _count(self, level: int, surveyed: bool) -> int:
        """Return how many crops are chosen in each region of a level."""
        counts = self.locations if self.training else self.eval_locations
        counts = self.survey if surveyed else counts
        return counts[level - 1] if level <= len(counts) else 1

    def _look(
        self, batch: Batch, chosen: Sequence[ChosenCrops], below: Sequence[int]
    ) -> tuple[Float[Tensor, "n d"], list[Grids]]:
        """Encode chosen crops and lay grids inside them.

        Args:
            batch: the images.
            chosen: chosen crops of each image.
            below: number of levels that follow in each image.

        Returns:
            features of the crops ``(n, d)``, and the grids of each image.
        """
        split = [_only(part.patches, d > 0) for part, d in zip(chosen, below, strict=True)]
        last = [_only(part.patches, d == 0) for part, d in zip(chosen, below, strict=True)]
        dim, shape = self.encoder.dim, (self.cut.cells**2, sum(self.encoder.map_dims))
        rows = self.head.weight.new_zeros(0, dim + math.prod(shape))
        leaves = rows[:, :dim]
        if any(len(part) for part in split):
            rows = self._embed(batch, split)
        if any(len(part) for part in last):
            leaves = embed_patches(self.encoder, batch, last, self.chunk).float()
        cells = rows[:, dim:].detach().reshape(len(rows), *shape)
        n_split, n_last = ([len(part) for part in parts] for parts in (split, last))
        cut_further, finest = torch.split(rows[:, :dim], n_split), torch.split(leaves, n_last)
        inside = torch.split(cells, n_split)
        grids = [
            lay_crop_grids(
                batch, i, part, inside[i], self.cut, scale=self.cut.zoom ** (below[i] - 1)
            )
            if below[i] > 0
            else make_empty_grids(cells.flatten(0, 1), self.cut)
            for i, part in enumerate(chosen)
        ]
        return torch.cat([x for pair in zip(cut_further, finest, strict=True) for x in pair]), grids

    def _embed(self, batch: Batch, patches: Sequence[Patches]) -> Float[Tensor, "n features"]:
        """Embed crops: ``(n, d + cells c)``, the feature and then the maps' means in each cell."""
        patch_px = batch.view.patch_px
        if batch.frozen_features is not None:
            encode = functools.partial(self._vector_and_cells, patch_px, self.encoder.features)
            rows = batch.frozen_features.rows(f"{self.cut} ", patches, self.chunk, encode)
            n = self.encoder.n_features
            return torch.cat([self.encoder.project(rows[:, :n]).float(), rows[:, n:]], 1)
        # Without augmentation: the map of a turned crop would point to the wrong part of it.
        chunks = batch.chunks(patches, self.chunk, augment=False)
        parameters = list(self.encoder.parameters())
        once = EmbedOnce(functools.partial(self._vector_and_cells, patch_px, self.encoder.pool))
        if not torch.is_grad_enabled() or len(chunks) == 1:
            return torch.cat([once(chunks(c)) for c in range(len(chunks))])
        return replay(once, parameters, chunks, len(chunks))

    def _vector_and_cells(
        self,
        patch_px: int,
        vector: Callable[..., Float[Tensor, "m d"]],
        x: Float[Tensor, "m 3 y x"],
    ) -> Float[Tensor, "m features"]:
        maps = self.encoder.maps(x)
        begin = self.cut.inside(patch_px)
        cells = compute_cell_features(self.encoder, maps, (begin, begin), patch_px / self.cut.zoom)
        return torch.cat([vector(maps).float(), cells.flatten(1)], 1)

    # -- predict ------------------------------------------------------------------------------

    def _nodes(self, batch: Batch, forest: Forest) -> tuple[Shaped[Tensor, "b trees n ..."], ...]:
        """Arrange the properties of nodes as ``(b, trees, n, …)``.

        Returns:
            features with position, the mask of real nodes, log-probabilities, parents and levels.
        """
        lengths = torch.tensor(forest.lengths, device=batch.device)
        valid = torch.arange(max(forest.lengths), device=batch.device) < lengths[:, None]
        widest = max(len(part) for part in forest.patches)
        counts = torch.tensor([len(part) for part in forest.patches], device=batch.device)
        real = torch.arange(widest, device=batch.device) < counts[:, None]
        centre, extent = batch.layout(forest.patches, widest)
        code = self.position(centre[real], extent[real])
        fused = self.dropout(self.fuse(torch.cat([self.norm(forest.features), code], -1)).float())
        shape = (len(batch), forest.trees, valid.shape[1])
        rest = (
            pad_rows(rows.unsqueeze(-1), valid).view(shape)
            for rows in (forest.log_prob, forest.parent, forest.level)
        )
        return pad_rows(fused, valid).view(*shape, -1), valid.view(shape), *rest

    def _evidence(
        self, batch: Batch, forest: Forest, answers: TreeAnswers, share: Float[Tensor, "b trees n"]
    ) -> EvidenceList:
        logits, added = answers.logits[:, 0], (answers.single * share.unsqueeze(-1))[:, 0, 1:]
        weight = compute_patch_shares(added, logits, self.task_heads, share[:, 0, 1:] > 0)
        return batch.evidence([part[1:] for part in forest.patches], weight)

    # -- learn --------------------------------------------------------------------------------

    def objective(self, answers: TreeAnswers, judge: Judge) -> Float[Tensor, ""]:
        """Compute the paper's objective, less the loss of the first logits, which the loop adds."""
        crops = answers.crops
        right, right_single = judge.correct(answers.logits), judge.correct(answers.single)
        reward = self._mix(right, _mean_over(right_single, crops))
        if self.policy == "top":
            b, log_prob = self.reward.value, answers.log_prob
            alone = _mean_over(policy_loss(right_single, b, log_prob), crops)
            policy = self._mix(policy_loss(right, b, log_prob.sum(-1)), alone)
        else:
            baseline = leave_one_out(reward) if reward.shape[1] > 1 else self.reward.value
            policy = policy_loss(reward, baseline, answers.log_prob.sum(-1))
        return self.survey_objective(answers, judge) + self.reinforce * policy.mean()

    def survey_objective(self, answers: TreeAnswers, judge: Judge) -> Float[Tensor, ""]:
        """Compute the objective of a survey: without a policy loss, as nothing was drawn."""
        right, crops = judge.correct(answers.single), answers.crops
        reward = self._mix(judge.correct(answers.logits), _mean_over(right, crops))
        self.reward.update(reward.mean())
        counted = judge.loss(answers.logits[:, 0])
        return self._loss(answers, judge).mean() - counted.mean()

    def _loss(self, answers: TreeAnswers, judge: Judge) -> Float[Tensor, "b s"]:
        """Compute the loss ``(b, s)`` of the main answer and of single crops' answers."""
        if answers.pooled is None:
            alone = _mean_over(judge.loss(answers.single), answers.valid)
        else:
            alone = judge.loss(answers.pooled)
        return self.main * judge.loss(answers.logits) + (1 - self.main) * alone

    def _mix(self, main: Float[Tensor, "b s"], crops: Float[Tensor, "b s"]) -> Float[Tensor, "b s"]:
        return self.main_reward * main + (1 - self.main_reward) * crops


class TreeLoss(NamedTuple):
    """The loss of a step's answers, as the loop calls it.

    Attributes:
        answers: answers of the step.
        objective: computes the loss of the answers by a judge.
    """

    answers: TreeAnswers
    objective: Callable[[TreeAnswers, Judge], Float[Tensor, ""]]

    def __call__(self, judge: Judge) -> Float[Tensor, ""]:
        """Compute the objective; a scalar."""
        return self.objective(self.answers, judge)


def _mean_over(values: Float[Tensor, "*b n"], valid: Bool[Tensor, "*b n"]) -> Float[Tensor, " *b"]:
    """Average values ``(…, n)`` over the last axis where `valid` ``(…, n)`` is True."""
    return (values * valid).sum(-1) / valid.sum(-1)


def _only(patches: Patches, wanted: bool) -> Patches:
    return patches if wanted else patches[:0]


def _counts(counts: tuple[int, ...], name: str) -> tuple[int, ...]:
    if not counts or min(counts) < 1:
        raise OptionError(f"method.{name}: got {counts}, expected whole numbers from 1")
    return tuple(counts)
