"""What a frozen encoder says of the images of a batch, each computed once and kept."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foveate.batch.colours import describe_colours
from foveate.batch.features import FeatureStore
from foveate.batch.types import Look, Patches, identity, to_rgb
from foveate.encoders.base import AbstractEncoder

if TYPE_CHECKING:
    from foveate.batch import Batch


class FrozenFeatures:
    """Glimpses, patches and maps of a batch as a frozen encoder sees them: nothing is augmented.

    Args:
        batch: whose images.
        store: where features are kept.
    """

    def __init__(self, batch: Batch, store: FeatureStore) -> None:
        self._batch, self._store = batch, store

    def look(self, encoder: AbstractEncoder, i: int) -> Look:
        """The glimpse of image i."""
        batch = self._batch

        def compute() -> list[Tensor]:
            with torch.no_grad():
                glimpse = to_rgb(batch.items[i].glimpse[None], batch.device)
                maps, seen = encoder.maps(batch._scaled(glimpse)), batch._foreground(i)
                return [*maps, encoder.features(maps, seen), describe_colours(glimpse[0], seen)]

        looked = [tensor.to(batch.device) for tensor in self._store.once(self._image(i), compute)]
        return Look(looked[:-2], *looked[-2:])

    def features(self, encoder: AbstractEncoder, patches: Sequence[Patches], size: int) -> Tensor:
        """What the frozen encoder says of patches, ``(sum n_i, n_features)``.

        Args:
            encoder: frozen.
            patches: per image.
            size: how many are computed at a time.
        """
        if not any(len(part) for part in patches):
            return torch.empty(0, encoder.n_features, device=self._batch.device)
        return self.rows("", patches, size, lambda x: encoder.features(encoder.maps(x)))

    def rows(
        self,
        kind: str,
        patches: Sequence[Patches],
        size: int,
        row: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Anything that a frozen network says of patches, ``(sum n_i, d)``.

        Args:
            kind: what tells these rows from others of the same patches.
            patches: per image, at least one in all.
            size: how many are computed at a time.
            row: what a group of crops gives, ``(m, d)``.
        """

        def compute(i: int, new: NDArray[np.int64]) -> Tensor:
            own = [patches[i][new] if j == i else part[:0] for j, part in enumerate(patches)]
            with torch.no_grad():
                chunks = self._batch.chunks(own, size, augment=False)
                return torch.cat([row(chunks(c)) for c in range(len(chunks))])

        found = []
        for i, part in enumerate(patches):
            if len(part):
                boxes = np.concatenate([part.origin_um, part.side_um[:, None]], 1)
                image = f"{kind}{self._image(i)}"
                found.append(self._store.rows(image, boxes, functools.partial(compute, i)))
        return torch.cat(found).to(self._batch.device)

    def map(self, i: int, compute: Callable[[], Tensor], *, kind: str = "map") -> Tensor:
        """One tensor that a frozen encoder gives of all of image i.

        Args:
            i: which image.
            compute: gives it.
            kind: what tells it from others of the same image.
        """

        def once() -> list[Tensor]:
            with torch.no_grad():
                return [compute()]

        (found,) = self._store.once(f"{kind} {self._image(i)}", once)
        return found.to(self._batch.device)

    def _image(self, i: int) -> str:
        return identity(self._batch.items[i], self._batch.view)
