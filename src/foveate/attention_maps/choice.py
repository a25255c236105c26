"""Choose cells by attention over the glimpse, and place patches on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from foveate.attention_maps.cells import Field, draw_reproducibly
from foveate.batch import Batch, Patches
from foveate.nn.generators import hidden_share
from foveate.nn.sampling import draw_without_replacement


@dataclass(frozen=True)
class ChosenCells:
    """The cells chosen in each image and the patches that show them.

    Attributes:
        index: indices ``(b, n)`` of the cells chosen in training; n is 0 in evaluation.
        drawn: ``(b, n)``, False on padding.
        patches: patches of each image.
        field: attention over the cells.
    """

    index: Int[Tensor, "b n"]
    drawn: Bool[Tensor, "b n"]
    patches: list[Patches]
    field: Field

    def arrange_by_cell(self, f: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        """Pad the vectors ``(b, m, d)`` of patches to the number of cells, ``(b, n, d)``."""
        return functional.pad(f, (0, 0, 0, self.index.shape[1] - f.shape[1]))

    def attention_loss(self, weight: Float[Tensor, "b n"]) -> Float[Tensor, ""]:
        """Compute the cross-entropy of attention over the chosen cells to weights of their patches.

        Args:
            weight: share ``(b, n)`` of each patch in the answer, which attention shall learn.

        Returns:
            the mean over images, a scalar.
        """
        index, shown = self.index[:, : weight.shape[1]], self.drawn[:, : weight.shape[1]]
        learnt = self.field.log_a.gather(1, index).masked_fill(~shown, -torch.inf)
        log_share = learnt.log_softmax(1).masked_fill(~shown, 0.0)
        target = weight.detach() * shown
        target = target / target.sum(1, keepdim=True).clamp_min(1e-12)
        return -(target * log_share).sum(1).mean()


@dataclass
class Choice:
    """Chooses cells: how many of an image, and how patches lie in them.

    Attributes:
        patches: patches drawn per image in training.
        eval_patches: patches per image in evaluation.
        survey: patches per image while the encoder is frozen.
        jitter: in training, a patch lies anywhere in its cell; else in the middle.
    """

    patches: int
    eval_patches: int
    survey: int
    jitter: bool

    def choose_cells(self, batch: Batch, field: Field, *, training: bool) -> ChosenCells:
        """Choose cells of every image.

        Args:
            batch: the images.
            field: attention over their cells.
            training: draw cells; else take the cells of highest attention.
        """
        if not training:
            none = torch.zeros(len(batch), 0, dtype=torch.long, device=field.log_a.device)
            return ChosenCells(none, none.bool(), self.choose_best(batch, field), field)
        return self.draw_survey(batch, field) if batch.frozen else self.draw(batch, field)

    def draw(self, batch: Batch, field: Field) -> ChosenCells:
        """Draw cells of each image without replacement.

        Args:
            batch: the images, with their random generators.
            field: attention over the cells.
        """
        index = draw_without_replacement(field.log_a.detach(), self.patches, batch.generators)
        patches = field.patches(batch, index, jitter=self.jitter)
        return ChosenCells(index, field.real.gather(1, index), patches, field)

    def draw_survey(self, batch: Batch, field: Field) -> ChosenCells:
        """Draw very many cells of each image, always the same ones, and hide some of them.

        Args:
            batch: the images, with their random generators.
            field: attention over the cells, with the prior.
        """
        index = draw_reproducibly(batch, field, self.survey, by_prior=True)
        shown = hidden_share(field.real.gather(1, index), batch.generators)
        order = (~shown).int().argsort(dim=1, stable=True)[:, : int(shown.sum(1).max())]
        index, shown = index.gather(1, order), shown.gather(1, order)
        patches = field.patches(batch, index, jitter=False, used=shown)
        return ChosenCells(index, shown, patches, field)

    def choose_best(self, batch: Batch, field: Field) -> list[Patches]:
        """Return the patches of each image at its cells of highest attention.

        Args:
            batch: the images.
            field: attention over the cells.
        """
        n = min(self.eval_patches, field.log_a.shape[1])
        return field.patches(batch, field.log_a.topk(n, dim=-1).indices, jitter=False)
