"""Hard attention from coarse to fine: each chosen patch decides where to look inside it.

Source: Papadopoulos, Korus & Memon, "Hard-Attention for Scalable Image Classification", NeurIPS
2021 (Traversal Network, TNet).

Differs: the first level is a glimpse of the size that the view sets, and the first grid has as many
cells as cover the image, for any extent and shape. The number of levels can follow, for each image,
from the spacings of glimpse and view and from the grid. Cells are squares that cover their region:
the grid of an image has its own number of cells on each axis, is centred, and extends beyond the
border. Cells without foreground are not chosen. The location module reads all maps of the encoder,
averaged exactly over each cell. While a pretrained encoder is frozen, there are no draws: very many
patches of each image are read and weighted by their average weight over all trees that the policy
can draw, and the gradient of this mean teaches where to look. ``policy=sampled`` is an unbiased
policy gradient: training draws patches without replacement, several trees of an image are each
other's baseline, and all choices of a tree share its reward. Evaluation also draws, more patches
and always the same ones for an image, because the highest scores are often close together on one
object. Scores are not normalised, which would make the draw nearly uniform; they are added to a
prior that follows contrast, as in our other methods that draw. The published per-feature answers
train every patch to give the image's label, also patches that show nothing decisive; with a frozen
encoder they memorise the images. Here an instance head pools the answers of patches as the task
allows, and the loss is divided between it and the main answer. ``policy=top`` has the per-feature
answers and the choice of the paper: always the highest scores, also in training. The published
REINFORCE term is then not a policy gradient but a surrogate: it raises the probability of any
choice after a correct answer, and never tries another choice. From random weights it tends to stay
where it began, so it needs a trained encoder. Dropout is 0.1, and patches that are cut further are
read without rotation, so that a map and its patch agree.

Use when: the decisive part is small, and each magnification shows where to look in the next one.

Cost: reads a glimpse and a fixed number of patches per level for an image of any size. The numbers
multiply: ``locations=6,2`` is 6 patches, then 2 inside each, then 1 inside each of those 12 on
every further level. ``policy=sampled`` reads ``draws`` trees in training. Needs memory for one
chunk of patches and a vector per node; maps of patches are stored as one vector per cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from foveate.attention_maps.forest import Forest, TreeAnswers, TreeNodes, gather_forest
from foveate.attention_maps.tree import (
    ChoiceRule,
    ChosenPatches,
    Grids,
    Location,
    choose_cells,
    lay_image_grids,
    lay_patch_grids,
    make_empty_grids,
)
from foveate.attention_maps.tree_cells import Cut
from foveate.attention_maps.tree_embedding import embed_with_cells
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
from foveate.parts.options import Count, DropoutRate

_SURVEY = (48, 3)
"""Patches chosen in each region while the encoder is frozen, level by level: very many, always the
same ones of an image, some of them hidden."""
_MAIN, _MAIN_REWARD = 0.3, 0.3
"""Share of the main answer in the cross-entropy and in the reward; the rest is the share of the
answers of single patches, without which little is learnt."""
_REINFORCE = 0.1
"""Weight of the policy's loss, as published."""
_CONTRAST = 2.0
"""Exponent of contrast in the prior of ``sampled``."""
_HIDDEN = 64
"""Width of the location module."""


