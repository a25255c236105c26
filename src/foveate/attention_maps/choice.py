"""Which cells of an attention over the glimpse are looked at, and where patches then lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from foveate.attention_maps.cells import Field, draw_settled
from foveate.batch import Batch, Patches
from foveate.nn.generators import hidden_share
from foveate.nn.sampling import draw_without_replacement


@dataclass(frozen=True)
class Chosen:
    """Cells and the patches that show them.

    Attributes:
        index: cells ``(b, n)`` that were looked at in training; none in evaluation.
        drawn: ``(b, n)``, False on padding.
        patches: per image.
        field: of the cells.
    """

    index: Tensor
    drawn: Tensor
    patches: list[Patches]
    field: Field

    def at_cells(self, f: Tensor) -> Tensor:
        """Arrange the vectors ``(b, m, d)`` of patches by the cells drawn, ``(b, n, d)``."""
        return functional.pad(f, (0, 0, 0, self.index.shape[1] - f.shape[1]))

    def taught_by(self, weight: Tensor) -> Tensor:
        """How far attention over cells lies from what patches got, where many were looked at.

        Args:
            weight: ``(b, n)`` share of each patch.
        """
        index, shown = self.index[:, : weight.shape[1]], self.drawn[:, : weight.shape[1]]
        learnt = self.field.log_a.gather(1, index).masked_fill(~shown, -torch.inf)
        log_share = learnt.log_softmax(1).masked_fill(~shown, 0.0)
        target = weight.detach() * shown
        target = target / target.sum(1, keepdim=True).clamp_min(1e-12)
        return -(target * log_share).sum(1).mean()


@dataclass
class Choice:
    """How many cells are looked at, and how patches lie in them.

    Attributes:
        patches: drawn per image in training.
        eval_patches: looked at per image in evaluation.
        survey: looked at per image while the encoder is frozen.
        jitter: in training, a patch lies anywhere in its cell; else in the middle.
    """

    patches: int
    eval_patches: int
    survey: int
    jitter: bool

    def __call__(self, batch: Batch, field: Field, *, training: bool) -> Chosen:
        """Choose cells of every image.

        Args:
            batch: of the images.
            field: attention over their cells.
            training: draw; else take the cells of highest attention.
        """
        if not training:
            none = torch.zeros(len(batch), 0, dtype=torch.long, device=field.log_a.device)
            return Chosen(none, none.bool(), self.best(batch, field), field)
        return self.surveyed(batch, field) if batch.frozen else self.drawn(batch, field)

    def drawn(self, batch: Batch, field: Field) -> Chosen:
        """Draw cells of each image without replacement."""
        index = draw_without_replacement(field.log_a.detach(), self.patches, batch.generators)
        patches = field.patches(batch, index, jitter=self.jitter)
        return Chosen(index, field.real.gather(1, index), patches, field)

    def surveyed(self, batch: Batch, field: Field) -> Chosen:
        """Very many patches of each image, always the same ones, some of them hidden."""
        index = draw_settled(batch, field, self.survey, by_prior=True)
        stay = hidden_share(field.real.gather(1, index), batch.generators)
        order = (~stay).int().argsort(dim=1, stable=True)[:, : int(stay.sum(1).max())]
        index, stay = index.gather(1, order), stay.gather(1, order)
        patches = field.patches(batch, index, jitter=False, used=stay)
        return Chosen(index, stay, patches, field)

    def best(self, batch: Batch, field: Field) -> list[Patches]:
        """Per image the patches at the cells of highest attention."""
        n = min(self.eval_patches, field.log_a.shape[1])
        return field.patches(batch, field.log_a.topk(n, dim=-1).indices, jitter=False)
