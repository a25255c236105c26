"""Which cells of an attention over the glimpse are looked at, and where patches then lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foveate.attention_maps.cells import Field, draw_settled
from foveate.attention_maps.zoom import CROWD, apart, centred, joined
from foveate.batch import Batch, Patches
from foveate.nn.generators import hidden_share
from foveate.nn.sampling import draw_without_replacement


@dataclass(frozen=True)
class Chosen:
    """Cells and the patches that show them.

    Attributes:
        index: cells ``(b, n)`` that were looked at in training; none in evaluation.
        drawn: ``(b, n)``, False on padding.
        shows: ``(b, n)`` which of its image's patches shows each cell.
        patches: per image.
        field: of the cells.
    """

    index: Tensor
    drawn: Tensor
    shows: Tensor
    patches: list[Patches]
    field: Field

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
        strongest: looked at in training beside those drawn.
        jitter: in training, a patch lies anywhere in its cell; else in the middle.
        centring: steps by which a patch moves to what stands out around it.
    """

    patches: int
    eval_patches: int
    survey: int
    strongest: int
    jitter: bool
    centring: int

    def __call__(self, batch: Batch, field: Field, *, training: bool) -> Chosen:
        """Choose cells of every image.

        Args:
            batch: of the images.
            field: attention over their cells.
            training: draw; else take the cells of highest attention.
        """
        if not training:
            none = torch.zeros(len(batch), 0, dtype=torch.long, device=field.log_a.device)
            best = self._best(batch, field, self.eval_patches, False)
            return Chosen(none, none.bool(), none, best, field)
        if batch.frozen:
            return self._surveyed(batch, field)
        index = draw_without_replacement(field.log_a.detach(), self.patches, batch.generators)
        drawn = self._placed(batch, field, index, self.jitter)
        shows = torch.zeros_like(index)
        best = self._best(batch, field, self.strongest, self.jitter) if self.strongest else drawn
        patches = []
        for i, every in enumerate(drawn):
            kept = shown = np.arange(len(every))
            if self.strongest:
                every = joined([best[i], every])
            if self.strongest or self.centring:
                kept, shown = apart(every)
            patches.append(every[kept])
            own = torch.from_numpy(shown[len(shown) - len(drawn[i]) :])
            shows[i, : len(own)] = own.to(shows)
        return Chosen(index, field.real.gather(1, index), shows, patches, field)

    def _surveyed(self, batch: Batch, field: Field) -> Chosen:
        """Very many patches of each image, always the same ones, some of them hidden."""
        index = draw_settled(batch, field, self.survey, by_prior=True)
        stay = hidden_share(field.real.gather(1, index), batch.generators)
        order = (~stay).int().argsort(dim=1, stable=True)[:, : int(stay.sum(1).max())]
        index, stay = index.gather(1, order), stay.gather(1, order)
        patches = field.patches(batch, index, jitter=False, used=stay)
        return Chosen(index, stay, torch.zeros_like(index), patches, field)

    def _best(self, batch: Batch, field: Field, n: int, jitter: bool) -> list[Patches]:
        """Per image n patches at its strongest cells; if they move, no two that show the same."""
        crowd = CROWD if self.centring else 1
        index = field.log_a.topk(min(n * crowd, field.log_a.shape[1]), dim=-1).indices
        found = self._placed(batch, field, index, jitter)
        if self.centring:
            found = [every[apart(every)[0]] for every in found]
        return [every[:n] for every in found]

    def _placed(self, batch: Batch, field: Field, index: Tensor, jitter: bool) -> list[Patches]:
        """Patches at cells ``(b, n)``, in the middle or anywhere, moved to what they show."""
        found = field.patches(batch, index, jitter=jitter)
        if not self.centring:
            return found
        return [centred(batch, i, each, steps=self.centring) for i, each in enumerate(found)]