class Tnet(AbstractMethod):
    """Descend a tree of patches, each level finer than the one above, down to the view's spacing.

    Evidence is the boxes of all levels except the whole image. The weight of a box is its
    contribution to the predicted class: its own answer times its share in the mean. The head is
    linear, so these contributions sum to the prediction.

    Args:
        grid: cells per axis of the grid that a patch is cut into.
        overlap: share of a cell's side that it has in common with its neighbour. Grid and overlap
            give the zoom from level to level, ``1 + (grid - 1) (1 - overlap)``: 2 by default.
        locations: number of patches chosen in each region, by level; 1 on every further level.
        eval_locations: number of patches in evaluation; by default four times as many on the first
            level, and as in training on the others.
        levels: largest number of levels below the glimpse; ``none`` for the number of zooms between
            the spacings of glimpse and view. The finest level always has the view's spacing: with
            fewer levels the first grid has more and smaller cells. Levels that show nothing
            decisive cost patches and dilute the mean.
        policy: choice of patches. ``sampled`` draws them (in evaluation always the same ones for an
            image) and learns by an unbiased policy gradient. ``top`` takes the highest scores, in
            training and evaluation, and learns by the published, biased surrogate.
        draws: with ``sampled``, number of trees drawn for each image in training, which are each
            other's baseline; with 1, the baseline is the mean reward of past steps.
        weighting: whether features are weighted by a squeeze-and-excite module instead of averaged.
        dropout: rate of dropout on features.
        chunk: number of patches encoded at a time; above it, gradients come from two-pass replay.
        jitter: whether the grid over the image, with all levels below, is shifted at random in
            training.
    """

    reads = frozenset({"glimpse", "crops"})
    summary = "descends a tree of patches, coarse to fine, by hard attention"
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
        grid: Count = 3,
        overlap: float = 0.5,
        locations: tuple[int, ...] = (6, 2),
        eval_locations: tuple[int, ...] | None = None,
        levels: int | None = 2,
        policy: Literal["sampled", "top"] = "sampled",
        draws: Count = 2,
        weighting: bool = False,
        dropout: DropoutRate = 0.1,
        chunk: Count = 256,
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
        """Choose patches level by level, then predict from the features of all nodes."""
        forest = self._descend(batch)
        nodes = self._nodes(batch, forest)
        f, valid = nodes.features, nodes.valid
        if self.weigh is not None:
            share = self.weigh(f, valid)
        elif self.training and batch.frozen:
            share = compute_expected_shares(
                nodes.log_prob, nodes.parent, nodes.level, valid, self.locations
            )
        else:
            share = valid / valid.sum(-1, keepdim=True)
        logits = self.head((share.unsqueeze(-2) @ f).squeeze(-2))
        single = self.head(f)
        answers = TreeAnswers(logits, single, valid, nodes.log_prob)
        if not self.training:
            return Prediction(logits[:, 0], self._evidence(batch, forest, answers, share))
        if self.head_instance is not None:
            alone = self.head_instance(f.flatten(0, 1), answers.chosen.flatten(0, 1))
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
        levels = []
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
            levels.append((chosen, f))
        return gather_forest(batch, overview, levels, trees)

    def _rule(self) -> ChoiceRule:
        if self.policy == "top":
            return "strongest"
        return "drawn" if self.training else "repeatable"

    def _count(self, level: int, surveyed: bool) -> int:
        """Return how many patches are chosen in each region of a level."""
        counts = self.locations if self.training else self.eval_locations
        counts = self.survey if surveyed else counts
        return counts[level - 1] if level <= len(counts) else 1

    def _look(
        self, batch: Batch, chosen: Sequence[ChosenPatches], below: Sequence[int]
    ) -> tuple[Float[Tensor, "n d"], list[Grids]]:
        """Encode chosen patches and lay grids inside them.

        Args:
            batch: the images.
            chosen: chosen patches of each image.
            below: number of levels that follow in each image.

        Returns:
            features of the patches ``(n, d)``, and the grids of each image.
        """
        split = [_only(part.patches, d > 0) for part, d in zip(chosen, below, strict=True)]
        last = [_only(part.patches, d == 0) for part, d in zip(chosen, below, strict=True)]
        dim, shape = self.encoder.dim, (self.cut.cells**2, sum(self.encoder.map_dims))
        rows = self.head.weight.new_zeros(0, dim + math.prod(shape))
        leaves = rows[:, :dim]
        if any(len(part) for part in split):
            rows = embed_with_cells(self.encoder, self.cut, batch, split, self.chunk)
        if any(len(part) for part in last):
            leaves = embed_patches(self.encoder, batch, last, self.chunk).float()
        cells = rows[:, dim:].detach().reshape(len(rows), *shape)
        n_split, n_last = ([len(part) for part in parts] for parts in (split, last))
        cut_further, finest = torch.split(rows[:, :dim], n_split), torch.split(leaves, n_last)
        inside = torch.split(cells, n_split)
        grids = [
            lay_patch_grids(
                batch, i, part, inside[i], self.cut, scale=self.cut.zoom ** (below[i] - 1)
            )
            if below[i] > 0
            else make_empty_grids(cells.flatten(0, 1), self.cut)
            for i, part in enumerate(chosen)
        ]
        return torch.cat([x for pair in zip(cut_further, finest, strict=True) for x in pair]), grids

    # -- predict ------------------------------------------------------------------------------

    def _nodes(self, batch: Batch, forest: Forest) -> TreeNodes:
        """Arrange the nodes of a forest tree by tree, with position in their features."""
        lengths = torch.tensor(forest.n_nodes, device=batch.device)
        valid = torch.arange(max(forest.n_nodes), device=batch.device) < lengths[:, None]
        widest = max(len(part) for part in forest.patches)
        counts = torch.tensor([len(part) for part in forest.patches], device=batch.device)
        real = torch.arange(widest, device=batch.device) < counts[:, None]
        centre, extent = batch.layout(forest.patches, widest)
        code = self.position(centre[real], extent[real])
        fused = self.dropout(self.fuse(torch.cat([self.norm(forest.features), code], -1)).float())
        shape = (len(batch), forest.trees, valid.shape[1])
        log_prob, parent, level = (
            pad_rows(rows.unsqueeze(-1), valid).view(shape)
            for rows in (forest.log_prob, forest.parent, forest.level)
        )
        features = pad_rows(fused, valid).view(*shape, -1)
        return TreeNodes(features, valid.view(shape), log_prob, parent, level)

    def _evidence(
        self, batch: Batch, forest: Forest, answers: TreeAnswers, share: Float[Tensor, "b trees n"]
    ) -> EvidenceList:
        logits, added = answers.logits[:, 0], (answers.single * share.unsqueeze(-1))[:, 0, 1:]
        weight = compute_patch_shares(added, logits, self.task_heads, share[:, 0, 1:] > 0)
        return batch.evidence([part[1:] for part in forest.patches], weight)

    # -- learn --------------------------------------------------------------------------------

    def objective(self, answers: TreeAnswers, judge: Judge) -> Float[Tensor, ""]:
        """Compute the paper's objective, less the loss of the first logits, which the loop adds.

        Args:
            answers: answers at the nodes of the trees.
            judge: compares answers with targets.
        """
        chosen = answers.chosen
        right, right_single = judge.correct(answers.logits), judge.correct(answers.single)
        reward = self._mix(right, _mean_over(right_single, chosen))
        if self.policy == "top":
            b, log_prob = self.reward.value, answers.log_prob
            alone = _mean_over(policy_loss(right_single, b, log_prob), chosen)
            policy = self._mix(policy_loss(right, b, log_prob.sum(-1)), alone)
        else:
            baseline = leave_one_out(reward) if reward.shape[1] > 1 else self.reward.value
            policy = policy_loss(reward, baseline, answers.log_prob.sum(-1))
        return self.survey_objective(answers, judge) + self.reinforce * policy.mean()

    def survey_objective(self, answers: TreeAnswers, judge: Judge) -> Float[Tensor, ""]:
        """Compute the objective of a survey: without a policy loss, as nothing was drawn.

        Args:
            answers: answers at the nodes of the trees.
            judge: compares answers with targets.
        """
        right, chosen = judge.correct(answers.single), answers.chosen
        reward = self._mix(judge.correct(answers.logits), _mean_over(right, chosen))
        self.reward.update(reward.mean())
        counted = judge.loss(answers.logits[:, 0])
        return self._loss(answers, judge).mean() - counted.mean()

    def _loss(self, answers: TreeAnswers, judge: Judge) -> Float[Tensor, "b s"]:
        """Compute the loss ``(b, s)`` of the main answer and of single patches' answers."""
        if answers.pooled is None:
            alone = _mean_over(judge.loss(answers.single), answers.valid)
        else:
            alone = judge.loss(answers.pooled)
        return self.main * judge.loss(answers.logits) + (1 - self.main) * alone

    def _mix(
        self, of_main: Float[Tensor, "b s"], of_patches: Float[Tensor, "b s"]
    ) -> Float[Tensor, "b s"]:
        return self.main_reward * of_main + (1 - self.main_reward) * of_patches


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
