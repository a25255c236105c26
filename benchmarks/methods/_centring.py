"""Patches that move onto objects on a plain ground, which cells would cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.canvas.loading import PlacedImage
from foveate.attention_maps.cells import Field
from foveate.attention_maps.choice import Choice, ChosenCells
from foveate.attention_maps.tiles import join_patches, suppress_duplicates
from foveate.attention_maps.zoom import CROWD
from foveate.bags.embedding import Bag
from foveate.batch import Batch, Patches
from foveate.geometry import length_px_from_um, length_um_from_px
from foveate.images.evidence import Floats
from foveate.images.tiling import box_sums, integral_image
from foveate.nn.sampling import draw_without_replacement


def shift_to_mass(values: Floats, centre: Floats, *, side: float, steps: int) -> Floats:
    """Move the centres of boxes repeatedly to the centre of mass of their content.

    Mean shift with a square window. A box over nothing stays.

    Args:
        values: at least 0, one axis per spatial axis; counts as 0 beyond its edges.
        centre: ``(n, d)`` in pixels of `values`; pixel i covers ``[i, i + 1)``.
        side: of the boxes, in the same pixels.
        steps: how often.

    Returns:
        ``(n, d)``.
    """
    ndim = values.ndim
    axes = np.meshgrid(*(np.arange(n) + 0.5 for n in values.shape), indexing="ij")
    moments = integral_image(np.stack([values, *(values * axis for axis in axes)], -1), ndim)
    for _ in range(steps):
        sums = box_sums(moments, centre - side / 2, side)
        mass = sums[:, :1]
        centre = np.where(mass > 1e-9, sums[:, 1:] / np.maximum(mass, 1e-12), centre)
    return centre


def centred(batch: Batch, i: int, patches: Patches, *, steps: int) -> Patches:
    """Move patches of image i to the centre of mass of the foreground around them."""
    item, spacing_um = batch.items[i], batch.view.glimpse_spacing_um
    centre_px = shift_to_mass(
        item.contrast.astype(np.float64),
        length_px_from_um(patches.centre_um, spacing_um),
        side=length_px_from_um(batch.view.patch_um, spacing_um),
        steps=steps,
    )
    return batch.place(i, length_um_from_px(centre_px, spacing_um))


class CentredBag(Bag):
    """Covers images with patches that move onto objects, each object once.

    Places that are stated stay.

    Args:
        centring: steps by which a patch moves.
        chunk: patches embedded at a time.
        jitter: in training, shift the lattice at random.
    """

    def __init__(self, *, centring: int, chunk: int, jitter: bool) -> None:
        super().__init__(train_encoder=True, chunk=chunk, jitter=jitter)
        self.centring = centring

    def cover(self, batch: Batch, *, training: bool) -> list[Patches]:
        """Cover each image with patches, and move them onto objects."""
        covers = super().cover(batch, training=training)
        return [self._moved(batch, i, patches) for i, patches in enumerate(covers)]

    def _moved(self, batch: Batch, i: int, patches: Patches) -> Patches:
        """Move the patches of image i and remove duplicates."""
        if isinstance(batch.items[i], PlacedImage) or not self.centring:
            return patches
        moved = centred(batch, i, patches, steps=self.centring)
        return moved[suppress_duplicates(moved)[0]]


@dataclass(frozen=True)
class CentredChosen(ChosenCells):
    """The drawn cells and the patches that show them, which several cells may share.

    Attributes:
        shows: ``(b, n)`` which of its image's patches shows each cell.
    """

    shows: Tensor

    def arrange_by_cell(self, f: Tensor) -> Tensor:
        """Arrange the vectors ``(b, m, d)`` of patches by the cells drawn, ``(b, n, d)``."""
        return f.gather(1, self.shows.unsqueeze(-1).expand(-1, -1, f.shape[-1]))


@dataclass
class CentredChoice(Choice):
    """The choice of cells, with patches that move onto the objects in them.

    Attributes:
        strongest: looked at in training beside those drawn, as in evaluation.
        centring: steps by which a patch moves; 0 leaves it where it is.
    """

    strongest: int
    centring: int

    def draw(self, batch: Batch, field: Field) -> ChosenCells:
        """Draw cells of each image and add its strongest cells; each object once."""
        index = draw_without_replacement(field.log_a.detach(), self.patches, batch.generators)
        drawn = self._placed(batch, field, index, self.jitter)
        shows = torch.zeros_like(index)
        best = drawn
        if self.strongest:
            best = self._strongest(batch, field, self.strongest, self.jitter)
        patches = []
        for i, every in enumerate(drawn):
            n = len(every)
            if self.strongest:
                every = join_patches([best[i], every])
            kept = shown = np.arange(len(every))
            if self.strongest or self.centring:
                kept, shown = suppress_duplicates(every)
            patches.append(every[kept])
            shows[i, :n] = torch.from_numpy(shown[len(shown) - n :]).to(shows)
        return CentredChosen(index, field.real.gather(1, index), patches, field, shows)

    def choose_best(self, batch: Batch, field: Field) -> list[Patches]:
        """Return per image the patches of the cells of highest attention, without duplicates."""
        return self._strongest(batch, field, self.eval_patches, False)

    def _strongest(self, batch: Batch, field: Field, n: int, jitter: bool) -> list[Patches]:
        """Return the moved patches of the n strongest cells of each image."""
        crowd = CROWD if self.centring else 1
        index = field.log_a.topk(min(n * crowd, field.log_a.shape[1]), dim=-1).indices
        patches = self._placed(batch, field, index, jitter)
        if self.centring:
            patches = [every[suppress_duplicates(every)[0]] for every in patches]
        return [every[:n] for every in patches]

    def _placed(self, batch: Batch, field: Field, index: Tensor, jitter: bool) -> list[Patches]:
        """Return patches at cells ``(b, n)``, moved onto the objects in them."""
        patches = field.patches(batch, index, jitter=jitter)
        if not self.centring:
            return patches
        return [
            centred(batch, i, image_patches, steps=self.centring)
            for i, image_patches in enumerate(patches)
        ]
